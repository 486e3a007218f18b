"""Copy a whole ledger into another database, such as a file into PostgreSQL."""

from typing import Any

from sqlalchemy import Connection, Table, delete, insert, literal, select, tuple_

from poller.errors import LockHeld
from poller.ledger import nodes, tables
from poller.ledger.ledger import Ledger

_ROWS = 2000
_OF_RUNS = (tables.leases, tables.nodes)  # they end with the old ledger


async def copy(old: Ledger, new: Ledger) -> None:
    """Put all rows of `old` into `new`, which has just been made. Nobody may write into `old`.

    Raises LockHeld if a node works on it, and LedgerUnavailable.
    """
    await old.read(_require_nobody)
    await new.write(_empty)
    for table in tables.metadata.sorted_tables:
        rows = [] if table in _OF_RUNS else await old.read(_page, table, None)
        while rows:
            await new.write(_put, table, rows)
            last = [rows[-1][column.name] for column in table.primary_key]
            rows = await old.read(_page, table, last)
    await new.write(new.continue_ids)


def _require_nobody(connection: Connection) -> None:
    live = [row.report.name for row in nodes.all_nodes(connection) if row.is_live]
    if live:
        raise LockHeld(
            f"nodes are at work with the old ledger ({', '.join(sorted(live))}): stop poller on all of them"
        )


def _empty(connection: Connection) -> None:
    for table in reversed(tables.metadata.sorted_tables):
        connection.execute(delete(table))


def _page(connection: Connection, table: Table, after: list[Any] | None) -> list[dict[str, Any]]:
    """Return the next rows by primary key."""
    keys = list(table.primary_key)
    wanted = select(table).order_by(*keys).limit(_ROWS)
    if after is not None:
        last = [literal(value, key.type) for value, key in zip(after, keys, strict=True)]
        wanted = wanted.where(tuple_(*keys) > tuple_(*last))
    return [dict(row) for row in connection.execute(wanted).mappings()]


def _put(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    connection.execute(insert(table), rows)
