"""`poller backup`: a copy of the ledger, beside a running service or without one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from poller.cli import bootstrap
from poller.errors import LedgerUnavailable
from poller.ledger import backend_at


def backup(paths: Sequence[Path], *, target: Path) -> int:
    """Write the copy and say so; CannotStart or LedgerUnavailable (73) when it cannot be made."""
    target = target.absolute()
    settings, owner = bootstrap.load_as_owner(paths)
    try:
        size = asyncio.run(backend_at(settings.state_url).backup(target))
    except LedgerUnavailable as error:
        if owner is None or not isinstance(error.__cause__, PermissionError):
            raise
        raise LedgerUnavailable(
            f"user {owner}, which this command became because it owns the state, cannot write "
            f"{target}: name a directory where that user may write"
        ) from error
    print(f"Wrote {target}: {size} bytes, checked through.")
    return 0
