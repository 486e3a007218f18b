"""`state.directory` and that of the ledger: made so that a power failure cannot take them."""

import os
from contextlib import suppress
from pathlib import Path


def make(directory: Path) -> None:
    """Make it (0700) and its parents where they are missing, every name durable; blocking.

    The name of what is there is synced as well: a run that was killed may have made it just now.
    Whoever may not open the directory above it has not made it.
    """
    at, missing = directory.absolute(), list[Path]()
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    with suppress(PermissionError):
        sync(at.parent)
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == missing[0] else 0o777, exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable; blocking."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
