"""`poller selftest`: send a page to the user's own number and time it until it is stored."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from poller.cli import bootstrap, stdio
from poller.cli.console import answer, progress, say
from poller.cli.follow import GONE_S, LOOK_S
from poller.cli.foreground import account_of, keep_only, work_or_follow
from poller.cli.lookup import configured_user, received_stream
from poller.config.model import Config, User
from poller.documents.checkers import Checkers
from poller.errors import PollerError, UsageError
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import SELFTEST, ask_to_send, drawn, new_page, withdraw
from poller.ingest.sending import Sender
from poller.ingest.stream_state import StreamState
from poller.ledger import Ledger, SendRow, SendState, sends
from poller.page_progress import what_is_missing
from poller.status import instant
from poller.store import store_of

_POLL_EVERY_S = 5.0
_LOOK_S = 1.0
_TRANSMITTED_WITHIN_S = 30.0  # after the file: eFax may report it a little later
_STEPS = ("accepted", "transmitted", "listed", "stored")
_NEVER = datetime.max.replace(tzinfo=UTC)


def selftest(paths: Sequence[Path], *, key: str, within: timedelta, as_json: bool) -> int:
    """Send a page and wait for its file; return 1 and say which step failed. Raises UsageError."""
    settings = bootstrap.load(paths)
    user = configured_user(settings, key)
    if user.number is None:
        raise UsageError(
            f'accounts.{user.account}.users.{user.name}.number is missing: add number: "1…", '
            "the user's own fax number, where the self-test sends its page"
        )
    if not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # before it changes anything
    row = work_or_follow(
        settings,
        "selftest",
        sys.stderr,
        work=partial(_work, key, within),
        follow=partial(_follow, settings, user, within),
        key=key,
        sends=True,
    )
    problem = _problem(settings, row)
    report = shown(row, problem)
    answer(report, lambda: _print(report), as_json=as_json, indent=2)
    return 0 if problem is None else 1


def shown(row: SendRow, problem: str | None) -> dict[str, Any]:
    """Return the JSON of `selftest`; a step that did not happen is null.

    `transmitted_at` and `listed_at` are the times when poller saw it.
    """
    return {
        "ok": problem is None,
        "problem": problem,
        "transaction_id": row.transaction_id,
        "code": row.code,
        "fax_id": row.fax_id,
        "received_fax_id": row.arrived_fax_id,
        "file": row.file,
        "asked_at": row.asked_at,
        "accepted_at": row.accepted_at,
        "transmitted_at": row.transmitted_at,
        "listed_at": row.arrived_at,
        "stored_at": row.stored_at,
    }


def _problem(settings: Config, row: SendRow) -> str | None:
    """Return the step that did not happen, or the fault of the file; None if all is well."""
    if not row.is_stored or row.file is None:
        return what_is_missing(row)
    if settings.storage.url is not None:
        return _recorded_problem(store_of(settings).where(row.file), row)
    path = settings.storage.directory / row.file
    checkers = Checkers()
    try:
        with path.open("rb") as file:
            document = checkers.inspect(file.fileno())
    except OSError as error:
        return f"{path} is stored but cannot be opened: {error.strerror}"
    except PollerError as error:
        return f"{path} is stored but cannot be checked: {error}"
    finally:
        checkers.close()
    if document.problem is not None:
        return f"{path} is stored but damaged: {document.problem}"
    return _pages_problem(str(path), document.pages)


def _recorded_problem(path: str, row: SendRow) -> str | None:
    """Return what the service found: this command may have no key of the bucket."""
    return f"{path} is stored but damaged" if row.damaged else _pages_problem(path, row.pages)


def _pages_problem(path: str, pages: int | None) -> str | None:
    return None if pages == 1 else f"{path} is stored but has {pages} pages; the self-test sent one"


def _print(report: dict[str, Any]) -> None:
    began: datetime = report["asked_at"]
    say(f"{'asked':<12} {instant(began)}  page {report['code']}")
    about = {"accepted": "fax_id", "listed": "received_fax_id", "stored": "file"}
    for step in sorted(_STEPS, key=lambda step: report[f"{step}_at"] or _NEVER):
        at: datetime | None = report[f"{step}_at"]
        if at is None:
            say(f"{step:<12} no", "bold red")
            continue
        what = report[about[step]] if step in about else "or earlier; poller looked then"
        say(f"{step:<12} {instant(at)}  +{(at - began).total_seconds():.1f} s  {what}".rstrip())
    if report["problem"] is None:
        say("The self-test passed: the page came back and is stored.", "bold green")
    else:
        say(f"The self-test failed: {report['problem']}", "bold red")


async def _asked(
    ledger: Ledger, state: Path, stream: int, user: User, within: timedelta
) -> SendRow:
    now = bootstrap.now()
    new = new_page(stream, user, SELFTEST, now + within)
    return await ask_to_send(ledger, state, new, [drawn(new, now)], now)


def _is_over(row: SendRow, now: datetime) -> bool:
    """Return whether to stop waiting; a page whose sending is in doubt may still come."""
    return row.is_stored or row.state is SendState.FAILED or now >= (row.late_at or now)


# -- beside a service ------------------------------------------------------------------------------


async def _follow(settings: Config, user: User, within: timedelta) -> SendRow:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        stream = await received_stream(ledger, user)
        row = await _asked(ledger, settings.state_directory, stream, user, within)
        stdio.complain("The running service sends and receives the page.")
        loop = asyncio.get_running_loop()
        alive_at = loop.time()
        stored_at: float | None = None
        with progress("self-test") as show:
            while True:
                row = await ledger.read(sends.one, row.id)
                show(sum(one is not None for one in _times(row)), len(_STEPS), str(row.state))
                if bootstrap.is_running(settings):
                    alive_at = loop.time()
                elif loop.time() - alive_at > GONE_S:
                    stdio.complain("poller: the service has stopped")
                    state = settings.state_directory
                    return await withdraw(ledger, state, row, bootstrap.now(), "stopped")
                if row.is_stored:
                    stored_at = stored_at or loop.time()
                if _is_over(row, bootstrap.now()) and _may_end(row, stored_at, loop.time()):
                    return row
                await asyncio.sleep(LOOK_S)


def _times(row: SendRow) -> tuple[datetime | None, ...]:
    return row.accepted_at, row.transmitted_at, row.arrived_at, row.stored_at


def _may_end(row: SendRow, stored_at: float | None, now: float) -> bool:
    """Return whether to end: eFax may report the transmission a little after the file is stored."""
    is_known = row.state is not SendState.ACCEPTED
    return is_known or stored_at is None or now - stored_at > _TRANSMITTED_WITHIN_S


# -- without one -----------------------------------------------------------------------------------


async def _work(key: str, within: timedelta, runtime: Runtime) -> SendRow:
    keep_only(runtime, key)
    state = next(one for one in runtime.states if one.key == key)
    ledger = account_of(runtime, key).services.ledger
    row = await _asked(ledger, runtime.config.state_directory, state.id, state.user, within)
    sender = Sender(runtime)
    sending = asyncio.create_task(_sent(sender, row), name="send")
    try:
        row = await _until_stored(runtime.accounts[state.user.app_id], state, row, sending)
        if row.is_stored:
            await asyncio.wait([sending], timeout=_TRANSMITTED_WITHIN_S)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    now = runtime.services.clock.now()
    directory = runtime.config.state_directory
    row = await withdraw(ledger, directory, row, now, "it was not sent in time")
    if row.state is SendState.SENDING:
        return row  # the service, or the next `send`, will find out
    return await ledger.write(sends.finish, row.id, now)


async def _sent(sender: Sender, row: SendRow) -> None:
    await sender.follow(await sender.send(row))


async def _until_stored(
    account: AccountRunner, state: StreamState, row: SendRow, sending: asyncio.Task[None]
) -> SendRow:
    """Poll as `once` does, until the page is stored or can no longer come."""
    clock = account.services.clock
    with progress("self-test") as show:
        while True:
            row = await account.services.ledger.read(sends.one, row.id)
            show(sum(one is not None for one in _times(row)), len(_STEPS), str(row.state))
            if _is_over(row, clock.now()):
                return row
            if sending.done():
                sending.result()  # raises if sending failed
            if row.accepted_at is not None or row.state is SendState.IN_DOUBT:
                await account.poll(state)
                await account.workers.run_until_idle()
            await clock.sleep(_LOOK_S if row.accepted_at is None else _POLL_EVERY_S)
