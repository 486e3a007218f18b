"""`poller backup`: a copy of the ledger, beside a running daemon or without one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from poller.cli import setup
from poller.ledger import backup as copy_ledger


def backup(paths: Sequence[Path], target: Path) -> int:
    """Write the copy and say so; CannotStart or LedgerUnavailable (73) when it cannot be made."""
    target = target.absolute()
    settings = setup.load(paths)
    size = asyncio.run(copy_ledger(settings.state_url, target))
    print(f"Wrote {target}: {size} bytes, checked through.")
    return 0
