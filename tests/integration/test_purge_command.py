"""`poller purge` without a service, with a simulated eFax in a thread."""

# ruff: noqa: F811  (fixtures of another module are named where they are used)

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.cli.purge_command import _closed
from poller.ledger import Ledger, faxes, meta
from poller.runtime_report import RuntimeReport
from poller.simulator import Simulator
from poller.simulator.state import Fax
from tests.integration.at_work import faults
from tests.integration.test_cli_commands import (  # noqa: F401
    Run,
    directory,
    efax,
    receive,
    run,
)


def now() -> str:
    return datetime.now(UTC).isoformat()


def configured(directory: Path, rule: str) -> None:
    text = (directory / "poller.yaml").read_text()
    (directory / "poller.yaml").write_text(f"{text}delete: {rule}\n")


def purged(run: Run, *words: str) -> tuple[int, dict[str, Any]]:
    code, out, err = run("purge", *words, "--json")
    assert out, err
    return code, json.loads(out)


def whys(shown: dict[str, Any]) -> dict[str, str]:
    return {one["fax_id"]: one["why"] for one in shown["kept"]}


@pytest.fixture
def three(directory: Path, efax: Simulator, run: Run) -> list[Fax]:
    """Two stored faxes of one user, one of which arrived broken, and one of another user."""
    there = [
        receive(efax, distinct=False),
        receive(efax, trouble="cut-document"),
        receive(efax, "user-b", distinct=False),
    ]
    assert run("once")[0] == 0
    return there


def gone(some: list[Fax]) -> list[bool]:
    return [fax.deleted for fax in some]


def test_without_a_rule_nothing_is_deleted_and_purge_says_why(run: Run, three: list[Fax]) -> None:
    code, shown = purged(run)
    assert code == 0
    assert shown["deleted"] == shown["would_delete"] == []
    assert set(whys(shown)) == {fax.fax_id for fax in three}
    assert whys(shown)[three[0].fax_id] == "its user has no delete.after"
    assert not any(gone(three))


def test_a_dry_run_says_what_would_go_and_deletes_nothing(
    directory: Path, run: Run, three: list[Fax]
) -> None:
    configured(directory, "{after: 1s, max_per_day: 500}")
    code, shown = purged(run, "--dry-run", "--before", now())
    assert code == 0
    assert set(shown["would_delete"]) == {three[0].fax_id, three[2].fax_id}
    assert whys(shown) == {
        three[1].fax_id: "eFax delivered it broken, so the file may be incomplete"
    }
    assert shown["deleted"] == []
    assert not any(gone(three))
    code, out, _ = run("purge", "--dry-run", "--before", now())
    assert code == 0
    assert "Would delete 2 faxes at eFax." in out


def test_by_hand_goes_what_was_stored_before_that_time_of_that_user_alone(
    run: Run, three: list[Fax]
) -> None:
    code, shown = purged(run, "main/a", "--before", now())
    assert (code, shown["deleted"]) == (0, [three[0].fax_id])
    assert gone(three) == [True, False, False]
    long_ago = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    code, shown = purged(run, "--before", long_ago)
    assert shown["deleted"] == []
    assert "not before that time" in whys(shown)[three[2].fax_id]
    assert three[0].fax_id not in whys(shown)  # nothing is left to keep
    code, out, _ = run("explain", three[0].fax_id)
    assert "deleted   at eFax" in out
    code, out, _ = run("explain", three[0].fax_id, "--json")
    assert json.loads(out)["deleted_at"]


def test_the_limit_of_the_day_holds_for_it_too(
    directory: Path, run: Run, efax: Simulator, three: list[Fax]
) -> None:
    configured(directory, "{max_per_day: 1}")
    _, shown = purged(run, "--before", now())
    assert len(shown["deleted"]) == 1
    assert sum("max_per_day (1)" in why for why in whys(shown).values()) == 1
    _, shown = purged(run, "--before", now())
    assert shown["deleted"] == []
    assert sum(gone(three)) == 1


