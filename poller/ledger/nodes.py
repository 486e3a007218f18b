"""Nodes: the runs of poller that share a database, as each reports itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, type_coerce, update

from poller.ledger import leases
from poller.ledger.leases import Lease
from poller.ledger.tables import MICROSECOND, Instant, nodes, now_us, of_us

LIVE_FOR = timedelta(seconds=15)  # without a report
_KEPT_FOR = timedelta(days=7)


@dataclass(frozen=True)
class NodeReport:
    """A run of poller. `name` is what operators call it, `accounts` digests of its configuration by App ID.

    `oldest` and `newest` are the revisions of the tables that its program can work on. `stores`: its
    storage is usable.
    """

    run: str
    name: str
    version: str
    oldest: str
    newest: str
    accounts: Mapping[str, str]
    users: int = 0
    lag_s: float = 0.0  # of its last renewal
    stores: bool = True


@dataclass(frozen=True)
class NodeRow:
    """A node as the ledger knows it; `is_live` and the times are by the database's clock."""

    report: NodeReport
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    draining: bool
    is_live: bool
    age: timedelta  # since it was last seen


_AGE = (now_us() - of_us(nodes.c.seen_at)).label("age")


def all_nodes(connection: Connection) -> list[NodeRow]:
    """Return the nodes of the last week, in the order in which they started."""
    rows = connection.execute(select(nodes, _AGE).order_by(nodes.c.started_at, nodes.c.run))
    return [_row(dict(row)) for row in rows.mappings()]


def database_now(connection: Connection) -> datetime:
    """Return the time by the database's clock."""
    now: datetime = connection.execute(select(type_coerce(now_us(), Instant))).scalar_one()
    return now


def holders(connection: Connection) -> dict[str, NodeRow]:
    """Return which live service holds each account, by App ID; commands that hold some do not count."""
    live = {row.report.run: row for row in all_nodes(connection) if row.is_live}
    return {
        app_id: live[lease.holder]
        for app_id, lease in leases.all_leases(connection).items()
        if lease.is_live and lease.holder in live and live[lease.holder].report.accounts
    }


def _row(held: dict[str, Any]) -> NodeRow:
    age = held.pop("age") * MICROSECOND
    rest = {name: held.pop(name) for name in ("started_at", "seen_at", "ended_at", "draining")}
    node = replace(NodeReport(**held), accounts=json.loads(held["accounts"]))
    return NodeRow(node, **rest, is_live=rest["ended_at"] is None and age <= LIVE_FOR, age=age)


def begin(connection: Connection, node: NodeReport) -> None:
    """Report a run that begins. It drains if the last run of this name was told to."""
    last = select(nodes.c.draining).where(nodes.c.name == node.name)
    draining = connection.scalar(last.order_by(nodes.c.started_at.desc()).limit(1)) or False
    connection.execute(delete(nodes).where(_AGE.element > _KEPT_FOR // MICROSECOND))
    known = _values(node) | {"run": node.run, "draining": draining}
    connection.execute(insert(nodes).values(**known, started_at=now_us(), seen_at=now_us()))


def report(connection: Connection, node: NodeReport) -> bool | None:
    """Report that a run is alive; return whether it shall drain, None if the ledger does not know it."""
    seen = update(nodes).where(nodes.c.run == node.run)
    seen = seen.values(**_values(node), seen_at=now_us(), ended_at=None)
    draining: bool | None = connection.scalar(seen.returning(nodes.c.draining))
    return draining


def renew(connection: Connection, node: NodeReport) -> tuple[dict[Lease, int], bool]:
    """Renew the leases of a run, and report it; return what `leases.renew` returns, and whether to drain."""
    renewed = leases.renew(connection, node.run)
    draining = report(connection, node)
    if draining is None:  # the database has lost it
        begin(connection, node)
    return renewed, bool(draining)


def end(connection: Connection, run: str) -> None:
    """Note that a run has ended in order."""
    connection.execute(update(nodes).where(nodes.c.run == run).values(ended_at=now_us()))


def set_draining(connection: Connection, name: str, *, draining: bool) -> int:
    """Tell the runs with this name to give back their accounts, or to take some again; return how many."""
    told = update(nodes).where(nodes.c.name == name)
    return connection.execute(told.values(draining=draining)).rowcount


def _values(node: NodeReport) -> dict[str, Any]:
    held = dict(vars(node))
    del held["run"]
    return held | {"accounts": json.dumps(dict(node.accounts), sort_keys=True)}
