"""A stop continues, with the deadline that the configuration gives it now, or with none."""

import threading

import pytest

from poller.cli.exit import StopDeadline


def test_stop_continues_without_a_new_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with StopDeadline() as deadline:
        deadline.start(60)


def test_deadline_is_told_when_the_stop_begins() -> None:
    with StopDeadline() as deadline:
        deadline.start(60)
        deadline.start(1)
        assert deadline._timer is not None
        assert deadline._timer.interval == 60
    deadline._timer.join(5)
    assert not deadline._timer.is_alive()
