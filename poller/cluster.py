"""Several nodes on one ledger: which are alive, who works on which account, and what is wrong."""

import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from poller.backlog import CatchUp
from poller.config.model import Config
from poller.ledger import Ledger, accounts, leases, meta, nodes
from poller.ledger.leases import LeaseRow
from poller.ledger.nodes import NodeRow
from poller.runtime_report import RuntimeReport
from poller.topic import see

_UNHELD_FOR = timedelta(minutes=1)  # a takeover takes half of it at most


def own_name(settings: Config) -> str:
    """Return what this machine is called among the nodes."""
    return settings.node or socket.gethostname()


@dataclass(frozen=True)
class Cluster:
    """The nodes of the last week, in the order of their starts, and the leases by App ID.

    `names` has the accounts' names by App ID. `risk` says how the database may lose what it has
    confirmed. `now` is the database's time.
    """

    nodes: Sequence[NodeRow]
    leases: Mapping[str, LeaseRow]
    names: Mapping[str, str]
    now: datetime
    risk: str | None

    @property
    def live(self) -> list[NodeRow]:
        """Return the running services; one that stops, or a command such as `once`, has no accounts."""
        return [row for row in self.nodes if row.is_live and row.report.accounts]

    @property
    def shown(self) -> list[NodeRow]:
        """Return live services, other runs that hold an account, and each other node's last run; by name."""
        working = [self.holder(app_id) for app_id in self.leases]
        shown = [row for row in self.nodes if row in self.live or row in working]
        names = {row.report.name for row in shown}
        last = {row.report.name: row for row in self.nodes if row.report.name not in names}
        return sorted([*shown, *last.values()], key=lambda row: row.report.name)

    @property
    def app_ids(self) -> list[str]:
        """Return the accounts that live nodes have, in the order of their names."""
        had = {app_id for row in self.live for app_id in row.report.accounts}
        return sorted(had, key=lambda app_id: (self.name_of(app_id), app_id))

    def name_of(self, app_id: str) -> str:
        return self.names.get(app_id, app_id)

    def holder(self, app_id: str) -> NodeRow | None:
        """Return the node that works on an account."""
        lease = self.leases.get(app_id)
        if lease is None or not lease.is_live:
            return None
        return next((row for row in self.nodes if row.report.run == lease.holder), None)

    def held_by(self, row: NodeRow) -> list[str]:
        """Return the accounts that a node works on."""
        return [app_id for app_id in self.leases if self.holder(app_id) is row]

    def differing(self) -> dict[str, list[NodeRow]]:
        """Return the accounts that live nodes would work on in different ways, with these nodes."""
        having = {
            app_id: [row for row in self.live if app_id in row.report.accounts]
            for app_id in self.app_ids
        }
        return {
            app_id: rows
            for app_id, rows in having.items()
            if len({row.report.accounts[app_id] for row in rows}) > 1
        }

    def unheld(self) -> dict[str, datetime]:
        """Return the accounts that nobody has worked on for a minute, and since when."""
        began = min((row.started_at for row in self.live), default=self.now)
        free = [self.leases[app_id] for app_id in self.app_ids if app_id in self.leases]
        since = {one.app_id: one.expires_at or began for one in free if not one.is_live}
        return {app_id: at for app_id, at in since.items() if self.now - at > _UNHELD_FOR}


async def look(ledger: Ledger) -> Cluster | None:
    """Read it from the ledger; None if only one node can work on it. Raises LedgerUnavailable."""
    if not ledger.is_shared:
        return None
    return await ledger.read(_read, (await ledger.health()).risk)


def holder_name(seen: Cluster | None, app_id: str) -> str:
    """Return the name of the node that works on an account; empty if there is one node, or if none does."""
    row = None if seen is None else seen.holder(app_id)
    return "" if row is None else row.report.name


