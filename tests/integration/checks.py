"""What must hold after every step of the state machine, read from the disk without our own code."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.integration.world import Key, stream_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXTENSIONS = {".pdf", ".tif", ".json"}


def instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


@dataclass(frozen=True)
class Fact:
    """A row of a fax, as it lies in the database."""

    key: Key
    state: str
    path: str
    file: str | None
    bytes: int | None
    sha256: str | None
    attempts: int
    failures: int
    first_failed_at: datetime | None
    damaged: bool
    to_delete: bool
    deleted: bool


@dataclass(frozen=True)
class Holder:
    """A row of a user, with what is covered for it."""

    pinned_start: datetime | None
    counters: dict[str, int]
    coverage: tuple[tuple[datetime, datetime], ...]

    @property
    def watermark(self) -> datetime | None:
        start = self.pinned_start
        if start is None:
            return None
        return next((end for begin, end in self.coverage if begin <= start < end), start)

    def covers(self, at: datetime) -> bool:
        return any(begin <= at < end for begin, end in self.coverage)


@dataclass(frozen=True)
class Book:
    """The ledger at one moment."""

    faxes: dict[Key, Fact] = field(default_factory=dict)
    users: dict[tuple[str, str], Holder] = field(default_factory=dict)


def read_ledger(path: Path) -> Book:
    address = f"file:{quote(str(path))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        users = {row["id"]: row for row in connection.execute("SELECT * FROM streams")}
        faxes = [_fact(row, users[row["stream"]]) for row in connection.execute(_FAXES)]
        coverage = defaultdict(list)
        for user, start, end in connection.execute(_COVERAGE):
            coverage[user].append((_EPOCH + start * _US, _EPOCH + end * _US))
    assert len({fact.key for fact in faxes}) == len(faxes), "a fax has two rows"
    return Book(
        {fact.key: fact for fact in faxes},
        {
            (row["app_id"], stream_of(row["user_id"], row["direction"])): Holder(
                instant(row["pinned_start"]),
                {name: row[name] for name in _COUNTERS},
                tuple(coverage[user]),
            )
            for user, row in users.items()
        },
    )


_US = timedelta(microseconds=1)
_FAXES = (
    "SELECT f.*, coalesce(j.failures, 0) AS failures, j.first_failed_at, d.id AS to_delete "
    "FROM faxes f LEFT JOIN jobs j ON j.subject = f.id AND j.kind = 'fetch' "
    "LEFT JOIN jobs d ON d.subject = f.id AND d.kind = 'delete'"
)
_COVERAGE = 'SELECT stream, start, "end" FROM coverage ORDER BY stream, start'
_STATES = ("pending", "stored", "quarantined", "dismissed")
_COUNTERS = ("discovered", *_STATES)


def _fact(row: sqlite3.Row, owner: sqlite3.Row) -> Fact:
    return Fact(
        key=(
            owner["app_id"],
            stream_of(owner["user_id"], owner["direction"]),
            _text(row["fax_id"]),
        ),
        state=row["state"],
        path=row["path"],
        file=row["file"],
        bytes=row["bytes"],
        sha256=row["sha256"],
        attempts=row["attempts"],
        failures=row["failures"],
        first_failed_at=instant(row["first_failed_at"]),
        damaged=bool(row["damaged"] or row["damage"] or row["refetch"]),
        to_delete=row["to_delete"] is not None,
        deleted=row["deleted_at"] is not None,
    )


def _text(kept: str) -> str:
    return kept.replace("\\u005c", "\\")


# -- the storage directory ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What is visible: sidecars by the fax that they name; by their path, images and sidecars without one."""

    sidecars: dict[Key, tuple[str, dict[str, Any]]]
    images: dict[str, tuple[int, str]]
    alone: dict[str, tuple[int, str]]
    dot_files: tuple[str, ...]


