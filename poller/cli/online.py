"""`poller check --online`: does eFax accept the configuration."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from poller import config, log
from poller.client import Client, SignInStore, Unobserved
from poller.clock import SystemClock
from poller.config.model import Account, Config, User
from poller.errors import ApiError, CannotStart
from poller.ingest.account import SignIns
from poller.ledger import Ledger
from poller.window import Interval

_LOOK_BACK = timedelta(hours=1)


async def ask(settings: Config) -> int:
    """Call /health, sign in, and list an hour of every user; 0 when eFax accepts all of it, else 1."""
    async with _sign_ins(settings) as sign_ins:
        results = [await _ask_account(settings, account, sign_ins) for account in settings.accounts]
    return 0 if all(results) else 1


async def _ask_account(settings: Config, account: Account, sign_ins: SignInStore) -> bool:
    secret = config.read_secret(account.api_key, os.environ)
    log.register_secret(secret)
    clock = SystemClock()
    client = Client(
        account,
        api_key=lambda: secret,
        retry=settings.retry,
        clock=clock,
        sign_ins=sign_ins,
        random=random.random,
        observer=_Discreet(),
    )
    async with client:
        well = await _try(f"{account.name}: /health", client.health())
        if not await _try(f"{account.name}: sign-in", client.sign_in()):
            print(f"{account.name}: without a sign-in no user was asked")
            return False
        now = client.server_clock.now(clock.now()) or clock.now()
        answers = await asyncio.gather(
            *(
                _try(f"{account.name}/{user.name}: list", _list(client, user, now))
                for user in account.users
            )
        )
    return well and all(answers)


async def _list(client: Client, user: User, now: datetime) -> None:
    await client.list_received(user, Interval(now - _LOOK_BACK, now), 0)


async def _try(what: str, call: "asyncio.Future[None] | object") -> bool:
    try:
        await call  # type: ignore[misc]
    except ApiError as error:
        print(f"{what}: {log.redact(str(error))}")
        return False
    print(f"{what}: ok")
    return True


class _Memory:
    """A SignInStore where there is no ledger yet."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, datetime]] = {}

    async def load(self, app_id: str) -> tuple[float, datetime] | None:
        return self._kept.get(app_id)

    async def save(self, app_id: str, level: float, at: datetime) -> None:
        self._kept[app_id] = (level, at)


@asynccontextmanager
async def _sign_ins(settings: Config) -> AsyncIterator[SignInStore]:
    """The sign-in budget holds over restarts and over checks, once there is a ledger."""
    try:
        ledger = await Ledger.open(settings.state_url, create=False)
    except CannotStart:
        yield _Memory()
        return
    async with ledger:
        yield SignIns(ledger)


class _Discreet(Unobserved):
    """Sees to it that nothing shows a token."""

    def signed_in(self, reason: str, token: str) -> None:  # noqa: ARG002 - the protocol's
        log.register_secret(token)
