"""Commands for operators' scripts: exit codes, one sentence, JSON."""

import asyncio
import hashlib
import json
import shlex
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Faults, Switches
from tests.acceptance.installation import (
    APP,
    KEY,
    KEY_VARIABLE,
    MARKER,
    USERS,
    Done,
    Installation,
    account,
    assert_stored,
    populated,
)
from tests.efax import Simulator
from tests.exhaustive import sample
from tests.faults.troubled import Scene

ONCE_KEYS = {"polled", "failed_polls", "discovered", "stored", "pending", "quarantined"}
STATUS_KEYS = {"running", "version", "storage", "accounts", "users"}
ACCOUNT_KEYS = {"account", "suspended_until", "reason"}
USER_KEYS = {
    *("account", "user", "user_id", "watermark", "lag_s", "gaps", "last_poll_at", "last_error"),
    *("refused", "removed", "stored", "pending", "quarantined"),
}
COMMANDS = (
    "run",
    "once",
    "check",
    "status",
    "retry",
    "backfill",
    "plan",
    "explain",
    "simulate",
    "demo",
)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated eFax with two users, three faxes of the last day each."""
    async with populated(Simulator(seed=7)) as running:
        for user_id in USERS.values():
            for hours in (1, 5, 20):
                completed = running.now() - timedelta(hours=hours)
                running.receive(APP, user_id, completed=completed, distinct=False)
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def assert_refused(done: Done, code: int, *words: str) -> None:
    """Require this exit code and one sentence on stderr that contains these words."""
    assert done.code == code, done
    assert done.said_in_one_sentence(), done
    for word in words:
        assert word in done.err, done


def broken_document(simulator: Simulator, user_id: str = "user-a", **fields: str) -> str:
    """Let a fax arrive that eFax cannot deliver; return its id."""
    completed = simulator.now() - timedelta(minutes=1)
    fax = simulator.receive(
        APP,
        user_id,
        completed=completed,
        distinct=False,
        trouble="null-image",
        **fields,
    )
    return fax.fax_id


def images_asked(simulator: Simulator) -> int:
    return sum(seen.call == "image" for seen in simulator.requests)


# once


async def test_once_stores_everything_and_a_second_one_downloads_nothing(
    installation: Installation, simulator: Simulator
) -> None:
    first = await installation.once()
    assert first.keys() == ONCE_KEYS
    assert (first["polled"], first["discovered"], first["stored"]) == (2, 6, 6)
    assert first["failed_polls"] == first["pending"] == first["quarantined"] == 0
    assert_stored(installation, simulator)
    asked = images_asked(simulator)
    second = await installation.once()
    assert (second["discovered"], second["stored"], images_asked(simulator)) == (0, 0, asked)


async def test_once_prints_a_table_for_people(installation: Installation) -> None:
    done = await installation.poller("once")
    assert done.code == 0
    assert "discovered" in done.out
    assert done.err == ""


async def test_once_polls_only_the_user_named(
    installation: Installation, simulator: Simulator
) -> None:
    summary = await installation.once("--user", "main/billing")
    assert (summary["polled"], summary["stored"], summary["pending"]) == (1, 3, 0)
    of_billing = [fax for fax in simulator.faxes() if fax.user_id == USERS["billing"]]
    assert_stored(installation, simulator, faxes=of_billing)
    assert {seen.user for seen in simulator.requests if seen.call == "list"} == {"user-b"}


async def test_once_for_an_unknown_user_is_wrong_usage(installation: Installation) -> None:
    assert_refused(await installation.poller("once", "--user", "main/nobody"), 2, "main/nobody")


async def test_an_image_that_is_not_yet_there_is_no_failure(
    installation: Installation, simulator: Simulator
) -> None:
    simulator.switches = Switches(image_not_yet_s=3600.0)
    completed = simulator.now() - timedelta(minutes=1)
    simulator.receive(APP, "user-a", completed=completed, distinct=False)
    summary = await installation.once()
    assert (summary["pending"], summary["stored"], summary["quarantined"]) == (1, 6, 0)
    assert (await installation.once())["pending"] == 1


async def test_a_fetch_that_fails_is_exit_1_and_stays_pending(
    installation: Installation, simulator: Simulator
) -> None:
    broken_document(simulator)
    done = await installation.poller("once", "--json")
    assert done.code == 1
    assert done.json["pending"] == 1
    assert len(installation.sidecars()) == 6


@pytest.mark.parametrize("status", ["403", "404"])
async def test_a_refused_user_is_exit_1_and_does_not_stop_the_others(
    installation: Installation, simulator: Simulator, status: str
) -> None:
    simulator.switches = Switches(wrong_user=status)
    stranger = {"stranger": {"user_id": "user-of-somebody-else"}}
    installation.write({"accounts": {"main": {"users": stranger}}})
    done = await installation.poller("once", "--json")
    assert done.code == 1
    summary = done.json
    assert (summary["polled"], summary["failed_polls"], summary["stored"]) == (3, 1, 6)
    users = {one["user"]: one for one in (await installation.status())["users"]}
    assert users["stranger"]["refused"] is True
    assert users["stranger"]["last_error"]
    assert users["billing"]["refused"] is False


async def test_once_without_efax_is_exit_1_without_a_traceback(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"retry": {"attempts": 2}})
    await simulator.close_port()
    done = await installation.poller("once")
    assert done.code == 1
    assert "Traceback" not in done.out + done.err


async def test_once_cannot_start_on_unusable_storage(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    (installation.storage / MARKER).unlink()
    asked = len(simulator.requests)
    assert_refused(await installation.poller("once"), 73, "storage", MARKER)
    assert len(simulator.requests) == asked


async def test_a_new_storage_starts_in_an_empty_directory(installation: Installation) -> None:
    installation.storage.mkdir()
    (installation.storage / "somebody-elses.txt").touch()
    assert_refused(await installation.poller("once"), 73, "not empty")
    assert [path.name for path in installation.storage.iterdir()] == ["somebody-elses.txt"]


# status


async def test_status_without_a_running_poller(installation: Installation) -> None:
    await installation.once()
    shown = await installation.status()
    assert shown.keys() >= STATUS_KEYS
    assert shown["running"] is False
    assert [one.keys() >= ACCOUNT_KEYS for one in shown["accounts"]] == [True]
    assert [one.keys() >= USER_KEYS for one in shown["users"]] == [True, True]
    for user in shown["users"]:
        assert (user["stored"], user["pending"], user["quarantined"]) == (3, 0, 0)
        assert (user["gaps"], user["last_error"], user["removed"]) == ([], None, False)
        assert 0 <= user["lag_s"] < 60
        for instant in (user["watermark"], user["last_poll_at"]):
            assert instant.endswith("Z")
            assert datetime.fromisoformat(instant).utcoffset() == timedelta(0)


async def test_status_beside_a_running_poller(installation: Installation) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=6)
        shown = await installation.status()
        table = await installation.poller("status")
    assert shown["running"] is True
    assert {one["user"]: one["stored"] for one in shown["users"]} == dict.fromkeys(USERS, 3)
    assert table.code == 0
    assert "main/billing" in table.out


async def test_status_json_of_the_command_and_of_the_service_agree(
    installation: Installation, simulator: Simulator
) -> None:
    simulator.receive(
        APP, USERS["billing"], trouble="null-image", completed=simulator.now(), distinct=False
    )
    scene = Scene(installation, simulator)
    installation.write({"retry": {"attempts": 1, "max_delay": "50ms", "give_up_after": "1s"}})
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=6)
        await daemon.event("fax-quarantined")
        served = json.loads((await scene.get("/status.json"))[1])
        told = await installation.status()
        await daemon.stop()
    assert _shape(told) == _shape(served)
    assert told["problems"] == served["problems"]
    moving = {
        "oldest_failing_s",
        "watermark",
        "lag_s",
        "gaps",
        "failed_gaps",
        "last_poll_at",
        "last_success_at",
    }
    for one, other in zip(told["users"], served["users"], strict=True):
        assert {**one, **dict.fromkeys(moving)} == {**other, **dict.fromkeys(moving)}
    (account,) = served["accounts"]
    assert account["limit"] == account["rate"] == 1000
    assert account["used"] > 0


def _shape(value: Any) -> Any:
    """Return the keys at every level, and for lists the shapes of their items."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(item)) for item in value if isinstance(item, dict)})
    return None


