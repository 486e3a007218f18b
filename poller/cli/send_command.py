"""`poller send`: send documents as one fax, or have a running service send it."""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from poller import outbox
from poller.cli import bootstrap, stdio
from poller.cli.console import answer, say
from poller.cli.follow import wait as wait_for
from poller.cli.foreground import account_of, keep_only, work_or_follow
from poller.cli.lookup import NotDone, configured_user, counted, received_stream
from poller.config.model import Config
from poller.documents import NotADocument, format_of
from poller.documents.checkers import Checkers
from poller.efax.outgoing import LARGEST_BYTES, MOST_DOCUMENTS
from poller.errors import StorageUnusable, UsageError
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import CANARY, ask_to_send, new_fax, tidy_outbox, withdraw
from poller.ingest.sending import Sender
from poller.ledger import Ledger, SendRow, SendState, sends
from poller.recognition import to_dial
from poller.status import instant

IN_DOUBT = 3
_SENT_WITHIN_S = 900.0  # long enough for a slowed account and a search for a lost answer
_FINAL_WITHIN_S = 25 * 3600.0  # the service looks for a day
_MOST_BYTES = LARGEST_BYTES // 4 * 3
_UNDECIDED = (SendState.WAITING, SendState.SENDING)


@dataclass(frozen=True)
class _Order:
    """What to send, from which user, to which number; `wait`: until it is transmitted."""

    key: str
    number: str
    documents: Sequence[outbox.OutboxDocument]
    wait: bool


def send(
    paths: Sequence[Path],
    *,
    key: str,
    to: str,
    files: Sequence[Path],
    wait: bool,
    as_json: bool,
) -> int:
    """Send files to a number. Raises UsageError (2), NotDone (1) for a file that is not whole."""
    try:
        number = to_dial(to)
    except ValueError as error:
        raise UsageError(f"--to {error}") from None
    documents = read_whole(files)  # as the caller: the service's user may lack access
    settings = bootstrap.load(paths)
    configured_user(settings, key)
    if not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # before it changes anything
    order = _Order(key, number, documents, wait)
    how = f"to {number[0]}…{number[-4:]}, {len(number.removeprefix('+'))} digits"
    stdio.complain(f"Sending {counted(len(documents), 'document', 'documents')} {how}.")
    row = work_or_follow(
        settings,
        "send",
        sys.stderr,
        work=partial(_work, order),
        follow=partial(_follow, settings, order),
        needs_storage=False,
        key=key,
        sends=True,
    )
    answer(shown(row), lambda: say(_sentence(row)), as_json=as_json)
    return exit_code(row, wait=wait)


def shown(row: SendRow) -> dict[str, Any]:
    """Return the JSON of `send`."""
    return {
        "transaction_id": row.transaction_id,
        "fax_id": row.fax_id,
        "status": str(row.state),
        "transmission_status": row.status,
        "error": row.error,
    }


def exit_code(row: SendRow, *, wait: bool) -> int:
    """Return 1 if the caller may send again, 3 if they must look first."""
    if row.state is SendState.IN_DOUBT or row.state in _UNDECIDED:
        return IN_DOUBT
    if row.state is SendState.TRANSMITTED:
        return 0
    if row.state is SendState.ACCEPTED:
        return IN_DOUBT if wait else 0
    return 1


def _sentence(row: SendRow) -> str:
    fax = f"as {row.fax_id} (transaction {row.transaction_id})"
    match row.state:
        case SendState.TRANSMITTED:
            return f"transmitted: eFax had it {fax}"
        case SendState.ACCEPTED:
            more = "" if row.error is None else f"; {row.error}"
            return f"accepted: eFax has it {fax}{more}"
        case SendState.FAILED if row.fax_id is None:
            return f"not sent: {row.error}"
        case SendState.FAILED:
            return f"failed: eFax had it {fax}: {row.error}"
        case SendState.IN_DOUBT:
            return (
                f"in doubt: eFax's answer was lost, and its list of sent faxes does not show "
                f"{row.transaction_id}: {row.error}. Look in eFax's portal before you send it again."
            )
    return (
        f"{row.state}: poller does not know whether {row.transaction_id} was sent; the service or "
        "the next `poller send` will find out. Look in eFax's portal before you send it again."
    )


# -- the documents ---------------------------------------------------------------------------------


