"""Keep broken answers in `state.directory`, for a person who has to ask eFax about them.

They contain patients' data, so only the service's user may read them, and no log shows them.
Nothing depends on them: they are not synced, and if the space is used up, the oldest are removed.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from poller.errors import Evidence, NoThread
from poller.naming import safe_id
from poller.own_threads import OwnThreads

IMAGE_BYTES_MAX = 16 << 20
KEPT_PER_FAX = 5  # so that one fax that fails for a week does not displace all others
_CHUNK = 1 << 20
Opened = Callable[[], BinaryIO]  # raises FileNotFoundError
_SUFFIXES = (".json", ".image")
_NAME = re.compile(r"\d{8}T\d{12}Z-\d+\.(json|image)")


@dataclass(frozen=True)
class _Item:
    """One failure: its files have this path plus a suffix."""

    path: Path
    bytes: int


class Clean(Protocol):
    """Removes secrets from evidence; `is_text`: also text that only looks like a secret."""

    def __call__(self, chunks: Iterable[bytes], *, is_text: bool) -> Iterable[bytes]: ...


def _as_it_is(chunks: Iterable[bytes], *, is_text: bool) -> Iterable[bytes]:  # noqa: ARG001
    return chunks


class EvidenceStore:
    """Evidence in `directory`/evidence, at most `max_bytes`; for one process at a time.

    It contains patients' data but no secrets, although a server may echo what we sent.
    """

    def __init__(self, directory: Path, max_bytes: int, *, clean: Clean = _as_it_is) -> None:
        self._directory = directory / "evidence"
        self._max_bytes = max_bytes
        self._clean = clean
        self._lock = Lock()
        self._threads = OwnThreads("evidence")
        self._items: list[_Item] | None = None  # oldest first; read at first use

    async def keep(  # the fax and the facts of its attempt
        self,
        identity: tuple[str, str, str],
        *,
        at: datetime,
        error: str,
        evidence: Evidence,
        image: Opened | None = None,
    ) -> bool:
        """Keep the answer of one failed attempt; return False if that was not possible.

        `identity` is App ID, User ID and fax id. `image` opens the image, of which the first 16 MiB are
        kept.
        """
        app_id, user_id, fax_id = identity
        ending = _ending(*identity)
        fax = self._directory / (self._text(safe_id(fax_id)) + ending)
        content: dict[str, object] = {
            "app_id": app_id,
            "user_id": user_id,
            "fax_id": self._text(fax_id),
            "at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "error": self._text(error),
            "status": evidence.status,
            "headers": {self._text(k): self._text(v) for k, v in evidence.headers.items()},
            **_body(b"".join(self._clean([evidence.body], is_text=True))),
        }
        try:
            return await self._threads.run(lambda: self._keep(fax, at, content, image))
        except NoThread:
            return False

    async def find(self, app_id: str, user_id: str, fax_id: str) -> list[Path]:
        """Return the kept files about a fax, oldest first."""
        ending = _ending(app_id, user_id, fax_id)
        return await self._threads.run(lambda: self._find(safe_id(fax_id), ending))

    def _find(self, shown: str, ending: str) -> list[Path]:
        if files := _files(self._directory / (shown + ending)):
            return sorted(files)
        folders = self._directory.glob(
            "*" + ending
        )  # an id that contained a secret has another name here
        return sorted(file for folder in folders for file in _files(folder))

    def _text(self, text: str) -> str:
        data = text.encode("utf-8", "backslashreplace")
        return b"".join(self._clean([data], is_text=True)).decode("utf-8", "replace")

    def _keep(
        self, fax: Path, at: datetime, content: dict[str, object], image: Opened | None
    ) -> bool:
        with self._lock:
            path = None
            try:
                items = self._known()
                for directory in (self._directory, fax):
                    directory.mkdir(mode=0o700, exist_ok=True)
                path = _unused(fax, at)
                item = _Item(path, self._write(path, content, image))
            except OSError:
                if path is not None:
                    _remove(path)
                return False
            items.append(item)
            self._items = self._trimmed(items, fax)
            return item in self._items

    def _write(self, path: Path, content: dict[str, object], image: Opened | None) -> int:
        kept = 0
        with ExitStack() as opened:
            if image is not None:
                with suppress(FileNotFoundError):  # no part of the image has arrived
                    kept, size = self._copy(opened.enter_context(image()), path)
                    content = {**content, "image": {"bytes": size, "kept": kept}}
        data = json.dumps(content, indent=1).encode() + b"\n"
        with _created(path.with_suffix(".json")) as file:
            file.write(data)
        return kept + len(data)

    def _copy(self, image: BinaryIO, path: Path) -> tuple[int, int]:
        """Copy the start of the image; return the bytes kept and the bytes there were."""
        limit = min(IMAGE_BYTES_MAX, self._max_bytes // 2)
        size = image.seek(0, os.SEEK_END)
        image.seek(0)
        with _created(path.with_suffix(".image")) as file:
            return sum(map(file.write, self._clean(_chunks(image, limit), is_text=False))), size

    def _known(self) -> list[_Item]:
        if self._items is None:
            self._items = sorted(_items(self._directory), key=lambda item: item.path.name)
        return self._items

    def _trimmed(self, items: list[_Item], fax: Path) -> list[_Item]:
        of_fax = [item for item in items if item.path.parent == fax]
        too_many = set(of_fax[:-KEPT_PER_FAX])
        total = sum(item.bytes for item in items if item not in too_many)
        kept = []
        for item in items:
            if item in too_many:
                _remove(item.path)
            elif total > self._max_bytes:
                total -= item.bytes
                _remove(item.path)
            else:
                kept.append(item)
        return kept


def _ending(app_id: str, user_id: str, fax_id: str) -> str:
    """Return the unique end of the name of a fax's folder."""
    identity = json.dumps([app_id, user_id, fax_id]).encode()
    return f"~{hashlib.sha256(identity).hexdigest()[:8]}"


def _unused(fax: Path, at: datetime) -> Path:
    """Return an unused path for a failure; a clock set back may give the same time twice."""
    stamp = f"{at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}"
    taken = [int(file.stem.rpartition("-")[2]) for file in _files(fax) if stamp in file.name]
    return fax / f"{stamp}-{max(taken, default=0) + 1:03}"


def _body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _chunks(image: BinaryIO, limit: int) -> Iterator[bytes]:
    while limit and (chunk := image.read(min(_CHUNK, limit))):
        limit -= len(chunk)
        yield chunk


def _created(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb")


def _items(directory: Path) -> Iterable[_Item]:
    sizes: dict[Path, int] = {}
    for fax in directory.iterdir() if directory.is_dir() else ():
        for file in _files(fax):
            item = file.with_suffix("")
            sizes[item] = sizes.get(item, 0) + file.stat().st_size
    return [_Item(path, size) for path, size in sizes.items()]


def _files(fax: Path) -> list[Path]:
    return [file for file in fax.iterdir() if _NAME.fullmatch(file.name)] if fax.is_dir() else []


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        with suppress(OSError):
            path.with_suffix(suffix).unlink()
    with suppress(OSError):  # not empty
        path.parent.rmdir()
