"""What a node of several reports: at /readyz, in its status, in its metrics."""

from typing import Any

from poller import cluster as nodes_seen
from poller.cli.run_command import _status
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.runtime_report import RuntimeReport
from poller.status import StoredLately
from tests.integration.cluster import Cluster, ClusterNode

# the fixture of the other tests of several nodes
from tests.integration.test_several_nodes import cluster as cluster  # noqa: PLC0414
from tests.integration.test_several_nodes import pair


async def looked(node: ClusterNode) -> Monitor:
    """Return the node's monitor after a regular look."""
    monitor = Monitor(node.runtime, Planner(node.runtime))
    await monitor._gauges()
    return monitor


async def shown(node: ClusterNode) -> dict[str, Any]:
    monitor = await looked(node)
    return await _status(node.runtime, monitor.readiness, StoredLately(), None)


async def test_a_node_that_waits_is_ready_and_says_who_works(cluster: Cluster) -> None:
    first, second = await pair(cluster)
    waiting = (await looked(second)).readiness
    assert waiting.troubles() == []
    assert waiting.notes() == ["Waiting: node a works on account main."]
    assert (await looked(first)).readiness.notes() == []


async def test_an_account_that_nobody_holds_makes_its_nodes_unready(cluster: Cluster) -> None:
    _, second = await pair(cluster)
    await cluster.expire()
    waiting = (await looked(second)).readiness
    (said,) = waiting.troubles()
    assert said.startswith("No node has worked on account main since 2026-01-01")
    assert said.endswith("`poller help account-without-node`.")


async def test_lease_held_is_0_on_a_node_that_waits(cluster: Cluster) -> None:
    for node, held in zip(await pair(cluster), "10", strict=True):
        await looked(node)
        text = (await node.runtime.services.metrics.render()).decode()
        assert f'poller_lease_held{{account="main"}} {held}.0' in text


async def test_lease_held_is_0_once_a_node_cannot_be_sure_of_its_lease(cluster: Cluster) -> None:
    first, _ = await pair(cluster)
    first.let_trust_end()
    await looked(first)
    text = (await first.runtime.services.metrics.render()).decode()
    assert 'poller_lease_held{account="main"} 0.0' in text


async def test_status_names_the_node_that_answers_and_the_one_that_works(cluster: Cluster) -> None:
    first, second = await pair(cluster)
    await looked(first)
    for node, name in ((first, "a"), (second, "b")):
        status = await shown(node)
        assert status["node"] == name
        assert [one["node"] for one in status["accounts"]] == ["a"]
        assert status["nodes"]["summary"] == "1 account: one node works, the others wait."


async def test_status_of_a_waiting_node_takes_the_pace_from_the_one_that_works(
    cluster: Cluster,
) -> None:
    first, second = await pair(cluster)
    first.account.client.pacing.speed.rate = 1.5
    await looked(first)
    assert [one["rate"] for one in (await shown(second))["accounts"]] == [1.5]


async def test_each_node_keeps_its_own_report(cluster: Cluster) -> None:
    for node in await pair(cluster):
        await looked(node)
    seen = await nodes_seen.look(cluster.ledger)
    found = await nodes_seen.reports(cluster.ledger, seen)
    assert found.keys() == {"a", "b"}
    assert all(isinstance(report, RuntimeReport) for report in found.values())
