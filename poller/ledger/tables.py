"""The tables as they are now; `migrations/` brings a ledger of any age to this."""

# ruff: noqa: ARG002  (the signatures of column types are SQLAlchemy's)

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    literal_column,
    or_,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from poller.documents import Staged, StoredFile
from poller.stream import Direction

REVISION = "0011"  # the newest migration, known without loading alembic, so that opening is fast

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


# PostgreSQL then compares text as SQLite does, and no new version of a locale spoils an index.
_STRING = String().with_variant(String(collation="C"), "postgresql")
ID = BigInteger().with_variant(Integer, "sqlite")  # only an INTEGER counts up by itself in SQLite


class State(StrEnum):
    """The state of a fax."""

    PENDING = "pending"
    STORED = "stored"
    QUARANTINED = "quarantined"
    DISMISSED = "dismissed"


class JobKind(StrEnum):
    """What to do with the subject of a job."""

    FETCH = "fetch"
    DELETE = "delete"  # at eFax, after proof
    MARK = "mark"  # put eFax's mark back to "not downloaded"


class SendState(StrEnum):
    """How far a fax of ours has come. *In doubt*: the answer was lost, and eFax may have the fax."""

    WAITING = "waiting"
    SENDING = "sending"  # written before the request: after a kill, it may have gone out
    ACCEPTED = "accepted"
    TRANSMITTED = "transmitted"
    FAILED = "failed"
    IN_DOUBT = "in-doubt"


class Instant(TypeDecorator[datetime]):
    """An aware UTC time in microseconds since 1970, so that order and arithmetic are exact."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + value * MICROSECOND


class _Now(FunctionElement[int]):
    """Microseconds since 1970 by the database's clock, as they pass inside a transaction, too."""

    name = "database_now"
    type = BigInteger()
    inherit_cache = True


@compiles(_Now)
def _now_of_postgresql(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(_Now, "sqlite")
def _now_of_sqlite(*_: object, **__: object) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


def now_us() -> ColumnElement[int]:
    return _Now()


def of_us(instant: ColumnElement[Any]) -> ColumnElement[int]:
    """Return an instant as the number that it is in the database."""
    return type_coerce(instant, BigInteger)


_UNSTORABLE = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")


class Text(TypeDecorator[str]):
    """Any text: NUL, lone surrogates and the backslash are escaped as `\\uXXXX`.

    JSON may contain a lone surrogate, which UTF-8 cannot encode, and no id may stop a page.
    """

    impl = _STRING
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:
        if value is None or "\\" not in value:
            return value
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)


class Listed(TypeDecorator[dict[str, Any]]):
    """A fax exactly as listed: key order, big numbers and odd text survive."""

    impl = _STRING
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> str:
        return json.dumps(value or {}, separators=(",", ":"))

    def process_result_value(self, value: Any | None, dialect: Dialect) -> dict[str, Any]:
        listed: dict[str, Any] = json.loads(value or "{}")
        return listed


