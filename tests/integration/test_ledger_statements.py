"""Every statement of the ledger, compiled for both SQLite and PostgreSQL."""

import ast
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Boolean, ClauseElement, Connection, create_engine, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement

import poller.ledger
from poller.config.model import Account, SecretRef, Sent, User
from poller.documents import Staged, StoredFile
from poller.ledger import (
    FaxRow,
    NewFax,
    accounts,
    backend_at,
    backfills,
    clock_repair,
    copying,
    deletions,
    errands,
    failing,
    failover,
    faxes,
    fold,
    forwarded,
    jobs,
    leases,
    meta,
    nodes,
    schema,
    sends,
    sent,
    sidecar_import,
    streams,
    takeover,
)
from poller.ledger.tables import JobKind, metadata
from poller.ledger.takeover import Takeover
from poller.progress import (
    Covered,
    Polled,
    SliceFailed,
    SliceSplit,
)
from poller.sealing import SealedToken
from poller.store import FoundSidecar, Identity, Origin
from poller.window import Interval
from tests import once_made

ROOT = Path(poller.ledger.__file__).parent
POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]
# Not the folders: what only SQLite has, and migrations, which have their own test.
MODULES = sorted(ROOT.glob("*.py"))
RUN = {"execute", "scalar", "scalars"}
# SQLite's `min(a, b)` is not an aggregate, and PostgreSQL has no such function.
FUNCTIONS = {"coalesce": 2, "count": 1, "lower": 1, "max": 1, "min": 1, "sum": 1}
FUNCTIONS |= {"replace": 3, "rtrim": 2}
FUNCTIONS |= {"database_now": 0}  # which is compiled for each

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = Interval(NOW - 24 * HOUR, NOW)
MORNING = Interval(DAY.start, DAY.start + 6 * HOUR)
EVENING = Interval(DAY.end - 6 * HOUR, DAY.end)
FILE = StoredFile("a.pdf", "pdf", 1, "0", 1, damaged=False)

Runtime = tuple[str, int]