def test_a_refusal_is_an_error_and_said(run: Run, efax: Simulator, three: list[Fax]) -> None:
    efax.faults = faults("409@delete=always")
    code, shown = purged(run, "main/b", "--before", now())
    assert (code, shown["deleted"]) == (1, [])
    assert "409" in whys(shown)[three[2].fax_id]
    code, out, _ = run("explain", three[2].fax_id)
    assert "eFax did not delete it" in out
    efax.faults = faults()
    code, shown = purged(run, "main/b", "--before", now())
    assert (code, shown["deleted"]) == (0, [three[2].fax_id])


def test_damaged_and_taken_faxes_stay_unless_taken_is_proof_enough(
    directory: Path, run: Run, three: list[Fax]
) -> None:
    paths = {path.stem: path for path in (directory / "faxes").rglob("*.pdf")}
    spoiled, taken = paths[three[0].fax_id], paths[three[2].fax_id]
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"x")
    taken.unlink()
    taken.with_suffix(".json").unlink()
    _, shown = purged(run, "--before", now())
    assert shown["deleted"] == []
    assert "content of the image has changed" in whys(shown)[three[0].fax_id]
    assert whys(shown)[three[2].fax_id] == "somebody has taken its files, and delete.taken is keep"
    configured(directory, "{taken: delete}")
    _, shown = purged(run, "--before", now())
    assert shown["deleted"] == [three[2].fax_id]


def test_of_a_storage_that_is_not_there_nothing_was_taken_away(
    directory: Path, run: Run, three: list[Fax]
) -> None:
    configured(directory, "{taken: delete}")
    (directory / "faxes").rename(directory / "elsewhere")
    (directory / "faxes").mkdir()
    code, _, err = run("purge", "--before", now())
    assert code == 73
    assert "the files cannot be read" in err
    assert not any(gone(three))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["main/nobody"], "no such ACCOUNT/USER"),
        (["--before", "2199-01-01T00:00:00Z"], "in the future"),
        (["--before", "yesterday"], "yesterday"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code: str | int | None
    try:
        code, _, err = run("purge", *words)
    except SystemExit as ended:
        code, err = ended.code, capsys.readouterr().err
    assert code == 2
    assert said in err


def test_faxes_that_efax_no_longer_has_are_neither_retried_nor_repaired(
    directory: Path, run: Run, efax: Simulator, three: list[Fax]
) -> None:
    purged(run, "main/a", "--before", now())
    (path,) = (directory / "faxes").rglob(f"{three[0].fax_id}.pdf")
    path.unlink()
    code, out, _ = run("verify", "--repair", "--json")
    assert code == 1
    assert "eFax no longer has it" in json.loads(out)["refused"][0]
    code, out, _ = run("retry", three[0].fax_id)
    assert "eFax no longer has it" in out

    async def state() -> str:
        async with await Ledger.open(f"sqlite:///{directory}/state/poller.db") as ledger:
            (row,) = await ledger.read(faxes.find, three[0].fax_id)
            return row.state

    assert asyncio.run(state()) == "stored"


async def test_purge_says_that_the_service_has_an_unusable_storage(tmp_path: Path) -> None:
    ledger = await Ledger.open(f"sqlite:///{tmp_path}/poller.db")
    try:
        assert await _closed(ledger) == ""
        for reason, said in ((None, ""), ("the disk is full", "unusable: the disk is full")):
            report = RuntimeReport("/faxes", reason)
            await ledger.write(meta.keep, meta.RUNTIME_REPORT, report.text())
            assert (await _closed(ledger)).endswith(said)
    finally:
        await ledger.close()


def test_sent_faxes_are_not_deleted_so_their_stream_is_no_user(directory: Path, run: Run) -> None:
    with (directory / "poller.yaml").open("a") as file:
        file.write("sent: {archive: metadata}\n")
    code, _, err = run("purge", "main/a/sent", "--dry-run")
    assert code == 2
    assert "main/a/sent: the configuration has no such ACCOUNT/USER" in err
