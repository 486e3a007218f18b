"""Documents to be sent, in `state.directory`/outbox: durable before the ledger knows them.

Every function blocks. The files hold patients' data, so only the service's user may read them.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from poller import state_directory
from poller.documents import DocumentFormat
from poller.errors import NotKept

_EXTENSIONS: Final[dict[DocumentFormat, str]] = {"pdf": ".pdf", "tiff": ".tif"}
_FORMATS: Final = {extension: form for form, extension in _EXTENSIONS.items()}
_LEFT_OVER_S: Final = 3600.0  # the row follows within moments after the documents


@dataclass(frozen=True)
class OutboxDocument:
    format: DocumentFormat
    content: bytes = field(repr=False)


def put(state: Path, transaction_id: str, documents: Sequence[OutboxDocument]) -> None:
    """Store the documents of one fax durably. Raises NotKept, and then leaves none behind."""
    folder = _folder(state, transaction_id)
    try:
        for made in (folder.parent, folder):
            state_directory.make(made)
        for number, document in enumerate(documents, 1):
            _write(folder / f"{number}{_EXTENSIONS[document.format]}", document.content)
        state_directory.sync(folder)
    except OSError as error:
        remove(state, transaction_id)
        why = error.strerror or error
        raise NotKept(
            f"cannot store the fax in {folder.parent}: {why}; nothing was sent"
        ) from error


def documents(state: Path, transaction_id: str) -> list[OutboxDocument]:
    """Read the documents of one fax, in order. Raises OSError, also if there are none."""
    paths = sorted(_folder(state, transaction_id).iterdir(), key=lambda path: int(path.stem))
    if not paths:
        raise FileNotFoundError("the folder is empty")
    return [OutboxDocument(_FORMATS[path.suffix], path.read_bytes()) for path in paths]


def remove(state: Path, transaction_id: str) -> None:
    """Remove the documents of a fax that is sent, or never will be; leave unknown files."""
    with suppress(OSError):
        shutil.rmtree(_folder(state, transaction_id))


def folders(state: Path) -> list[str]:
    """Return the transaction ids that have documents here."""
    with suppress(OSError):
        return [folder.name for folder in (state / "outbox").iterdir()]
    return []


def is_left_over(state: Path, transaction_id: str, now_s: float) -> bool:
    """Return whether documents are too old to get a row any more; `now_s` in seconds since 1970."""
    try:
        return now_s - _folder(state, transaction_id).stat().st_mtime > _LEFT_OVER_S
    except OSError:
        return False


def _folder(state: Path, transaction_id: str) -> Path:
    return state / "outbox" / transaction_id


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
