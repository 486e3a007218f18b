"""Lines go to an output whose writes may never end: a stopped terminal, or a file on a hanging share."""

import io
import json
import os
import pty
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from poller import log
from poller.cli import stdio
from poller.log import output as module
from poller.log.output import LineOutput

WITHIN_S = 60


def kept_open(descriptor: int) -> TextIO:
    """A stream that keeps its number for good: queued lines must not reach another file."""
    return os.fdopen(descriptor, "w", closefd=False)


class Terminal:
    """A terminal that shows nothing until somebody reads."""

    def __init__(self) -> None:
        self._reading, writing = pty.openpty()
        tty.setraw(writing)
        self.stream = kept_open(writing)

    def read_until(self, end: bytes) -> list[str]:
        shown = b""
        while not shown.endswith(end):
            shown += os.read(self._reading, 1 << 16)
        return shown.decode().splitlines()

    def close(self) -> None:
        os.close(self._reading)  # ends a write that hangs


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(module, "_HANG_TIMEOUT_S", 0.01)
    made = Terminal()
    yield made
    made.close()


class Share:
    """A file whose writes hang while the share does."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.stream = kept_open(os.open(path, os.O_WRONLY | os.O_CREAT))
        self.answers = threading.Event()
        self.errors: list[OSError] = []
        write = os.write

        def hanging(descriptor: int, data: bytes) -> int:
            if descriptor == self.stream.fileno():
                self.answers.wait(WITHIN_S)
                if self.errors:
                    raise self.errors.pop()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", hanging)

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    monkeypatch.setattr(module, "_HANG_TIMEOUT_S", 0.01)
    made = Share(tmp_path / "log", monkeypatch)
    yield made
    made.answers.set()


def test_a_stopped_terminal_holds_nobody_up_and_shows_the_lines_in_order_later(
    terminal: Terminal,
) -> None:
    output = LineOutput(terminal.stream)
    written = 0
    while not output.lost:
        output.write(f"{written} " + "x" * 5000)
        written += 1
    lost = output.lost
    assert output.take_lost() == 0  # no line about it while none gets through
    shown = terminal.read_until(f"{written - lost - 1} {'x' * 5000}\n".encode())
    assert [int(line.split()[0]) for line in shown] == list(range(written - lost))
    output.flush(WITHIN_S)
    assert (output.take_lost(), output.take_lost()) == (lost, 0)


def test_lines_that_a_terminal_lost_are_reported_when_it_resumes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUEUE_BYTES", 100_000)
    log.configure("info", "json", b"k" * 32, terminal.stream)
    output = log._configured.output
    assert output is not None
    while output.lost < 3:
        log.event("service-started", "x" * 5000)
    lost = output.lost
    reading = threading.Thread(target=terminal.read_until, args=(b"\0",), daemon=True)
    reading.start()
    output.flush(WITHIN_S)
    assert output.lost == lost
    log.event("service-stopped", "Over.")
    assert output.lost == 0
    os.write(terminal.stream.fileno(), b"\0")
    reading.join(WITHIN_S)
    log.configure("info", "json", None, io.StringIO())


def test_a_share_that_hangs_holds_nobody_up_and_gets_every_line_that_was_queued(
    share: Share,
) -> None:
    output = LineOutput(share.stream)
    for number in range(50):
        output.write(str(number))
    assert (share.lines(), output.lost) == ([], 0)
    output.flush(0.01)  # it has its deadline
    share.answers.set()
    output.flush(WITHIN_S)
    assert share.lines() == [str(number) for number in range(50)]
    output.write("synchronous again")
    assert share.lines()[-1] == "synchronous again"


def test_a_line_of_the_queue_that_cannot_be_written_is_counted(share: Share) -> None:
    output = LineOutput(share.stream)
    share.errors = [OSError(28, "No space left on device")]
    for text in ("lost", "kept"):
        output.write(text)
    share.answers.set()
    output.flush(WITHIN_S)
    assert (share.lines(), output.take_lost()) == (["kept"], 1)


def test_a_line_is_in_a_file_when_it_has_been_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HANG_TIMEOUT_S", WITHIN_S)
    with (tmp_path / "log").open("w") as stream:
        output = LineOutput(stream)
        for number in range(200):
            output.write(str(number))
            assert (tmp_path / "log").read_text().endswith(f"{number}\n")


def test_threads_that_write_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        output = LineOutput(stream)

        def write(who: int) -> None:
            for number in range(100):
                output.write(f"{who} {number}")

        threads = [threading.Thread(target=write, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        output.flush(WITHIN_S)
    lines = (tmp_path / "log").read_text().splitlines()
    for who in range(8):
        mine = [line for line in lines if line.startswith(f"{who} ")]
        assert mine == [f"{who} {number}" for number in range(100)]
    assert len(lines) == 800


def test_without_a_thread_lines_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with (tmp_path / "log").open("w") as stream:
        output = LineOutput(stream)
        output.write("written")
    assert ((tmp_path / "log").read_text(), output.lost) == ("written\n", 0)


def test_the_thread_ends_when_it_is_idle_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.001)
    with (tmp_path / "log").open("w") as stream:
        output = LineOutput(stream)
        for text in ("first", "second"):
            output.write(text)
            if (idle := output._thread) is not None:
                idle.join(WITHIN_S)
            assert output._thread is None
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_a_child_that_was_forked_writes_too(tmp_path: Path) -> None:
    program = """
