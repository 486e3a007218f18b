"""The checker can fail: it names each kind of harm done to a good installation."""

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from poller.simulator import Simulator
from tests.acceptance.installation import APP, KEY, Installation, arrived, populated
from tests.crash.checker import (
    Expected,
    download_problems,
    problems,
    progress,
    secret_problems,
)
from tests.crash.served import served_by


@dataclass
class Case:
    """A good installation after a run without faults: two faxes of one user, one sent fax."""

    root: Path
    expected: Expected

    @property
    def image(self) -> Path:
        return sorted(self.expected.storage.rglob("*.pdf"))[0]

    @property
    def sidecar(self) -> Path:
        return self.image.with_suffix(".json")

    @property
    def alone(self) -> Path:
        """The sidecar of the sent fax, which has no image."""
        (found,) = self.expected.storage.rglob("sent/**/*.json")
        return found

    def sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.expected.ledger)) as connection:
            connection.execute("PRAGMA ignore_check_constraints=1")
            for statement in statements:
                connection.execute(statement)
            connection.commit()


async def _installed(root: Path) -> Expected:
    async with Simulator(seed=1) as simulator:
        populated(simulator)
        arrived(simulator, 2)
        simulator.sent(
            APP,
            "user-a",
            fax_id="s-1",
            created=simulator.now() - timedelta(minutes=5),
            course=((0.0, "ERROR"),),
            has_image=False,
        )
        installation = Installation(root, simulator.base_url, {"sent": {"archive": "image"}})
        await installation.once()
        storage, ledger = installation.storage, installation.ledger
        return Expected(storage, ledger, served_by(simulator), simulator.now(), at_rest=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return asyncio.run(_installed(tmp_path_factory.mktemp("good")))


@pytest.fixture
def case(good: Expected, tmp_path: Path) -> Case:
    """A copy of it to harm."""
    root = tmp_path / "copy"
    shutil.copytree(good.storage.parent, root)
    mine = replace(good, storage=root / "faxes", ledger=root / "state" / "poller.db")
    return Case(root, mine)


def _new(path: Path, data: bytes = b"%PDF-") -> None:
    path.write_bytes(data)
    path.chmod(0o640)


def _sidecar(
    case: Case, change: Callable[[dict[str, object]], object], path: Path | None = None
) -> None:
    path = path or case.sidecar
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _rows_gone(case: Case) -> None:
    case.sql("DELETE FROM attempts", "DELETE FROM faxes", "UPDATE streams SET stored = 0")


def _unfinished(case: Case) -> None:
    case.sql(
        "UPDATE faxes SET state='pending' WHERE id=1",
        "INSERT INTO jobs (kind, subject, stream, due) SELECT 'fetch', id, stream, 1 FROM faxes WHERE id=1",
        "UPDATE streams SET stored=1, pending=1 WHERE user_id='user-a' AND direction='received'",
    )


def _wrong_hash_both(case: Case) -> None:
    """The disk agrees with ledger and sidecar, but not with what eFax sent."""
    data = b"%PDF-1.4 another"
    case.image.write_bytes(data)
    hashed = hashlib.sha256(data).hexdigest()
    _sidecar(case, lambda c: c["image"].update(bytes=len(data), sha256=hashed))  # type: ignore[attr-defined]
    file = case.image.relative_to(case.expected.storage)
    case.sql(f"UPDATE faxes SET bytes={len(data)}, sha256='{hashed}' WHERE file='{file}'")


_DUE = "INSERT INTO jobs (kind, subject, stream, due) SELECT 'fetch', id, stream, 1 FROM faxes"

HARM: dict[str, tuple[str, Callable[[Case], object]]] = {
    "the ledger is cut": ("ledger", lambda c: os.truncate(c.expected.ledger, 50_000)),
    "the ledger is no database": ("ledger", lambda c: c.expected.ledger.write_bytes(b"x" * 9000)),
    "the image is gone": ("lost", lambda c: c.image.unlink()),
    "the sidecar is gone": ("lost", lambda c: c.sidecar.unlink()),
    "the image is shorter": ("bytes", lambda c: os.truncate(c.image, 100)),
    "the image is another everywhere": ("bytes", _wrong_hash_both),
    "the sidecar is cut": ("partial", lambda c: os.truncate(c.sidecar, 100)),
    "the sidecar lacks fields": ("partial", lambda c: _sidecar(c, lambda s: s.pop("metadata"))),
    "the sidecar is of another": ("twice", lambda c: _sidecar(c, lambda s: s.update(fax_id="x"))),
    "the sidecar says that there is no image": (
        "bytes",
        lambda c: _sidecar(c, lambda s: s.update(image=None)),
    ),
    "a sidecar alone is gone": ("lost", lambda c: c.alone.unlink()),
    "a sidecar alone is changed": (
        "bytes",
        lambda c: _sidecar(c, lambda s: s.update(metadata={}), c.alone),
    ),
    "a sidecar alone lacks its time": (
        "partial",
        lambda c: _sidecar(c, lambda s: s.pop("completed_at"), c.alone),
    ),
    "an image beside a sidecar alone": ("bytes", lambda c: _new(c.alone.with_suffix(".pdf"))),
    "a strange image": ("stranger", lambda c: _new(c.image.with_name("x.pdf"))),
    "a strange name": ("name", lambda c: _new(c.image.with_name("x.part"))),
    "the other format beside it": ("twice", lambda c: _new(c.image.with_suffix(".tif"))),
    "a dot-file": ("left over", lambda c: _new(c.image.with_name(".x.part"))),
    "a symbolic link": ("kind", lambda c: c.image.with_name("x.pdf").symlink_to("y")),
    "a file for everybody": ("mode", lambda c: c.image.chmod(0o644)),
    "a directory for everybody": ("mode", lambda c: c.image.parent.chmod(0o755)),
    "a ledger for everybody": ("mode", lambda c: c.expected.ledger.chmod(0o644)),
    "another marker": (
        "marker",
        lambda c: (c.expected.storage / ".poller-storage").write_text("x"),
    ),
    "no marker": ("marker", lambda c: (c.expected.storage / ".poller-storage").unlink()),
    "rows are gone": ("lost", _rows_gone),
    "rows in coverage are gone": ("coverage", _rows_gone),
    "a row of no fax": ("invented", lambda c: c.sql("UPDATE faxes SET fax_id='x' WHERE id=1")),
    "a row is pending at rest": ("unfinished", _unfinished),
    "counters differ": ("counters", lambda c: c.sql("UPDATE streams SET stored=9")),
    "a stored row is due": ("due", lambda c: c.sql(_DUE)),
    "an unknown state": ("state", lambda c: c.sql("UPDATE faxes SET state='gone' WHERE id=1")),
    "coverage passes now": (
        "coverage",
        lambda c: c.sql('UPDATE coverage SET "end"="end"+600000000'),
    ),
    "coverage is turned": ("ledger", lambda c: c.sql('UPDATE coverage SET "end"=start-1')),
    "a journal is left": (
        "left over",
        lambda c: (c.expected.ledger.with_name("poller.db-journal")).write_bytes(b"\0" * 10),
    ),
}


def test_a_good_installation_has_no_problem(case: Case) -> None:
    assert problems(case.expected, progress(case.expected.ledger)) == []


@pytest.mark.parametrize("harm", HARM)
def test_the_checker_names(case: Case, harm: str) -> None:
    rule, do = HARM[harm]
    do(case)
    found = problems(case.expected)
    assert any(one.startswith(f"{rule}:") for one in found), found


def test_two_rows_for_one_fax_are_named(case: Case) -> None:
    case.sql("DROP TABLE attempts", "DROP TABLE sends")  # they refer to faxes
    case.sql("CREATE TABLE copy AS SELECT * FROM faxes", "DROP TABLE faxes")
    case.sql("ALTER TABLE copy RENAME TO faxes", "INSERT INTO faxes SELECT * FROM faxes LIMIT 1")
    assert any(one.startswith("twice:") for one in problems(case.expected))


def test_coverage_and_stored_rows_that_move_back_are_named(case: Case) -> None:
    before = progress(case.expected.ledger)
    case.sql('UPDATE coverage SET "end"="end"-1')
    _unfinished(case)
    found = problems(replace(case.expected, at_rest=False), before)
    assert len([one for one in found if one.startswith("back:")]) >= 2, found


def test_what_a_crash_may_leave_is_no_problem_until_the_next_run(case: Case) -> None:
    _unfinished(case)
    _new(case.image.with_name(".x.part"))
    assert problems(replace(case.expected, at_rest=False)) == []
    assert problems(case.expected) != []


def test_a_fax_that_a_consumer_took_is_no_problem(case: Case) -> None:
    key = next(f.key for f in case.expected.faxes if f.key[2] == case.image.stem)
    case.sidecar.unlink()
    case.image.unlink()
    assert problems(replace(case.expected, taken={key})) == []


def test_downloads_and_secrets_are_counted() -> None:
    a, b = ("app", "user", "a"), ("app", "user", "b")
    assert download_problems({a: 1, b: 1}, {a: 1, b: 2}, stored={a}, open_=1) == []
    assert download_problems({a: 1}, {a: 2}, stored={a}, open_=1)
    assert download_problems({b: 1}, {b: 3}, stored=(), open_=1)
    assert secret_problems("…" + KEY, [KEY])
    assert not secret_problems("nothing", [KEY])