async def test_a_user_who_is_no_longer_configured_is_shown_as_removed(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    del installation.settings["accounts"]["main"]["users"]["billing"]
    installation.write({})
    await installation.once()
    shown = {one["user"]: one for one in (await installation.status())["users"]}
    assert (shown["billing"]["removed"], shown["billing"]["stored"]) == (True, 3)
    assert shown["front-desk"]["removed"] is False
    assert_stored(installation, simulator)


async def test_status_without_a_ledger(installation: Installation) -> None:
    assert_refused(await installation.poller("status"), 73, "ledger")
    assert not installation.ledger.exists()


async def test_a_reader_that_goes_away_hears_nothing_of_it(installation: Installation) -> None:
    await installation.once()
    command = shlex.join([sys.executable, "-m", "poller", "-c", str(installation.config)])
    for words in sample(("status", "status --json", "once --help", "check", "once"), 3):
        process = await asyncio.create_subprocess_shell(
            f"{command} {words} | true",
            stderr=asyncio.subprocess.PIPE,
            env=installation.environ,
        )
        _, err = await process.communicate()
        assert err == b"", words


# check


async def test_check_needs_neither_efax_nor_a_secret(
    installation: Installation, simulator: Simulator
) -> None:
    del installation.environ[KEY_VARIABLE]
    done = await installation.poller("check")
    assert done.code == 0
    assert "2 users" in done.out
    assert not simulator.requests
    assert not installation.ledger.exists()


async def test_check_online_asks_health_token_and_a_list_per_user(
    installation: Installation, simulator: Simulator
) -> None:
    done = await installation.poller("check", "--online")
    assert done.code == 0, done
    assert [seen.call for seen in simulator.requests].count("list") == 2
    assert {seen.call for seen in simulator.requests} == {"health", "token", "list"}
    assert not installation.storage.exists()


@pytest.mark.parametrize("status", ["400", "401", "403"])
async def test_check_online_with_a_wrong_key_is_exit_1(
    installation: Installation, simulator: Simulator, status: str
) -> None:
    simulator.switches = Switches(sign_in_refusal=status)
    wrong = "a-wrong-key-that-stays-secret"
    done = await installation.poller("check", "--online", environ={KEY_VARIABLE: wrong})
    assert done.code == 1, done
    assert "sign-in" in done.out
    assert wrong not in done.out + done.err


async def test_check_online_with_an_unknown_user_is_exit_1(installation: Installation) -> None:
    stranger = {"stranger": {"user_id": "user-of-somebody-else"}}
    installation.write({"accounts": {"main": {"users": stranger}}})
    done = await installation.poller("check", "--online")
    assert done.code == 1
    assert "main/stranger" in done.out
    assert "main/billing: list: ok" in done.out


async def test_check_online_beside_a_daemon_or_after_it_does_not_sign_in(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=6)
        signed_in = simulator.sign_ins.total()
        done = await installation.poller("check", "--online")
        while "not polled yet" in done.out:  # a good poll is seen from outside within two seconds
            done = await installation.poller("check", "--online")
        assert simulator.sign_ins.total() == signed_in == 1
    assert done.code == 0, done
    assert "main/billing" in done.out
    done = await installation.poller("check", "--online")
    assert "main: sign-in: not needed" in done.out
    await installation.once()
    assert simulator.sign_ins.total() == 1


# retry


async def test_retry_brings_quarantined_faxes_back(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"retry": {"give_up_after": "1s", "attempts": 1}})
    fax_id = broken_document(simulator)
    assert (await installation.poller("once")).code == 1  # the first failure
    half_a_minute_later(installation)
    done = await installation.poller("once", "--json")
    assert done.code == 1
    assert done.json["quarantined"] == 1
    assert (await installation.once())["quarantined"] == 1  # not due: once a day
    next(fax for fax in simulator.faxes() if fax.fax_id == fax_id).trouble = None
    made_due = await installation.poller("retry", "--json")
    assert (made_due.code, made_due.json) == (0, {"made_due": 1})
    summary = await installation.once()
    assert (summary["stored"], summary["quarantined"], summary["pending"]) == (1, 0, 0)
    assert_stored(installation, simulator)
    assert (await installation.poller("retry", "--json")).json == {"made_due": 0}


