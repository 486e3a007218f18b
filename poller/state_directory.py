"""Make `state.directory` and the ledger's directory so that they survive a power failure."""

import os
from contextlib import suppress
from pathlib import Path


def make(directory: Path) -> None:
    """Make the directory (0700) and missing parents, and sync every name; blocking.

    Also sync the name of an existing directory: a run that died may have made it just now. If we may
    not open the directory above, we did not make it.
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
    """Sync a file, or the names in a directory; blocking."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
