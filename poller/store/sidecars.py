"""The JSON beside an image (contract in `config/FILES.md`), as pure functions."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from poller.documents import DocumentFormat, StoredFile, StoredFormat
from poller.naming import fax_key
from poller.stream import Direction

_TIME = {Direction.RECEIVED: "received_at", Direction.SENT: "completed_at"}
EXTENSIONS: dict[DocumentFormat, str] = {"pdf": ".pdf", "tiff": ".tif"}  # of images


def file_of(path: str, form: StoredFormat) -> str:
    """Return the file name of the fax at `path` (without extension)."""
    return path + (".json" if form == "json" else EXTENSIONS[form])


def path_of(stored: StoredFile) -> str:
    """Return the path of a stored fax, without extension."""
    return stored.file.rpartition(".")[0]


class Identity(NamedTuple):
    """What identifies a fax, however its account and user are named."""

    app_id: str
    user_id: str
    fax_id: str

    def is_same(self, other: "Identity") -> bool:
        """Whether both identify one fax; its id may be spelled in two ways."""
        return self._replace(fax_id=fax_key(self.fax_id)) == other._replace(
            fax_id=fax_key(other.fax_id)
        )


@dataclass(frozen=True)
class Origin:
    """Where a fax came from and what its listing said; `metadata` exactly as listed.

    `received_at` of a sent fax is when it was completed. A `canary` is a fax we sent to ourselves.
    """

    identity: Identity
    account: str
    user: str
    received_at: datetime | None
    first_seen_at: datetime
    listed_pages: int | None
    metadata: dict[str, Any] = field(repr=False)
    direction: Direction = Direction.RECEIVED
    canary: bool = False


def sidecar(stored: StoredFile | None, origin: Origin, *, stored_at: datetime) -> dict[str, Any]:
    """Describe a stored fax for its consumers; None if it has no image."""
    received_at = origin.received_at
    return {
        "fax_id": origin.identity.fax_id,
        "direction": origin.direction.value,
        "account": origin.account,
        "user": origin.user,
        "app_id": origin.identity.app_id,
        "user_id": origin.identity.user_id,
        _TIME[origin.direction]: None if received_at is None else _instant(received_at),
        "first_seen_at": _instant(origin.first_seen_at),
        "stored_at": _instant(stored_at),
        **({"canary": True} if origin.canary else {}),
        "image": None if stored is None else _image(stored, origin),
        "metadata": origin.metadata,
    }


def _image(stored: StoredFile, origin: Origin) -> dict[str, Any]:
    return {
        "file": stored.file.rpartition("/")[2],
        "format": stored.format,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "pages": stored.pages,
        "listed_pages": origin.listed_pages,
        "damaged": stored.damaged,
    }


def encode(content: dict[str, Any]) -> bytes:
    """Encode a sidecar as UTF-8 that ends in a newline."""
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # A list can contain half a surrogate pair (\ud800), which is not UTF-8; escaping keeps it.
        return json.dumps(content, indent=1).encode() + b"\n"


def decode(data: bytes, path: str) -> tuple[Identity, StoredFile] | None:
    """Read the sidecar of the fax at `path` (without extension); return None if it is not a whole one."""
    try:
        content = json.loads(data)
        return _identity(content), _stored(content, data, path)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def mismatch(
    described: tuple[Identity, StoredFile] | None, stored: StoredFile, identity: Identity
) -> str | None:
    """Return why a decoded sidecar does not belong to this fax and image; None if it does."""
    if described is None:
        return "the sidecar is not one that poller writes"
    if not described[0].is_same(identity):
        return "the sidecar belongs to another fax"
    if described[1].sha256 != stored.sha256 and stored.format == "json":
        return "the content of the sidecar has changed"
    if described[1].sha256 != stored.sha256:
        return "the sidecar describes another image"
    return None


def describe(data: bytes, path: str) -> tuple[Origin, StoredFile, datetime]:
    """Read all that a sidecar says: where the fax came from, its file, and when that was stored.

    Raises ValueError, whose message contains nothing from the sidecar.
    """
    try:
        content = json.loads(data)
        stored = _stored(content, data, path)
        return _origin(content), stored, _time(content["stored_at"])
    except KeyError as error:
        raise ValueError("it is not a sidecar of poller: something is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is not a sidecar of poller, or belongs to another file") from error


def _origin(content: dict[str, Any]) -> Origin:
    texts = [content[name] for name in ("app_id", "user_id", "fax_id", "account", "user")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(
        content["metadata"], dict
    ):
        raise TypeError("a text or a map has another type")
    # older sidecars do not say it
    direction = Direction(content.get("direction", Direction.RECEIVED))
    received_at = content[_TIME[direction]]
    return Origin(
        identity=_identity(content),
        account=content["account"],
        user=content["user"],
        received_at=None if received_at is None else _time(received_at),
        first_seen_at=_time(content["first_seen_at"]),
        listed_pages=(content["image"] or {}).get("listed_pages"),
        metadata=content["metadata"],
        direction=direction,
        canary=content.get("canary") is True,
    )


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time has no zone")
    return at.astimezone(UTC)


def _identity(content: dict[str, Any]) -> Identity:
    return Identity(content["app_id"], content["user_id"], content["fax_id"])


def _stored(content: dict[str, Any], data: bytes, path: str) -> StoredFile:
    image = content["image"]
    if image is None:
        sha256 = hashlib.sha256(data).hexdigest()
        return StoredFile(file_of(path, "json"), "json", len(data), sha256, None, damaged=False)
    file = path + EXTENSIONS[image["format"]]
    if image["file"] != file.rpartition("/")[2]:
        raise ValueError("the sidecar describes another file")
    pages = image["pages"]
    return StoredFile(
        file=file,
        format=image["format"],
        bytes=int(image["bytes"]),
        sha256=str(image["sha256"]),
        pages=None if pages is None else int(pages),
        damaged=bool(image["damaged"]),
    )


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
