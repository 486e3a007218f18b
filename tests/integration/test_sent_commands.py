"""Commands that name a fax or look at its files accept sent faxes, and faxes without an image."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Simulator, Switches
from tests.conftest import APP
from tests.integration.at_work import faults
from tests.integration.test_cli_commands import Run, directory, efax, receive, run

__all__ = ["directory", "efax", "run"]


@pytest.fixture
def sent(run: Run, efax: Simulator, directory: Path) -> Path:
    """The sidecar of a sent fax whose image is not archived, beside a received fax."""
    with (directory / "poller.yaml").open("a") as config:
        config.write("sent: {archive: metadata}\n")
    receive(efax, fax_id="f-1")
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    efax.sent(APP, "user-a", fax_id="s-1", created=an_hour_ago)
    assert run("once")[0] == 0
    (found,) = (directory / "faxes/main/a/sent").rglob("s-1.json")
    return found


def test_verify_tells_whether_a_sent_faxs_sidecar_is_well_damaged_or_taken(
    run: Run, sent: Path, directory: Path
) -> None:
    def verified() -> tuple[int, int, int, list[dict[str, str]]]:
        code, out, _ = run("verify", "--json")
        shown = json.loads(out)
        assert shown["unknown"] == 0
        return code, shown["ok"], shown["taken"], shown["damaged"]

    assert verified() == (0, 2, 0, [])
    whole = sent.read_bytes()
    sent.write_bytes(whole.replace(b'"main"', b'"Main"'))
    damaged = {
        "fax_id": "s-1",
        "path": str(sent.relative_to(directory / "faxes")),
        "why": "the content of the sidecar has changed",
        "account": "main",
        "user": "a",
        "direction": "sent",
    }
    assert verified() == (1, 1, 0, [damaged])
    assert "damaged  main/a/sent/s-1  main/a/sent/20" in run("verify")[1]
    sent.write_bytes(whole)
    assert verified() == (0, 2, 0, [])
    sent.unlink()
    assert verified() == (0, 1, 1, [])


def test_explain_tells_a_sent_fax_from_the_received_one_of_its_id(
    run: Run, sent: Path, directory: Path
) -> None:
    with contextlib.closing(sqlite3.connect(directory / "state/poller.db")) as ledger:
        ledger.execute("UPDATE faxes SET fax_id = 'f-1'")
        ledger.commit()
    code, _, err = run("explain", "f-1")
    named = "main/a/f-1, main/a/sent/f-1"
    assert (code, err.strip()) == (2, f"poller: f-1 is ambiguous; name one of {named}")
    received = json.loads(run("explain", "main/a/f-1", "--json")[1])
    assert (received["direction"], received["format"]) == ("received", "pdf")
    assert "completed_at" not in received
    assert json.loads(run("explain", "main/a/sent/f-1", "--json")[1])["direction"] == "sent"


def test_explain_shows_what_is_known_of_a_sent_fax(run: Run, sent: Path) -> None:
    shown = json.loads(run("explain", "s-1", "--json")[1])
    completed = json.loads(sent.read_text())["completed_at"]
    assert (shown["direction"], shown["completed_at"]) == ("sent", completed)
    assert "received_at" not in shown
    assert (shown["file"], shown["format"], shown["pages"]) == (str(sent), "json", None)
    assert (shown["taken"], shown["timeline"][0]["what"]) == (False, "completed at eFax")
    people = run("explain", "main/a/sent/s-1")[1]
    assert people.startswith("main/a/sent/s-1: stored\n")
    assert "eFax has no image of it; this is its sidecar." in people
    sent.unlink()
    assert (
        "`poller verify --repair --taken main/a/sent/s-1` fetches it again"
        in (run("explain", "main/a/s-1")[1])
    )


def test_retry_of_a_sent_fax_that_is_stored_does_nothing(run: Run, sent: Path) -> None:
    code, out, _ = run("retry", "main/a/sent/s-1")
    assert (code, out.strip()) == (0, "Nothing to do: stored and intact.")
    assert sent.exists()


def test_retry_of_a_sent_fax_is_refused_when_the_archive_is_off(
    run: Run, sent: Path, directory: Path
) -> None:
    config = directory / "poller.yaml"
    config.write_text(config.read_text().replace("sent: {archive: metadata}\n", ""))
    code, _, err = run("retry", "main/a/sent/s-1")
    assert code == 1
    assert err.startswith("poller: user main/a is not configured with `sent.archive`, so nothing")


def test_damaged_sidecar_alone_is_archived_again(run: Run, sent: Path) -> None:
    whole, bad = sent.read_bytes(), b"{}\n"
    sent.write_bytes(bad)
    code, out, _ = run("verify", "--repair", "--json")
    assert (code, json.loads(out)["repaired"]) == (0, ["main/a/sent/s-1"])
    assert sent.with_name(".damaged-s-1.json").read_bytes() == bad
    again, before = json.loads(sent.read_text()), json.loads(whole)
    assert again.pop("stored_at") >= before.pop("stored_at")
    assert again == before
    assert run("verify")[0] == 0


def test_taken_sent_fax_can_be_fetched_with_its_image_once_images_are_archived(
    run: Run, sent: Path, directory: Path
) -> None:
    config = directory / "poller.yaml"
    config.write_text(config.read_text().replace("archive: metadata", "archive: image"))
    code, out, _ = run("verify", "--repair", "--taken", "main/a/sent/s-1", "--json")
    assert (code, json.loads(out)["refused"]) == (
        1,
        ["main/a/sent/s-1: its files are there and whole"],
    )
    sent.unlink()
    assert run("verify", "--repair", "--taken", "main/a/sent/s-1")[0] == 0
    assert json.loads(sent.read_text())["image"]["file"] == "s-1.pdf"
    assert sent.with_suffix(".pdf").exists()


def test_rebuild_takes_in_what_the_service_has_archived(
    run: Run, sent: Path, efax: Simulator, directory: Path
) -> None:
    (directory / "state/poller.db").unlink()
    before = sent.read_bytes()
    code, out, _ = run("rebuild", "--json")
    assert (code, json.loads(out)["added"]) == (0, 2)
    assert run("once")[0] == 0
    assert sent.read_bytes() == before
    assert len(list((directory / "faxes").rglob("*.json"))) == 2
    assert set(efax.downloads.values()) == {1}


def test_backfill_of_a_sent_stream_archives_old_faxes(
    run: Run, sent: Path, efax: Simulator, directory: Path
) -> None:
    now = datetime.now(UTC)
    old = efax.sent(APP, "user-a", created=now - timedelta(days=60))
    efax.receive(APP, "user-a", completed=now - timedelta(days=60))
    window = ["--from", f"{now - timedelta(days=61)}", "--to", f"{now - timedelta(days=59)}"]
    code, out, _ = run("backfill", "main/a/sent", *window, "--json")
    assert code == 0
    done = json.loads(out)
    assert [done[name] for name in ("discovered", "stored", "pending", "failed")] == [1, 1, 0, 0]
    assert [path.stem for path in (directory / "faxes").rglob(f"{old.fax_id}.*")] == [old.fax_id]
    assert len(list((directory / "faxes").rglob("*.pdf"))) == 1  # the one that was there


def test_backfill_of_a_sent_stream_without_an_archive_is_wrong_usage(run: Run) -> None:
    window = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z"]
    code, _, err = run("backfill", "main/a/sent", *window)
    assert code == 2
    assert "main/a/sent" in err


def test_gap_of_a_sent_stream_is_dismissed_and_listed_again_under_its_own_name(
    run: Run, efax: Simulator, directory: Path
) -> None:
    with (directory / "poller.yaml").open("a") as config:
        config.write("sent: {archive: metadata}\n")
    efax.switches = Switches(oldest_window_s=2 * 86_400.0)
    assert run("once")[0] == 0

    def users() -> dict[str, Any]:
        shown = json.loads(run("status", "--json")[1])
        return {one["user"]: one for one in shown["users"]}

    before = users()["a"]
    gap = before["sent"]["failed_gaps"][0]
    assert before["failed_gaps"]
    code, out, _ = run("dismiss", "--gap", "main/a/sent", *gap, "--json")
    assert (code, json.loads(out)["dismissed"]) == (0, len(before["sent"]["failed_gaps"]))
    after = users()["a"]
    assert (after["sent"]["failed_gaps"], after["failed_gaps"]) == ([], before["failed_gaps"])
    assert after["sent"]["dismissed_gaps"]
    assert run("retry", "--gap", "main/a/sent", *gap)[0] == 0
    assert users()["a"]["sent"]["dismissed_gaps"] == []


def test_status_shows_the_same_facts_for_sent_as_for_received_faxes(
    run: Run, sent: Path, efax: Simulator, directory: Path
) -> None:
    config = directory / "poller.yaml"
    user_b = '{user_id: "user-b"'
    config.write_text(config.read_text().replace(user_b, user_b + ", sent: {archive: none}"))
    (directory / "state/poller.db").unlink()
    efax.sent(APP, "user-b")
    assert run("once")[0] == 0
    shown = json.loads(run("status", "--json")[1])
    a, b = shown["users"]
    assert (a["user"], b["user"], b["sent"]) == ("a", "b", None)
    assert a.keys() - a["sent"].keys() == {"sent"}
    assert a["sent"]["direction"] == "sent"
    for one in (a, a["sent"]):
        assert [one[name] for name in ("discovered", "stored", "pending")] == [1, 1, 0]
        assert (one["last_error"], one["overdue"], one["removed"]) == (None, False, False)
        assert one["stored_today"] + sum(one["stored_by_hour"]) >= 1
        assert one["watermark"] is not None
    assert a["sent"]["last_received_at"] != a["last_received_at"]


def test_sent_list_that_is_refused_is_told_as_such_and_received_faxes_are_not_blamed(
    run: Run, sent: Path, efax: Simulator
) -> None:
    efax.faults = faults("403@sent-list=always")
    code, out, err = run("once", "--json")
    assert (code, json.loads(out)["failed_polls"]) == (1, 0)
    assert "main/a/sent" in err
    problems = json.loads(run("status", "--json")[1])["problems"]
    (told,) = [one for one in problems if "/sent" in one]
    assert told.startswith("eFax lists received faxes but refuses main/a/sent and main/b/sent: ")
    assert "User ID" not in told
    assert "main/a/sent" in run("status")[1]


def test_archive_that_is_turned_off_keeps_its_files_and_continues_when_on_again(
    run: Run, sent: Path, efax: Simulator, directory: Path
) -> None:
    config = directory / "poller.yaml"
    with_archive = config.read_text()
    config.write_text(with_archive.replace("sent: {archive: metadata}\n", ""))
    later = efax.sent(APP, "user-a")
    lists = sum(one.call == "sent-list" for one in efax.requests)
    code, out, _ = run("once", "--json")
    assert (code, "sent" in json.loads(out)) == (0, False)
    assert sum(one.call == "sent-list" for one in efax.requests) == lists
    shown = json.loads(run("status", "--json")[1])
    assert shown["users"][0]["sent"]["removed"]
    assert not [one for one in shown["problems"] if "/sent" in one]
    assert run("verify")[0] == 0
    config.write_text(with_archive)
    code, out, _ = run("once", "--json")
    assert (code, json.loads(out)["sent"]["stored"]) == (0, 1)
    assert len(list((directory / "faxes").rglob(f"{later.fax_id}.json"))) == 1
    assert sent.exists()
