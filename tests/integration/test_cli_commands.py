"""Commands in the test's own process, with a simulated eFax in a thread; acceptance has the rest."""

import asyncio
import contextlib
import errno
import grp
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import poller
from poller import log
from poller.cli import demo_command as demo_module
from poller.cli import main
from poller.cli.commands import COMMANDS
from poller.cli.owner import become_owner
from poller.cli.status_table import _headline
from poller.config.model import StorageConfig, User
from poller.errors import CannotStart, PollerError, StorageUnusable, Unreachable
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Fetcher, Outcome
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, Ledger, jobs, meta
from poller.ledger.tables import REVISION
from poller.lock import StateLock
from poller.log.key import KEY_FILE
from poller.runtime_report import RuntimeReport
from poller.simulator import Faults, Simulator, Switches
from poller.simulator.state import Fax
from poller.store import syscalls
from tests.conftest import APP, KEY, Event, QuickClock, stored_files
from tests.forks import forks
from tests.integration.at_work import faults

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Restore what `run` does with SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def efax() -> Iterator[Simulator]:
    """A simulated eFax in its own thread, since commands have their own event loop."""
    simulator = Simulator(seed=1)
    simulator.add_app(APP, KEY)
    for user in ("user-a", "user-b"):
        simulator.add_user(APP, user)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(simulator.start(), loop).result(10)
    yield simulator
    asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def directory(
    tmp_path: Path, efax: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> Path:
    """Where the configuration is; its storage is `faxes`, its state `state`."""
    (tmp_path / "poller.yaml").write_text(f"""\
accounts:
  main:
    base_url: {efax.base_url}
    app_id: "{APP}"
    api_key: {{env: POLLER_TEST_KEY}}
    limits: {{requests_per_second: 500, burst: 500}}
    users:
      a: {{user_id: "user-a"}}
      b: {{user_id: "user-b"}}
storage: {{directory: faxes, min_free: 1MiB}}
state: {{url: "sqlite:///state/poller.db"}}
retry: {{attempts: 1}}
""")
    monkeypatch.setenv("POLLER_TEST_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "install_hooks", lambda: None)
    monkeypatch.setattr(log, "configure", lambda *_: None)
    return tmp_path


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["-c", str(directory / "poller.yaml"), *words])
        return code, *capsys.readouterr()

    return command


def remove_user_b(directory: Path) -> None:
    text = (directory / "poller.yaml").read_text()
    (directory / "poller.yaml").write_text(text.replace('      b: {user_id: "user-b"}\n', ""))


def receive(efax: Simulator, user: str = "user-a", **fields: Any) -> Fax:
    return efax.receive(APP, user, completed=datetime.now(UTC) - timedelta(minutes=1), **fields)


# -- once -------------------------------------------------------------------------------------------


def test_once_fetches_all_that_is_there_and_a_second_one_nothing(
    run: Run, efax: Simulator, directory: Path
) -> None:
    for user in ("user-a", "user-b"):
        receive(efax, user)
    code, out, _ = run("once", "--json")
    assert code == 0
    assert json.loads(out) == {
        "polled": 2, "failed_polls": 0, "discovered": 2, "stored": 2, "pending": 0,
        "quarantined": 0,
    }  # fmt: skip
    assert len(stored_files(directory / "faxes")) == 4

    code, out, _ = run("once")
    assert code == 0
    assert "discovered 0" in " ".join(out.split())
    assert set(efax.downloads.values()) == {1}


def test_a_ledger_elsewhere_leaves_everything_else_in_the_state_directory(
    run: Run, directory: Path, efax: Simulator
) -> None:
    file = directory / "poller.yaml"
    before = 'state: {url: "sqlite:///state/poller.db"}'
    after = 'state: {directory: state, url: "sqlite:///disk/ledger.db"}'
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    efax.receive(APP, "user-a")
    assert run("once")[0] == 0
    ledger = {"ledger.db", "ledger.db-journal"}
    assert {one.name for one in (directory / "disk").iterdir()} == ledger
    assert (directory / "disk").stat().st_mode & 0o777 == 0o700
    assert (directory / "disk" / "ledger.db").stat().st_mode & 0o777 == 0o600
    assert {one.name for one in (directory / "state").iterdir()} == {"poller.lock", KEY_FILE}
    with StateLock(directory / "state"):
        assert run("once")[0] == 75
    assert json.loads(run("status", "--json")[1])["running"] is False
    code, said, _ = run("rebuild", "--json")
    assert code == 0
    assert Path(json.loads(said)["ledger"]) == directory / "disk" / "ledger.db"


def test_once_for_one_user_leaves_the_others_alone(run: Run, efax: Simulator) -> None:
    for user in ("user-a", "user-b"):
        receive(efax, user)
    code, out, _ = run("once", "--user", "main/b", "--json")
    assert (code, json.loads(out)["polled"], json.loads(out)["stored"]) == (0, 1, 1)
    assert {one.user for one in efax.requests if one.call == "list"} == {"user-b"}

    code, _, err = run("once", "--user", "main/nobody")
    assert (code, err) == (
        2,
        "poller: --user main/nobody: the configuration has no such ACCOUNT/USER\n",
    )


def test_once_says_what_failed_by_its_exit_code(run: Run, efax: Simulator) -> None:
    receive(efax)
    efax.faults = faults("400@image=always")
    code, out, _ = run("once", "--json")
    assert (code, json.loads(out)["pending"]) == (1, 1)
    efax.faults = faults("403@list=always")
    code, out, _ = run("once", "--json")
    assert (code, json.loads(out)["failed_polls"]) == (1, 2)


def test_image_that_is_not_there_yet_is_no_failure_of_once(run: Run, efax: Simulator) -> None:
    receive(efax)
    efax.faults = faults("404@image=always")
    code, out, _ = run("once", "--json")
    assert (code, json.loads(out)["pending"]) == (0, 1)


def test_once_that_ends_well_says_nothing_on_stderr(run: Run, efax: Simulator) -> None:
    receive(efax)
    assert run("once", "--json")[::2] == (0, "")
    assert run("once")[::2] == (0, "")


BOTH = "main/a, main/b were not polled: "
TROUBLES = {
    "404@image=always": (0, ["1 fax of main/a is still pending: "]),
    "400@image=always": (1, ["1 fax of main/a is still pending: "]),
    "null-image@image=always": (1, ["1 fax of main/a is still pending: "]),
    "503@image=always": (1, ["1 fax of main/a is still pending: "]),
    "403@list=always": (1, [BOTH + "the account is suspended: eFax refuses every user "]),
    "html-200@list=always": (1, [BOTH]),
    "503@list=always": (1, [BOTH]),
    "401@token=always": (1, [BOTH + "the account is suspended: "]),
    "429@list=always": (1, [BOTH]),
    "401@image=always": (1, ["1 fax of main/a is still pending: "]),
}


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
@pytest.mark.parametrize("fault", TROUBLES)
def test_once_says_each_cause_of_a_bad_end_in_one_sentence(
    fault: str, as_json: bool, run: Run, efax: Simulator, quick: None
) -> None:
    receive(efax)
    efax.faults = faults(fault)
    code, begins = TROUBLES[fault]
    found, out, err = run("once", *(["--json"] if as_json else []))
    said = [line for line in err.splitlines() if " waits until " not in line]
    assert found == code
    assert len(said) == len(begins), err
    assert all(line.startswith(f"poller: {one}") for line, one in zip(said, begins, strict=True))
    assert all(len(line) > len(f"poller: {one}") for line, one in zip(said, begins, strict=True))
    assert not as_json or json.loads(out)


def test_once_says_that_the_lists_have_lost_what_they_held_and_covers_nothing(
    run: Run, efax: Simulator
) -> None:
    def watermarks() -> list[str]:
        return [user["watermark"] for user in json.loads(run("status", "--json")[1])["users"]]

    for user in ("user-a", "user-b"):
        receive(efax, user)
    assert run("once")[0] == 0
    before = watermarks()
    efax.faults = Faults.of("full-200@list=always")
    code, _, err = run("once")
    assert code == 1
    assert err.startswith(f"poller: {BOTH}the account is suspended: eFax lists nothing that it ")
    assert watermarks() == before
    efax.faults = Faults()
    lost = receive(efax)
    assert run("once")[0] == 0
    assert efax.downloads[lost] == 1


def test_once_reports_an_unproved_empty_list_and_does_not_count_it(
    run: Run, efax: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settle(_: AccountRunner) -> PollerError:
        return Unreachable("eFax answered 503")

    receive(efax)
    monkeypatch.setattr(AccountRunner, "settle", settle)
    code, out, err = run("once", "--json")
    summary = json.loads(out)
    assert (code, summary["polled"], summary["failed_polls"]) == (1, 2, 0)
    assert err == (
        "poller: main was polled, but its empty lists were not confirmed; the next run lists them "
        "again: eFax answered 503\n"
    )


def test_many_users_of_one_cause_are_one_sentence_that_names_the_first(
    run: Run, directory: Path, efax: Simulator
) -> None:
    users = "".join(f'      c{i}: {{user_id: "nobody-{i}"}}\n' for i in range(20))
    config = (directory / "poller.yaml").read_text()
    (directory / "poller.yaml").write_text(config.replace("    users:\n", "    users:\n" + users))
    code, _, err = run("once")
    assert (code, err.count("\n")) == (1, 1)
    assert "main/c0, main/c1, main/c2 and 17 more were not polled: " in err


def test_once_reports_quarantined_and_waiting_faxes(
    run: Run, directory: Path, efax: Simulator
) -> None:
    for user in ("user-a", "user-b"):
        for _ in range(2):
            receive(efax, user, trouble="null-image")
    assert run("once")[0] == 1
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        ledger.execute(
            "UPDATE faxes SET state = 'quarantined' WHERE id != (SELECT max(faxes.id) FROM faxes "
            "JOIN streams ON streams.id = faxes.stream WHERE streams.name = 'b')"
        )
    code, _, err = run("once")
    assert code == 0
    quarantined, pending = err.splitlines()
    assert pending.startswith("poller: 1 fax of main/b is still pending: ")
    assert quarantined.startswith("poller: 3 faxes of main/a, main/b are quarantined: ")
    assert quarantined.endswith("; remove the cause, then `poller retry`")


def test_once_of_a_suspended_account_says_that_what_is_due_waits_for_it(
    run: Run, directory: Path, efax: Simulator
) -> None:
    receive(efax)
    efax.faults = faults("404@image=always")
    run("once")
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        ledger.execute("UPDATE jobs SET due = 0, last_error = NULL")
    efax.faults = faults("401@token=always")
    efax.end_token(APP)
    code, _, err = run("once")
    assert (code, err.count("\n")) == (1, 2)
    assert "poller: 1 fax of main/a is still pending: the account is suspended: " in err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command's waits cost no time."""
    monkeypatch.setattr("poller.ingest.runtime.SystemClock", lambda: QuickClock(datetime.now(UTC)))


def test_once_says_that_it_waits_to_sign_in_and_until_when(
    run: Run, efax: Simulator, quick: None
) -> None:
    for _ in range(5):
        efax.end_token(APP)
        assert run("once")[::2] == (0, "")
    efax.end_token(APP)
    code, _, err = run("once")
    assert code == 0
    sign_in = r"poller: account main waits until \d\d:\d\d:\d\d UTC: it may sign in again then\n"
    assert re.fullmatch(sign_in, err)


def test_once_says_that_a_429_makes_it_wait(run: Run, efax: Simulator, quick: None) -> None:
    efax.faults = faults("429@list+60=first:2")
    code, _, err = run("once")
    assert (code, err.count("UTC: eFax said 429, too many requests\n")) == (1, 1)


def test_bug_in_one_users_poll_ends_neither_once_nor_the_other_polls(
    run: Run, efax: Simulator, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(efax, "user-b")
    real = AccountRunner.poll

    async def poll(self: AccountRunner, state: StreamState, **limits: Any) -> Any:
        if state.user.name == "a":
            raise KeyError(NUMBER)
        return await real(self, state, **limits)

    monkeypatch.setattr(AccountRunner, "poll", poll)
    code, out, err = run("once", "--json")
    summary = json.loads(out)
    assert (code, summary["failed_polls"], summary["stored"]) == (1, 1, 1)
    said = "poller: main/a was not polled: An unexpected error (KeyError): see internal"
    assert (err.startswith(said), err.count("\n")) == (True, 1)
    assert [event.action for event in events].count("internal-error") == 1


def test_bug_that_not_even_records_an_attempt_fails_once_and_does_not_hold_it(
    run: Run, efax: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(efax)
    receive(efax, "user-b")
    real = Fetcher.fetch

    async def fetch(self: Fetcher, fax: FaxRow, user: User) -> Outcome:
        if user.name == "a":
            raise KeyError(NUMBER)
        return await real(self, fax, user)

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    code, out, err = run("once", "--json")
    assert (code, json.loads(out)["stored"], json.loads(out)["pending"]) == (1, 1, 1)
    assert (
        err == "poller: 1 fax of main/a is still pending: no attempt could be made and recorded\n"
    )


def test_once_refuses_an_unusable_storage_and_a_held_lock(run: Run, directory: Path) -> None:
    assert run("once")[0] == 0
    (directory / "faxes" / ".poller-storage").unlink()
    code, _, err = run("once")
    assert code == 73
    assert "the storage is unusable" in err
    with StateLock(directory / "state"):
        assert run("once")[0] == 75


# -- check ------------------------------------------------------------------------------------------


def test_check_reads_the_configuration_and_asks_nobody(run: Run, efax: Simulator) -> None:
    code, out, _ = run("check")
    assert code == 0
    assert "1 account, 2 users" in out
    assert efax.requests == []


@pytest.mark.parametrize(
    ("proxy", "heartbeat", "warned"),
    [
        ("http://proxy.example:3128", "{url: 'https://monitor.example/ping'}", True),
        (
            "http://proxy.example:3128",
            "{url: 'https://monitor.example/ping', proxy: 'http://proxy.example:3128'}",
            False,
        ),
        ("http://proxy.example:3128", "{url: null}", False),
        ("null", "{url: 'https://monitor.example/ping'}", False),
    ],
)
def test_check_warns_of_a_heartbeat_that_goes_past_the_proxy(
    run: Run, directory: Path, proxy: str, heartbeat: str, warned: bool
) -> None:
    file = directory / "poller.yaml"
    text = file.read_text().replace('    app_id: "', f'    proxy: {proxy}\n    app_id: "')
    file.write_text(f"{text}heartbeat: {heartbeat}\n")
    code, out, _ = run("check")
    assert (code, "set heartbeat.proxy too" in out) == (0, warned)


def test_check_says_what_the_storage_lacks_and_leaves_nothing_there(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "faxes").mkdir()
    for name in ("", ".poller-storage"):  # before the first start, and after it
        with monkeypatch.context() as patch:
            patch.setattr(syscalls, "move", refused_move)
            code, out, _ = run("check")
        assert code == 1
        assert "nothing can be stored: the file system of the storage directory" in out
        assert "can neither rename a file" in out
        assert [path.name for path in (directory / "faxes").iterdir()] == [name] * bool(name)
        assert run("check")[0] == 0
        assert run("once")[0] == 0
    (directory / "faxes" / ".poller-storage").unlink()
    code, out, _ = run("check", "--online")
    assert code == 1
    assert "is its disk mounted" in out


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "was written by a newer poller"),
        (None, "is damaged"),
    ],
)
def test_check_says_that_the_service_would_refuse_the_ledger(
    spoil: str | None, sentence: str, run: Run, directory: Path
) -> None:
    assert run("once")[0] == 0
    assert run("check")[0] == 0
    file = directory / "state/poller.db"
    if spoil is None:
        file.write_bytes(b"no database" * 1000)
    else:
        with contextlib.closing(sqlite3.connect(file)) as ledger, ledger:
            ledger.execute(spoil)
    before = file.read_bytes()
    for words in (("check",), ("check", "--online")):
        code, out, _ = run(*words)
        assert code == 1
        assert "the service cannot start: the ledger" in out
        assert sentence in out
    assert file.read_bytes() == before
    assert run("once")[0] == 73


def test_a_command_that_meets_a_damaged_part_of_the_ledger_names_what_repairs_it(
    run: Run, directory: Path
) -> None:
    assert run("once")[0] == 0
    file = directory / "state/poller.db"
    with contextlib.closing(sqlite3.connect(file)) as ledger:
        (page,) = ledger.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'accounts'"
        ).fetchone()
        (size,) = ledger.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as image:
        image.seek((page - 1) * size)
        image.write(b"x" * size)
    code, _, said = run("status")
    assert code == 73
    assert said.rstrip().endswith("See `poller help ledger-damaged`.")