def read_whole(files: Sequence[Path]) -> list[outbox.OutboxDocument]:
    """Read whole PDFs and TIFFs. Raises UsageError, NotDone."""
    if len(files) > MOST_DOCUMENTS:
        raise UsageError(f"a fax holds at most {MOST_DOCUMENTS} documents; you named {len(files)}")
    checkers = Checkers()
    try:
        documents = [_read(checkers, path) for path in files]
    finally:
        checkers.close()
    if sum(len(one.content) for one in documents) > _MOST_BYTES:
        raise NotDone("the documents exceed eFax's limit of 75 MB (100 MB in base64)")
    return documents


def _read(checkers: Checkers, path: Path) -> outbox.OutboxDocument:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise NotDone(f"{path} exceeds eFax's limit of 75 MB (100 MB in base64)")
            content = file.read()
            document = checkers.inspect(file.fileno())
    except NotADocument:
        raise NotDone(f"{path} is neither a PDF nor a TIFF") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except StorageUnusable as error:
        raise NotDone(str(error)) from None
    if document.problem is not None:
        raise NotDone(f"{path} is damaged or cannot be sent: {document.problem}")
    return outbox.OutboxDocument(format_of(content[:1024]), content)


# -- beside a service ------------------------------------------------------------------------------


async def _follow(settings: Config, order: _Order) -> SendRow:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        stream = await received_stream(ledger, configured_user(settings, order.key))
        row = await _asked(ledger, settings, stream, order)
        stdio.complain("The running service sends the fax, even if you interrupt this command.")
        return await followed(settings, ledger, row, wait=order.wait)


async def _asked(ledger: Ledger, settings: Config, stream: int, order: _Order) -> SendRow:
    new = new_fax(stream, order.number)
    now = bootstrap.now()
    return await ask_to_send(ledger, settings.state_directory, new, order.documents, now)


async def followed(settings: Config, ledger: Ledger, row: SendRow, *, wait: bool) -> SendRow:
    """Wait until the service has sent it; if the service ends before it starts sending, withdraw it."""
    open_states = (*_UNDECIDED, SendState.ACCEPTED) if wait else _UNDECIDED

    async def look() -> tuple[float, float, str]:
        now = await ledger.read(sends.one, row.id)
        is_done = now.state not in open_states or now.finished_at is not None
        return float(is_done), 1.0, now.status or str(now.state)

    limit_s = _FINAL_WITHIN_S if wait else _SENT_WITHIN_S
    stopped = await wait_for(settings, "sending", look, hang_timeout_s=limit_s)
    if stopped is not None:
        stdio.complain(f"poller: {stopped}")
        why = "the service did not send it"
        await withdraw(ledger, settings.state_directory, row, bootstrap.now(), why)
    return await ledger.read(sends.one, row.id)


# -- without one -----------------------------------------------------------------------------------


async def _work(order: _Order, runtime: Runtime) -> SendRow:
    keep_only(runtime, order.key)
    stream = next(state.id for state in runtime.states if state.key == order.key)
    ledger = account_of(runtime, order.key).services.ledger
    sender = Sender(runtime)
    left_over = await _left_over(runtime, ledger, sender, stream)
    row = await _asked(ledger, runtime.config, stream, order)
    try:
        row = await sender.send(row)
        if order.wait:
            row = await sender.follow(row)
        await asyncio.gather(*left_over)
    except asyncio.CancelledError:
        with suppress(Exception):
            await _say_interrupted(runtime, ledger, row)
        raise
    return row


async def _left_over(
    runtime: Runtime, ledger: Ledger, sender: Sender, stream: int
) -> list[asyncio.Task[SendRow]]:
    """Look for faxes that earlier commands were sending; withdraw those not yet begun."""
    state, now = runtime.config.state_directory, bootstrap.now()
    looks = []
    for one in await ledger.read(sends.unfinished):
        if one.stream != stream:
            continue
        if one.state is SendState.SENDING:
            looks.append(asyncio.create_task(sender.send(one), name=f"look for {one.id}"))
        elif one.state is SendState.WAITING and one.purpose != CANARY:
            await withdraw(ledger, state, one, now, "the command that requested it had ended")
            about = f"{one.transaction_id}, requested at {instant(one.asked_at)}"
            stdio.complain(f"poller: {about}, was not sent and will not be.")
    await tidy_outbox(ledger, state, now)
    return looks


async def _say_interrupted(runtime: Runtime, ledger: Ledger, row: SendRow) -> None:
    state = runtime.config.state_directory
    row = await withdraw(ledger, state, row, bootstrap.now(), "the command was interrupted")
    stdio.complain(f"poller: interrupted; {_sentence(row)}")
