"""`poller nodes`: the machines that share the accounts, and which of them works on which account."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from poller import cluster
from poller.cli import bootstrap
from poller.cli.console import answer, for_tables, say, table
from poller.cli.lookup import NotDone
from poller.cli.status_table import ago
from poller.cluster import Cluster
from poller.config.model import Config
from poller.errors import UsageError
from poller.ledger import nodes as node_rows
from poller.ledger.nodes import NodeRow
from poller.status import instant

_ALONE = (
    "There is one node: this machine. The ledger is an SQLite file; several nodes need a PostgreSQL "
    "database (`state.url`)."
)
Row = Mapping[str, Any]


def nodes(paths: Sequence[Path], *, action: str | None, name: str | None, as_json: bool) -> int:
    """Show the nodes, or tell one to give its accounts back; raises NotDone (1), UsageError (2)."""
    if action is not None and name is None:
        raise UsageError(f"nodes {action} needs the NAME of a node, as `poller nodes` shows it")
    settings = bootstrap.load(paths)
    if action is not None and name is not None:
        said = asyncio.run(_tell(settings, name, draining=action == "drain"))
        answer({"node": name, "draining": action == "drain"}, lambda: print(said), as_json=as_json)
        return 0
    seen = asyncio.run(_look(settings))
    shown = _shown(seen)
    answer(shown, lambda: _print(shown), as_json=as_json, indent=2)
    return 0


async def _look(settings: Config) -> Cluster | None:
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        return await cluster.look(ledger)


async def _tell(settings: Config, name: str, *, draining: bool) -> str:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        seen = await cluster.look(ledger)
        if seen is None:
            raise NotDone(_ALONE)
        if name not in {row.report.name for row in seen.nodes}:
            raise NotDone(f"there is no node {name}; `poller nodes` lists them")
        await ledger.write(node_rows.set_draining, name, draining=draining)
    live = [row for row in seen.live if row.report.name == name]
    if not draining:
        return f"Node {name} takes accounts again."
    if not live:
        return f"Node {name} is not running; when it starts, it takes no account."
    return (
        f"Node {name} gives its accounts back, each after its downloads. {_left_alone(seen, name)}"
    )


def _left_alone(seen: Cluster, name: str) -> str:
    """Say which accounts no other node would take."""
    others = [row for row in seen.live if row.report.name != name and not row.draining]
    had = {app_id for row in others for app_id in row.report.accounts}
    alone = [seen.name_of(app_id) for app_id in seen.app_ids if app_id not in had]
    if alone:
        return f"No other node takes {', '.join(alone)}: new faxes wait at eFax until one does."
    return "Other nodes take them."


def _shown(seen: Cluster | None) -> dict[str, Any]:
    if seen is None:
        return {"shared": False, "summary": _ALONE, "problems": [], "nodes": [], "accounts": []}
    return {
        "at": instant(seen.now),
        "shared": True,
        "summary": cluster.summary(seen),
        "problems": cluster.problems(seen),
        "nodes": [_node(seen, row) for row in seen.shown],
        "accounts": [_account(seen, app_id) for app_id in seen.app_ids],
    }


def _node(seen: Cluster, row: NodeRow) -> dict[str, Any]:
    differing = seen.differing()
    return {
        "node": row.report.name,
        "running": row.is_live,
        "draining": row.draining,
        "storage": "usable" if row.report.stores else "unusable",
        "version": row.report.version,
        "schema": [row.report.oldest, row.report.newest],
        "started_at": instant(row.started_at),
        "seen_at": instant(row.seen_at),
        "ended_at": instant(row.ended_at),
        "accounts": [seen.name_of(app_id) for app_id in seen.held_by(row)],
        "configured": len(row.report.accounts),
        "users": row.report.users if row.is_live else 0,
        "renewal_s": row.report.lag_s,
        "differs": [seen.name_of(app_id) for app_id, rows in differing.items() if row in rows],
    }


def _account(seen: Cluster, app_id: str) -> dict[str, Any]:
    holder, lease, unheld = seen.holder(app_id), seen.leases.get(app_id), seen.unheld()
    return {
        "account": seen.name_of(app_id),
        "node": None if holder is None else holder.report.name,
        "term": 0 if lease is None else lease.term,
        "without_node_since": instant(unheld.get(app_id)),
    }


def _state(node: Row) -> Text:
    """Say in a word what a node does."""
    if not node["running"]:
        return Text("stopped", "dim") if node["ended_at"] else Text("gone", "yellow")
    if node["storage"] == "unusable":
        return Text("cannot store", "bold red")
    if node["draining"]:
        return Text("drains" if node["accounts"] else "drained", "yellow")
    return Text("works" if node["accounts"] else "waits", "green" if node["accounts"] else "")


def _print(shown: dict[str, Any]) -> None:
    for problem in shown["problems"]:
        say(problem, "bold red")
    say(shown["summary"])
    if not shown["shared"]:
        return
    at: str = shown["at"]
    columns: dict[str, Callable[[Row], str | Text]] = {
        "node": lambda one: one["node"],
        "state": _state,
        "version": lambda one: one["version"],
        "schema": lambda one: "-".join(dict.fromkeys(one["schema"])),
        "accounts": lambda one: f"{len(one['accounts'])} of {one['configured']}",
        "users": lambda one: f"{one['users']:,}",
        "started": lambda one: ago(one["started_at"], at, ""),
        "seen": lambda one: ago(one["seen_at"], at, ""),
        "renewal": lambda one: f"{one['renewal_s'] * 1000:.0f} ms",
    }
    holders: dict[str, Callable[[Row], str | Text]] = {
        "account": lambda one: one["account"],
        "node": lambda one: one["node"] or Text("none", "bold red"),
    }
    console = for_tables()
    for made in (
        table(shown["nodes"], columns, texts=4),
        table(shown["accounts"], holders, texts=2),
    ):
        console.print()
        console.print(made)