def refused_move(*_: Any) -> bool:
    raise OSError(errno.EOPNOTSUPP, "")


def test_check_looks_at_no_storage_that_only_the_services_user_can_write_to(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "faxes").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(syscalls, "move", refused_move)
    assert run("check")[0] == 0


def test_check_warns_of_names_that_windows_clients_cannot_open(run: Run, directory: Path) -> None:
    file = directory / "poller.yaml"
    text = file.read_text().replace("a: {user_id", "con: {user_id")
    file.write_text(text)
    assert "Windows" not in run("check")[1]
    file.write_text(text.replace("storage: {", "storage: {consumers: move, "))
    code, out, _ = run("check")
    assert code == 0
    (said,) = [line for line in out.splitlines() if "Windows" in line]
    assert said.startswith(
        "warning: main/con: a Windows client cannot open 'con' in the path main/con/"
    )


def test_check_says_which_features_are_on_without_a_secret(run: Run, directory: Path) -> None:
    file = directory / "poller.yaml"
    hook = "    webhook: {path: /efax, secret: {env: NO_SUCH_SECRET}}\n    users:"
    text = file.read_text().replace("    users:", hook)
    file.write_text(text + "webhook: {listen: '127.0.0.1:9411'}\ndelete: {after: 5m}\n")
    code, out, err = run("check")
    assert (code, err) == (0, "")
    on = [line for line in out.splitlines() if line.startswith("on: ")]
    assert ["deletes faxes at eFax" in on[0], "127.0.0.1:9411" in on[1]] == [True, True]
    assert "warning: main/a and 1 more: delete.after is 5m" in out
    code, out, err = run("check", "--online")
    assert code == 78
    assert "accounts.main.webhook.secret: environment variable NO_SUCH_SECRET is not set" in err


