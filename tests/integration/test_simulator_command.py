"""`poller simulate`: its help, what it prints, how it ends."""

import argparse
import asyncio
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web
from ruamel.yaml import YAML

from poller.config import load
from poller.errors import CannotStart, UsageError
from poller.simulator import Simulator, Switches, simulate
from poller.simulator.faults import EFFECTS


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="poller simulate")
    simulate.add_arguments(parser)
    return parser.parse_args(words)


def test_the_help_lists_every_switch_and_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name in (*Switches.table(), *EFFECTS):
        assert f"  {name}: " in shown
    assert "500@image=5%" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--switch", "page_cap=0"], "switch page_cap: 0 is not a number from 1 to 100"),
        (["--fault", "explode=5%"], "there is no fault 'explode'"),
        (["--users", "0"], "'0' is not a whole number from 1 to"),
        (["--port", "http"], "'http' is not a whole number from 0 to 65535"),
        (["--rate", "-1"], "'-1' is not a number from 0"),
        (["--rate", "nan"], "'nan' is not a number from 0"),
        (["--backlog", "-1"], "'-1' is not a whole number from 0"),
    ],
)
def test_wrong_words_are_wrong_usage(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


async def test_it_prints_a_configuration_and_a_line_for_each_arrival(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--apps=2", "--users=3", "--rate=5", "--arrivals-per-minute=60000"]
    assert await simulate.run(parsed(*words, "--burst=12", "--duration=0.05")) == 0
    out, err = capsys.readouterr()
    config = YAML(typ="safe").load(out)
    assert list(config["accounts"]) == ["simulated-app-1", "simulated-app-2"]
    account = config["accounts"]["simulated-app-1"]
    assert account["base_url"].startswith("http://127.0.0.1:")
    assert account["limits"] == {"requests_per_second": 5, "burst": 10}
    assert len(account["users"]) == 3
    for one in config["accounts"].values():
        assert f"#   export {one['api_key']['env']}=" in out
    assert " fax " in err.splitlines()[0]


async def test_without_a_rate_the_configuration_has_no_limits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await simulate.run(parsed("--arrivals-per-minute=0", "--duration=0.01")) == 0
    out, err = capsys.readouterr()
    assert "limits" not in YAML(typ="safe").load(out)["accounts"]["simulated-app-1"]
    assert err == ""


async def test_it_sends_faxes_and_tells_a_web_hook_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        told.append((await request.content.read()).decode())
        if {"INBOUND" in one for one in told} == {True, False}:
            os.kill(os.getpid(), signal.SIGTERM)
        return web.Response()

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    words = [f"--hook=http://127.0.0.1:{port}/x", f"--hook-secret-file={secret}"]
    words += ["--arrivals-per-minute=6000", "--sent-per-hour=360000"]
    assert await asyncio.wait_for(simulate.run(parsed(*words)), 90) == 0
    await runner.cleanup()
    config = YAML(typ="safe").load(capsys.readouterr().out)
    account = config["accounts"]["simulated-app-1"]
    assert account["users"]["user-001"]["number"] == "18005550001"
    assert account["webhook"] == {"path": "/x", "secret": {"file": str(secret)}}
    assert config["webhook"] == {"listen": f"127.0.0.1:{port}"}


def test_each_of_several_app_ids_has_its_own_web_hook(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    simulator = Simulator(port=9)
    keys = simulate.populate(simulator, apps=2, users=1, backlog=0)
    simulate._tell_hook(simulator, "http://127.0.0.1:9411/efax", tmp_path / "secret")
    written = tmp_path / "poller.yaml"
    written.write_text(simulate.configuration(simulator, keys, tmp_path / "secret"))
    config = load([written])
    paths = [account.webhook.path for account in config.accounts if account.webhook]
    assert paths == ["/efax/simulated-app-1", "/efax/simulated-app-2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hook=http://127.0.0.1/x"], "--hook needs --hook-secret-file"),
        (["--hook=http://127.0.0.1/x", "--hook-secret-file=nowhere"], "nowhere cannot be read"),
        (["--hook=https://example.com/x", f"--hook-secret-file={__file__}"], "on this machine"),
        (["--hook=http://127.0.0.1:9411", f"--hook-secret-file={__file__}"], "needs a path"),
    ],
)
async def test_a_web_hook_that_cannot_be_told_is_wrong_usage(
    words: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        await simulate.run(parsed(*words))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_0(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    running = asyncio.create_task(simulate.run(parsed("--arrivals-per-minute=0")))
    while not capsys.readouterr().out:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(running, 90) == 0


async def test_a_port_that_is_taken_is_one_sentence_and_exit_73() -> None:
    async with Simulator() as other:
        with pytest.raises(CannotStart, match="it is taken") as refused:
            await simulate.run(parsed(f"--port={other.port}"))
    assert refused.value.exit_code == 73


def test_a_backlog_lies_in_the_last_day_and_is_spread_over_users() -> None:
    simulator = Simulator()
    keys = simulate.populate(simulator, apps=2, users=3, backlog=50)
    now = simulator.now()
    faxes = simulator.faxes()
    assert len(faxes) == 50
    assert all(0 < (now - fax.completed).total_seconds() < 86_400 for fax in faxes)
    assert {fax.app_id for fax in faxes} == set(keys)
    assert len({fax.user_id for fax in faxes}) == 6
