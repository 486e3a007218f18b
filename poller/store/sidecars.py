"""The JSON beside an image (contract in the README), as pure functions."""

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
    """Name the file of the fax at `path` (without extension)."""
    return path + (".json" if form == "json" else EXTENSIONS[form])


def path_of(stored: StoredFile) -> str:
    """Give the path of a stored fax, without extension."""
    return stored.file.rpartition(".")[0]


class Identity(NamedTuple):
    """What a fax is, whatever its account and user are called."""

    app_id: str
    user_id: str
    fax_id: str

    def is_same(self, other: "Identity") -> bool:
        """Whether both are one fax, whose id may be spelled in two ways."""
        return self._replace(fax_id=fax_key(self.fax_id)) == other._replace(
            fax_id=fax_key(other.fax_id)
        )


@dataclass(frozen=True)
class Origin:
    """Where a fax came from and what its listing said; `metadata` exactly as listed.

    `received_at`: of a sent fax, when it was completed. `canary`: we sent it to our own number.
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
    """Describe a stored fax for its consumers; None: it has no image."""
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
    """Write a sidecar as UTF-8 that ends in a newline."""
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair can be listed (\ud800) but is no UTF-8; escaped it stays as it is.
        return json.dumps(content, indent=1).encode() + b"\n"


def decode(data: bytes, path: str) -> tuple[Identity, StoredFile] | None:
    """Read the sidecar of the fax at `path` (without extension); None unless it is one, whole."""
    try:
        content = json.loads(data)
        return _identity(content), _stored(content, data, path)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def mismatch(
    described: tuple[Identity, StoredFile] | None, stored: StoredFile, identity: Identity
) -> str | None:
    """Say why what `decode` gave is not the sidecar of this fax and image; None when it is."""
    if described is None:
        return "the sidecar is not one that poller writes"
    if not described[0].is_same(identity):
        return "the sidecar is of another fax"
    if described[1].sha256 != stored.sha256 and stored.format == "json":
        return "the content of the sidecar has changed"
    if described[1].sha256 != stored.sha256:
        return "the sidecar describes another image"
    return None


def describe(data: bytes, path: str) -> tuple[Origin, StoredFile, datetime]:
    """Read all that a sidecar says: where the fax came from, its file, when that was stored.

    Raises ValueError, which says what is wrong without a word of what is in it.
    """
    try:
        content = json.loads(data)
        stored = _stored(content, data, path)
        return _origin(content), stored, _time(content["stored_at"])
    except KeyError as error:
        raise ValueError("it is no sidecar of poller: something is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no sidecar of poller, or of a file of another name") from error


def _origin(content: dict[str, Any]) -> Origin:
    texts = [content[name] for name in ("app_id", "user_id", "fax_id", "account", "user")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(
        content["metadata"], dict
    ):
        raise TypeError("a text or a map is of another type")
    direction = Direction(content.get("direction", Direction.RECEIVED))  # of old, there was one
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
        raise ValueError("a time without its zone")
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
        raise ValueError("the sidecar is about another file")
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
