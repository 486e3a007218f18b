"""Find what is wrong with an installation after a crash, without any of poller's own code.

It reads the ledger with sqlite3 and the disk with `os`; its caller passes what eFax served as plain
values. It verifies poller's promises: every fax is one row and one file, byte for byte; nothing is
visible in part; no coverage is claimed that the ledger cannot prove.
"""

import hashlib
import json
import shutil
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

MARKER = ".poller-storage"
STATES = ("pending", "stored", "quarantined", "dismissed")
DIRECTORY_MODE, FILE_MODE = 0o750, 0o640
STATE_DIRECTORY_MODE, STATE_FILE_MODE = 0o700, 0o600
_EXTENSIONS: dict[str, tuple[bytes, ...]] = {".pdf": (b"%PDF",), ".tif": (b"II*\0", b"MM\0*")}
_SIDECAR_KEYS = {
    *("fax_id", "direction", "account", "user", "app_id", "user_id", "first_seen_at"),
    *("stored_at", "image", "metadata"),
}
_TIME_KEYS = {"received": "received_at", "sent": "completed_at"}
_IMAGE_KEYS = {"file", "format", "bytes", "sha256", "pages", "listed_pages", "damaged"}

Key = tuple[str, str, str]  # app_id, user_id, fax_id
StreamKey = tuple[str, str, str]  # app_id, user_id, direction


@dataclass(frozen=True)
class ServedFax:
    """One fax as eFax knows it: `images` are the SHA-256 of every document that it ever sent.

    `late` faxes became visible after their time had been listed; a missing one is not an error
    before the next sweep. Of a fax that is `alone`, eFax has no image: its sidecar comes alone.
    """

    key: Key
    completed: datetime
    images: frozenset[str] = frozenset()
    late: bool = False
    direction: str = "received"
    alone: bool = False

    @property
    def stream(self) -> StreamKey:
        return (*self.key[:2], self.direction)


@dataclass(frozen=True)
class Expected:
    """What the checker needs to know: `storage` and `ledger` are their places.

    `at_rest` is for the end of a run without faults: then everything listed is stored, except the
    faxes in `unobtainable`, which wait as pending or quarantined rows, and nothing is left over. A
    consumer has moved `taken` faxes away. With `modes` False, ignore modes (a modelled disk has
    none).
    """

    storage: Path
    ledger: Path
    faxes: Sequence[ServedFax]
    now: datetime
    at_rest: bool = False
    unobtainable: Collection[Key] = ()
    taken: Collection[Key] = ()
    modes: bool = True


