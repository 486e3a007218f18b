"""`poller backup`: copy the ledger, with or without a running service."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from poller.cli import bootstrap
from poller.errors import LedgerUnavailable
from poller.ledger import backend_of


def backup(paths: Sequence[Path], *, target: Path) -> int:
    """Write the copy and print its size. Raises CannotStart or LedgerUnavailable (73)."""
    target = target.absolute()
    settings, owner = bootstrap.load_as_owner(paths)
    try:
        size = asyncio.run(backend_of(settings, os.environ).backup(target))
    except LedgerUnavailable as error:
        if owner is None or not isinstance(error.__cause__, PermissionError):
            raise
        raise LedgerUnavailable(
            f"this command runs as user {owner}, who owns the state, and {owner} cannot write "
            f"{target}: name a directory where {owner} may write"
        ) from error
    print(f"Wrote {target}: {size} bytes, checked to the end.")
    return 0