async def reports(ledger: Ledger, seen: Cluster | None) -> dict[str, RuntimeReport]:
    """Return the reports of the running services, by node; the name of a single node is empty.

    Raises LedgerUnavailable.
    """
    names = [""] if seen is None else [row.report.name for row in seen.live]
    found = {
        name: RuntimeReport.read(
            await ledger.read(meta.value, meta.of_node(meta.RUNTIME_REPORT, name))
        )
        for name in names
    }
    return {name: report for name, report in found.items() if report is not None}


def catching_up(reports: Mapping[str, RuntimeReport]) -> dict[str, CatchUp]:
    """Return which accounts catch up, as their nodes say."""
    return {name: one for report in reports.values() for name, one in report.catching_up.items()}


def _read(connection: Connection, risk: str | None) -> Cluster:
    known = nodes.all_nodes(connection)
    names = {row.app_id: row.account for row in accounts.all_accounts(connection) if row.account}
    held = leases.all_leases(connection)
    return Cluster(known, held, names, nodes.database_now(connection), risk)


def summary(cluster: Cluster) -> str:
    """Say in a sentence how many nodes work, and whether others can take over."""
    count, live = len(cluster.app_ids), len(cluster.live)
    told = _counted(count, "account")
    if live == 0:
        return "No node is running."
    if live == 1:
        return f"{told}: one node works, and no other can take over."
    if count == 1:
        return f"{told}: one node works, the others wait."
    if count < live:
        return f"{told}: at most {count} of the {live} nodes work, the others wait."
    working = sum(bool(cluster.held_by(row)) for row in cluster.live)
    if working == 0:
        return f"{told} on {live} nodes, none of which works."
    return f"{told} on {live} nodes, of which {working} {'works' if working == 1 else 'work'}."


def problems(cluster: Cluster) -> list[str]:
    """Return a sentence for everything that is wrong with the nodes, the worst first."""
    return [
        *_none_running(cluster),
        *without_node(cluster),
        *_not_storing(cluster),
        *_same_name(cluster),
        *_differing(cluster),
        *_versions(cluster),
        *_risk(cluster),
    ]


def _none_running(cluster: Cluster) -> Iterator[str]:
    if not cluster.live:
        yield see(
            "No node is running, so nobody looks for faxes: start the service on each machine",
            "service-does-not-start",
        )


def without_node(cluster: Cluster) -> Iterator[str]:
    """Say which accounts nobody works on."""
    for app_id, since in cluster.unheld().items():
        name = cluster.name_of(app_id)
        able = [row for row in cluster.live if app_id in row.report.accounts]
        why = "; the nodes that have it drain" if all(row.draining for row in able) else ""
        yield see(
            f"No node has worked on account {name} since {since:%Y-%m-%d %H:%M} UTC, and its faxes "
            f"wait at eFax{why}",
            "account-without-node",
        )


def _not_storing(cluster: Cluster) -> Iterator[str]:
    for row in cluster.live:
        if not row.report.stores:
            yield see(
                f"Node {row.report.name} cannot store faxes; others take its accounts if they can",
                "storage-unusable",
            )


def _same_name(cluster: Cluster) -> Iterator[str]:
    for name, count in Counter(row.report.name for row in cluster.live).items():
        if count > 1:
            yield see(
                f"{count} runs of poller are called {name}: give each machine another name (`node`)",
                "nodes-differ",
            )


def _differing(cluster: Cluster) -> Iterator[str]:
    for app_id, rows in cluster.differing().items():
        names = _listed(list(dict.fromkeys(row.report.name for row in rows)))
        yield see(
            f"Nodes {names} have different configurations of account {cluster.name_of(app_id)}: make "
            "the files the same, and reload",
            "nodes-differ",
        )


def _versions(cluster: Cluster) -> Iterator[str]:
    runs = [row.report for row in cluster.live]
    if len({(one.newest, one.version) for one in runs}) > 1:
        told = sorted(f"{one.name} has {one.version}" for one in runs)
        yield see(
            f"Nodes run different versions of poller ({', '.join(told)}): install the same one everywhere",
            "nodes-differ",
        )


def _risk(cluster: Cluster) -> Iterator[str]:
    if cluster.risk is not None:
        yield see(cluster.risk[:1].upper() + cluster.risk[1:], "standby-behind")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