def half_a_minute_later(installation: Installation) -> None:
    """Make the waiting faxes due, and their first failure older."""
    with sqlite3.connect(installation.ledger) as connection:
        connection.execute(
            "UPDATE jobs SET due = 0, first_failed_at = first_failed_at - 30000000"
            " WHERE first_failed_at IS NOT NULL"
        )
    connection.close()


async def test_a_running_daemon_fetches_what_retry_made_due(
    installation: Installation, simulator: Simulator
) -> None:
    fax_id = broken_document(simulator)
    installation.write({"retry": {"attempts": 1}})
    async with installation.daemon() as daemon:
        await daemon.event("fax-retry", fax_id=fax_id)
        next(fax for fax in simulator.faxes() if fax.fax_id == fax_id).trouble = None
        assert (await installation.poller("retry", f"main/front-desk/{fax_id}")).code == 0
        await daemon.event("fax-stored", fax_id=fax_id)
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_retry_of_an_unknown_fax_is_exit_1(installation: Installation) -> None:
    await installation.once()
    assert_refused(await installation.poller("retry", "no-such-fax"), 1, "no-such-fax")


async def test_retry_of_an_ambiguous_fax_is_wrong_usage(
    installation: Installation, simulator: Simulator
) -> None:
    for user_id in USERS.values():
        broken_document(simulator, user_id, fax_id="same-id")
    assert (await installation.poller("once")).code == 1
    done = await installation.poller("retry", "same-id")
    assert_refused(done, 2, "main/front-desk/same-id", "main/billing/same-id")
    assert (await installation.poller("retry", "main/billing/same-id")).code == 0


