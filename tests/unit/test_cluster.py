"""What the rows of nodes and leases mean for an operator."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from poller.cluster import Cluster, problems, summary
from poller.ledger.leases import LeaseRow
from poller.ledger.nodes import NodeReport, NodeRow

NOW = datetime(2026, 5, 21, 4, 30, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
BOTH = {"app-1": "same", "app-2": "same"}


def node(name: str, *, live: bool = True, draining: bool = False, **report: object) -> NodeRow:
    fields: dict[str, object] = {"version": "0.3.0", "oldest": "0011", "newest": "0011"}
    fields |= {"accounts": BOTH, "run": f"run-{name}"} | report
    age = SECOND if live else MINUTE
    return NodeRow(
        NodeReport(name=name, **fields),  # type: ignore[arg-type]
        started_at=NOW - 10 * MINUTE,
        seen_at=NOW - age,
        ended_at=None,
        draining=draining,
        is_live=live,
        age=age,
    )


def lease(app_id: str, holder: str | None, *, free_for: timedelta | None = None) -> LeaseRow:
    """A lease of a run; or one that ended so long ago."""
    ends = NOW + 10 * SECOND if free_for is None else NOW - free_for
    run = None if holder is None else f"run-{holder}"
    return LeaseRow(app_id, run, 3, ends, 7, is_live=free_for is None)


def cluster(*nodes: NodeRow, leases: tuple[LeaseRow, ...] = (), risk: str | None = None) -> Cluster:
    names = {"app-1": "main", "app-2": "second"}
    held = {one.app_id: one for one in leases}
    return Cluster(nodes, held, names, NOW, risk)


ALL_HELD = (lease("app-1", "a"), lease("app-2", "b"))
WELL = cluster(node("a"), node("b"), leases=ALL_HELD)


@pytest.mark.parametrize(
    ("accounts", "names", "said"),
    [
        (1, "a", "1 account: one node works, and no other can take over."),
        (2, "a", "2 accounts: one node works, and no other can take over."),
        (1, "ab", "1 account: one node works, the others wait."),
        (2, "abc", "2 accounts: at most 2 of the 3 nodes work, the others wait."),
        (2, "ab", "2 accounts on 2 nodes, none of which works."),
        (0, "", "No node is running."),
    ],
)
def test_summary_says_what_the_nodes_are_good_for(accounts: int, names: str, said: str) -> None:
    had = dict(list(BOTH.items())[:accounts])
    assert summary(cluster(*(node(name, accounts=had) for name in names))) == said


def test_nothing_is_wrong_with_two_nodes_and_an_account_each() -> None:
    assert problems(WELL) == []
    assert [WELL.held_by(row) for row in WELL.nodes] == [["app-1"], ["app-2"]]


def test_account_that_is_being_taken_over_is_no_problem_for_a_minute() -> None:
    held = lease("app-2", "b")
    for free_for, said in ((MINUTE, []), (MINUTE + SECOND, ["account-without-node"])):
        seen = cluster(node("b"), leases=(lease("app-1", "a", free_for=free_for), held))
        assert topics(seen) == said
    assert "account main since 2026-05-21 04:28 UTC" in problems(seen)[0]


def test_account_that_no_node_ever_had_counts_from_the_first_start() -> None:
    never = LeaseRow("app-1", None, 0, None, 0, is_live=False)
    seen = cluster(node("b"), leases=(never, lease("app-2", "b")))
    assert "since 2026-05-21 04:20 UTC" in problems(seen)[0]


def test_node_that_cannot_store_is_named() -> None:
    (told,) = problems(
        cluster(
            node("a", stores=False), node("b"), leases=(lease("app-1", "b"), lease("app-2", "b"))
        )
    )
    assert told.startswith("Node a cannot store faxes; others take its accounts if they can")


def test_draining_nodes_are_named_as_the_reason() -> None:
    free = lease("app-1", None, free_for=2 * MINUTE)
    seen = cluster(node("a", draining=True), leases=(free, lease("app-2", "a")))
    assert "the nodes that have it drain" in problems(seen)[0]


def test_accounts_that_only_a_dead_node_had_are_not_missed() -> None:
    seen = replace(WELL, nodes=(node("a"), node("b"), node("c", live=False, accounts={"old": "x"})))
    assert problems(seen) == []


def test_no_node_at_all_is_the_first_problem() -> None:
    assert topics(cluster(node("a", live=False))) == ["service-does-not-start"]


def test_different_configurations_name_the_account_and_the_nodes() -> None:
    other = {"app-1": "other", "app-2": "same"}
    seen = cluster(node("a"), node("b", accounts=other), node("c"), leases=ALL_HELD)
    (said,) = problems(seen)
    assert said.startswith("Nodes a, b and c have different configurations of account main")
    assert topics(seen) == ["nodes-differ"]


def test_dead_node_with_another_configuration_is_no_difference() -> None:
    gone = node("c", live=False, accounts={"app-1": "other"})
    assert problems(replace(WELL, nodes=(*WELL.nodes, gone))) == []


def test_two_live_runs_with_one_name_are_a_problem_and_a_dead_one_is_not() -> None:
    again = node("a", run="again")
    seen = replace(WELL, nodes=(*WELL.nodes, again))
    assert "2 runs of poller are called a" in problems(seen)[0]
    assert [row.report.run for row in seen.shown] == ["run-a", "again", "run-b"]
    earlier = replace(WELL, nodes=(node("a", run="earlier", live=False), *WELL.nodes))
    assert problems(earlier) == []
    assert [row.report.run for row in earlier.shown] == ["run-a", "run-b"]


def test_of_a_stopped_node_only_the_last_run_is_shown() -> None:
    runs = [node("c", run=f"c-{number}", live=False) for number in range(3)]
    seen = replace(WELL, nodes=(*runs, *WELL.nodes))
    assert [row.report.run for row in seen.shown] == ["run-a", "run-b", "c-2"]


def test_nodes_with_different_programs_are_named_with_their_versions() -> None:
    old = node("b", version="0.10.0", newest="0009")
    seen = replace(WELL, nodes=(node("a"), old))
    assert "different versions of poller (a has 0.3.0, b has 0.10.0)" in problems(seen)[0]


def test_a_standby_for_which_nobody_waits_is_a_problem() -> None:
    seen = replace(WELL, risk="the ledger has a standby")
    assert problems(seen) == ["The ledger has a standby. See `poller help standby-behind`."]


def topics(seen: Cluster) -> list[str]:
    return [said.rpartition("`poller help ")[2].removesuffix("`.") for said in problems(seen)]
