"""The processes that check documents, as /proc shows them; each names the process that started it."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tests.ready_checker import NAME

_PROGRAM = b"from poller.documents.child import main"
_MINE = Path("/proc/self/ns/pid")


def checking_for(pid: int) -> list[int]:
    """Return those that this process has started."""
    return [process for process, parent in _found() if parent == pid]


def orphans() -> list[int]:
    """Return those whose starter has ended; an ended process has no command line."""
    return [process for process, parent in _found() if not Path(f"/proc/{parent}").exists()]


def _found() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not _MINE.samefile(entry / "ns/pid"):  # a guest, whose numbers mean other processes
                continue
            name = (entry / "comm").read_text()
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if name.startswith(NAME) and any(words):
            yield int(entry.name), int(name.removeprefix(NAME))
        for program, parent in pairwise(words):
            if _PROGRAM in program:
                yield int(entry.name), int(parent)
