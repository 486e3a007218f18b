"""`poller check`: is the configuration right, and does eFax accept it?"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from poller import advice, lock
from poller.cli import bootstrap
from poller.cli.lookup import counted, name_of
from poller.cli.owner import require_readable
from poller.cli.status_command import look
from poller.config.model import Config, SecretRef
from poller.errors import CannotStart, ConfigError, StorageConflict, StorageUnusable
from poller.ledger import backend_of, meta, require_usable
from poller.problems import not_in_time
from poller.status import by_stream
from poller.store import storage_of
from poller.stream import Direction
from poller.topic import see

_WELL = "ok"


def check(paths: Sequence[Path], *, online: bool) -> int:
    """Print the findings; return 0 if all is well, 1 if eFax or the storage refuses something.

    Raises LockHeld (75) for `online` if a sign-in would end the token of another command. Raises
    ConfigError for a file that root can read and the service's user cannot.
    """
    settings, owner = bootstrap.load_as_owner(paths)
    if owner is not None:
        asked = paths or [bootstrap.DEFAULT_CONFIG]
        require_readable([*asked, *settings.files, *settings.certificates], owner)
    files = ", ".join(str(path) for path in settings.files)
    print(
        f"The configuration is valid: {counted(len(settings.accounts), 'account', 'accounts')}, "
        f"{counted(len(settings.users), 'user', 'users')}, from {files}."
    )
    for sentence in advice.consequences(settings):
        print(f"on: {sentence}")
    for sentence in advice.warnings(settings, bootstrap.now()):
        print(f"warning: {sentence}")
    if online and bootstrap.is_running(settings):
        return _ask_the_daemons_ledger(settings)
    lacks = list(_lacks(settings))
    for sentence in lacks:
        print(sentence)
    if not online:
        return 1 if lacks else 0
    if lock.is_held(settings.state_directory):
        raise lock.refusal(settings.state_directory)
    bootstrap.read_all_secrets(settings)
    from poller.cli import online as efax

    return max(asyncio.run(efax.ask(settings)), 1 if lacks else 0)


def _lacks(settings: Config) -> Iterator[str]:
    """Say what the service could not start or store with; what only its user may see is left out."""
    if os.access(settings.state_directory, os.W_OK):
        try:
            require_usable(backend_of(settings, os.environ))
        except CannotStart as error:
            yield f"the service cannot start: {error.told}"
    if (lack := asyncio.run(_storage_trouble(settings))) is not None:
        yield f"nothing can be stored: {lack}"


async def _storage_trouble(settings: Config) -> str | None:
    """Look at the storage as the service does; return None if only the service's user could.

    Before the first start the directory and its marker may be missing.
    """
    if os.access(settings.state_directory, os.W_OK):
        with suppress(CannotStart):  # no ledger yet, or one that cannot be opened
            async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
                reason: str | None = (await bootstrap.storage_now(settings, ledger))["reason"]
                if await ledger.read(meta.value, meta.STORAGE_ID) is not None:
                    return reason
    if settings.storage.url is None and not os.access(settings.storage.directory, os.W_OK):
        return None
    with closing(storage_of(settings)) as storage:
        try:
            await storage.ask(lambda store: store.prove())
        except (StorageUnusable, StorageConflict) as error:
            return error.told
        except ConfigError:  # only the service can read the key of its bucket
            return None
    return None


def _ask_the_daemons_ledger(settings: Config) -> int:
    """Show the daemon's findings: a second sign-in would end its token."""
    print("The service is running, so this command does not sign in. The service reports:")
    shown = asyncio.run(look(settings))
    streams = [row for row in by_stream(shown) if not row["removed"]]
    users = [row for row in streams if row["direction"] == Direction.RECEIVED]
    suspended = [account for account in shown["accounts"] if account["suspended_until"]]
    for account in suspended:
        print(f"{account['account']}: suspended: {account['reason']}")
    for row in streams:
        print(f"{name_of(row)}: {_found(row)}")
    unwell = {(row["account"], row["user_id"]) for row in streams if _found(row) != _WELL}
    well = len(users) - len(unwell)
    print(f"{well} of {counted(len(users), 'user is', 'users are')} polled without errors.")
    amiss = list(_amiss(settings, shown, streams))
    for sentence in amiss:
        print(sentence)
    return 1 if suspended or amiss or unwell else 0


def _amiss(
    settings: Config, shown: Mapping[str, Any], streams: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    # Users added, or moved to another account, since the service last read the configuration.
    known = {(user["account"], user["user_id"]) for user in streams}
    for user in settings.users:
        if (user.account, user.user_id) not in known:
            yield (
                f"{'/'.join(user.names)}: the service does not know this user yet; reload it "
                "(`systemctl reload poller`) or restart it"
            )
    # The secrets that the next reload or start cannot read, as far as this command can tell.
    ours = [one for one in settings.secrets if _is_for_us(one)]
    yield from map(str, bootstrap.unreadable(ours))
    if not shown["storage"]["usable"]:
        yield see(f"nothing is fetched: {shown['storage']['reason']}", "storage-unusable")
    for row in streams:
        if row["failing"]:
            yield f"{name_of(row)}: faxes cannot be fetched; `poller status` says why"
    if (late := not_in_time(dict(shown))) is not None:
        yield late


def _is_for_us(reference: SecretRef) -> bool:
    """Return whether this command can read the secret: it has not the service's environment."""
    return reference.kind == "file" or (
        reference.kind == "credential" and "CREDENTIALS_DIRECTORY" in os.environ
    )


def _found(row: Mapping[str, Any]) -> str:
    if row["last_error"] is not None:
        return str(row["last_error"])
    if row["refused"]:
        return "refused"
    return "not polled yet" if row["last_success_at"] is None else _WELL