def sites(file: Path) -> Iterator[tuple[int, int]]:
    """Yield the lines of each call in a module that runs a statement."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in RUN
        ):
            yield node.lineno, node.end_lineno or node.lineno


class Recorded:
    """The statements that a connection ran, and the lines of the ledger that ran them."""

    def __init__(self) -> None:
        self.statements: list[tuple[Any, list[str]]] = []
        self.lines: set[Runtime] = set()

    def __call__(self, _: Connection, statement: Any, several: Any, one: Any, options: Any) -> None:
        parameters = several[0] if several else one
        if not isinstance(statement, ExecutableDDLElement):  # they have their own test
            self.statements.append((statement, sorted(parameters)))
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if Path(frame.f_code.co_filename).parent == ROOT:
                self.lines.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
            frame = frame.f_back


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    engine = create_engine("sqlite://")
    recorded = Recorded()
    with engine.begin() as connection:
        event.listen(connection, "before_execute", recorded)
        once_made.make_tables(connection)
        Everything(connection).run()
        schema.migrate(connection)
    yield recorded
    engine.dispose()


class Everything:
    """Call every function that reads or writes the ledger, each way that leads to another statement."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.results: list[tuple[str, Any]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(self.connection, *args, **kwargs)
        self.results.append((function.__qualname__, result))
        return result

    def run(self) -> None:
        self.of_accounts()
        self.of_nodes()
        stream = self.of_streams()
        self.of_faxes(stream)
        self.of_jobs(stream)
        self.of_sends(stream)
        self.of_backfills(stream)
        self.of_what_is_found(stream)
        self.of_sent(stream)
        self(clock_repair.forget_far_future, "app", NOW)
        self(streams.remove_others, [])
        self(jobs.fetch_again, [1], NOW)
        self(jobs.untried)
        self(streams.stored_since, NOW - HOUR)
        self(streams.discovered_since, NOW - HOUR)

    def of_sent(self, stream: int) -> None:
        under_way = NewFax("out", "main/out", {"fax_id": "out"}, None)
        data = {"transmission_data": {"transmission_status": "COMPLETE"}}
        final = NewFax("out", "main/out", {"fax_id": "out"} | data, NOW)
        for one in (under_way, final):
            page = faxes.ListedPage([one], DAY, "newest", NOW)
            self(sent.record_page, stream, page)
        self(faxes.listed_within, stream, DAY)

    def of_accounts(self) -> None:
        self(accounts.pause_clock, "app", "old", NOW, paused=True)
        self(accounts.pause_clock, "app", "main", NOW, paused=False)
        self(accounts.set_suspended, "other", "other", NOW, "refused")
        self(accounts.all_accounts, include_removed=False)
        self(accounts.save_sign_in, "app", 1.0, NOW)
        self(accounts.sign_in, "app")
        self(accounts.save_token, "app", SealedToken("sealed", NOW, NOW))
        self(accounts.token, "app")
        self(accounts.keep_lists, "app", "{}")
        self(accounts.keep_hook, "app", "{}")
        self(accounts.hook, "app")
        self(meta.write_check, NOW)
        self(meta.set_checked, NOW, None)
        self(meta.checked)
        self(meta.begin, "some-id", NOW)
        self(meta.lost_at)
        self(meta.rebuilt)
        self(meta.edits)

    def of_nodes(self) -> None:
        self(leases.add, ["app", "other"])
        taken = self(leases.take, "app", "run")
        assert taken is not None
        assert self(leases.take, "app", "other run") is None
        assert self(leases.fence, [taken.lease]) == {taken.lease}
        assert self(leases.renew, "run") == {taken.lease: 1}
        self(leases.shut_out_holders)
        assert self(leases.all_leases)["app"].is_live
        self(leases.release, taken.lease)
        node = nodes.NodeReport("run", "a", "1.0", "0011", "0011", {"app": "digest"})
        self(nodes.begin, node)
        self(nodes.renew, node)
        self(nodes.report, node)
        self(nodes.set_draining, "a", draining=True)
        self(nodes.all_nodes)
        self(nodes.database_now)
        self(nodes.end, "run")
        self(schema.require_no_older_nodes)
        page = self(copying._page, metadata.tables["accounts"], None)
        self(copying._page, metadata.tables["accounts"], ["app"])
        self(copying._empty)
        self(copying._put, metadata.tables["accounts"], page)
        self(forwarded.announce, forwarded.ForwardedNotice("app", ("u1",), of_sent=False))
        assert self(forwarded.waiting, ["app"]) == ["app"]
        assert len(self(forwarded.take, "app")) == 1

    def of_streams(self) -> int:
        identity = ("app", "u1", "main", "front-desk")
        (row,) = self(streams.sync, [identity], NOW)
        self(streams.sync, [("app", "u1", "renamed", "desk"), ("new", "u2", "b", "c")], NOW)
        self(streams.sync, [identity], NOW)
        for sent_faxes in (Sent(), Sent("metadata")):
            user = User("main", "desk", "app", "u1", sent=sent_faxes)
            account = Account("main", "app", SecretRef("env", "KEY"), (user,))
            self(takeover.begin, Takeover(account, NOW, None, HOUR))
        self(streams.one, row.id)
        self(streams.waiting_counts)
        halves = (Interval(DAY.start, EVENING.start), EVENING)
        self(fold.record, row.id, SliceFailed(DAY, NOW, "refused"), Covered(MORNING))
        self(fold.record, row.id, SliceSplit(DAY, halves))
        self(fold.record, row.id, Covered(EVENING), Polled(NOW))
        self(fold.record, row.id, Covered(DAY))
        self(fold.record_for_account, "app", Polled(NOW))
        self(fold.all_progress)
        self(fold.make_gap_due, row.id, DAY)
        self(fold.dismiss_gap, row.id, DAY, "known")
        self(accounts.note_downtime, "app", NOW + 24 * HOUR, NOW, HOUR)
        return int(row.id)

    def of_faxes(self, stream: int) -> None:
        listed = [NewFax(f"fax-{n}", "main/one", {"n": n}, NOW - n * HOUR) for n in range(3)]
        for at in (NOW, NOW + HOUR):
            self(faxes.record_page, stream, faxes.ListedPage(listed, DAY, "newest", at, DAY))
        self(faxes.find, "fax-0", "main", "front-desk")
        self(faxes.unknown, stream, ["fax-0", "fax-9"])
        self(faxes.streams_of, "app", ["fax-0"])
        self(faxes.on_disk, 100, 10)
        self(faxes.files_of, ["main/one"])
        self(faxes.with_damage, 10)
        self(faxes.damage_counts)
        self(faxes.history, 1)
        self(accounts.lists, "app")
        self(streams.streams_with_stored_per_hour, DAY.start)

    def of_jobs(self, stream: int) -> None:
        first, second, _ = self(jobs.due, stream, NOW, 10)
        self(jobs.streams_with_due, "app", NOW)
        self(jobs.is_open, first.id, first.fence)
        failure = jobs.Failure(first.fence, "no", "broken", NOW, 0.0, quarantine=True)
        self(jobs.attempt_failed, first.id, NOW, failure)
        self(jobs.quarantined, 10)
        self(jobs.pending_paths, "app")
        self(jobs.postpone, second.id, second.fence, NOW)
        self(failing.waiting)
        self(failing.counts, NOW, HOUR)
        self(failing.oldest, NOW, HOUR, 10)
        self(jobs.make_due, None, NOW)
        self(jobs.staged, [(first.id, Staged(FILE, "ticket"))])
        for _ in range(2):
            self(jobs.stored, [jobs.Stored(first.id, NOW, FILE, "broken", mark=True)])
        self.of_a_failover(first, second)
        self.of_errands(stream, second)
        self(faxes.note_damage, {first.id: (FILE.sha256, "gone")}, NOW)
        self(jobs.dismiss, first.id, now=NOW, reason="known")
        self(jobs.fetch_again, [second.id], NOW)

    def of_a_failover(self, first: FaxRow, second: FaxRow) -> None:
        stored = jobs.Stored(first.id, NOW, FILE)
        gone = replace(first, fax_id="fax-8", path="main/gone")
        facts = [
            failover.Fact(first, stored),  # known
            failover.Fact(gone, stored),
            failover.Fact(replace(second, fence=0), Staged(FILE, "ticket")),
        ]
        assert self(failover.record_again, facts) == 2

    def of_sends(self, stream: int) -> None:
        page = sends.NewSend(stream, "ours", "canary", "13235551212", "7K3Q9X2M", NOW + HOUR)
        asked = self(sends.ask, page, NOW)
        self(sends.begin, asked.id, None, NOW)
        self(sends.begin, asked.id, NOW, NOW)
        self(sends.accepted, asked.id, "sent-1", NOW)
        listed = {"originating_fax_tsid": "POLLER 7K3Q9X2M"}
        arrived = NewFax("canary-1", "main/canary", listed, NOW)
        self(faxes.record_page, stream, faxes.ListedPage([arrived], DAY, "newest", NOW))
        self(sends.under_way, asked.id, "NEW")
        self(sends.transmitted, asked.id, "COMPLETE", NOW)
        self(sends.left, asked.id, "nobody knows", NOW)
        self(sends.in_doubt, asked.id, "nobody knows", NOW)
        self(sends.note_late, asked.id)
        self(sends.unfinished)
        self(sends.late_canaries)
        self(sends.in_doubt_since, NOW)
        self(sends.finish, asked.id, NOW)
        self(sends.last_canaries, "app")
        self(sends.last_asked, stream)
        other = self(sends.ask, sends.NewSend(stream, "other", "operator", "1"), NOW)
        self(sends.withdraw, other.id, NOW, "stopped")
        self(sends.to_be_sent, ["ours", "other"], NOW)

    def of_errands(self, stream: int, fax: FaxRow) -> None:
        for anew in (False, True):
            self(errands.ask, [fax], JobKind.DELETE, NOW, stored_before=NOW, anew=anew)
        (errand,) = self(errands.due, "app", JobKind.DELETE, NOW, 10, [stream + 1])
        self(errands.untried, "app", JobKind.DELETE)
        self(errands.waiting, "app")
        self(errands.waiting, "app", JobKind.DELETE)
        self(errands.failed, errand, "refused", None, refused_at=NOW)
        self(errands.left, JobKind.DELETE)
        self(deletions.ask_by_hand, [fax], NOW, NOW)
        self(deletions.walk, deletions.Place(), NOW, 10)
        self(deletions.page, [stream], 0, 10)
        self(deletions.deleted_since, "app", DAY.start)
        self(deletions.refused, errand, "refused", NOW)
        self(deletions.deleted, errand, NOW)
        self(faxes.on_disk_of, [fax.id])

    def of_backfills(self, stream: int) -> None:
        asked = self(backfills.ask, stream, DAY, NOW)
        self(backfills.failed, asked.id, "no answer")
        self(backfills.listed, asked.id, MORNING, [(EVENING, "refused")], NOW)
        self(backfills.found, asked.id)
        self(backfills.all_waiting)
        self(backfills.withdraw, stream, NOW)

    def of_what_is_found(self, stream: int) -> None:
        def sidecar(user: str, fax: str) -> FoundSidecar:
            whose = Identity("app", user, fax)
            origin = Origin(whose, "main", "front-desk", NOW, NOW, None, {})
            return FoundSidecar(f"main/{user}/{fax}", origin, FILE, NOW, visible=True)

        found = [sidecar("u1", "fax-2"), sidecar("u1", "unknown"), sidecar("u3", "unknown")]
        self(sidecar_import.unknown, found)
        self(sidecar_import.adopt, found, NOW)
        self(sidecar_import.list_again, {}, NOW, NOW)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_every_place_that_runs_a_statement_was_reached(recorded: Recorded, file: Path) -> None:
    """So that a new query without a call above is noticed."""
    reached = [line for name, line in recorded.lines if name == file.name]
    missed = [
        f"{file.name}:{first}"
        for first, last in sites(file)
        if not any(first <= line <= last for line in reached)
    ]
    assert missed == []