@dataclass(frozen=True)
class Progress:
    """What a ledger claims to have listed, by stream; it may only grow."""

    coverage: Mapping[StreamKey, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    stored: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class _Row:
    key: Key
    direction: str
    state: str
    path: str
    file: str | None
    bytes: int | None
    sha256: str | None
    due: bool


@dataclass(frozen=True)
class _Ledger:
    rows: Sequence[_Row]
    coverage: Sequence[tuple[StreamKey, int, int]]
    counters: Mapping[StreamKey, Mapping[str, int]]
    marker: str | None


_EMPTY = _Ledger((), (), {}, None)


def problems(expected: Expected, before: Progress | None = None) -> list[str]:
    """Return everything that is wrong, one sentence each; `before` is what an earlier look found."""
    try:
        ledger = _read(expected.ledger)
    except (sqlite3.Error, ValueError) as error:
        return [f"ledger: it cannot be read ({error})"]
    found = [
        *_row_problems(ledger, expected),
        *_storage_problems(ledger, expected),
        *_coverage_problems(ledger, expected),
    ]
    if expected.modes:
        found += state_mode_problems(expected.ledger.parent)
    if expected.at_rest:
        found += _rest_problems(ledger, expected)
    if before is not None:
        found += _regress_problems(before, _progress(ledger))
    return found


def progress(ledger: Path) -> Progress:
    """What the ledger claims now, to compare with later."""
    return _progress(_read(ledger))


# The ledger


def _read(path: Path) -> _Ledger:
    """Read a copy of it, so that the look replays no journal in the installation."""
    if not path.exists() or path.stat().st_size == 0:
        return _EMPTY
    with tempfile.TemporaryDirectory() as name:
        for file in (path, path.with_name(path.name + "-journal")):
            if file.exists():
                shutil.copy(file, name)
        with closing(sqlite3.connect(Path(name) / path.name)) as connection:
            return _content(connection)


def _row(app_id: str, user_id: str, fax_id: str, *rest: Any) -> _Row:
    direction, state, path, file, size, sha256, due = rest
    key = app_id, user_id, fax_id
    return _Row(key, direction, state, path, file, size, sha256, due=bool(due))


def _content(connection: sqlite3.Connection) -> _Ledger:
    ((verdict,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if verdict != "ok":
        raise ValueError(verdict)
    if connection.execute("PRAGMA foreign_key_check").fetchall():
        raise ValueError("a row refers to one that is not there")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "faxes" not in tables:
        return _EMPTY
    rows = connection.execute(
        "SELECT u.app_id, u.user_id, f.fax_id, u.direction, f.state, f.path, f.file, f.bytes, "
        "f.sha256, j.due IS NOT NULL FROM faxes f LEFT JOIN streams u ON u.id = f.stream "
        "LEFT JOIN jobs j ON j.subject = f.id AND j.kind = 'fetch'"
    )
    counted = ", ".join(STATES)
    return _Ledger(
        rows=[_row(*row) for row in rows],
        coverage=[
            (tuple(stream), start, end)
            for *stream, start, end in connection.execute(
                'SELECT u.app_id, u.user_id, u.direction, c.start, c."end" FROM coverage c '
                "JOIN streams u ON u.id = c.stream ORDER BY u.id, c.start"
            )
        ],
        counters={
            tuple(row[:3]): dict(zip(STATES, row[3:], strict=True))
            for row in connection.execute(
                f"SELECT app_id, user_id, direction, {counted} FROM streams"
            )
        },
        marker=next(
            (v for (v,) in connection.execute("SELECT value FROM meta WHERE name='storage_id'")),
            None,
        ),
    )


def _row_problems(ledger: _Ledger, expected: Expected) -> Iterator[str]:
    known = {fax.key for fax in expected.faxes}
    for key, count in Counter(row.key for row in ledger.rows).items():
        if count > 1:
            yield f"twice: {key} has {count} rows"
        if key not in known:
            yield f"invented: {key} has a row, and eFax never listed it"
    for path, count in Counter(row.path for row in ledger.rows).items():
        if count > 1:
            yield f"twice: {count} rows have the path {path}"
    for row in ledger.rows:
        if row.state not in STATES:
            yield f"state: {row.key} is {row.state}"
        if row.due != (row.state in ("pending", "quarantined")):
            yield f"due: {row.key} is {row.state} and its next attempt says otherwise"
        if row.state == "stored" and row.key not in expected.taken:
            yield from _stored_problems(row, expected.storage)
    yield from _counter_problems(ledger)
    have_row = {row.key for row in ledger.rows}
    for fax in expected.faxes:
        if fax.images and fax.key not in have_row:
            yield f"lost: {fax.key} was said to be ours and has no row"


def _stored_problems(row: _Row, storage: Path) -> Iterator[str]:
    image = storage / (row.file or "")
    if row.file is None or not image.is_file():
        yield f"lost: {row.key} is stored and its image is not there"
        return
    data = image.read_bytes()
    if len(data) != row.bytes or hashlib.sha256(data).hexdigest() != row.sha256:
        yield f"bytes: {row.key} is stored and its image is another"
    if not image.with_suffix(".json").is_file():
        yield f"lost: {row.key} is stored and its sidecar is not there"


def _counter_problems(ledger: _Ledger) -> Iterator[str]:
    real: dict[StreamKey, Counter[str]] = {}
    for row in ledger.rows:
        real.setdefault((*row.key[:2], row.direction), Counter())[row.state] += 1
    for user, counters in ledger.counters.items():
        for state, count in counters.items():
            if count != real.get(user, Counter())[state]:
                yield f"counters: {user} says {count} {state}, the rows {real.get(user)}"


# The storage


def _storage_problems(ledger: _Ledger, expected: Expected) -> Iterator[str]:
    storage = expected.storage
    if not storage.is_dir():
        return
    yield from tree_problems(storage, at_rest=expected.at_rest, modes=expected.modes)
    yield from _marker_problems(ledger, storage)
    served = {fax.key: fax for fax in expected.faxes}
    by_path = {row.path: row for row in ledger.rows}
    seen = Counter[Key]()
    for path in _visible(storage):
        row = by_path.get(str(path.relative_to(storage).with_suffix("")))
        if row is None:
            yield f"stranger: {path.name} is visible and has no row"
        elif path.suffix == ".json":
            seen[row.key] += 1
            yield from _sidecar_problems(path, row, served.get(row.key))
        else:
            yield from _image_problems(path, row, served.get(row.key))
    for key, count in seen.items():
        if count > 1:
            yield f"twice: {key} is visible {count} times"


def _visible(storage: Path) -> list[Path]:
    return [
        path
        for path in sorted(storage.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]


def tree_problems(storage: Path, *, at_rest: bool, modes: bool = True) -> Iterator[str]:
    """Return what is wrong with names and modes; at rest, the marker is the only dot-file."""
    for path in [storage, *sorted(storage.rglob("*"))]:
        mode, hidden = stat.S_IMODE(path.lstat().st_mode), path.name.startswith(".")
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            yield f"kind: {path} is neither a file nor a directory"
        elif hidden and path != storage and path.name != MARKER and at_rest:
            yield f"left over: {path}"
        elif path.is_file() and not hidden and path.suffix not in (".json", *_EXTENSIONS):
            yield f"name: {path} is no name that a fax has"
        # A look may fall between the creation of a hidden file and the setting of its mode.
        wanted = DIRECTORY_MODE if path.is_dir() else FILE_MODE
        settled = at_rest or path.is_file()
        if modes and settled and not hidden and mode != wanted:
            yield f"mode: {path} has mode {mode:o}"


def _marker_problems(ledger: _Ledger, storage: Path) -> Iterator[str]:
    marker = storage / MARKER
    found = marker.read_text().strip() if marker.exists() else None
    if ledger.marker is not None and found != ledger.marker:
        yield f"marker: the storage says {found}, the ledger {ledger.marker}"
    if found is None and _visible(storage):
        yield "marker: there are faxes and no marker"


def _sidecar_problems(path: Path, row: _Row, fax: ServedFax | None) -> Iterator[str]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        yield f"partial: {path.name} is no whole JSON"
        return
    keys = {*_SIDECAR_KEYS, _TIME_KEYS[row.direction]}
    about = content.get("image", {})
    if not content.keys() >= keys or (about is not None and not about.keys() >= _IMAGE_KEYS):
        yield f"partial: {path.name} lacks fields"
        return
    if (content["app_id"], content["user_id"], content["fax_id"]) != row.key:
        yield f"twice: {path.name} is about another fax"
    if (about is None) != (fax is not None and fax.alone):
        yield f"bytes: {path.name} is wrong about whether there is an image"
    if about is None:
        if any(path.with_suffix(one).exists() for one in _EXTENSIONS):
            yield f"bytes: {path.name} says that there is no image, and one stands beside it"
        return
    image = path.with_name(about["file"])
    # Image first, sidecar last, also when a consumer takes them: only an image may be alone.
    if not image.is_file():
        yield f"partial: {path.name} is visible before its image"
        return
    data = image.read_bytes()
    if (about["bytes"], about["sha256"]) != (len(data), hashlib.sha256(data).hexdigest()):
        yield f"bytes: {path.name} describes another image"


def _image_problems(path: Path, row: _Row, fax: ServedFax | None) -> Iterator[str]:
    data = path.read_bytes()
    if fax is None or hashlib.sha256(data).hexdigest() not in fax.images:
        yield f"bytes: {path.name} is not what eFax served"
    if path.suffix in _EXTENSIONS and not data.startswith(_EXTENSIONS[path.suffix]):
        yield f"name: {path.name} is not of the format that its name says"
    if row.file is not None and path.name != Path(row.file).name:
        yield f"twice: {path.name} stands beside {row.file}"


def state_mode_problems(state: Path) -> Iterator[str]:
    """Only we may read the state."""
    if not state.is_dir():
        return
    for path in [state, *sorted(state.rglob("*"))]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (STATE_DIRECTORY_MODE if path.is_dir() else STATE_FILE_MODE):
            yield f"mode: {path} has mode {mode:o}"


# What is claimed


def _instant(at: datetime) -> int:
    """Microseconds since 1970, as the ledger counts."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _coverage_problems(ledger: _Ledger, expected: Expected) -> Iterator[str]:
    have_row = {row.key for row in ledger.rows}
    latest = _instant(expected.now)
    previous: dict[StreamKey, int] = {}
    for user, start, end in ledger.coverage:
        if start >= end or start <= previous.get(user, -1):
            yield f"coverage: the intervals of {user} are not in order"
        previous[user] = end
        if end > latest:
            yield f"coverage: {user} is listed up to a time that eFax has not reached"
        for fax in expected.faxes:
            inside = fax.stream == user and start <= _instant(fax.completed) < end
            if inside and not fax.late and fax.key not in have_row:
                yield f"coverage: {fax.key} lies in what was listed and has no row"


def _progress(ledger: _Ledger) -> Progress:
    coverage: dict[StreamKey, list[tuple[int, int]]] = {}
    for user, start, end in ledger.coverage:
        coverage.setdefault(user, []).append((start, end))
    return Progress(
        {user: tuple(intervals) for user, intervals in coverage.items()},
        frozenset(row.key for row in ledger.rows if row.state == "stored"),
    )


def _regress_problems(before: Progress, after: Progress) -> Iterator[str]:
    for user, intervals in before.coverage.items():
        for start, end in intervals:
            now = after.coverage.get(user, ())
            if not any(low <= start and end <= high for low, high in now):
                yield f"back: {user} was listed from {start} to {end}, and is not any more"
    for key in before.stored - after.stored:
        yield f"back: {key} was stored, and is not any more"


# After a run without faults


def _rest_problems(ledger: _Ledger, expected: Expected) -> Iterator[str]:
    states = {row.key: row.state for row in ledger.rows}
    for fax in expected.faxes:
        state = states.get(fax.key)
        wanted = ("pending", "quarantined") if fax.key in expected.unobtainable else ("stored",)
        if state not in wanted:
            yield f"unfinished: {fax.key} is {state}"
    stored = {row.path for row in ledger.rows if row.state == "stored"}
    for path in _visible(expected.storage):
        if str(path.relative_to(expected.storage).with_suffix("")) not in stored:
            yield f"unfinished: {path.name} is visible and its row is not stored"
    directory = expected.ledger.parent
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name.endswith((".part", ".new", ".tmp")) or path.name.startswith("."):
            yield f"left over: {path}"
    journal = expected.ledger.with_name(expected.ledger.name + "-journal")
    if journal.exists() and journal.stat().st_size:
        yield "left over: a journal that was not finished"


def secret_problems(text: str, secrets: Iterable[str]) -> list[str]:
    """Find secrets, fax contents and whole fax numbers in the log."""
    return [f"secret: {secret[:4]}… stands in the log" for secret in secrets if secret in text]


def download_problems(
    before: Mapping[Key, int], after: Mapping[Key, int], *, stored: Collection[Key], open_: int
) -> list[str]:
    """No stored fax is downloaded again; running downloads are repeated at most `open_` times."""
    found = []
    for key, count in after.items():
        more = count - before.get(key, 0)
        if more > (0 if key in stored else open_):
            found.append(f"again: {key} was downloaded {more} more times")
    return found
