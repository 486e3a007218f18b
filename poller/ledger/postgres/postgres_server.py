"""Connections to the server: their settings, and what their errors mean."""

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from poller.errors import CannotStart, LedgerBroken, LedgerUnavailable

SCHEMA = "poller"
OLDEST = 14
CONNECT_WITHIN_S = 8.0

# The operator's URL may set each of these. A partition ends a connection after about ten seconds.
_DEFAULTS: dict[str, Any] = {
    "application_name": "poller",
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 8000,
}

# A server with another value may lose an acknowledged commit.
_DURABLE = ("fsync", "full_page_writes", "synchronous_commit")

_DAMAGED = "is damaged; restore the database from the server's own backup, or run `poller rebuild`"
# By SQLSTATE or its beginning; the longest that fits counts. A class that is missing is a bug of ours.
SENTENCES = {
    "08": "has lost its connection to the server",
    "25006": "cannot be written: the server is a standby, or only allows reading",
    "25P03": "was too slow in a transaction, and the server ended it",
    "28": "cannot be opened: the server refuses this user or password",
    "3D": "cannot be opened: the server has no such database",
    "3F": "has lost its schema",
    "40": "was in the way of another transaction",
    "42501": "cannot be used: the server does not permit this user to",
    "42P01": "has lost a table",
    "53": "cannot be used: the server has run out of resources",
    "53100": "cannot grow: the server's disk is full",
    "53200": "cannot be used: the server has run out of memory",
    "53300": "cannot be reached: the server allows no more connections",
    "55P03": "is locked by another transaction",
    "57": "has lost its connection to the server",
    "57014": "has not answered in time",
    "58": "cannot be used: the server's disk reports an error",
    "XX": "cannot be used: the server reports an internal error",
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
_ENDED = ("08", "25P03", "40", "57P")  # the server has taken back the whole transaction


class DiscreetCursor(psycopg.Cursor[Any]):
    """Its errors show no value: PostgreSQL's details name the row, and so a patient's fax."""

    def execute(self, *args: Any, **kwargs: Any) -> Self:
        with _discreet():
            return super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        with _discreet():
            super().executemany(*args, **kwargs)


@contextmanager
def _discreet() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if state := state_of(error):
            has_value = state.startswith("22")  # "invalid input syntax for type bigint: …"
            error.args = (f"{state} {'' if has_value else error.diag.message_primary}".strip(),)
        raise


@dataclass(frozen=True)
class PostgresServer:
    """Where the ledger is: libpq's parameters, and the schema with the tables."""

    url: str  # without a password
    parameters: dict[str, Any] = field(repr=False)
    schema: str = SCHEMA

    @classmethod
    def at(cls, url: str, password: str | None) -> Self:
        """Parse libpq's URL. Raises CannotStart if it is none."""
        try:
            given = {key: value for key, value in conninfo_to_dict(url).items() if value}
        except psycopg.ProgrammingError as error:
            raise CannotStart(f"state.url is no URL of PostgreSQL: {first_line(error)}") from error
        parameters = _DEFAULTS | given
        if "," in str(given.get("host", "")):
            parameters.setdefault("target_session_attrs", "read-write")
        if password is not None:
            parameters["password"] = password
        return cls(re.sub("(?<=//)([^/?:@]*):[^/?]*@", r"\1@", url), parameters)

    @property
    def where(self) -> str:
        """Return the address for sentences: without the user, which logs would take for a secret."""
        return re.sub("(?<=//)[^/?@]*@", "", self.url).partition("?")[0]

    # -- connecting --------------------------------------------------------------------------------

    def connect(self) -> "psycopg.Connection[Any]":
        """Connect to a server that keeps what it acknowledges; blocks.

        As nothing was sent, it tries again for a moment. Raises LedgerUnavailable.
        """
        again = Retrying(
            stop=stop_after_delay(CONNECT_WITHIN_S),
            wait=wait_random(0.1, 0.5),
            retry=retry_if_exception(_may_pass),
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return again(self._connect_once)
        except psycopg.Error as error:
            raise LedgerUnavailable(f"the ledger {self.where} {_why_not(error)}") from error

    @contextmanager
    def connected(self) -> "Iterator[psycopg.Connection[Any]]":
        """Connect for a moment; errors inside become LedgerUnavailable."""
        with closing(self.connect()) as connection:
            try:
                yield connection
            except psycopg.Error as error:
                raise LedgerUnavailable(self.sentence(error)) from error

    def _connect_once(self) -> "psycopg.Connection[Any]":
        # A pooler may give each transaction another connection, without the statements prepared
        # before. `transactions` begins each transaction itself.
        fixed = {"prepare_threshold": None, "autocommit": True, "client_encoding": "utf8"}
        connection: psycopg.Connection[Any] = psycopg.connect(
            cursor_factory=DiscreetCursor, **self.parameters | fixed
        )
        try:
            self._require_durable(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _require_durable(self, connection: "psycopg.Connection[Any]") -> None:
        version = connection.info.server_version // 10_000
        if version < OLDEST:
            raise LedgerUnavailable(
                f"the ledger {self.where} cannot be used: its server is PostgreSQL {version}, and "
                f"poller needs {OLDEST} or newer"
            )
        wanted = [*_DURABLE, "server_encoding"]
        asked = ", ".join(f"current_setting('{name}')" for name in wanted)
        row = connection.execute(f"SELECT pg_is_in_recovery(), {asked}").fetchone()
        assert row is not None
        is_standby, *held = row
        if is_standby:
            raise LedgerUnavailable(
                f"the ledger {self.where} cannot be used: its server is a standby; name the primary "
                "in state.url, or all servers"
            )
        for name, value in zip(wanted, held, strict=True):
            if value == "off" or (name == "server_encoding" and value != "UTF8"):
                raise LedgerUnavailable(
                    f"the ledger {self.where} cannot be used safely: {name} is {value}"
                )

    # -- errors ------------------------------------------------------------------------------------

    def sentence(self, error: BaseException) -> str:
        """Describe an error in one sentence, without the statement and its values."""
        state = state_of(error)
        found = max((key for key in SENTENCES if state.startswith(key)), key=len, default="08")
        return f"the ledger {self.where} {SENTENCES[found]}"

    def trouble(self, error: BaseException) -> LedgerUnavailable | None:
        """Return what is wrong with the whole database; None for a bug of ours."""
        origin = getattr(error, "orig", None) or error
        if not isinstance(origin, psycopg.Error):
            return None
        state = state_of(origin)
        if not state and not isinstance(origin, psycopg.OperationalError):
            return None
        if state and not state.startswith(tuple(SENTENCES)):
            return None
        broken = state in {"XX001", "XX002"}
        return (LedgerBroken if broken else LedgerUnavailable)(self.sentence(origin))


def state_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error; empty if it has none, as when the connection ends."""
    return getattr(error, "sqlstate", None) or ""


def has_ended(error: BaseException) -> bool:
    """Whether the server has taken back the whole transaction, or will without a COMMIT."""
    origin = getattr(error, "orig", None) or error
    state = state_of(origin)
    return state.startswith(_ENDED) or (not state and isinstance(origin, psycopg.OperationalError))


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


# What waiting does not change. libpq keeps the SQLSTATE of a refused connection to itself.
_REFUSED = re.compile("password authentication|does not exist|no password|pg_hba")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, psycopg.OperationalError) and not _REFUSED.search(first_line(error))


def _why_not(error: BaseException) -> str:
    why = first_line(error).rpartition("failed: ")[2].removeprefix("FATAL:").strip()
    return f"cannot be reached: {why}"
