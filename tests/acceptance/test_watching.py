"""Files for other programs: rules for Prometheus and the board for Grafana."""

import asyncio
import json
import re
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from poller import manual
from poller.simulator import Faults, Simulator
from tests.acceptance.installation import APP, KEY_VARIABLE, Installation, own_port, populated
from tests.exhaustive import EXHAUSTIVE

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config/prometheus/poller.rules.yml"
BOARD = ROOT / "config/grafana/poller.json"
TESTS = ROOT / "config/prometheus/poller.rules.test.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is missing"
)


def alerts() -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(BOARD.read_text())["panels"]
    return shown


def drawn() -> list[str]:
    """Return every expression of the board, with its variables filled in."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [expression.replace("$account", "main") for expression in targets]


# -- poller exports what they use ----------------------------------------------------------------------


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=11)) as running:
        yield running


async def exported(installation: Installation, simulator: Simulator) -> str:
    """Return `/metrics` of a running service that has stored a fax and met a 429."""
    port = own_port()
    hook = {"path": "/efax/main", "secret": {"env": KEY_VARIABLE}}
    installation.write(
        {
            "http": {"listen": f"127.0.0.1:{port}"},
            "webhook": {"listen": "127.0.0.1:0"},
            "sent": {"archive": "metadata"},
            "accounts": {"main": {"webhook": hook}},
        }
    )
    simulator.faults = Faults.of("429@list=first:1")
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        completed = simulator.now() - timedelta(minutes=1)
        simulator.receive(APP, "user-a", completed=completed, distinct=False)
        await daemon.event("fax-stored")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            text = await answer.text()
        assert await daemon.stop() == 0
    return text


def series(text: str) -> dict[str, dict[str, set[str]]]:
    """Return the names of all series, even of those without a sample, with their labels' values."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        found |= {name + suffix: defaultdict(set) for suffix in suffixes}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[sample.name][label].add(value)
    return found


def missing(expressions: list[str], known: dict[str, dict[str, set[str]]]) -> Iterator[str]:
    """Return what expressions use that poller does not export: names, and values of labels."""
    for expression in expressions:
        for name, selector in re.findall(r"\b(poller_\w+)(?:\{(.*?)\})?", expression):
            if name not in known:
                yield name
            for label, value in re.findall(r'(\w+)="([^"$]*)"', selector):
                if value not in known.get(name, {}).get(label, ()):
                    yield f'{name}{{{label}="{value}"}}'


async def test_what_the_rules_and_the_board_ask_for_is_exported_by_a_service_at_work(
    simulator: Simulator, tmp_path: Path
) -> None:
    known = series(await exported(Installation(tmp_path, simulator.base_url), simulator))
    expressions = [alert["expr"] for alert in alerts()]
    assert list(missing(expressions + drawn(), known)) == []
    assert set(missing(['poller_up{a="b"}', 'poller_faxes_total{outcome="lost"}'], known)) == {
        "poller_up",
        'poller_up{a="b"}',
        'poller_faxes_total{outcome="lost"}',
    }


# -- alarms ------------------------------------------------------------------------------------------


async def promtool(*words: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        "promtool",
        *map(str, words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=RULES.parent,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


@needs_promtool
async def test_the_rules_are_understood_by_prometheus() -> None:
    assert f"{len(alerts())} rules found" in await promtool("check", "rules", RULES)


@needs_promtool
@pytest.mark.timeout(300)
@pytest.mark.parametrize("long", [False, True])
async def test_every_alarm_is_raised_when_it_should_be_and_no_other_with_it(
    tmp_path: Path, long: bool
) -> None:
    """In the tests that last for days, the rules are evaluated less often, unless all is tried."""
    told = YAML(typ="safe").load(TESTS)
    told["rule_files"] = [str(RULES)]
    told["tests"] = [test for test in told["tests"] if _lasts_days(test) == long]
    assert told["tests"]
    if long and not EXHAUSTIVE:
        told["evaluation_interval"] = "30m"
    written = tmp_path / "rules.test.yml"
    written.write_text(json.dumps(told))
    assert "SUCCESS" in await promtool("test", "rules", written)


def _lasts_days(test: dict[str, Any]) -> bool:
    """Times of more than 99 hours are in hours."""
    return any(
        re.fullmatch(r"\d{3,}h", check["eval_time"]) for check in test.get("promql_expr_test", ())
    )


def test_every_alarm_has_a_test_in_which_it_is_raised() -> None:
    raised = {
        name
        for test in YAML(typ="safe").load(TESTS)["tests"]
        for check in test.get("promql_expr_test", ())
        for sample in check["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert raised == {alert["alert"] for alert in alerts()}


def test_every_alarm_has_a_severity_and_ends_with_the_topic_that_names_it() -> None:
    for alert in alerts():
        told = alert["annotations"]
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert told["summary"]
        topic = told["runbook"].removeprefix("poller help ")
        assert told["description"].endswith(f". See `poller help {topic}`."), alert["alert"]
        assert f"`{alert['alert']}`" in manual.text(topic)


def test_every_alarm_has_a_row_in_the_manual() -> None:
    page = (ROOT / "config/MONITORING.md").read_text()
    rows = re.findall(r"^\| `(Poller\w+)`", page, re.MULTILINE)
    assert rows == [alert["alert"] for alert in alerts()]


# -- the board ---------------------------------------------------------------------------------------


def test_every_panel_of_the_board_has_an_id_of_its_own_a_title_a_unit_and_a_place() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown) > 15
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_board_asks_for_its_source_and_its_account_by_variables() -> None:
    variables = {one["name"]: one for one in json.loads(BOARD.read_text())["templating"]["list"]}
    assert {name: one["type"] for name, one in variables.items()} == {
        "datasource": "datasource",
        "account": "query",
    }
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    for panel in panels():
        for target in panel["targets"]:
            labels = target["expr"].partition("by (")[2].partition(")")[0]
            assert "account" not in labels or '{account=~"$account"' in target["expr"]


@needs_promtool
async def test_every_expression_of_the_board_is_understood_by_prometheus(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(drawn())]
    written = tmp_path / "board.yml"
    written.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in await promtool("check", "rules", written)
