"""Request that a fax be sent: first its documents are durable, then the row that the sender sees."""

import secrets
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from poller import events, outbox
from poller.config.model import User
from poller.drawn_page import page
from poller.errors import LedgerUnavailable, NoThread
from poller.events import Emit
from poller.ledger import Ledger, SendRow, SendState, sends
from poller.ledger.sends import NewSend
from poller.outbox import OutboxDocument
from poller.own_threads import in_own_thread
from poller.page_progress import what_is_missing
from poller.recognition import to_dial

STALE: Final = timedelta(hours=1)  # an older request may no longer be wanted
SELFTEST: Final = "selftest"
CANARY: Final = "canary"
_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # no two look alike
_CODE_LENGTH: Final = 8


def new_fax(stream: int, destination: str) -> NewSend:
    """Make the request for an operator's fax."""
    return NewSend(stream, str(uuid.uuid4()), "operator", destination)


def new_page(stream: int, user: User, purpose: str, late_at: datetime) -> NewSend:
    """Make the request for a page to the user's own number, which must be configured."""
    assert user.number is not None
    code = "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LENGTH))
    number = user.number
    with suppress(ValueError):  # keep the number as written if it cannot be read
        number = to_dial(number)
    return NewSend(stream, str(uuid.uuid4()), purpose, number, code, late_at)


def drawn(new: NewSend, now: datetime) -> OutboxDocument:
    """Draw the page of a self-test or canary."""
    lines = (
        "This page tests the path of a fax from eFax to its file.",
        "poller sent it to its own number. You need not do anything.",
        f"{new.purpose}, {now:%Y-%m-%d %H:%M} UTC",
    )
    return OutboxDocument("pdf", page(new.code or "", lines))


async def ask_to_send(
    ledger: Ledger, state: Path, new: NewSend, documents: Sequence[OutboxDocument], now: datetime
) -> SendRow:
    """Record the request and keep its documents; raises OSError for those, and LedgerUnavailable."""
    await in_own_thread("outbox", lambda: outbox.put(state, new.transaction_id, documents))
    try:
        return await ledger.write(sends.ask, new, now)
    except Exception:
        await in_own_thread("outbox", lambda: outbox.remove(state, new.transaction_id))
        raise


async def withdraw(ledger: Ledger, state: Path, row: SendRow, now: datetime, why: str) -> SendRow:
    """Withdraw a request that still waits, and remove its documents; raises LedgerUnavailable."""
    row = await ledger.write(sends.withdraw, row.id, now, why)
    if row.state is SendState.FAILED:
        await forget_documents(state, row)
    return row


async def forget_documents(state: Path, row: SendRow) -> None:
    """Remove the documents of a fax that is sent or never will be."""
    with suppress(NoThread):  # `tidy_outbox` will do it
        await in_own_thread("outbox", lambda: outbox.remove(state, row.transaction_id))


async def tidy_outbox(ledger: Ledger, state: Path, now: datetime) -> bool:
    """Remove leftover documents; return whether some remain."""
    with suppress(LedgerUnavailable, NoThread):
        held = await in_own_thread("outbox", lambda: outbox.folders(state))
        if not held:
            return False
        needed = await ledger.read(sends.to_be_sent, held, now - STALE)
        now_s = now.timestamp()

        def tidy() -> bool:
            for one in held:
                if not needed.get(one, not outbox.is_left_over(state, one, now_s)):
                    outbox.remove(state, one)
            return bool(outbox.folders(state))

        return await in_own_thread("outbox", tidy)
    return True


async def settle_page(ledger: Ledger, row: SendRow, now: datetime, emit: Emit) -> None:
    """Note that a page of ours is stored, late or lost; emit it for a canary; raises LedgerUnavailable."""
    is_canary = row.purpose == CANARY
    if row.is_stored:
        await ledger.write(sends.finish, row.id, now)
        if is_canary:
            trip_s = round(row.round_trip_s or 0)
            arrived = row.arrived_fax_id or ""
            emit(events.CanaryArrived(*row.names, arrived, trip_s, row.late_said))
    elif row.late_at is not None and row.late_at <= now and not row.late_said:
        await ledger.write(sends.note_late, row.id)
        if is_canary:
            emit(events.CanaryLate(*row.names, row.transaction_id, what_is_missing(row)))
    elif now - row.asked_at > sends.EXPECTED_FOR:
        await ledger.write(sends.finish, row.id, now)
