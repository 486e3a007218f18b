"""What must hold on a disk after a power failure, judged without any of the program's code."""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.crash.power_model import Call, Found

STORAGE, STATE = "disk/faxes", "var/state"
LEDGER = f"{STATE}/poller.db"
KEY_FILE = f"{STATE}/redaction.key"
MARKER = f"{STORAGE}/.poller-storage"
REVISIONS = {"0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011"}
_EXTENSIONS = (".pdf", ".tif")


@dataclass(frozen=True)
class Served:
    """One fax at eFax, and the hashes of everything that was ever answered for it."""

    fax_id: str
    user_id: str
    completed_us: int
    hashes: frozenset[str]


@dataclass(frozen=True)
class Rows:
    """What the ledger says; `problem` if nothing in it can be believed."""

    problem: str | None = None
    revision: str | None = None
    storage_id: str | None = None
    faxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    coverage: tuple[tuple[str, int, int], ...] = ()


class Ledgers:
    """Opens ledgers as they are found; opens equal ones only once."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._known: dict[int, Rows] = {}

    def rows(self, found: Found) -> Rows:
        parts = {p: d for p, (_, d) in found.files.items() if p.startswith(LEDGER)}
        if not parts.get(LEDGER):
            return Rows()
        key = hash(frozenset(parts.items()))
        if key not in self._known:
            self._known[key] = self._look(parts)
        return self._known[key]

    def _look(self, parts: dict[str, bytes]) -> Rows:
        for old in self._scratch.iterdir():
            old.unlink()
        for path, data in parts.items():
            (self._scratch / Path(path).name).write_bytes(data)
        try:
            with closing(sqlite3.connect(self._scratch / "poller.db")) as connection:
                connection.row_factory = sqlite3.Row
                return _read(connection)
        except sqlite3.Error as error:
            return Rows(problem=f"the ledger cannot be read: {error}")


def _read(db: sqlite3.Connection) -> Rows:
    verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        return Rows(problem=f"the ledger is damaged: {verdict}")
    if db.execute("PRAGMA foreign_key_check").fetchone():
        return Rows(problem="the ledger has a row that refers to nothing")
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if not tables:
        return Rows()
    revisions = [row[0] for row in db.execute("SELECT version_num FROM alembic_version")]
    if len(revisions) != 1 or revisions[0] not in REVISIONS or "faxes" not in tables:
        return Rows(problem=f"the ledger is half made: {revisions}, {sorted(tables)}")
    columns = {row[1] for row in db.execute("PRAGMA table_info(faxes)")}
    has_streams = revisions[0] >= "0006"
    damage = "damage" if has_streams else "harm"
    made = [damage in columns, "streams" in tables, "jobs" in tables]
    if made != [revisions[0] != "0001", has_streams, has_streams]:
        return Rows(problem=f"the ledger is half migrated: {revisions}, {sorted(columns)}")
    owner, owners = ("stream", "streams") if has_streams else ("user", "users")
    users = {row["id"]: row["user_id"] for row in db.execute(f"SELECT * FROM {owners}")}
    faxes = [dict(row) for row in db.execute("SELECT * FROM faxes")]
    stored = db.execute("SELECT value FROM meta WHERE name='storage_id'").fetchone()
    covered = db.execute(f'SELECT "{owner}", start, "end" FROM coverage').fetchall()
    return Rows(
        revision=revisions[0],
        storage_id=stored[0] if stored else None,
        faxes={row["fax_id"]: row for row in faxes},
        coverage=tuple((users[user], start, end) for user, start, end in covered),
    )


@dataclass
class Promises:
    """What the program has relied on so far, as its calls show; it must survive.

    The recorder notes which faxes the program considers stored. When the ledger is made, the
    program has used the key of the codes.
    """

    recorded: set[str] = field(default_factory=set)
    key: bool = False

    def see(self, call: Call) -> None:
        if call.op == "stored":
            self.recorded.add(call.path)
        elif call.op == "create" and call.path.endswith(LEDGER):
            self.key = True


@dataclass
class Judge:
    """Finds what is wrong with a disk; `faxes` returns what eFax has and has answered so far."""

    ledgers: Ledgers
    faxes: Callable[[], Iterable[Served]]

    def problems(self, found: Found, promises: Promises) -> list[str]:
        rows = self.ledgers.rows(found)
        if rows.problem is not None:
            return [rows.problem]
        served = {one.fax_id: one for one in self.faxes()}
        problems = list(_visible_problems(found, served))
        problems += _row_problems(found, rows)
        problems += _interrupted_problems(found, rows)
        problems += _claim_problems(rows, served.values())
        problems += _promise_problems(found, rows, promises)
        return problems

    def end_problems(self, found: Found) -> list[str]:
        """Judge a disk on which the program has run to its end without a fault."""
        served = {one.fax_id for one in self.faxes()}
        everything = Promises(recorded=served, key=True)
        problems = self.problems(found, everything)
        visible = Counter(Path(path).stem for path in _visible(found))
        problems += [f"{one} has {n} files" for one, n in visible.items() if n != 2]
        problems += [
            f"{path} is left over"
            for path in found.files
            if path.startswith(STORAGE) and "/." in path and path != MARKER
        ]
        return problems


def _visible(found: Found) -> Iterator[str]:
    for path in found.files:
        if path.startswith(f"{STORAGE}/") and not path.rpartition("/")[2].startswith("."):
            yield path


@lru_cache(maxsize=1000)  # most states have the same files
def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _visible_problems(found: Found, served: dict[str, Served]) -> Iterator[str]:
    """No visible name is incomplete or differs from what was served."""
    for path in _visible(found):
        mode, data = found.files[path]
        fax = served.get(Path(path).stem)
        if fax is None:
            yield f"{path} is of no fax"
        elif path.endswith(".json"):
            described = _described(data)
            if described is None or described["image"]["sha256"] not in fax.hashes:
                yield f"the sidecar {path} is not whole"
        elif _hash(data) not in fax.hashes:
            yield f"the image {path} is not as it was served"
        if mode != 0o640:
            yield f"{path} has mode {mode:o}"


def _described(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "image" in content else None


def _row_problems(found: Found, rows: Rows) -> Iterator[str]:
    """Each stored row has its image and its sidecar."""
    for fax_id, row in rows.faxes.items():
        if row["state"] != "stored":
            continue
        path = f"{STORAGE}/{row['path']}"
        image = found.files.get(f"{STORAGE}/{row['file']}")
        sidecar = found.files.get(f"{path}.json")
        if image is None or _hash(image[1]) != row["sha256"] or len(image[1]) != row["bytes"]:
            yield f"{fax_id} is stored and its image is not there"
        described = None if sidecar is None else _described(sidecar[1])
        if described is None or described["image"]["sha256"] != row["sha256"]:
            yield f"{fax_id} is stored and its sidecar is not there"


def _interrupted_problems(found: Found, rows: Rows) -> Iterator[str]:
    """A visible part of a fax that is not stored must be completable without a download.

    A second download need not be identical, and could contradict a visible file. An image alone is
    read back. Before its sidecar is visible, the row has a ticket; otherwise, if somebody took
    both, nothing would say so. And before the row has a ticket, the image is there to stay.
    """
    for row in rows.faxes.values():
        at = f"{STORAGE}/{row['path']}"
        sidecar = f"{at}.json" in found.files
        if row["state"] == "stored" or not (sidecar or row.get("staged")):
            continue
        images = {_hash(found.files[at + one][1]) for one in _EXTENSIONS if at + one in found.files}
        if not row.get("staged"):
            yield f"{at}.json is visible, and its row has no ticket"
        elif json.loads(row["staged"])["file"]["sha256"] not in images:
            yield f"{row['fax_id']} has a ticket, and its image is not there"
        if sidecar and not _describes_one(found.files[f"{at}.json"][1], images):
            yield f"{at}.json is visible, and nothing to finish it with"


def _describes_one(sidecar: bytes, images: set[str]) -> bool:
    described = _described(sidecar)
    return described is not None and described["image"]["sha256"] in images


def _claim_problems(rows: Rows, served: Iterable[Served]) -> Iterator[str]:
    """No time counts as listed if the ledger lacks one of its faxes."""
    for fax in served:
        if fax.fax_id in rows.faxes:
            continue
        for user, start, end in rows.coverage:
            if user == fax.user_id and start <= fax.completed_us < end:
                yield f"{fax.fax_id} is not in the ledger, which claims its time"


def _promise_problems(found: Found, rows: Rows, promises: Promises) -> Iterator[str]:
    for fax_id in sorted(promises.recorded):
        row = rows.faxes.get(fax_id)
        if row is None or row["state"] != "stored":
            yield f"{fax_id} was recorded as stored, and is not"
    key = found.files.get(KEY_FILE)
    if promises.key and key is None:
        yield "the key of the codes was used, and is lost"
    if key is not None and len(key[1]) != 32:
        yield "the key of the codes is not whole"
    marker = found.files.get(MARKER)
    if marker is not None and len(marker[1]) != 37:
        yield "the marker is not whole"
    if rows.storage_id is not None:
        text = "" if marker is None else marker[1].decode().strip()
        if text != rows.storage_id:
            yield f"the ledger knows the storage {rows.storage_id}, the marker says {text!r}"