import os, sys
from poller.log.output import LineOutput
output = LineOutput()
output.write("parent")
if os.fork() == 0:
    output.write("child")
    os._exit(0)
os.wait()
"""
    with (tmp_path / "log").open("w") as stdout:
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], stdout=stdout, check=True)
    assert (tmp_path / "log").read_text() == "parent\nchild\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_process_ends_although_its_terminal_takes_nothing(stream: str) -> None:
    program = """
import sys
from poller import log
from poller.cli import stdio
from poller.cli.exit import leave
from poller.log import output
output._HANG_TIMEOUT_S = stdio._HANG_TIMEOUT_S = 0.01
log.configure("info", "json", b"k" * 32)
for _ in range(100):
    log.event("service-started", "x" * 5000)
stdio.complain("poller: over")
sys.exit(leave(7))
"""
    terminal = Terminal()
    both = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while_full = LineOutput(terminal.stream)
    while not while_full._stuck:
        while_full.write("x" * 4000)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        **{**both, stream: terminal.stream},  # type: ignore[call-overload]
        timeout=WITHIN_S,
        check=False,
    )
    assert ended.returncode == 7
    terminal.close()


def test_the_last_lines_and_the_sentence_before_an_exit_are_seen(tmp_path: Path) -> None:
    program = """
import os
from poller import log
from poller.cli import stdio
log.configure("info", "json", b"k" * 32)
for number in range(100):
    log.event("service-stopped", str(number))
stdio.complain("poller: \\udce4 and ä")
os._exit(0)
"""
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        environ = {**os.environ, "PYTHONUTF8": "1"}
        subprocess.run(
            [sys.executable, "-c", program], stdout=stdout, stderr=stderr, env=environ, check=True
        )
    said = [json.loads(line)["message"] for line in out.read_text().splitlines()]
    assert said == [str(number) for number in range(100)]
    assert err.read_text() == "poller: \\udce4 and ä\n"


def test_complaining_without_a_stderr_says_nothing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    stdio.complain("nobody hears it")
    with suppress(ValueError):
        assert capfd.readouterr().out == ""


_LATE = """
import sys
from poller.log.output import LineOutput

class Late:
    output = LineOutput()
    def __del__(self, output=output, is_finalizing=sys.is_finalizing):
        output.write(f"the interpreter ends: {is_finalizing()}")

late = Late()
"""


def test_line_that_comes_while_the_interpreter_ends_is_written_and_the_process_ends(
    tmp_path: Path,
) -> None:
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", _LATE], stdout=log, check=True, timeout=60)
    assert (tmp_path / "log").read_text() == "the interpreter ends: True\n"