def test_every_statement_compiles_for_postgresql(recorded: Recorded) -> None:
    assert len(recorded.statements) > 100
    for statement, keys in recorded.statements:
        assert isinstance(statement, ClauseElement)
        assert str(statement.compile(dialect=POSTGRESQL, column_keys=keys))


def test_every_function_returns_on_a_real_server_what_it_returns_over_a_file(
    postgres_ledger_url: str,
) -> None:
    results = {}
    server = backend_at(postgres_ledger_url)
    for engine in (create_engine("sqlite://"), server.writer().engine):
        with engine.connect() as connection, connection.begin() as transaction:
            if connection.dialect.name == "sqlite":
                once_made.make_tables(connection)
            everything = Everything(connection)
            everything.run()
            transaction.rollback()
        engine.dispose()
        results[connection.dialect.name] = everything.results
    assert len(results["sqlite"]) == len(results["postgresql"]) > 100
    for ours, theirs in zip(results["sqlite"], results["postgresql"], strict=True):
        assert _shown(*theirs) == _shown(*ours)


def _shown(name: str, value: Any) -> tuple[str, str]:
    """Show a value with its types; leave out what the database's clock decides."""
    if name in {"take", "all_leases", "all_nodes", "database_now"}:
        value = None
    if isinstance(value, dict):
        value = value.items()
    if isinstance(value, Set) or name == "pending_paths":  # in any order
        value = sorted(value, key=repr)
    return name, repr(value)


