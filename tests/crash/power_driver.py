"""What is done in a fork before a run that is recorded, or that has a planted bug.

With record.c preloaded the run is recorded; each of the program's own fsyncs tells the recorder
which place in the code asked for it.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from poller.ledger import Ledger, jobs
from poller.ledger.sqlite import engine
from tests.crash import planted

_PRODUCT = f"{os.sep}poller{os.sep}"


def _record() -> None:
    library = ctypes.CDLL(None)
    here = Path.cwd()
    library.record_begin(str(here / "record").encode(), str(here / "disk-and-state").encode())
    tell, sync = library.record_site, os.fsync

    def fsync(fd: int) -> None:
        tell(_place(sys._getframe(1)).encode())
        sync(fd)

    os.fsync = fsync  # type: ignore[assignment]
    write = Ledger.write_together

    async def write_together(self: Ledger, command: Any, item: Any) -> None:
        await write(self, command, item)
        if command is jobs.stored:
            library.record_stored(Path(item.file.file).stem.encode())

    Ledger.write_together = write_together  # type: ignore[method-assign]


def _place(frame: FrameType | None) -> str:
    """Name the line that wants this fsync, and the caller of its function."""
    named: list[str] = []
    while frame is not None and len(named) < 2:
        file = frame.f_code.co_filename
        if _PRODUCT in file and not file.endswith(f"store{os.sep}syscalls.py"):
            name = file.rpartition(_PRODUCT)[2]
            named.append(f"{name}:{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " from ".join([named[0], *(one.rpartition(":")[0] for one in named[1:])])


def _pragmas(**changes: str | int) -> Callable[[], None]:
    def plant() -> None:
        engine._PRAGMAS.update(changes)

    return plant


BUGS: dict[str, Callable[[], None]] = {
    "synchronous off": _pragmas(synchronous=0),
    "synchronous normal": _pragmas(synchronous=1),
    "journal deleted, synchronous full": _pragmas(journal_mode="delete", synchronous=2),
    "journal in memory": _pragmas(journal_mode="memory"),
    "write-ahead log, synchronous normal": _pragmas(journal_mode="wal", synchronous=1),
    "ledger before link": planted.row_before_link,
    "published before the ticket": planted.published_before_the_ticket,
}


def prepare(run: dict[str, str]) -> None:
    """Record what is done in the working directory, with a `bug` planted unless it is empty."""
    if run["way"] == "link":
        planted.without_rename()
    _record()
    if run["bug"]:
        BUGS[run["bug"]]()