class StagedText(TypeDecorator[Staged]):
    """A staged fax with its ticket, as JSON."""

    impl = _STRING
    cache_ok = True

    def process_bind_param(self, value: Staged | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(asdict(value))

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Staged | None:
        if value is None:
            return None
        found = json.loads(value)
        return Staged(StoredFile(**found.pop("file")), **found)


class Word(TypeDecorator[Any]):
    """One of the values of a text enumeration."""

    impl = String(16).with_variant(String(16, collation="C"), "postgresql")
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:
        return None if value is None else self.words(value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _number(name: str) -> "Column[int]":
    return Column(name, Integer, nullable=False, server_default="0")


def _seconds(name: str) -> "Column[float]":
    return Column(name, Float, nullable=False, server_default="0")


def _flag(name: str) -> "Column[bool]":
    return Column(name, Boolean, nullable=False, server_default="0")


# Single facts: the storage's id, the counter that proves that writing works.
meta = Table(
    "meta",
    metadata,
    Column("name", _STRING, primary_key=True),
    Column("value", Text, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("app_id", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("suspended_until", Instant),
    Column("reason", Text),
    _seconds("paused_s"),
    Column("paused_since", Instant),
    Column("sign_in_level", Float),
    Column("sign_in_at", Instant),
    # The last sign-in's token under the account's API key (see `sealing`), by our clock.
    Column("sealed_token", String),
    Column("token_at", Instant),
    Column("token_ends_at", Instant),
)

# Who works on which account, in a database that several nodes share. `UNIQUE (app_id, term)` makes
# `term` a key: changing it waits for every transaction that `leases.fence` has begun.
leases = Table(
    "leases",
    metadata,
    Column("app_id", Text, primary_key=True),
    Column("holder", Text),
    Column("term", BigInteger, nullable=False, server_default="0"),
    Column("expires_at", Instant),
    Column("renewed", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("app_id", "term"),
)

# The runs of poller that share the database.
nodes = Table(
    "nodes",
    metadata,
    Column("run", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("oldest", Text, nullable=False),
    Column("newest", Text, nullable=False),
    Column("accounts", Text, nullable=False),
    Column("users", BigInteger, nullable=False),
    Column("lag_s", Float, nullable=False),
    _flag("stores"),
    Column("started_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("ended_at", Instant),
    _flag("draining"),
)

# eFax's notices that arrived at a node that does not hold the account.
notices = Table(
    "notices",
    metadata,
    Column("id", ID, primary_key=True),
    Column("app_id", Text, nullable=False),
    Column("named", Text, nullable=False),  # what the notice names, as JSON
)

# The transactions that change faxes also change these counters, so `status` counts no rows.
streams = Table(
    "streams",
    metadata,
    Column("id", ID, primary_key=True),
    Column("app_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("direction", Word(Direction), nullable=False, server_default=Direction.RECEIVED),
    Column("account", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("our_first_seen", Instant, nullable=False),
    Column("pinned_start", Instant),
    Column("configured_start", Text),
    _flag("removed"),
    Column("last_poll_at", Instant),
    Column("last_success_at", Instant),
    Column("last_error", Text),
    _number("failed_polls"),
    Column("refused_until", Instant),
    _number("refusals"),
    Column("sweep_end", Instant),
    Column("deep_sweep_end", Instant),
    _number("discovered"),
    _number("stored"),
    _number("pending"),
    _number("quarantined"),
    _number("dismissed"),
    _number("damaged"),
    Column("last_received_at", Instant),
    Column("last_stored_at", Instant),
    _seconds("late_max_s"),
    _number("found_by_sweep"),
    _number("found_by_deep_sweep"),
    UniqueConstraint("app_id", "user_id", "direction"),
)

# Merged and disjoint intervals of each stream that were listed to the last page.
coverage = Table(
    "coverage",
    metadata,
    Column("stream", ForeignKey("streams.id"), primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("end", Instant, nullable=False),
    CheckConstraint('"start" < "end"', name="order"),
)

failed_slices = Table(
    "failed_slices",
    metadata,
    Column("stream", ForeignKey("streams.id"), primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("end", Instant, primary_key=True),
    _number("failures"),
    Column("next_attempt_at", Instant, nullable=False),
    Column("reason", Text, nullable=False),
    _flag("dismissed"),
    Column("dismiss_reason", Text),
    CheckConstraint('"start" < "end"', name="order"),
)

# Old windows that an operator asked for; everything older than `rest_end` is still to be listed.
backfills = Table(
    "backfills",
    metadata,
    Column("id", ID, primary_key=True),
    Column("stream", ForeignKey("streams.id"), nullable=False),
    Column("start", Instant, nullable=False),
    Column("end", Instant, nullable=False),
    Column("rest_end", Instant, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("done_at", Instant),
    Column("last_error", Text),
    Column("after_fax", ID, nullable=False),  # the newest fax at the time of the request
    CheckConstraint('"start" < "end"', name="order"),
)

# The parts of a backfill that eFax did not list.
backfill_failures = Table(
    "backfill_failures",
    metadata,
    Column("backfill", ForeignKey("backfills.id"), primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("end", Instant, primary_key=True),
    Column("reason", Text, nullable=False),
    CheckConstraint('"start" < "end"', name="order"),
)

faxes = Table(
    "faxes",
    metadata,
    Column("id", ID, primary_key=True),
    Column("stream", ForeignKey("streams.id"), nullable=False),
    Column("fax_id", Text, nullable=False),
    Column("state", Word(State), nullable=False),
    Column("path", Text, nullable=False),
    Column("listed", Listed, nullable=False),
    Column("received_at", Instant),
    Column("first_seen_at", Instant, nullable=False),
    _number("attempts"),
    Column("last_problem", Text),
    Column("stored_at", Instant),
    Column("file", Text),
    Column("format", Text),
    Column("bytes", BigInteger),
    Column("sha256", Text),
    Column("pages", Integer),
    _flag("damaged"),
    Column("found_by", Text, nullable=False),
    Column("first_window_start", Instant),
    Column("first_window_end", Instant),
    Column("last_window_start", Instant),
    Column("last_window_end", Instant),
    Column("last_listed_at", Instant, nullable=False),
    Column("quarantined_at", Instant),
    Column("dismissed_at", Instant),
    Column("dismiss_reason", Text),
    # Whether the file on the disk does not count as the fax, and why it is not what was stored.
    _flag("refetch"),
    Column("damage", Text),
    # The file cannot be read, and `damage` says why: it may be what was stored.
    _flag("unreadable"),
    # The image is stored, and the sidecar is about to be published, or was: the ticket tells which.
    Column("staged", StagedText),
    # What all spellings of `fax_id` have in common, if it differs from `fax_id`. To add a fax, look
    # for both in the same transaction, which holds the write lock.
    Column("fax_key", Text),
    # Deleted at eFax by us, so not lost there.
    Column("deleted_at", Instant),
    # This order serves look-ups by stream and the operator's look-up by fax id alone.
    UniqueConstraint("fax_id", "stream"),
    UniqueConstraint("path"),
)
FAX_KEY = func.coalesce(faxes.c.fax_key, faxes.c.fax_id)


def has_key(keys: Any) -> ColumnElement[bool]:
    """Find the faxes with these keys; there are two if both spellings were known before keys existed."""
    return or_(faxes.c.fax_id.in_(keys), faxes.c.fax_key.in_(keys))


# `postgres_backend` tells PostgreSQL about these indexes: doing it here would load its dialect at
# every start.
Index(
    "ix_faxes_stored_at",
    faxes.c.stored_at,
    sqlite_where=faxes.c.stored_at.is_not(None),
)

Index(
    "ix_faxes_deleted_at",
    faxes.c.deleted_at,
    sqlite_where=faxes.c.deleted_at.is_not(None),
)

Index(
    "ix_faxes_damage",
    faxes.c.stream,
    sqlite_where=faxes.c.damage.is_not(None),
)

Index(
    "uq_faxes_fax_key_stream",
    faxes.c.fax_key,
    faxes.c.stream,
    unique=True,
    sqlite_where=faxes.c.fax_key.is_not(None),
)

# The query must contain this value as a literal: then SQLite may use the index.
FOUND_BY_BACKFILL = faxes.c.found_by == literal_column("'backfill'")
Index(
    "ix_faxes_backfill",
    faxes.c.stream,
    sqlite_where=FOUND_BY_BACKFILL,
)

# For file systems on which names that differ only in case are the same: paths that are not in lower
# case, by their lower case. If a server's ids have no capitals, this index is empty.
FOLDED_PATH = func.lower(faxes.c.path)
HAS_CAPITALS = faxes.c.path != FOLDED_PATH
Index(
    "ix_faxes_folded_path",
    FOLDED_PATH,
    sqlite_where=HAS_CAPITALS,
)

# Work to do for a fax. Finished work has no job, so this table stays as small as the backlog,
# however many faxes are stored. A dismissed fax is not due.
jobs = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("kind", Word(JobKind), nullable=False),
    Column("subject", ID, nullable=False),
    Column("stream", ForeignKey("streams.id"), nullable=False),
    Column("due", Instant),
    _number("failures"),
    Column("first_failed_at", Instant),
    _seconds("paused_s_at_first_failure"),
    Column("last_error", Text),
    # Grows with every decision that makes a running attempt void: an outcome names the one it began with.
    _number("fence"),
    # For a deletion by hand: the fax must have been stored before this, however long ago that is.
    Column("stored_before", Instant),
    UniqueConstraint("subject", "kind"),
)
Index("ix_jobs_due", jobs.c.stream, jobs.c.kind, jobs.c.due, sqlite_where=jobs.c.due.is_not(None))
# Errands are few and looked up over all streams; the value is a literal that SQLite sees.
IS_ERRAND = jobs.c.kind != literal_column("'fetch'")
Index("ix_jobs_errand", jobs.c.kind, jobs.c.due, sqlite_where=IS_ERRAND)

# Faxes that we send; `stream` is their user's received faxes.
sends = Table(
    "sends",
    metadata,
    Column("id", ID, primary_key=True),
    Column("stream", ForeignKey("streams.id"), nullable=False),
    Column("transaction_id", Text, nullable=False),
    Column("purpose", Text, nullable=False),  # operator, selftest, canary
    Column("destination", Text, nullable=False),
    Column("code", Text),  # on the page of a self-test or canary, to recognize it
    Column("state", Word(SendState), nullable=False),
    Column("fax_id", Text),
    Column("status", Text),  # the transmission status as eFax spells it
    Column("error", Text),
    Column("asked_at", Instant, nullable=False),
    Column("sent_at", Instant),  # just before the request
    Column("accepted_at", Instant),
    Column("transmitted_at", Instant),
    Column("late_at", Instant),  # if the page has not arrived by then, we report it
    _flag("late_said"),
    Column("finished_at", Instant),  # nothing more can be found out
    Column("arrived", ForeignKey("faxes.id")),  # the fax that it became at our own number
    UniqueConstraint("transaction_id"),
)
Index("ix_sends_stream", sends.c.stream, sends.c.asked_at)
Index("ix_sends_open", sends.c.stream, sqlite_where=sends.c.finished_at.is_(None))
# literal, so that SQLite sees it
IS_IN_DOUBT = sends.c.state == literal_column(f"'{SendState.IN_DOUBT}'")
Index("ix_sends_in_doubt", sends.c.asked_at, sqlite_where=IS_IN_DOUBT)
Index("ix_sends_arrived", sends.c.arrived, sqlite_where=sends.c.arrived.is_not(None))

attempts = Table(
    "attempts",
    metadata,
    Column("id", ID, primary_key=True),
    Column("fax", ForeignKey("faxes.id"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
)
Index("ix_attempts_fax", attempts.c.fax, attempts.c.id)
