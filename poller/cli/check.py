"""`poller check`: is the configuration right, and does eFax accept it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from poller.cli import setup
from poller.cli.naming import counted
from poller.config.model import Config
from poller.ledger import UserRow


def check(paths: Sequence[Path], *, online: bool) -> int:
    """Print what was found; 0 when all is well, 1 when eFax refuses something."""
    settings = setup.load(paths)
    files = ", ".join(str(path) for path in settings.files)
    print(
        f"The configuration is valid: {counted(len(settings.accounts), 'account', 'accounts')}, "
        f"{counted(len(settings.users), 'user', 'users')}, from {files}."
    )
    if not online:
        return 0
    if setup.is_running(settings):
        return asyncio.run(_ask_the_daemons_ledger(settings))
    setup.read_all_secrets(settings)
    from poller.cli import online as efax

    return asyncio.run(efax.ask(settings))


async def _ask_the_daemons_ledger(settings: Config) -> int:
    """A sign-in of ours would end the daemon's token, so its own findings are shown."""
    print("poller runs on this state, so it is not signed in a second time; this is what it found:")
    now = setup.now()
    async with setup.ledger_beside(settings, readonly=True) as ledger:
        accounts = await ledger.accounts(include_removed=False)
        users = await ledger.users(include_removed=False)
    suspended = [account for account in accounts if account.suspended_until is not None]
    for account in suspended:
        print(f"{account.account}: suspended: {account.reason}")
    for user in users:
        print(f"{user.account}/{user.user}: {_found(user)}")
    well = sum(_is_well(user, now) for user in users)
    print(f"{well} of {counted(len(users), 'user is', 'users are')} polled without trouble.")
    return 1 if suspended or well < len(users) else 0


def _is_well(user: UserRow, now: datetime) -> bool:
    refused = user.refused_until is not None and user.refused_until > now
    return user.last_success_at is not None and user.last_error is None and not refused


def _found(user: UserRow) -> str:
    if user.last_error is not None:
        return user.last_error
    return "not polled yet" if user.last_success_at is None else "ok"