def test_check_of_a_broken_configuration_prints_every_problem(run: Run, directory: Path) -> None:
    (directory / "poller.yaml").write_text("accounts: {}\npol: 1\n")
    code, _, err = run("check")
    assert code == 78
    assert "pol" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("with_ledger", [False, True])
def test_check_online_signs_in_and_lists_each_user(
    run: Run, efax: Simulator, with_ledger: bool
) -> None:
    if with_ledger:
        assert run("once")[0] == 0
    signed_in = "not needed, the last token is used" if with_ledger else "ok"
    code, out, _ = run("check", "--online")
    assert code == 0
    assert out.splitlines()[1:] == [
        "main: /health: ok", f"main: sign-in: {signed_in}", "main/a: list: ok", "main/b: list: ok"
    ]  # fmt: skip
    assert efax.sign_ins[APP] == 1


def test_a_token_that_efax_refuses_costs_once_and_check_a_sign_in_each(
    run: Run, efax: Simulator
) -> None:
    for number, command in enumerate((["once"], ["once"], ["check", "--online"]), 1):
        efax.end_token(APP)
        assert run(*command)[0] == 0
        assert efax.sign_ins[APP] == number


def archive(directory: Path) -> None:
    """Let user `a` archive what it sends."""
    file = directory / "poller.yaml"
    text = file.read_text()
    assert '{user_id: "user-a"}' in text
    file.write_text(text.replace('"user-a"}', '"user-a", sent: {archive: metadata}}'))


@pytest.mark.parametrize("status", ["no", "yes", "defaults-to-complete"])
def test_check_online_lists_what_a_user_with_an_archive_has_sent(
    run: Run, efax: Simulator, directory: Path, status: str
) -> None:
    archive(directory)
    efax.switches = Switches(sent_status_demanded=status, sent_status_words="COMPLETED")
    code, out, _ = run("check", "--online")
    assert (code, out.splitlines()[-3:]) == (
        0,
        ["main/a: list: ok", "main/b: list: ok", "main/a/sent: list: ok"],
    )
    assert sum(one.call == "sent-list" for one in efax.requests) == 1 + (status == "yes")


@pytest.mark.parametrize("effect", ["403", "400", "html-200"])
def test_check_online_fails_where_sent_faxes_cannot_be_listed(
    run: Run, efax: Simulator, directory: Path, effect: str
) -> None:
    archive(directory)
    efax.faults = faults(f"{effect}@sent-list=always")
    code, out, _ = run("check", "--online")
    assert (code, out.count(": ok")) == (1, 4)
    assert out.splitlines()[-1].startswith("main/a/sent: list: ")


def test_check_online_with_a_daemon_also_reports_sent_faxes(
    run: Run, efax: Simulator, directory: Path
) -> None:
    archive(directory)
    efax.faults = faults("403@sent-list=always")
    assert run("once")[0] == 1
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert (code, out.splitlines()[-1]) == (1, "1 of 2 users are polled without errors.")
    assert "\nmain/a: ok\nmain/a/sent: eFax answered" in out


def test_check_online_blames_the_account_where_every_user_is_refused(
    run: Run, efax: Simulator
) -> None:
    efax.faults = faults("403@list=always")
    code, out, _ = run("check", "--online")
    assert code == 1
    assert "main/a" not in out
    said = out.splitlines()[-1]
    assert said.startswith("main: eFax refuses every user although it accepts App ID and key (")
    assert "proxy" in said


@pytest.mark.parametrize("effect", ["full-200", "bare-200"])
def test_check_online_does_not_take_an_outage_that_answers_with_nothing_for_well(
    effect: str, run: Run, efax: Simulator
) -> None:
    receive(efax)
    assert run("once")[0] == 0
    assert run("check", "--online")[0] == 0
    efax.faults = Faults.of(f"{effect}@list=always")
    code, out, _ = run("check", "--online")
    assert code == 1
    assert out.splitlines()[-1].startswith("main: eFax lists nothing that it listed before")


@pytest.mark.parametrize("effect", ["full-200", "bare-200"])
def test_check_online_does_not_change_what_polls_know_of_the_lists(
    effect: str, run: Run, efax: Simulator, directory: Path
) -> None:
    """A look in an outage begins no doubt that would count for the service."""

    def known() -> list[Any]:
        with contextlib.closing(sqlite3.connect(directory / "state/poller.db")) as ledger:
            return ledger.execute("SELECT * FROM meta WHERE name LIKE 'lists%'").fetchall()

    receive(efax)
    assert run("once")[0] == 0
    before = known()
    assert before
    efax.faults = Faults.of(f"{effect}@list=always")
    assert run("check", "--online")[0] == 1
    assert known() == before


def test_check_online_says_what_efax_refuses(run: Run, efax: Simulator) -> None:
    efax.faults = faults("403@list=first:1")
    code, out, _ = run("check", "--online")
    assert code == 1
    assert out.count(": ok") == 3
    efax.faults = faults("403@token=always")
    code, out, _ = run("check", "--online")
    assert code == 1
    signing_in, then = out.splitlines()[-2:]
    assert signing_in.startswith("main: sign-in: ")
    assert signing_in.endswith(": check app_id and the key.")
    assert then == "main: the sign-in failed, so its users were not tried"
    assert KEY not in out


