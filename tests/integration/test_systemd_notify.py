import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller import systemd


class Manager:
    """The socket at which systemd would receive notifications."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    manager = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield manager
    manager.socket.close()


@pytest.mark.parametrize(
    ("fields", "heard"),
    [
        pytest.param({"READY": 1}, ["READY=1"], id="ready"),
        pytest.param({"READY": 1, "STATUS": "3 users"}, ["READY=1", "STATUS=3 users"], id="how"),
        pytest.param({"STATUS": "a\nb"}, ["STATUS=a b"], id="status-on-one-line"),
        pytest.param({"STOPPING": 1}, ["STOPPING=1"], id="stopping"),
        pytest.param({"WATCHDOG": 1}, ["WATCHDOG=1"], id="watchdog"),
    ],
)
def test_systemd_hears_it(manager: Manager, fields: dict[str, str | int], heard: list[str]) -> None:
    systemd.notify(**fields)
    assert manager.heard() == heard


def test_a_reload_says_when_it_began(manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    systemd.reloading()
    word, since = manager.heard()
    assert word == "RELOADING=1"
    assert before <= int(since.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"poller-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    systemd.notify(READY=1)
    assert manager.heard() == ["READY=1"]
    manager.socket.close()


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("", id="empty"),
        pytest.param("vsock:2:1234", id="another-family"),
        pytest.param("/nowhere/notify", id="nobody-there"),
        pytest.param("/" + "x" * 200, id="too-long"),
    ],
)
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify(READY=1)
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify(READY=1)


def test_a_manager_that_does_not_read_holds_nothing_up(manager: Manager) -> None:
    started = time.monotonic()
    for _ in range(2000):
        systemd.notify(STATUS="x" * 1000)
    assert time.monotonic() - started < 60  # otherwise it would take forever


@pytest.mark.parametrize(
    ("waits_us", "pid", "interval"),
    [
        pytest.param("60000000", None, 60.0, id="watched"),
        pytest.param("60000000", str(os.getpid()), 60.0, id="watched-by-number"),
        pytest.param("60000000", "1", None, id="another-process-is-watched"),
        pytest.param("0", None, None, id="off"),
        pytest.param("soon", None, None, id="no-number"),
        pytest.param(None, None, None, id="not-watched"),
    ],
)
def test_the_watchdog_is_fed_only_where_systemd_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
    waits_us: str | None,
    pid: str | None,
    interval: float | None,
) -> None:
    for name, value in (("WATCHDOG_USEC", waits_us), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval() == interval
