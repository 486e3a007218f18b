"""What a broken answer looked like: kept in `state.directory` for whoever has to ask eFax about it.

It holds what patients sent, so it is for the service's own user alone, and never in the log. It is
of use but nothing rests on it: it is not synced, and the oldest goes when the space is used up.
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
KEPT_PER_FAX = 5  # so that one fax that fails for a week does not push out all others
_CHUNK = 1 << 20
Opened = Callable[[], BinaryIO]  # raises FileNotFoundError
_SUFFIXES = (".json", ".image")
_NAME = re.compile(r"\d{8}T\d{12}Z-\d+\.(json|image)")


@dataclass(frozen=True)
class _Item:
    """One failure: its files have this path and the suffixes."""

    path: Path
    bytes: int


class Clean(Protocol):
    """Takes secrets out of what is about to be kept; `is_text`: also what only looks like one."""

    def __call__(self, chunks: Iterable[bytes], *, is_text: bool) -> Iterable[bytes]: ...


def _as_it_is(chunks: Iterable[bytes], *, is_text: bool) -> Iterable[bytes]:  # noqa: ARG001
    return chunks


class EvidenceStore:
    """Evidence in `directory`/evidence, at most `max_bytes`; for one process at a time.

    Patients' data stays in it, secrets do not: a server may send back what it was sent.
    """

    def __init__(self, directory: Path, max_bytes: int, *, clean: Clean = _as_it_is) -> None:
        self._directory = directory / "evidence"
        self._max_bytes = max_bytes
        self._clean = clean
        self._lock = Lock()
        self._threads = OwnThreads("evidence")
        self._items: list[_Item] | None = None  # oldest first; read when first needed

    async def keep(  # whose attempt it was, and all that is known of it
        self,
        identity: tuple[str, str, str],
        *,
        at: datetime,
        error: str,
        evidence: Evidence,
        image: Opened | None = None,
    ) -> bool:
        """Keep what was received in one failed attempt; False when that was not possible.

        `identity` is App ID, User ID and fax id. Of the image, which `image` opens, the first 16 MiB
        are kept.
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
        """List the files that are kept about a fax, oldest first."""
        ending = _ending(app_id, user_id, fax_id)
        return await self._threads.run(lambda: self._find(safe_id(fax_id), ending))

    def _find(self, shown: str, ending: str) -> list[Path]:
        if files := _files(self._directory / (shown + ending)):
            return sorted(files)
        folders = self._directory.glob("*" + ending)  # an id that held a secret is named otherwise
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
                with suppress(FileNotFoundError):  # nothing has arrived
                    kept, size = self._copy(opened.enter_context(image()), path)
                    content = {**content, "image": {"bytes": size, "kept": kept}}
        data = json.dumps(content, indent=1).encode() + b"\n"
        with _created(path.with_suffix(".json")) as file:
            file.write(data)
        return kept + len(data)

    def _copy(self, image: BinaryIO, path: Path) -> tuple[int, int]:
        """Copy the beginning; how many bytes were kept, and how many there were."""
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
    """What the folder of one fax ends with, and no other's."""
    identity = json.dumps([app_id, user_id, fax_id]).encode()
    return f"~{hashlib.sha256(identity).hexdigest()[:8]}"


def _unused(fax: Path, at: datetime) -> Path:
    """Name a failure; two at one instant (of a clock that was set back) are told apart."""
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
