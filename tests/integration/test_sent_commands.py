"""Commands that name a fax or look at its files take sent faxes, and faxes without an image."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poller.simulator import Simulator
from poller.store import Identity, Origin, sidecar
from poller.store.sidecars import encode
from poller.stream import Direction
from tests.conftest import APP
from tests.integration.test_cli_commands import Run, directory, efax, receive, run

__all__ = ["directory", "efax", "run"]
AT = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@pytest.fixture
def sent(run: Run, efax: Simulator, directory: Path) -> Path:
    """An installation with a received fax and, of the same id, a sent one: its sidecar."""
    with (directory / "poller.yaml").open("a") as config:
        config.write("sent: {archive: metadata}\n")
    fax = receive(efax, fax_id="f-1")
    assert run("once")[0] == 0
    origin = Origin(
        Identity(APP, fax.user_id, "f-1"),
        account="main",
        user="a",
        received_at=AT,
        first_seen_at=AT,
        listed_pages=None,
        metadata={"fax_id": "f-1"},
        direction=Direction.SENT,
    )
    path = directory / "faxes/main/a/sent/2026/11/20/f-1.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(sidecar(None, origin, stored_at=AT)))
    assert json.loads(run("rebuild", "--json")[1])["added"] == 1
    return path


def test_verify_tells_whether_a_sent_faxs_sidecar_is_well_damaged_or_taken(
    run: Run, sent: Path
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
        "fax_id": "f-1",
        "path": "main/a/sent/2026/11/20/f-1.json",
        "why": "the content of the sidecar has changed",
        "account": "main",
        "user": "a",
        "direction": "sent",
    }
    assert verified() == (1, 1, 0, [damaged])
    assert "damaged  main/a/sent/f-1  main/a/sent/2026" in run("verify")[1]
    sent.write_bytes(whole)
    assert verified() == (0, 2, 0, [])
    sent.unlink()
    assert verified() == (0, 1, 1, [])


def test_explain_tells_a_sent_fax_from_the_received_one_of_its_id(run: Run, sent: Path) -> None:
    code, _, err = run("explain", "f-1")
    assert (code, err.strip()) == (
        2,
        "poller: f-1 is ambiguous; name one of main/a/f-1, main/a/sent/f-1",
    )
    received = json.loads(run("explain", "main/a/f-1", "--json")[1])
    assert (received["direction"], received["format"]) == ("received", "pdf")
    assert "completed_at" not in received
    shown = json.loads(run("explain", "main/a/sent/f-1", "--json")[1])
    assert (shown["direction"], shown["completed_at"]) == ("sent", "2026-11-20T09:30:00.000Z")
    assert "received_at" not in shown
    assert (shown["file"], shown["format"], shown["pages"]) == (str(sent), "json", None)
    assert (shown["taken"], shown["timeline"][0]["what"]) == (False, "completed at eFax")
    people = run("explain", "main/a/sent/f-1")[1]
    assert people.startswith("main/a/sent/f-1: stored\n")
    assert "It has no image: this is its sidecar." in people
    sent.unlink()
    assert (
        "`poller verify --repair --taken main/a/sent/f-1` fetches it again"
        in (run("explain", "main/a/sent/f-1")[1])
    )


def test_retry_of_a_sent_fax_that_is_stored_does_nothing(run: Run, sent: Path) -> None:
    code, out, _ = run("retry", "main/a/sent/f-1")
    assert (code, out.strip()) == (0, "Nothing to do: stored, and well.")
    assert sent.exists()


def test_retry_of_a_sent_fax_is_refused_where_none_are_archived_any_more(
    run: Run, sent: Path, directory: Path
) -> None:
    config = directory / "poller.yaml"
    config.write_text(config.read_text().replace("sent: {archive: metadata}\n", ""))
    code, _, err = run("retry", "main/a/sent/f-1")
    assert code == 1
    assert err.startswith("poller: user main/a is not configured with `sent.archive`, so its fax")
