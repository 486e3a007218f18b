"""`poller nodes`, with the rows that nodes write into a PostgreSQL ledger."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poller import log
from poller.cli import main
from poller.ledger import Ledger, accounts, leases, nodes
from poller.ledger.nodes import NodeReport

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with the ledger at a URL."""
    monkeypatch.setattr(log, "configure", lambda *_: None)
    (tmp_path / "state").mkdir()

    def command(url: str, *words: str) -> tuple[int, str, str]:
        (tmp_path / "poller.yaml").write_text(f"""
accounts: {{main: {{app_id: app, api_key: {{env: KEY}}, users: {{a: {{user_id: one}}}}}}}}
storage: {{directory: {tmp_path}/faxes}}
state: {{directory: {tmp_path}/state, url: "{url}"}}
""")
        capsys.readouterr()
        code = main(["-c", str(tmp_path / "poller.yaml"), *words])
        return code, *capsys.readouterr()

    return command


def report(name: str, digest: str = "same") -> NodeReport:
    return NodeReport(f"run-{name}", name, "0.3.0", "0011", "0011", {"app": digest}, 1, 0.004)


def filled(url: str, *reports: NodeReport, holder: str | None = None) -> None:
    """Let these nodes report, and one of them take the account."""

    async def begin(ledger: Ledger) -> None:
        await ledger.write(accounts.ensure, "app", "main")
        await ledger.write(leases.add, ["app"])
        for one in reports:
            await ledger.write(nodes.begin, one)
            await ledger.write(nodes.report, one)
        if holder is not None:
            await ledger.write(leases.take, "app", f"run-{holder}")

    _with_ledger(url, begin)


def _with_ledger(url: str, do: Callable[[Ledger], Awaitable[Any]]) -> Any:
    async def opened() -> Any:
        async with await Ledger.open(url) as ledger:
            return await do(ledger)

    return asyncio.run(opened())


def test_with_a_file_there_is_one_node(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state/poller.db"
    filled(url)
    code, out, _ = run(url, "nodes")
    assert code == 0
    assert out.startswith("There is one node: this machine.")
    assert len(out.splitlines()) == 1
    code, out, _ = run(url, "nodes", "--json")
    assert (code, json.loads(out)["shared"]) == (0, False)
    assert run(url, "nodes", "drain", "a")[0] == 1


def test_nodes_shows_who_works_and_who_waits(run: Run, postgres_ledger_url: str) -> None:
    filled(postgres_ledger_url, report("a"), report("b"), holder="b")
    code, out, _ = run(postgres_ledger_url, "nodes")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["1", "account:", "one", "node", "works,", "the", "others", "wait."]
    assert [line[:2] for line in lines if line and line[0] in "ab"] == [
        ["a", "waits"],
        ["b", "works"],
    ]
    assert ["main", "b"] in lines


def test_nodes_json_has_what_scripts_ask_for(run: Run, postgres_ledger_url: str) -> None:
    filled(
        postgres_ledger_url, report("a"), replace(report("b", "other"), stores=False), holder="a"
    )
    shown = json.loads(run(postgres_ledger_url, "nodes", "--json")[1])
    assert shown["accounts"] == [
        {"account": "main", "node": "a", "term": 1, "without_node_since": None}
    ]
    first, second = shown["nodes"]
    assert (first["node"], first["running"], first["accounts"]) == ("a", True, ["main"])
    assert (first["users"], first["renewal_s"], first["schema"]) == (1, 0.004, ["0011", "0011"])
    assert [one["storage"] for one in shown["nodes"]] == ["usable", "unusable"]
    assert second["differs"] == ["main"]
    assert "Nodes a and b have different configurations of account main" in shown["problems"][1]
    assert first["seen_at"].endswith("Z")


def test_drain_tells_a_node_and_undrain_takes_it_back(run: Run, postgres_ledger_url: str) -> None:
    url = postgres_ledger_url
    filled(url, report("a"), report("b"), holder="a")

    def draining() -> list[bool]:
        shown = json.loads(run(url, "nodes", "--json")[1])
        return [one["draining"] for one in shown["nodes"]]

    code, out, _ = run(url, "nodes", "drain", "a")
    assert (code, out) == (
        0,
        "Node a gives its accounts back, each after its downloads. Other nodes take them.\n",
    )
    assert draining() == [True, False]
    assert "No other node takes main" in run(url, "nodes", "drain", "b")[1]
    assert run(url, "nodes", "undrain", "a")[:2] == (0, "Node a takes accounts again.\n")
    assert draining() == [False, True]


def test_an_unknown_node_is_exit_1_and_a_missing_name_is_exit_2(
    run: Run, postgres_ledger_url: str
) -> None:
    filled(postgres_ledger_url, report("a"))
    code, _, err = run(postgres_ledger_url, "nodes", "drain", "c")
    assert (code, "there is no node c" in err) == (1, True)
    code, _, err = run(postgres_ledger_url, "nodes", "undrain")
    assert (code, "needs the NAME of a node" in err) == (2, True)


def test_a_node_that_has_ended_can_be_told_to_drain_for_its_next_start(
    run: Run, postgres_ledger_url: str
) -> None:
    filled(postgres_ledger_url, report("a"))
    _with_ledger(postgres_ledger_url, lambda ledger: ledger.write(nodes.end, "run-a"))
    assert "No node is running" in run(postgres_ledger_url, "nodes")[1]
    assert (
        "when it starts, it takes no account" in run(postgres_ledger_url, "nodes", "drain", "a")[1]
    )