def test_every_statement_calls_only_functions_that_both_databases_have(recorded: Recorded) -> None:
    for statement, _ in recorded.statements:
        for part in visitors.iterate(statement):
            if isinstance(part, FunctionElement):
                name, given = part.name, list(part.clauses)
                assert (name, len(given)) in FUNCTIONS.items(), str(statement)
                if name == "sum":
                    assert not isinstance(given[0].type, Boolean), str(statement)


def test_every_kind_of_job_says_how_long_it_may_be_put_off() -> None:
    """Otherwise the clock's repair would make it due at once, or leave it for years."""
    assert clock_repair.LONGEST_JOB.keys() == set(JobKind)


def test_every_table_compiles_for_postgresql() -> None:
    for table in metadata.sorted_tables:
        made: list[ExecutableDDLElement] = [CreateTable(table), *map(CreateIndex, table.indexes)]
        assert all(str(one.compile(dialect=POSTGRESQL)) for one in made)


def literals(file: Path, call: str) -> list[str]:
    """Return what a function of this name gets, as it is written."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = [ast.unparse(node.func).rpartition(".")[2] for node in calls]
    return [
        ast.unparse(node.args[0]) for node, name in zip(calls, names, strict=True) if name == call
    ]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_no_statement_is_written_as_text_but_for_savepoints_which_are_standard(file: Path) -> None:
    standard = {"'SAVEPOINT job'", "'ROLLBACK TO job'", "'RELEASE job'"}
    assert {*literals(file, "exec_driver_sql")} <= standard
    assert literals(file, "text") == []