class Shelf:
    """Reads the storage directory; hashes a file once while it stays the same."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hashes: dict[tuple[str, int, int, int], str] = {}

    def look(self) -> Shown:
        sidecars: dict[Key, tuple[str, dict[str, Any]]] = {}
        images: dict[str, tuple[int, str]] = {}
        alone: dict[str, tuple[int, str]] = {}
        dot_files = []
        for path in self._directory.rglob("*"):
            if path.is_dir():
                continue
            name = str(path.relative_to(self._directory))
            if path.name.startswith("."):
                dot_files.append(path.name)
                continue
            assert path.suffix in _EXTENSIONS, f"{name} is visible"
            if path.suffix == ".json":
                content = json.loads(path.read_bytes())
                whose = stream_of(content["user_id"], content["direction"])
                key = (content["app_id"], whose, content["fax_id"])
                assert key not in sidecars, f"{key} is there twice"
                sidecars[key] = (name, content)
                if content["image"] is None:
                    alone[name] = (path.stat().st_size, self._hash(path, name))
            else:
                images[name] = (path.stat().st_size, self._hash(path, name))
        return Shown(sidecars, images, alone, tuple(dot_files))

    def _hash(self, path: Path, name: str) -> str:
        status = path.stat()
        mark = (name, status.st_ino, status.st_mtime_ns, status.st_size)
        if mark not in self._hashes:
            self._hashes[mark] = sha256(path.read_bytes()).hexdigest()
        return self._hashes[mark]


# -- what must hold --------------------------------------------------------------------------------


def counters_equal_the_rows(book: Book) -> None:
    for (app_id, user_id), holder in book.users.items():
        states = Counter(
            fact.state for key, fact in book.faxes.items() if key[:2] == (app_id, user_id)
        )
        counted = {"discovered": states.total()} | {state: states[state] for state in _STATES}
        assert holder.counters == counted, f"{user_id}: the counters are not those of the rows"


def visible_is_whole(shown: Shown, served: dict[Key, set[str]]) -> None:
    """Every image is what eFax served, every sidecar has its image beside it with that hash."""
    everything = set().union(*served.values()) if served else set()
    for name, (_, digest) in shown.images.items():
        assert digest in everything, f"{name} is not what was served"
    for key, (name, content) in shown.sidecars.items():
        if content["image"] is None:
            assert content["direction"] == "sent", f"{name} has no image"
            continue
        image = str(Path(name).with_name(content["image"]["file"]))
        assert image in shown.images, f"{name} has no image beside it"
        size, digest = shown.images[image]
        said = (content["image"]["bytes"], content["image"]["sha256"])
        assert said == (size, digest), f"{name} describes another image"
        assert digest in served[key], f"{name} is not what was served for this fax"


def stored_is_there(book: Book, shown: Shown, taken: set[Key]) -> None:
    for key, fact in book.faxes.items():
        if fact.state != "stored" or key in taken:
            continue
        there = shown.images | shown.alone
        assert fact.file in there, f"{key} is stored, but its image is not there"
        assert there[fact.file] == (fact.bytes, fact.sha256), f"{key} is another image"
        assert key in shown.sidecars, f"{key} is stored, but its sidecar is not there"


def may_be_deleted(key: Key, book: Book, shown: Shown, served: dict[Key, set[str]]) -> str | None:
    """Say why a fax must not be deleted at eFax: there is no good copy of it here, in row or on disk."""
    fact = book.faxes.get(key)
    if fact is None or fact.state != "stored" or fact.damaged or fact.sha256 is None:
        return f"{key} was deleted at eFax, and the ledger says {fact}"
    if not fact.to_delete:
        return f"{key} was deleted at eFax, and nothing had been written down"
    if key not in shown.sidecars or shown.images.get(fact.file or "") != (fact.bytes, fact.sha256):
        return f"{key} was deleted at eFax, and its files are not here"
    return None if fact.sha256 in served[key] else f"{key} is not what was served"


def rows_only_go_forward(before: Book, now: Book, gone: Collection[Key]) -> None:
    """A deletion is undone in the ledger if eFax has confirmed it and lists the fax all the same."""
    for key, fact in before.faxes.items():
        assert key in now.faxes, f"the row of {key} is gone"
        if fact.state == "stored":
            assert now.faxes[key].state == "stored", f"{key} was stored"
        if fact.deleted and key in gone:
            assert now.faxes[key].deleted, f"{key} was deleted at eFax"


def coverage_only_grows(before: Book, now: Book) -> None:
    for user, holder in before.users.items():
        after = now.users[user]
        for start, end in holder.coverage:
            inside = any(a <= start and end <= b for a, b in after.coverage)
            assert inside, f"{user}: {start} to {end} was covered"
        if after.pinned_start == holder.pinned_start and holder.watermark is not None:
            assert after.watermark is not None
            assert after.watermark >= holder.watermark, f"{user}: the watermark moved back"


def nothing_of_the_future_is_covered(book: Book, server_now: datetime) -> None:
    """Its time is known from `Date` headers, which agree within a minute."""
    for user, holder in book.users.items():
        for _, end in holder.coverage:
            late = end - server_now
            assert late <= timedelta(minutes=1), f"{user}: covered {late} ahead of eFax's now"
