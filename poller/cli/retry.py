"""`poller retry`: make quarantined or named faxes due now; a running daemon fetches them."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from poller.cli import setup
from poller.config.model import Config
from poller.errors import PollerError, UsageError
from poller.ledger import FaxRow, Ledger


class UnknownFax(PollerError):
    """No such fax in the ledger; exit 1."""


def retry(paths: Sequence[Path], fax_ids: Sequence[str], *, as_json: bool) -> int:
    """Make faxes due; raises UnknownFax (1), and UsageError (2) for an id that two users have."""
    settings = setup.load(paths)
    count = asyncio.run(_retry(settings, fax_ids))
    if as_json:
        print(json.dumps({"made_due": count}))
    else:
        running = setup.is_running(settings)
        who = "The running daemon fetches" if running else "The next run fetches"
        print(f"{count} faxes are due now. {who} them.")
    return 0


async def _retry(settings: Config, fax_ids: Sequence[str]) -> int:
    async with setup.ledger_beside(settings, readonly=False) as ledger:
        if not fax_ids:
            return await ledger.make_due(None, setup.now())
        rows = [await find_one(ledger, fax_id) for fax_id in fax_ids]
        return await ledger.make_due([row.id for row in rows], setup.now())


async def find_one(ledger: Ledger, name: str) -> FaxRow:
    """Find the fax `FAX_ID` or `ACCOUNT/USER/FAX_ID`; a fax id may hold slashes itself."""
    found = await ledger.find(name)
    account, _, rest = name.partition("/")
    user, _, fax_id = rest.partition("/")
    if fax_id:
        found += await ledger.find(fax_id, account, user)
    if not found:
        raise UnknownFax(f"the ledger knows no fax {name}; `poller status` shows its users")
    if len(found) > 1:
        names = ", ".join(f"{row.account}/{row.user_name}/{row.fax_id}" for row in found)
        raise UsageError(f"{name} is ambiguous; name one of {names}")
    return found[0]