def test_check_online_never_shows_the_key_or_a_token(
    run: Run, efax: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[str] = []
    monkeypatch.setattr(log, "register_secret", lambda secret, **_: registered.append(secret))
    assert run("check", "--online")[0] == 0
    assert registered[0] == KEY
    assert [*efax._owners] == [secret for secret in registered if secret != KEY]


_POLLED_WELL = ["main/a: ok", "main/b: ok", "2 of 2 users are polled without errors."]


def test_check_online_with_a_daemon_shows_its_findings_and_does_not_sign_in(
    run: Run, efax: Simulator, directory: Path
) -> None:
    assert run("once")[0] == 0
    before = len(efax.requests)
    efax.end_token(APP)  # a command that asked eFax would have to sign in
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
        assert (code, out.splitlines()[-3:]) == (0, _POLLED_WELL)

    efax.faults = faults("403@list=always")
    assert run("once")[0] == 1
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert code == 1
    assert "403" in out
    assert sum(one.call == "token" for one in efax.requests) == 1
    assert len(efax.requests) > before


def test_check_online_beside_a_daemon_shows_a_suspended_account(
    run: Run, efax: Simulator, directory: Path
) -> None:
    efax.faults = faults("403@token=always")
    assert run("once")[0] == 1
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert code == 1
    assert "main: suspended: " in out


def test_check_online_with_a_daemon_says_what_it_does_not_know_or_cannot_do(
    run: Run, directory: Path
) -> None:
    assert run("once")[0] == 0
    file = directory / "poller.yaml"
    text = file.read_text()
    file.write_text(text.replace("users:\n", 'users:\n      c: {user_id: "user-c"}\n'))
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert code == 1
    assert "main/c: the service does not know this user yet; reload it" in out

    file.write_text(text.replace("{env: POLLER_TEST_KEY}", "{file: none.key}"))
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert code == 1
    assert "accounts.main.api_key: file " in out
    assert "none.key cannot be read" in out

    file.write_text(text)
    (directory / "faxes" / ".poller-storage").unlink()
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert (code, out.splitlines()[-1][:20]) == (1, "nothing is fetched: ")


def test_check_online_beside_a_daemon_names_users_whose_faxes_cannot_be_fetched(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(efax, "user-b")
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "takes_names", lambda *_: False)
        assert run("once")[0] == 1
    assert efax.downloads == {}
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert code == 1
    assert out.splitlines()[-1] == "main/b: faxes cannot be fetched; `poller status` says why"


def test_service_that_hangs_is_not_called_well_by_what_looks_at_it_from_outside(
    run: Run, directory: Path
) -> None:
    assert run("once")[0] == 0
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        ledger.execute("UPDATE streams SET last_success_at = last_success_at - 600000000")
        ledger.execute("UPDATE streams SET last_poll_at = last_success_at")
    late = "2 users were not polled in time (main/a and main/b): if the service hangs, restart it"
    with StateLock(directory / "state"):
        shown = json.loads(run("status", "--json")[1])
        assert [user["overdue"] for user in shown["users"]] == [True, True]
        assert [one[: len(late)] for one in shown["problems"]] == [late]
        out = run("status")[1]
        assert late in " ".join(out.split())
        assert out.count(" overdue ") == 2
        code, out, _ = run("check", "--online")
    assert (code, out.splitlines()[-1][: len(late)]) == (1, late)
    # If none runs, that is the trouble.
    assert len(json.loads(run("status", "--json")[1])["problems"]) == 1


def test_command_that_holds_the_state_for_a_while_is_not_taken_for_the_service(
    run: Run, efax: Simulator, directory: Path
) -> None:
    assert run("once")[0] == 0
    window = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z")
    before = len(efax.requests)
    with StateLock(directory / "state", "once"):
        assert not json.loads(run("status", "--json")[1])["running"]
        for words in (("backfill", "main/a", *window), ("check", "--online")):
            code, _, err = run(*words)
            assert (code, "(`poller once`)" in err) == (75, True)
    assert len(efax.requests) == before
    shown = json.loads(run("status", "--json")[1])
    assert [user["backfills"] for user in shown["users"]] == [[], []]


def test_repair_beside_a_command_that_is_not_the_service_is_noted_and_promises_nothing(
    run: Run, efax: Simulator, directory: Path
) -> None:
    receive(efax)
    assert run("once")[0] == 0
    (image,) = (directory / "faxes").rglob("*.pdf")
    image.write_bytes(b"changed")
    with StateLock(directory / "state", "rebuild"):
        code, out, err = run("verify", "--repair", "--json")
    assert (code, "(`poller rebuild`)" in err) == (75, True)
    assert (json.loads(out)["requested"], json.loads(out)["by_daemon"]) == (1, False)
    assert run("once")[0] == 0
    assert run("verify")[0] == 0


def test_removed_account_that_was_suspended_is_no_longer_shown(
    run: Run, efax: Simulator, directory: Path
) -> None:
    efax.faults = faults("403@token=always")
    assert run("once")[0] == 1
    assert [one["account"] for one in json.loads(run("status", "--json")[1])["accounts"]] == [
        "main"
    ]

    efax.faults = faults()
    efax.add_app("app-2", KEY)
    efax.add_user("app-2", "user-c")
    text = (directory / "poller.yaml").read_text().replace("  main:", "  other:")
    text = text.replace(f'"{APP}"', '"app-2"').replace('      b: {user_id: "user-b"}\n', "")
    (directory / "poller.yaml").write_text(text.replace("user-a", "user-c"))
    assert run("once")[0] == 0
    shown = json.loads(run("status", "--json")[1])
    assert [one["account"] for one in shown["accounts"]] == ["other"]
    with StateLock(directory / "state"):
        code, out, _ = run("check", "--online")
    assert (code, out.splitlines()[-2]) == (0, "other/a: ok")
    assert "suspended" not in out


# -- status and retry ---------------------------------------------------------------------------------


def test_status_is_shown_as_json_and_as_a_table(run: Run, efax: Simulator, directory: Path) -> None:
    receive(efax)
    assert run("once")[0] == 0
    code, out, _ = run("status", "--json")
    shown = json.loads(out)
    assert (code, shown["running"], shown["storage"]["usable"]) == (0, False, True)
    assert [user["stored"] for user in shown["users"]] == [1, 0]

    with StateLock(directory / "state"):
        assert json.loads(run("status", "--json")[1])["running"]
    code, out, _ = run("status")
    assert code == 0
    assert "poller is not running" in out.lower()
    assert "main/a" in out


def said_by_the_service(directory: Path, report: RuntimeReport) -> None:
    async def keep() -> None:
        async with await Ledger.open(f"sqlite:///{directory}/state/poller.db") as ledger:
            await ledger.write(meta.keep, meta.RUNTIME_REPORT, report.text())

    asyncio.run(keep())


def test_status_shows_what_the_running_service_says_and_not_what_the_command_can_do(
    run: Run, efax: Simulator, directory: Path
) -> None:
    assert run("once")[0] == 0
    said_by_the_service(
        directory,
        RuntimeReport(
            directory="/srv/faxes",
            reason="the storage directory /srv/faxes cannot be used: Read-only file system",
            rejected="poller.yaml:3: poll.evry: unknown key",
            rates={"main": 40.0},
            at_war=("main",),
        ),
    )
    with StateLock(directory / "state"):
        shown = json.loads(run("status", "--json")[1])
    assert shown["storage"] | {"reason": ""} == {
        "directory": "/srv/faxes",
        "usable": False,
        "reason": "",
        "free_bytes": None,
        "min_free_bytes": 1 << 20,
    }
    (account,) = shown["accounts"]
    assert (account["limit"], account["rate"], account["token_war"]) == (500, 40, True)
    problems = "\n".join(shown["problems"])
    assert (
        "still stores in /srv/faxes; `systemctl restart poller` makes it use the configured "
        f"{directory}" in problems
    )
    assert "Nothing is fetched: the storage directory /srv/faxes cannot be used" in problems
    assert "The last reload was rejected" in problems
    assert "Another program signs in with the App ID" in problems
    assert "40 of 500 requests per second" in problems

    shown = json.loads(run("status", "--json")[1])  # stopped: what it said no longer counts
    assert (shown["storage"]["directory"], shown["storage"]["usable"]) == (
        str(directory / "faxes"),
        True,
    )
    assert len(shown["problems"]) == 1


def test_status_leaves_the_proof_of_the_storage_to_a_running_service(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("once")[0] == 0

    def lacking(config: StorageConfig, root: int) -> None:
        raise StorageUnusable("the file system lacks something")

    monkeypatch.setattr("poller.store.abilities.prove", lacking)
    assert "Nothing is fetched: the file system lacks something" in run("status")[1]
    said_by_the_service(directory, RuntimeReport(directory=str(directory / "faxes")))
    with StateLock(directory / "state"):
        storage = json.loads(run("status", "--json")[1])["storage"]
    assert (storage["usable"], storage["reason"]) == (True, None)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"directory": "/x", "at_war": 1}'])
def test_what_no_service_has_written_is_no_report(text: str | None) -> None:
    assert RuntimeReport.read(text) is None


def test_status_names_who_received_nothing_for_longer_than_expected(
    run: Run, efax: Simulator, directory: Path
) -> None:
    file = directory / "poller.yaml"
    file.write_text(file.read_text() + "expect: {within: 1h}\n")
    receive(efax)
    assert run("once")[0] == 0
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        ledger.execute("UPDATE streams SET our_first_seen = our_first_seen - 7200000000")
    shown = json.loads(run("status", "--json")[1])
    assert [user["silent_since"] is not None for user in shown["users"]] == [False, True]
    assert shown["problems"][-1].startswith("main/b received nothing for longer than expected")
    assert run("status")[1].count(" silent ") == 1


def test_status_shows_trouble_first_and_why_nothing_is_fetched(
    run: Run, efax: Simulator, directory: Path
) -> None:
    efax.faults = faults("403@list=always")
    assert run("once", "--user", "main/b")[0] == 1
    (directory / "faxes" / ".poller-storage").unlink()
    out = run("status")[1]
    assert "nothing is fetched" in " ".join(out.lower().split())
    assert out.index("main/b") < out.rindex("main/a")

    text = (directory / "poller.yaml").read_text()
    (directory / "poller.yaml").write_text(text.replace('      b: {user_id: "user-b"}\n', ""))
    (directory / "faxes" / ".poller-storage").write_text("another\n")
    code, out, _ = run("status", "--json")
    assert code == 0
    assert "another storage" in json.loads(out)["storage"]["reason"]


def test_status_sees_that_the_ledgers_disk_is_full_where_the_service_can_record_nothing(
    run: Run, efax: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("once")[0] == 0
    monkeypatch.setattr("poller.ledger.sqlite.file._ROOM", 1 << 62)
    out = " ".join(run("status")[1].split())
    assert "Nothing is fetched: the ledger" in out
    assert "the disk is full" in out


def test_fax_that_came_damaged_is_in_the_status_and_explain_says_what_was_wrong(
    run: Run, efax: Simulator, directory: Path
) -> None:
    fax = receive(efax, trouble="cut-document")
    assert run("once")[0] == 0
    _, out, _ = run("status")
    assert "1 fax came damaged from eFax and is stored as received: main/a 1." in out
    (search,) = [line for line in out.splitlines() if "grep -rl" in line]
    found = subprocess.run(search, shell=True, capture_output=True, text=True, check=True)
    assert [Path(line).suffix for line in found.stdout.splitlines()] == [".json"]
    assert "came damaged" not in "".join(json.loads(run("status", "--json")[1])["problems"])

    out = run("explain", fax.fax_id)[1]
    assert "stored it as received: pdf-no-eof" in out
    timeline = json.loads(run("explain", fax.fax_id, "--json")[1])["timeline"]
    assert [one["why"] for one in timeline if one["what"] == "stored"] == [
        "pdf-no-eof: the PDF does not end with %%EOF"
    ]


def test_faxes_that_wait_for_a_removed_user_are_told_apart_from_those_that_are_fetched(
    run: Run, efax: Simulator, directory: Path
) -> None:
    waiting, given_up = receive(efax), receive(efax, "user-b")
    receive(efax, "user-b")
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    with sqlite3.connect(directory / "state" / "poller.db") as connection:
        connection.execute(
            "UPDATE faxes SET state = 'quarantined' WHERE fax_id = ?", (given_up.fax_id,)
        )
        connection.execute("UPDATE streams SET pending = 1, quarantined = 1 WHERE name = 'b'")
    connection.close()
    remove_user_b(directory)
    assert run("once")[0] == 0

    out = run("status")[1]
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert (rows["main"][0], rows["main"][-2]) == ("ok", "1")
    assert (rows["main/a"][-3], rows["main/b"][0], rows["main/b"][-3:-1]) == (
        "1",
        "removed",
        ["1", "1"],
    )
    problems = json.loads(run("status", "--json")[1])["problems"]
    assert not any("is quarantined" in one for one in problems)
    assert [one for one in problems if "removed" in one.lower()] == [
        "Faxes of removed users are not fetched any more (main/b; quarantined: 1, pending: 1): "
        "put the users back and reload, or `poller dismiss` the faxes. See `poller help removed-users`."
    ]
    for fax in efax.faxes():
        if fax is not waiting:
            assert run("dismiss", fax.fax_id, "--reason", "not needed")[0] == 0
    assert "removed users" not in run("status")[1]


def test_status_says_free_space_in_the_unit_that_suits_it() -> None:
    storage = {"free_bytes": 24 << 10, "directory": "/srv/faxes"}
    shown = {"version": "1", "running": True, "nodes": None, "storage": storage}
    assert _headline(shown) == "poller 1, running, 24.0 KiB free for faxes"


def test_status_does_not_call_the_space_of_this_machine_that_of_a_bucket() -> None:
    storage = {"free_bytes": 24 << 10, "directory": "s3://faxes/poller"}
    shown = {"version": "1", "running": True, "nodes": None, "storage": storage}
    assert _headline(shown) == "poller 1, running, 24.0 KiB free on this machine"


def test_status_and_retry_without_a_ledger_are_one_sentence(run: Run) -> None:
    for command in ("status", "retry"):
        code, _, err = run(command)
        assert code == 73
        assert "there is no ledger" in err


STOPPED = "The service is not running: `systemctl start poller`, or run `poller once`.\n"


def test_retry_makes_all_quarantined_faxes_due_a_few_at_a_time(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        receive(efax)
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    with sqlite3.connect(directory / "state" / "poller.db") as connection:
        connection.execute("UPDATE faxes SET state = 'quarantined'")
        connection.execute("UPDATE streams SET pending = 0, quarantined = 5 WHERE pending = 5")
    connection.close()
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    assert run("retry", "--json") == (0, '{"made_due": 5}\n', "")
    assert run("retry", "--json") == (0, '{"made_due": 0}\n', "")


def test_retry_makes_named_faxes_due_now(run: Run, efax: Simulator, directory: Path) -> None:
    fax = receive(efax)
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    assert run("retry", "--json") == (0, '{"made_due": 0}\n', "")
    assert run("retry") == (0, "No fax is quarantined.\n", "")
    for name in (fax.fax_id, f"main/a/{fax.fax_id}"):
        assert run("retry", name) == (0, f"1 fax was made due.\n{STOPPED}", "")

    efax.faults = faults()
    assert json.loads(run("once", "--json")[1])["stored"] == 1
    assert run("retry", fax.fax_id)[1] == "Nothing to do: stored and intact.\n"


@pytest.mark.parametrize("recorded", [False, True])
def test_retry_of_a_removed_users_fax_is_refused_and_changes_nothing(
    run: Run, efax: Simulator, directory: Path, recorded: bool
) -> None:
    fax = receive(efax, "user-b")
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    assert run("dismiss", fax.fax_id, "--reason", "asked the sender")[0] == 0
    remove_user_b(directory)
    if recorded:
        assert run("once")[0] == 0

    for words in ([fax.fax_id], [f"main/b/{fax.fax_id}", "--json"]):
        code, out, err = run("retry", *words)
        assert (code, out) == (1, "")
        assert "user main/b is not configured any more" in err
        assert "systemctl reload poller" in err
        assert err.count("\n") == 1
    shown = {row["user"]: row for row in json.loads(run("status", "--json")[1])["users"]}
    assert (shown["b"]["dismissed"], shown["b"]["pending"]) == (1, 0)


def test_retry_works_for_a_user_that_only_the_running_service_still_has(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax = receive(efax, "user-b")
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    remove_user_b(directory)
    with StateLock(directory / "state"):
        assert run("retry", fax.fax_id)[:2] == (0, "1 fax was made due.\n")


def test_retry_and_explain_say_that_a_stored_faxs_files_were_taken_away(
    run: Run, efax: Simulator, directory: Path
) -> None:
    fax = receive(efax)
    assert run("once")[0] == 0
    assert json.loads(run("explain", fax.fax_id, "--json")[1])["taken"] is False
    assert "taken away" not in run("explain", fax.fax_id)[1]
    for path in stored_files(directory / "faxes"):
        (directory / "faxes" / path).unlink()

    again = f"`poller verify --repair --taken main/a/{fax.fax_id}` fetches it again."
    said = f"main/a/{fax.fax_id} is stored, and a consumer took its files away; {again}\n"
    assert run("retry", fax.fax_id) == (0, said, "")
    out = run("explain", fax.fax_id)[1]
    assert "no longer there: a consumer took its files" in out
    assert again in out
    assert json.loads(run("explain", fax.fax_id, "--json")[1])["taken"] is True

    (directory / "faxes" / ".poller-storage").unlink()  # as if the disk is not mounted
    assert json.loads(run("explain", fax.fax_id, "--json")[1])["taken"] is None
    assert "the storage cannot be read now" in run("retry", fax.fax_id)[1]


def test_retry_beside_a_service_that_cannot_fetch_says_why_and_waits_for_nothing(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def waiting(*_: Any, **__: Any) -> str:
        return "it was waited for"

    monkeypatch.setattr("poller.cli.retry_command.wait_for_faxes", waiting)
    fax = receive(efax)
    efax.faults = faults("404@image=always")
    assert run("once")[0] == 0
    with StateLock(directory / "state"):
        out = run("retry", fax.fax_id)[1]
        assert out.startswith("1 fax was made due.\n0 of 1 fax is stored.\n")
        assert "it was waited for" in out

    efax.faults = faults("403@token=always")
    efax.end_token(APP)
    assert run("once")[0] == 1
    with StateLock(directory / "state"):
        code, out, _ = run("retry", fax.fax_id)
    assert (code, out.splitlines()[0]) == (0, "1 fax was made due.")
    assert "1 fax must wait: account main is suspended: " in out
    assert out.endswith("The service will fetch them once that is over.\n")
    assert "waited for" not in out

    (directory / "faxes" / ".poller-storage").unlink()
    with StateLock(directory / "state"):
        code, out, _ = run("retry", fax.fax_id)
    assert (code, out.splitlines()[0]) == (0, "1 fax was made due.")
    assert "The service cannot fetch now: " in out
    assert out.endswith("It will fetch the faxes once that is over.\n")


def test_retry_of_an_unknown_or_ambiguous_fax_is_refused(run: Run, efax: Simulator) -> None:
    for user in ("user-a", "user-b"):
        receive(efax, user, fax_id="same/id")
    assert run("once")[0] == 0
    code, _, err = run("retry", "nobody's")
    assert code == 1
    assert "knows no fax" in err
    code, _, err = run("retry", "same/id")
    assert code == 2
    assert "main/a/same/id, main/b/same/id" in err
    assert run("retry", "main/b/same/id")[0] == 0


# -- the beginning of all commands --------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["run", "once", "check --online", "backfill main/a --from 2026-01-01T00Z --to 2026-01-02T00Z"],
)
def test_missing_secrets_are_named_all_at_once_before_anything_is_touched(
    command: str,
    directory: Path,
    efax: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    default_signals: None,
    run: Run,
) -> None:
    file = directory / "poller.yaml"
    second = """\
  second:
    app_id: "app-2"
    api_key: {file: none.key}
    users: {c: {user_id: "user-c"}}
storage:"""
    text = file.read_text().replace("storage:", second)
    file.write_text(text + 'http: {listen: "127.0.0.1:0", token: {env: POLLER_TEST_TOKEN}}\n')
    monkeypatch.delenv("POLLER_TEST_KEY")
    code, _, err = run(*command.split())
    assert code == 78
    hint = "is not set; set it where poller is started"
    assert err.splitlines() == [
        f"{file}:5: accounts.main.api_key: environment variable POLLER_TEST_KEY {hint}",
        f"{file}:12: accounts.second.api_key: file {directory}/none.key cannot be read: "
        "No such file or directory",
        f"{file}:17: http.token: environment variable POLLER_TEST_TOKEN {hint}",
    ]
    assert not (directory / "faxes").exists()
    assert not (directory / "state").exists()
    assert efax.requests == []


@pytest.mark.parametrize("words", [("check", "--online"), ("once",)], ids=["check", "once"])
def test_blanks_around_the_key_are_left_out_and_said_once(
    words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLER_TEST_KEY", f"\t{KEY} \n\n")
    code, _, err = run(*words)
    assert (code, err.count("\n"), err.count("has blanks around the secret")) == (0, 1, 1)
    assert KEY not in err


def test_check_online_beside_a_daemon_needs_no_secrets(
    directory: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    assert run("once")[0] == 0
    monkeypatch.delenv("POLLER_TEST_KEY")
    with StateLock(directory / "state"):
        assert run("check", "--online")[0] == 0


def test_start_in_the_future_is_refused(directory: Path, run: Run) -> None:
    file = directory / "poller.yaml"
    file.write_text(file.read_text() + 'poll: {start: "2999-01-01T00:00:00Z"}\n')
    code, _, err = run("check")
    assert (code, err.count("\n")) == (78, 1)
    assert "poll.start: is in the future" in err


def test_hangup_while_the_daemon_starts_does_not_end_it(directory: Path) -> None:
    """The configuration is a pipe: the daemon waits at its beginning until somebody writes."""
    text = (directory / "poller.yaml").read_text() + "http: {listen: null}\n"
    pipe = directory / "pipe.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "poller", "run", "-c", str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None

        def wait_for(action: str) -> None:
            assert daemon.stdout is not None
            assert any(json.loads(line)["event"]["action"] == action for line in daemon.stdout)

        try:
            with pipe.open("w") as configuration:  # waits until the daemon reads
                daemon.send_signal(signal.SIGHUP)
                configuration.write(text)
            wait_for("service-ready")
            daemon.send_signal(signal.SIGHUP)
            pipe.write_text(text)
            wait_for("service-reloaded")
            daemon.send_signal(signal.SIGTERM)
            wait_for("service-stopped")
            assert daemon.wait() == 0
        finally:
            daemon.kill()


def test_command_ends_quietly_when_interrupted_or_when_nobody_reads(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("poller.cli.check_command.check", interrupted)
    assert run("check")[0] == 130


NUMBER = "+1 212 555 0187"
DOCUMENT = Path(__file__).parents[1] / "data/documents/pdf_page_object_whole.pdf"
WORDS = {
    "run": (),
    "once": (),
    "check": (),
    "status": (),
    "retry": (),
    "backup": ("copy.db",),
    "dismiss": ("x", "--reason", "y"),
    "verify": (),
    "backfill": ("main/a", "--from", "2024-05-21T00:00:00Z", "--to", "2024-05-22T00:00:00Z"),
    "explain": ("x",),
    "purge": (),
    "plan": (),
    "nodes": (),
    "rebuild": (),
    "send": ("main/a", "--to", "13235551212", str(DOCUMENT)),
    "selftest": ("main/a",),
    "help": (),
    "init": ("-o", "new"),
    "completion": ("users",),
    "simulate": (),
    "demo": (),
}


def test_every_command_has_words_to_try_it_with() -> None:
    assert WORDS.keys() == set(COMMANDS)


def test_the_manuals_table_has_every_command_with_its_options_and_no_other() -> None:
    page = (Path(poller.__file__).parents[1] / "config/COMMANDS.md").read_text()
    (table,) = re.findall(r"\| command \| does \| exit \|\n\|[-| ]+\n((?:\|.*\n)+)", page)
    told: dict[str, set[str]] = {}
    for row in table.splitlines():
        words = row.split("|")[1].split()
        told.setdefault(words[1].rstrip("`"), set()).update(
            re.findall("--[a-z-]+", row.split("|")[1])
        )
    assert told == {
        name: {option for names, _ in arguments for option in names if option.startswith("--")}
        for name, (_, arguments) in COMMANDS.items()
    }


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("command", WORDS)
def test_bug_in_a_command_is_one_sentence_that_shows_where_and_nothing_private(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: Any, **__: Any) -> Any:
        raise ValueError(f"key {KEY}\nfrom {NUMBER}")

    log.register_secret(KEY)
    for place in (
        "cli.bootstrap.load_as_owner",
        "simulator.simulate.run",
        "cli.demo_command.demo",
        "cli.init_command._place",
        "manual.topics",
    ):
        monkeypatch.setattr(f"poller.{place}", boom)
    code, out, err = run(command, *WORDS[command])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"`{command}` met a bug" in err
    assert "ValueError: key [secret] from …0187#" in err
    assert " boom < cli/" in err
    assert KEY not in err
    assert "555" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libcrypto.so.3: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
    ids=["memory", "system call", "shared object", "thread"],
)
def test_lack_of_memory_or_threads_is_no_bug(
    error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("poller.cli.bootstrap.load_as_owner", short)
    said = "poller: the limits on memory and threads are too low for `status`.\n"
    assert run("status") == (1, "", said)


def test_bug_whose_text_fails_is_reported_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError(NUMBER)

    def mute(*_: Any, **__: Any) -> Any:
        raise Mute

    monkeypatch.setattr("poller.cli.bootstrap.load_as_owner", mute)
    code, _, err = run("status")
    assert (code, err.count("\n"), "Mute: (poller" in err) == (1, 1, True)


_THREE_BUGS = """
import asyncio, sys, threading, warnings
from poller.cli import entry, explain_command

async def lost():
    raise ValueError("from +1 212 555 0187")

async def explained(*_):
    thread = threading.Thread(target=lambda: 1 / int("+1 212 555 0187"))
    thread.start()
    thread.join()
    asyncio.create_task(lost())
    await asyncio.sleep(0)
    warnings.warn("from +1 212 555 0187")
    sys.exit(0)

explain_command._explained = explained
sys.argv[1:] = ["-c", "poller.yaml", "explain", "x"]
raise SystemExit(entry())
"""


def test_output_of_threads_tasks_and_libraries_during_a_command_is_redacted(
    directory: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREE_BUGS],
        check=False,
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done
    for said in (
        "unexpected error ended a thread",
        "Task exception was never retrieved",
        "UserWarning",
    ):
        assert said in done.stderr
    assert "0187#" in done.stderr
    assert "555" not in done.stderr


@pytest.mark.parametrize("command", ["status", "check", "plan"])
def test_disk_behind_stdout_that_is_full_is_one_sentence(
    command: str, run: Run, directory: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert run("once")[0] == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "poller", "-c", "poller.yaml", command],
            check=False, cwd=directory, stdout=full, stderr=subprocess.PIPE, text=True, env=environ,
        )  # fmt: skip
    said = "poller: stdout cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_complaint_does_not_go_to_stdout_where_there_is_no_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert run("explain", "x") == (73, "", "")


_ALL_IN_ONE = """
import sys
from poller.cli import main
for words in {commands!a}:
    try:
        print(*words, main(words), file=sys.stderr)
    except SystemExit as ended:
        print(*words, ended.code, file=sys.stderr)
"""


def test_commands_print_in_a_locale_that_has_only_ascii(directory: Path, efax: Simulator) -> None:
    receive(efax, fax_id="für-…", trouble="null-image")
    codes = dict.fromkeys(["--help", *(f"{command} --help" for command in WORDS)], 0)
    for command in ("check", "status", "plan", "verify", "retry", "rebuild", "explain für-…"):
        codes[f"{command} -c poller.yaml"] = 0
    elsewhere = (directory / "poller.yaml").read_text().replace("faxes", "eingänge")
    (directory / "elsewhere.yaml").write_text(elsewhere)
    codes |= {"once -c elsewhere.yaml": 1}
    codes = {"once -c poller.yaml": 1, **codes, "check -c f\udcc3\udcbcr.yaml": 78}
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _ALL_IN_ONE.format(commands=[words.split() for words in codes])],
        cwd=directory, check=False, capture_output=True, env={**os.environ, **ascii_only},
    )  # fmt: skip
    said = done.stderr.decode("ascii")
    assert (done.returncode, said.count(" met a bug")) == (0, 0), said
    for words, code in codes.items():
        assert f"{words} {code}\n".encode("ascii", "backslashreplace").decode() in said
    assert b"f\\xfcr-\\u2026" in done.stdout
    assert "this locale cannot name a file" in said


# -- demo -------------------------------------------------------------------------------------------


@pytest.fixture
def fake_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let `demo` start a shell script instead of the daemon, and keep its files in `tmp_path`."""

    def make(script: str) -> None:
        executable = tmp_path / "daemon"
        executable.write_text(f"#!/bin/sh\n{script}\n")
        executable.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(executable))

    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
    return make


@pytest.mark.parametrize("code", [73, 0])
def test_demo_whose_daemon_dies_says_so_in_a_sentence(
    fake_daemon: Callable[[str], None], capsys: pytest.CaptureFixture[str], code: int
) -> None:
    fake_daemon(f"echo 'poller: the port is taken' >&2; exit {code}")
    began = time.monotonic()
    assert main(["demo"]) == 1
    assert time.monotonic() - began < 60  # it does not wait for faxes that cannot arrive
    out = " ".join(capsys.readouterr().out.split())
    assert f"the daemon exited with {code}; its last error was: poller: the port is taken" in out


def test_demo_shows_the_last_error_of_the_daemons_log(
    fake_daemon: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"event": {"action": "internal-error"}, "log.level": "error", "message": "A bug [x]."}
    line |= {"error": {"type": "KeyError", "message": "'file'"}}
    fake_daemon(f"cat <<'EOF'\nnull\n{json.dumps(line)}\nEOF\nexit 1")
    assert main(["demo"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "the daemon exited with 1; its last error was: A bug [x]. KeyError: 'file'" in out


def test_demo_does_not_wait_for_ever_for_a_daemon_that_does_not_stop(
    fake_daemon: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_ARRIVES_EVERY_S", "_HANG_TIMEOUT_S", "_STOPS_WITHIN_S"):
        monkeypatch.setattr(demo_module, name, 0.2)
    fake_daemon("trap '' TERM; while :; do sleep 0.1; done")
    assert main(["demo"]) == 1
    assert "the daemon exited with -9" in " ".join(capsys.readouterr().out.split())


# -- the user who runs a command -----------------------------------------------------------------------

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
_BECOMES = """
import os, sys
from pathlib import Path
from poller.cli.owner import become_owner
from poller.cli.commands import build
become_owner(Path(sys.argv[1]))
print(os.getuid(), os.geteuid(), os.getgid(), 0 in os.getgroups())
"""


@ROOT
def test_root_becomes_the_owner_of_the_state_for_good(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    command = [sys.executable, "-c", _BECOMES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "65534 65534 65534 False\n"


@ROOT
def test_root_before_the_first_start_becomes_the_owner_of_the_directory_above(
    tmp_path: Path,
) -> None:
    os.chown(tmp_path, 65534, 65534)
    command = [sys.executable, "-c", _BECOMES, str(tmp_path / "made" / "later")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "65534 65534 65534 False\n"


@ROOT
def test_root_that_cannot_become_the_owner_is_told_a_line_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr(sys, "argv", ["touch", str(state / "made")])
    os.chown(state, 54321, 54322)
    tmp_path.chmod(0o755)
    with pytest.raises(
        CannotStart, match=r"--clear-groups touch .*docker exec -u 54321:54322 "
    ) as no:
        become_owner(state)
    assert no.value.exit_code == 73
    command = str(no.value).partition("as that user: ")[2].partition(" (from outside")[0]
    subprocess.run(["/bin/sh", "-c", command.replace(str(tmp_path), ".")], cwd=tmp_path, check=True)
    made = (state / "made").stat()
    assert (made.st_uid, made.st_gid) == (54321, 54322)


@ROOT
def test_root_without_the_right_to_become_the_owner_is_told_the_sudo_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "initgroups", refuse)
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(CannotStart, match=r"belongs to user nobody; .*sudo -u nobody "):
        become_owner(tmp_path)


@ROOT
def test_root_stays_root_on_its_own_state_and_where_there_is_none(tmp_path: Path) -> None:
    become_owner(tmp_path)
    become_owner(tmp_path / "nowhere")
    assert os.geteuid() == 0


@pytest.fixture
def of_nobody(efax: Simulator) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a command as root on a state that belongs to nobody; `root` is the directory of everything."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own is private
        root = Path(name)
        root.chmod(0o755)
        for directory in ("etc", "state"):
            (root / directory).mkdir()
        os.chown(root / "state", 65534, 65534)
        (root / "etc" / "poller.yaml").write_text(f"""\
accounts:
  main:
    base_url: {efax.base_url}
    app_id: "{APP}"
    api_key: {{env: POLLER_TEST_KEY}}
    users: {{a: {{user_id: "user-a"}}}}
storage: {{directory: {root}/faxes, min_free: 1MiB}}
state: {{url: "sqlite:///{root}/state/poller.db"}}
""")

        async def forked(*words: str) -> subprocess.CompletedProcess[str]:
            fork = await forks().start([*words, "-c", str(root / "etc")], root, os.environ)
            out, err = await fork.communicate()
            return subprocess.CompletedProcess(words, await fork.wait(), out.decode(), err.decode())

        def command(*words: str) -> subprocess.CompletedProcess[str]:
            return asyncio.run(forked(*words))

        command.root = root  # type: ignore[attr-defined]
        yield command


@ROOT
def test_check_of_root_says_what_the_services_user_cannot_read(of_nobody: Any) -> None:
    assert of_nobody("check").returncode == 0
    group = grp.getgrgid(65534).gr_name
    etc = of_nobody.root / "etc"
    file = etc / "poller.yaml"
    for closed, mode in ((file, "640"), (etc, "750")):
        before = closed.stat().st_mode
        closed.chmod(0o600)
        done = of_nobody("check")
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr == (
            f"{closed}: the service's user nobody cannot read it: "
            f"run `chgrp {group} {closed} && chmod {mode} {closed}`\n"
        )
        closed.chmod(before)
    etc.chmod(0o711)  # its files can be read, but not listed
    assert "750" in of_nobody("check").stderr
    etc.chmod(0o700)
    os.chown(etc, 65534, 65534)
    assert of_nobody("check").returncode == 0


@ROOT
def test_backup_of_root_names_the_user_that_cannot_write_there(of_nobody: Any) -> None:
    (of_nobody.root / "closed").mkdir(0o700)
    asyncio.run(_make_ledger(of_nobody.root / "state" / "poller.db"))
    target = of_nobody.root / "closed" / "x.db"
    done = of_nobody("backup", str(target))
    assert (done.returncode, done.stderr.count("\n")) == (73, 1)
    assert done.stderr.startswith("poller: this command runs as user nobody, who owns the state")
    assert f"cannot write {target}" in done.stderr
    done = of_nobody("backup", str(of_nobody.root / "state" / "x.db"))
    assert done.returncode == 0


async def _make_ledger(path: Path) -> None:
    async with await Ledger.open(f"sqlite:///{path}"):
        pass
    os.chown(path, 65534, 65534)


def test_other_users_stay_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "setuid", None)
    become_owner(tmp_path)


def test_groups_change_before_the_user_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("initgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda *_, name=name: order.append(name))
    other = os.stat_result((0o40700, 0, 0, 1, 65534, 65534, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: other)
    become_owner(tmp_path)
    assert order == ["initgroups", "setgid", "setuid"]


def test_once_whose_storage_goes_away_on_the_way_sums_up_and_ends_with_73(
    run: Run, efax: Simulator, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(efax)
    poll = AccountRunner.poll

    async def unmounting(self: AccountRunner, *args: Any, **kwargs: Any) -> Any:
        outcome = await poll(self, *args, **kwargs)
        (directory / "faxes" / ".poller-storage").unlink(missing_ok=True)
        return outcome

    monkeypatch.setattr(AccountRunner, "poll", unmounting)
    code, out, err = run("once", "--json")
    summary = json.loads(out)
    assert code == 73
    assert (summary["stored"], summary["pending"]) == (0, 1)
    assert "became unusable during the round" in err


# -- backup -----------------------------------------------------------------------------------------


def test_backup_says_what_it_wrote_and_refuses_in_a_sentence(run: Run, directory: Path) -> None:
    target = directory / "copy.db"
    code, _, err = run("backup", str(target))
    assert (code, err.count("\n")) == (73, 1)
    assert "there is no ledger" in err
    run("once")
    code, out, err = run("backup", "copy.db")
    assert (code, err) == (0, "")
    assert out == f"Wrote {target}: {target.stat().st_size} bytes, checked to the end.\n"
    code, _, err = run("backup", str(target))
    assert (code, err.count("\n")) == (73, 1)
    assert "exists already" in err


def test_backup_works_while_another_process_holds_the_state(run: Run, directory: Path) -> None:
    run("once")
    with StateLock(directory / "state"):
        assert run("backup", "copy.db")[0] == 0


def test_status_tells_of_a_damaged_ledger_before_all_users(run: Run, directory: Path) -> None:
    run("once")
    with contextlib.closing(sqlite3.connect(directory / "state" / "poller.db")) as ledger, ledger:
        found = [("checked_at", "2026-03-02T12:00:00+00:00"), ("problem", "row 1 is missing")]
        ledger.executemany("INSERT INTO meta VALUES (?, ?)", found)
    out = run("status")[1]
    assert "The ledger is damaged (row 1 is missing)" in out
    assert out.index("damaged") < out.index("main/a")
    assert json.loads(run("status", "--json")[1])["ledger"]["ok"] is False


# -- rebuild ----------------------------------------------------------------------------------------


def test_rebuild_says_what_it_found_and_what_it_cannot_know(
    run: Run, efax: Simulator, directory: Path
) -> None:
    fax = receive(efax)
    run("once")
    (directory / "faxes" / "main" / "strange.json").write_text("{}")
    ledger = directory / "state" / "poller.db"
    ledger.write_bytes(b"no ledger" * 1000)
    assert run("once")[0] == 73

    code, out, err = run("rebuild")

    assert (code, err) == (0, "")
    for said in (
        "is damaged", "There was no readable snapshot", "1 fax added as stored",
        "main/strange.json: not a readable sidecar", "cannot know", "is kept as",
        "will list everything again from",
    ):  # fmt: skip
        assert said in out
    assert run("once")[0] == 0
    assert set(efax.downloads.values()) == {1}
    assert next(ledger.parent.glob("poller.db.broken-*")).read_bytes() == b"no ledger" * 1000
    assert fax.fax_id


def test_rebuild_json_is_for_programs(run: Run, efax: Simulator, directory: Path) -> None:
    receive(efax)
    run("once")
    (directory / "state" / "poller.db").unlink()
    code, out, _ = run("rebuild", "--json", "--since", "2024-05-21T04:27:56+02:00")
    shown = json.loads(out)
    assert code == 0
    assert (shown["sidecars"], shown["added"], shown["kept_aside"]) == (1, 1, None)
    assert shown["damaged"] == {"count": 0, "files": []}
    assert shown["listed_from"] == "2024-05-21T02:27:56.000Z"
    assert "fetches those again" in shown["unknown"]


@pytest.mark.parametrize("since", ["yesterday", "2024-05-21T00:00:00", "2999-01-01T00:00:00Z"])
def test_rebuild_takes_no_time_that_it_does_not_understand(
    run: Run, directory: Path, since: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run("rebuild", "--since", since)[0]
    except SystemExit as ended:  # argparse's own
        code = int(ended.code or 0)
    assert code == 2
    assert not (directory / "state").exists()


def test_rebuild_is_refused_beside_a_running_poller_and_without_its_storage(
    run: Run, directory: Path
) -> None:
    run("once")
    with StateLock(directory / "state"):
        assert run("rebuild")[0] == 75
    (directory / "faxes").rename(directory / "elsewhere")
    before = (directory / "state" / "poller.db").read_bytes()
    code, _, err = run("rebuild")
    assert (code, err.count("\n")) == (73, 1)
    assert (directory / "state" / "poller.db").read_bytes() == before


def test_the_version_tells_the_program_the_tables_and_python(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    python = ".".join(str(part) for part in sys.version_info[:3])
    told = f"poller {poller.VERSION}, ledger schema {REVISION}, Python {python}\n"
    assert capsys.readouterr().out == told
