"""`poller status` for people: problems first, readable in 80 columns, even with a thousand users."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poller import log
from poller.cli import main
from poller.ledger import Ledger, meta
from tests.acceptance.filled_ledger import fill

STORAGE = "0123456789abcdef0123456789abcdef"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Shown":
    monkeypatch.setattr(log, "install_hooks", lambda: None)
    monkeypatch.setattr(log, "configure", lambda *_: None)
    return Shown(tmp_path, monkeypatch, capsys)


class Shown:
    def __init__(
        self, root: Path, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._root, self._environ, self._capsys = root, environ, capsys
        (root / "faxes").mkdir()
        (root / "faxes" / ".poller-storage").write_text(f"{STORAGE}\n")
        (root / "poller.yaml").write_text("""\
accounts:
  main:
    app_id: "app-1"
    api_key: {env: POLLER_TEST_KEY}
    users: {clinic-0000: {user_id: "id-of-clinic-0000"}}
storage: {directory: faxes, min_free: 1MiB}
state: {url: "sqlite:///state/poller.db"}
""")

    def fill(self, users: int, *, well: bool) -> None:
        asyncio.run(self._fill(f"sqlite:///{self._root}/state/poller.db", users, well=well))

    async def _fill(self, url: str, users: int, *, well: bool) -> None:
        await fill(url, users, datetime.now(UTC), well=well)
        async with await Ledger.open(url) as ledger:
            await ledger.write(meta.keep, meta.STORAGE_ID, STORAGE)

    def lines(self, *, terminal: bool) -> list[str]:
        """Return what `status` prints, on a terminal of 80 × 24 or into a pipe."""
        self._environ.setenv("COLUMNS", "80")
        self._environ.setenv("LINES", "24")
        self._environ.setenv("TERM", "xterm-256color")
        self._environ.delenv("NO_COLOR", raising=False)
        if terminal:
            self._environ.setenv("FORCE_COLOR", "1")
        assert main(["-c", str(self._root / "poller.yaml"), "status"]) == 0
        return self._capsys.readouterr().out.splitlines()


def test_a_thousand_users_leave_the_problems_in_sight_on_a_terminal(shown: Shown) -> None:
    shown.fill(1000, well=False)
    coloured = shown.lines(terminal=True)
    lines = [COLOUR.sub("", line) for line in coloured]
    assert lines[0].startswith("Poller is not running: `systemctl start poller` starts it,")
    assert lines[2] == "eFax refuses main/clinic-0000: check the User ID. See `poller help "
    assert "\x1b[1;31m" in coloured[0] or "\x1b[31m" in coloured[0]
    # The faxes in trouble are lines for copying, which the terminal may wrap.
    copied = ("quarantined ", "damaged ")
    assert max(len(line) for line in lines if not line.startswith(copied)) <= 80
    assert len(lines) < 40
    # Nobody knows how long it takes while the service is stopped.
    account = r"^main +ok +5/s +1,000 +[\d,]+ +\? +\? +1 +\?$"
    assert re.search(account, "\n".join(lines), re.MULTILINE)
    rows = [line.split() for line in lines if line.startswith("main/")]
    assert [row[:2] for row in rows][:5] == [
        ["main/clinic-0000", "refused"],
        ["main/clinic-0004", "damaged"],
        ["main/clinic-0003", "quarantined"],
        ["main/clinic-0001", "failing"],
        ["main/clinic-0005", "gap"],
    ]
    assert rows[2][-2:] == ["1", "0"]  # quarantined, gaps
    (rest,) = [line for line in lines if line.startswith("and ")]
    assert (
        rest
        == f"and {1000 - len(rows)} more users, {1000 - len(rows)} ok; all of them: poller status | less"
    )


def test_into_a_pipe_all_users_are_written_and_no_sentence_is_broken(shown: Shown) -> None:
    shown.fill(300, well=False)
    lines = shown.lines(terminal=False)
    assert not any("\x1b" in line for line in lines)
    assert sum(line.startswith("main/") for line in lines) == 300
    assert (
        "1 fax is damaged on the disk (main/clinic-0004): run `poller verify --repair`. "
        "See `poller help fax-damaged`."
    ) in lines
    assert any(
        "main/clinic-0003/bad-clinic-0003  The image is not strict" in line for line in lines
    )


def test_few_users_are_all_shown_with_faxes_stored_today_and_in_all(
    shown: Shown,
) -> None:
    shown.fill(3, well=True)
    lines = [COLOUR.sub("", line) for line in shown.lines(terminal=True)]
    rows = [line.split() for line in lines if line.startswith("main/")]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        ("main/clinic-0000", "ok", "2"), ("main/clinic-0001", "ok", "3"),
        ("main/clinic-0002", "ok", "4"),
    ]  # fmt: skip
    assert all(int(row[4]) <= int(row[5]) for row in rows)
