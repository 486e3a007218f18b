"""`send` and `selftest` in the test's own process: what they refuse and print, and how they end."""

import asyncio
import json
import os
import signal
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.cli import selftest_command
from poller.cli.send_command import exit_code
from poller.drawn_page import page
from poller.ingest import sending
from poller.ingest.sending import Sender
from poller.ledger import SendRow, SendState
from poller.page_progress import what_is_missing
from poller.simulator import Simulator, Switches
from tests.conftest import APP, NOON, Event
from tests.integration.at_work import calls, faults, said
from tests.integration.test_cli_commands import Run, directory, efax, run

__all__ = ["directory", "efax", "run"]  # fixtures

NUMBER = "13235551212"
SEND = ("send", "main/a", "--to", NUMBER)
WHOLE_TIFF = Path(__file__).parents[1] / "data/documents/tiff_tail_values_whole.tif"


@pytest.fixture
def letter(directory: Path) -> str:
    (directory / "letter.pdf").write_bytes(page("LETTER", ["Dear Sir"]))
    return "letter.pdf"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes pass at once."""
    monkeypatch.setattr(sending, "IN_DOUBT_AFTER_S", 0.0)
    monkeypatch.setattr(sending, "LOOK_EVERY_S", 0.0)


def row(**changes: Any) -> SendRow:
    values: dict[str, Any] = dict.fromkeys(SendRow.__annotations__)
    values |= {"state": SendState.WAITING, "asked_at": NOON, "late_said": False}
    return SendRow(**(values | changes))


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said_why"),
    [
        pytest.param(
            ("send", "main/a", "--to", "555-1212", "letter.pdf"), 2, "North America", id="number"
        ),
        pytest.param(
            ("send", "main/nobody", "--to", NUMBER, "letter.pdf"), 2, "main/nobody", id="user"
        ),
        pytest.param((*SEND, "nothing.pdf"), 2, "nothing.pdf cannot be read", id="no-file"),
        pytest.param((*SEND, "poller.yaml"), 1, "neither a PDF nor a TIFF", id="another-format"),
        pytest.param((*SEND, "half.pdf"), 1, "half.pdf is damaged", id="half"),
        pytest.param((*SEND, *["letter.pdf"] * 26), 2, "at most 25 documents", id="too-many"),
        pytest.param(("selftest", "main/a"), 2, "accounts.main.users.a.number", id="no-number"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_a_sentence(
    run: Run, efax: Simulator, letter: str, words: tuple[str, ...], code: int, said_why: str
) -> None:
    Path("half.pdf").write_bytes(page("HALF", [])[:300])
    ended, out, err = run(*words)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert said_why in err
    assert efax.requests == []


def test_a_self_test_within_no_length_of_time_is_wrong_usage(run: Run) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("selftest", "main/a", "--within", "soon")


# -- how it ends ------------------------------------------------------------------------------------


def test_a_tiff_is_sent_as_one_and_nobody_prints_the_number(
    run: Run, efax: Simulator, letter: str
) -> None:
    code, out, err = run(*SEND, letter, str(WHOLE_TIFF))
    assert code == 0
    assert out.startswith("accepted: eFax has it as ")
    assert "1…1212, 11 digits" in err
    assert "5551212" not in out + err


@pytest.mark.usefixtures("impatient")
def test_a_lost_answer_that_the_list_does_not_show_is_exit_3_and_says_what_to_do(
    run: Run, efax: Simulator, letter: str
) -> None:
    efax.faults = faults("500@send=always")
    code, out, _ = run(*SEND, letter, "--json")
    assert (code, json.loads(out)["status"]) == (3, "in-doubt")
    code, out, _ = run(*SEND, letter)
    assert code == 3
    assert "Look in eFax's portal before you send it again" in out
    assert calls(efax, "send") == 2  # two faxes, each requested once


def test_a_refusal_is_exit_1_with_efaxs_reason(run: Run, efax: Simulator, letter: str) -> None:
    efax.faults = faults("403@send=always")
    code, out, _ = run(*SEND, letter)
    assert code == 1
    assert out.startswith("not sent: ")
    assert "403" in out


def test_a_transmission_that_fails_is_exit_1_with_wait(
    run: Run, efax: Simulator, letter: str
) -> None:
    efax.switches = Switches(send_ends="CANCELED", send_takes_s=0.0)
    code, out, _ = run(*SEND, letter, "--wait")
    assert code == 1
    assert "it was cancelled" in out


def test_an_interrupted_send_says_what_becomes_of_it(
    run: Run, efax: Simulator, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    monkeypatch.setattr(Sender, "send", interrupted)
    code, out, err = run(*SEND, letter)
    assert (code, out) == (130, "")
    assert "interrupted; not sent" in err
    assert calls(efax, "send") == 0


@pytest.mark.usefixtures("impatient")
def test_the_next_send_looks_for_what_the_one_before_it_was_sending(
    run: Run, efax: Simulator, letter: str, directory: Path, events: list[Event]
) -> None:
    assert run(*SEND, letter)[0] == 0
    (fax,) = efax.apps[APP].users["user-a"].sent
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        ledger.execute("UPDATE sends SET state = 'sending', fax_id = NULL")
    assert run(*SEND, letter)[0] == 0
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        rows = ledger.execute("SELECT state, fax_id FROM sends ORDER BY id").fetchall()
    assert rows[0] == ("accepted", fax.fax_id)
    assert calls(efax, "send") == 2
    assert said(events, "send-in-doubt", "send-failed") == []


def test_the_next_send_withdraws_what_a_command_that_was_killed_had_not_begun(
    run: Run, efax: Simulator, letter: str, directory: Path
) -> None:
    assert run(*SEND, letter)[0] == 0
    ledger_file = directory / "state" / "poller.db"
    with sqlite3.connect(ledger_file) as ledger:
        ledger.execute("UPDATE sends SET state = 'waiting', fax_id = NULL, accepted_at = NULL")
    code, _, err = run(*SEND, letter)
    assert (code, calls(efax, "send")) == (0, 2)
    with sqlite3.connect(ledger_file) as ledger:
        states = [one for (one,) in ledger.execute("SELECT state FROM sends ORDER BY id")]
    assert states == ["failed", "accepted"]
    assert "was not sent and will not be" in err
    assert list((directory / "state" / "outbox").glob("*")) == []


@pytest.mark.parametrize(
    ("state", "wait", "code"),
    [
        (SendState.ACCEPTED, False, 0),
        (SendState.ACCEPTED, True, 3),
        (SendState.TRANSMITTED, True, 0),
        (SendState.FAILED, False, 1),
        (SendState.IN_DOUBT, False, 3),
        (SendState.WAITING, False, 3),
        (SendState.SENDING, True, 3),
    ],
)
def test_the_exit_code_says_whether_it_may_be_sent_again(
    state: SendState, wait: bool, code: int
) -> None:
    assert exit_code(row(state=state), wait=wait) == code


# -- the self-test ----------------------------------------------------------------------------------


def give_number(directory: Path, number: str) -> None:
    path = directory / "poller.yaml"
    user = '{user_id: "user-a"'
    path.write_text(path.read_text().replace(user, f'{user}, number: "{number}"'))


def test_a_self_test_says_that_the_page_was_not_sent(
    run: Run, efax: Simulator, directory: Path
) -> None:
    give_number(directory, NUMBER)
    efax.faults = faults("400@send=always")
    code, out, _ = run("selftest", "main/a")
    assert code == 1
    assert "accepted     no" in out
    assert "The self-test failed: it was not sent" in out


def test_a_self_test_to_a_number_of_somebody_else_says_that_nothing_is_listed(
    run: Run, efax: Simulator, directory: Path
) -> None:
    give_number(directory, NUMBER)
    efax.switches = Switches(send_takes_s=0.0)
    code, out, _ = run("selftest", "main/a", "--within", "1s", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["listed_at"]) == (1, False, None)
    assert report["accepted_at"] is not None
    assert "not among the received faxes" in report["problem"]


def test_a_self_test_that_efax_does_not_answer_in_time_leaves_it_to_be_looked_for(
    run: Run, efax: Simulator, directory: Path
) -> None:
    give_number(directory, NUMBER)
    efax.faults = faults("stall@send=first:1")
    code, out, _ = run("selftest", "main/a", "--within", "1s")
    assert (code, "has not answered yet" in out) == (1, True)
    with sqlite3.connect(directory / "state" / "poller.db") as ledger:
        assert ledger.execute("SELECT state, finished_at FROM sends").fetchall() == [
            ("sending", None)
        ]


def test_a_self_test_shows_its_steps_in_the_order_of_their_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = {
        f"{step}_at": NOON + timedelta(seconds=seconds)
        for step, seconds in (("accepted", 1), ("arrived", 4), ("stored", 5), ("transmitted", 8))
    }
    selftest_command._print(selftest_command.shown(row(**at, file="a.pdf"), None))
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split()[0] for line in lines]
    assert steps[:5] == ["asked", "accepted", "listed", "stored", "transmitted"]
    assert lines[4].endswith("+8.0 s  or earlier; poller looked then")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "waits to be sent"),
        ({"state": SendState.SENDING}, "has not answered yet"),
        ({"state": SendState.FAILED, "error": "HTTP 403"}, "was not sent: HTTP 403"),
        (
            {"state": SendState.FAILED, "fax_id": "f", "error": "busy"},
            "could not transmit it: busy",
        ),
        ({"state": SendState.IN_DOUBT, "error": "reset"}, "answer was lost"),
        (
            {"state": SendState.ACCEPTED, "fax_id": "f", "status": "NEW"},
            "still transmitting it (NEW)",
        ),
        ({"state": SendState.TRANSMITTED, "fax_id": "f"}, "does `number` belong"),
        ({"state": SendState.ACCEPTED, "fax_id": "f", "arrived_fax_id": "g"}, "explain g"),
    ],
)
def test_send_reports_what_did_not_happen_and_what_to_do(
    changes: dict[str, Any], words: str
) -> None:
    assert words in what_is_missing(row(**changes))