# the words of the command line


@pytest.mark.parametrize("command", ["", *COMMANDS])
async def test_each_command_has_help(installation: Installation, command: str) -> None:
    done = await installation.poller(*command.split(), "--help", config=False)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: poller {command}".rstrip())


@pytest.mark.parametrize(
    "words", ["", "no-such-command", "once --no-such-option", "simulate --users 0"]
)
async def test_wrong_words_are_exit_2(installation: Installation, words: str) -> None:
    done = await installation.poller(*words.split(), config=False)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert done.err.startswith("usage: poller")


async def test_the_configuration_is_named_before_or_after_the_command(
    installation: Installation,
) -> None:
    before = await installation.poller("-c", str(installation.config), "check", config=False)
    after = await installation.poller("check", "-c", str(installation.config), config=False)
    assert before.code == after.code == 0
    assert before.out == after.out


async def test_a_configuration_in_several_files_and_directories(
    installation: Installation, simulator: Simulator
) -> None:
    folder = installation.root / "conf.d"
    folder.mkdir()
    whole = installation.settings
    rest = {key: value for key, value in whole.items() if key != "accounts"}
    installation.config.write_text(json.dumps(rest))
    main = account(simulator.base_url)
    users = main.pop("users")
    (folder / "10-account.yaml").write_text(json.dumps({"accounts": {"main": main}}))
    (folder / "20-users.yaml").write_text(json.dumps({"accounts": {"main": {"users": users}}}))
    words = ("-c", str(folder), "once", "--json", "-c", str(installation.config))
    done = await installation.poller(*words, config=False)
    assert done.code == 0, done
    assert done.json["stored"] == 6


async def test_a_yml_in_a_configuration_directory_is_an_error(installation: Installation) -> None:
    folder = installation.root / "conf.d"
    folder.mkdir()
    shutil.copy(installation.config, folder / "a.yaml")
    (folder / "b.yml").touch()
    done = await installation.poller("check", "-c", str(folder), config=False)
    assert done.code == 78
    assert "b.yml" in done.err


# reasons not to start


async def test_every_problem_of_a_configuration_is_printed_with_its_place(
    installation: Installation,
) -> None:
    installation.config.write_text(
        'accounts:\n  main:\n    app_id: 12345\n    api_key: {env: K}\n    users: {a: {user_id: "1"}}\n'
        "poll: {every: soon}\nstorage: {min_free: lots, color: red}\n"
    )
    for command in ("check", "once", "run", "status", "retry"):
        done = await installation.poller(command)
        assert done.code == 78, done
        assert "Traceback" not in done.err
        lines = done.err.splitlines()
        for number, key in (
            (3, "accounts.main.app_id"),
            (6, "poll.every"),
            (7, "storage.min_free"),
            (7, "storage.color"),
        ):
            assert any(f"poller.yaml:{number}: {key}" in line for line in lines), done.err
        assert len(lines) == 4


async def test_a_configuration_that_is_not_there(installation: Installation) -> None:
    done = await installation.poller("once", "-c", "/no/such/file.yaml", config=False)
    assert_refused(done, 78, "/no/such/file.yaml")


@pytest.mark.parametrize("command", ["once", "run", "check --online"])
async def test_a_missing_secret_is_a_configuration_error(
    installation: Installation, simulator: Simulator, command: str
) -> None:
    del installation.environ[KEY_VARIABLE]
    assert_refused(await installation.poller(*command.split()), 78, KEY_VARIABLE)
    assert not simulator.requests


