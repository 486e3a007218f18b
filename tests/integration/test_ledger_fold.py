"""The ledger and memory derive the same progress of a stream from the same events."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, func, select

from poller.ledger import fold, streams
from poller.ledger.tables import coverage, metadata
from poller.progress import Covered, Polled, Progress, SliceFailed, StreamEvent
from tests.stream_events import HAPPENED, NOON, hours

USERS = [("app", "u0", "main", "user-0"), ("app", "u1", "main", "user-1")]
NEW = Progress(our_first_seen=NOON)
SEVERAL = st.lists(st.lists(HAPPENED, max_size=4), max_size=6)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@given(SEVERAL)
def test_events_recorded_in_any_portions_are_kept_as_they_are_folded(
    connection: Connection, portions: list[list[StreamEvent]]
) -> None:
    ids = [row.id for row in streams.sync(connection, USERS, NOON)]
    expected = NEW
    for portion in portions:
        expected = expected.apply(*portion)
        assert fold.record(connection, ids[0], *portion) == expected
        assert fold.progress(connection, ids[0]) == expected
    kept = connection.scalar(select(func.count()).select_from(coverage))
    assert kept == len(expected.coverage.intervals)
    assert fold.progress(connection, ids[1]) == NEW
    connection.rollback()


@given(st.lists(HAPPENED, max_size=6), st.lists(HAPPENED, max_size=6))
@example([Covered(hours(0, 2))], [Covered(hours(1, 3))])
@example([SliceFailed(hours(0, 2), NOON, "refused")], [Covered(hours(0, 2))])
def test_several_streams_at_once_are_kept_as_one_after_the_other(
    connection: Connection, one: list[StreamEvent], other: list[StreamEvent]
) -> None:
    ids = [row.id for row in streams.sync(connection, USERS, NOON)]
    after = fold.record_all(connection, dict.fromkeys(ids, one))
    assert after == fold.all_progress(connection) == dict.fromkeys(ids, NEW.apply(*one))
    after[ids[1]] = fold.record(connection, ids[1], *other)
    assert after == fold.all_progress(connection)
    assert after[ids[1]] == NEW.apply(*one, *other)
    connection.rollback()


def test_stream_that_was_never_known_is_an_error_and_changes_nothing(
    connection: Connection,
) -> None:
    (first, _) = (row.id for row in streams.sync(connection, USERS, NOON))
    with pytest.raises(LookupError):
        fold.record_all(connection, {first: [Polled(NOON)], 99: [Polled(NOON)]})
    assert fold.progress(connection, first) == NEW
    connection.rollback()
