"""`poller check --online`: does eFax accept the configuration?"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timedelta

from poller import config, log
from poller.cli import bootstrap
from poller.client import Client, Observer, Ports
from poller.clock import Clock, SystemClock
from poller.config.model import Account, Config, User
from poller.efax.responses import Page
from poller.errors import ApiError, CannotStart, UserRefused
from poller.ingest.account import SignIns, all_refused
from poller.ingest.empties import EmptyLists
from poller.ingest.sent_lists import look
from poller.ingest.stream_state import load_streams
from poller.ledger import Ledger, streams
from poller.sealing import SealedToken
from poller.stream import Direction, label
from poller.window import Interval

_LOOK_BACK = timedelta(hours=1)


async def ask(settings: Config) -> int:
    """Call /health, sign in, and list an hour of every user; return 0 if eFax accepts all, else 1."""
    ledger = None
    async with AsyncExitStack() as opened:
        with suppress(CannotStart):  # no ledger before the first start
            ledger = await opened.enter_async_context(
                bootstrap.ledger_beside(settings, readonly=False)
            )
        results = [await _ask_account(settings, account, ledger) for account in settings.accounts]
    return 0 if all(results) else 1


async def _ask_account(settings: Config, account: Account, ledger: Ledger | None) -> bool:
    secret = config.read_secret(account.api_key, os.environ)
    log.register_secret(secret)
    clock = SystemClock()
    # With a ledger, the sign-in budget and the token hold across restarts and checks.
    sign_ins = _Memory() if ledger is None else SignIns(ledger)
    observer = _Discreet()
    async with Client(
        account,
        Ports(clock, random.random, sign_ins, observer),
        api_key=lambda: secret,
        retry=settings.retry,
    ) as client:
        well = await _succeeds(f"{account.name}: /health", client.health())
        if not await _succeeds(f"{account.name}: sign-in", client.sign_in(), observer.how):
            print(f"{account.name}: the sign-in failed, so its users were not tried")
            return False
        now = client.server_clock.now(clock.now()) or clock.now()
        answers = await asyncio.gather(*(_list(client, user, now) for user in account.users))
        if len(answers) > 1 and all(isinstance(one, UserRefused) for one in answers):
            print(f"{account.name}: {all_refused(answers[0])}")
            return False
        for user, answer in zip(account.users, answers, strict=True):
            said = "ok" if isinstance(answer, Page) else log.redact(str(answer))
            print(f"{user.account}/{user.name}: list: {said}")
        well = await _list_sent(client, now) and well
        pages = [one for one in answers if isinstance(one, Page)]
        if len(pages) < len(answers):
            return False
        return await _are_believed(client, clock, pages, ledger) and well


async def _list(client: Client, user: User, now: datetime) -> Page | ApiError:
    try:
        return await client.list_received(user, Interval(now - _LOOK_BACK, now), 0)
    except ApiError as error:
        return error


async def _list_sent(client: Client, now: datetime) -> bool:
    """List an hour of the sent faxes of each user who archives them."""
    archiving = [user for user in client.account.users if user.sent.archive != "none"]
    hour = Interval(now - _LOOK_BACK, now)
    looks = [
        _succeeds(f"{label(*user.names, Direction.SENT)}: list", look(client, user, hour))
        for user in archiving
    ]
    return all(await asyncio.gather(*looks))


async def _are_believed(
    client: Client, clock: Clock, pages: Sequence[Page], ledger: Ledger | None
) -> bool:
    """Return whether empty lists are credible; the service judges them in the same way."""
    if ledger is None or not pages or any(page.marks for page in pages):
        return True
    users = {user.user_id: user for user in client.account.users}
    rows = [
        row
        for row in await ledger.read(streams.all_streams, include_removed=False)
        if row.app_id == client.account.app_id
        and row.user_id in users
        and row.direction is Direction.RECEIVED
    ]
    if not rows:
        return True
    states = await load_streams(
        ledger, [(users[row.user_id], row.id, row.direction) for row in rows]
    )
    empties = EmptyLists(client, ledger, clock, {state.id: state for state in states})
    empties.memory.is_a_look = True
    try:
        for page in pages:
            await empties.spelling.believe(page.shape, is_end=False)
        await empties.prove()
    except ApiError as error:
        reason = client.suspension.reason or str(error)
        print(f"{client.account.name}: {log.redact(reason)}")
        return False
    return True


async def _succeeds(
    what: str, call: Awaitable[None], how: Callable[[], str] = lambda: "ok"
) -> bool:
    try:
        await call
    except ApiError as error:
        print(f"{what}: {log.redact(str(error))}")
        return False
    print(f"{what}: {how()}")
    return True


class _Memory:
    """A SignInStore for use before there is a ledger."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, datetime]] = {}

    async def load(self, app_id: str) -> tuple[float, datetime] | None:
        return self._kept.get(app_id)

    async def save(self, app_id: str, level: float, at: datetime) -> None:
        self._kept[app_id] = (level, at)

    async def token(self, app_id: str) -> SealedToken | None:  # noqa: ARG002 - SignInStore's
        return None

    async def save_token(self, app_id: str, kept: SealedToken) -> None:
        """Forget it: there is no ledger."""


class _Discreet(Observer):
    """Registers each token as a secret, so that no output shows it."""

    _took_up = False

    def signed_in(self, reason: str, token: str) -> None:  # noqa: ARG002 - Observer's signature
        log.register_secret(token)

    def took_up(self, token: str) -> None:
        log.register_secret(token)
        self._took_up = True

    def how(self) -> str:
        """Return how the sign-in went, if it did not fail."""
        return "not needed, the last token is used" if self._took_up else "ok"