async def test_a_second_poller_on_the_same_state_is_exit_75(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=6)
        signed_in = simulator.sign_ins.total()
        for command in ("once", "run"):
            assert_refused(await installation.poller(command), 75, "another poller")
        assert simulator.sign_ins.total() == signed_in
        assert await daemon.stop() == 0


@pytest.mark.parametrize("harm", ["no-database", "torn", "newer", "of-another-program"])
async def test_a_ledger_that_cannot_be_opened_is_left_as_it_is(
    installation: Installation, simulator: Simulator, harm: str
) -> None:
    await installation.once()
    spoil(installation.ledger, harm)
    before = hashlib.sha256(installation.ledger.read_bytes()).hexdigest()
    asked = len(simulator.requests)
    for command in ("once", "run", "status", "retry"):
        assert_refused(await installation.poller(command), 73, str(installation.ledger))
        assert hashlib.sha256(installation.ledger.read_bytes()).hexdigest() == before
    assert len(simulator.requests) == asked


def spoil(ledger: Path, harm: str) -> None:
    if harm == "no-database":
        ledger.write_bytes(b"this is no database\n" * 1000)
    elif harm == "torn":
        data = ledger.read_bytes()
        ledger.write_bytes(data[:4096] + b"\xa5" * 8192 + data[12288:])
    elif harm == "newer":
        with sqlite3.connect(ledger) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
    else:
        ledger.unlink()
        with sqlite3.connect(ledger) as connection:
            connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()


async def test_a_port_that_is_taken_is_exit_73(installation: Installation) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        installation.write({"http": {"listen": f"127.0.0.1:{port}"}})
        done = await installation.poller("run")
    assert done.code == 73
    said = [json.loads(line) for line in done.out.splitlines()][-1]  # for the aggregators
    assert said["event"]["action"] == "start-refused"
    assert (said["log.level"], said["error"]["type"]) == ("error", "CannotStart")
    assert str(port) in said["message"]
    assert str(port) in done.err
    assert "Traceback" not in done.err + done.out
    assert done.err.count("\n") == 1


# simulate and demo


async def test_what_simulate_prints_is_a_configuration_that_works(tmp_path: Path) -> None:
    installation = Installation(tmp_path, "http://127.0.0.1:1")
    simulate = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "poller", "simulate"),
        *("--users=2", "--backlog=4", "--arrivals-per-minute=0"),
        stdout=asyncio.subprocess.PIPE,
        env=installation.environ,
    )
    assert simulate.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("state:"):
        lines.append((await simulate.stdout.readline()).decode())
    installation.config.write_text("".join(lines))
    exports = [line.split()[2].split("=", 1) for line in lines if line.startswith("#   export")]
    done = await installation.poller("once", "--json", environ=dict(exports))
    simulate.send_signal(signal.SIGTERM)
    assert await simulate.wait() == 0
    assert done.code == 0, done
    assert done.json["stored"] == 4
    assert len(list((tmp_path / "simulated" / "faxes").rglob("*.pdf"))) == 4


async def test_simulate_on_a_port_that_is_taken_is_exit_73(
    installation: Installation, simulator: Simulator
) -> None:
    done = await installation.poller("simulate", f"--port={simulator.port}", config=False)
    assert_refused(done, 73, str(simulator.port))


async def test_the_demo_ends_by_itself_with_everything_on_the_disk(
    installation: Installation,
) -> None:
    installation.before_it = ("env",)  # a process of its own
    done = await installation.poller(
        "demo", config=False, environ={"TMPDIR": str(installation.root)}
    )
    assert done.code == 0, done
    assert "All 15 faxes are on disk, byte for byte, once each: 13 received, 2 sent" in done.out
    assert "The self-test passed" in done.out
    assert "The web-hook works" in done.out
    (directory,) = installation.root.glob("poller-demo-*")
    assert len(list((directory / "faxes").rglob("*.json"))) == 15


# faults


async def test_once_ends_well_although_much_goes_wrong(
    installation: Installation, simulator: Simulator
) -> None:
    simulator.faults = Faults.of(
        "500@image=every:3",
        "cut-no-length@image=every:4",
        "429@list+1=first:1",
        "html-502@list=first:1",
    )
    assert (await installation.once())["stored"] == 6
    assert_stored(installation, simulator)


async def test_the_key_is_in_no_output(installation: Installation) -> None:
    for command in ("check --online", "once", "status --json", "retry"):
        done = await installation.poller(*command.split())
        assert KEY not in done.out + done.err
