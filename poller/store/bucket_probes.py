"""Test whether a store does with a bucket what a delivery needs, with objects that are removed again."""

import base64
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

from poller.errors import StorageUnusable
from poller.store.bucket_calls import Completion, Objects
from poller.store.bucket_errors import ObjectDenied

PROBE = ".poller-probe."
_KIND = "text/plain"
_CONTENT, _OTHER = b"what is written can be read back\n", b"something else\n"
_WRONG_MD5 = base64.b64encode(bytes(16)).decode()


def prove(objects: Objects) -> bool:
    """Do everything that a delivery does; StorageUnusable names what the store ignores or denies.

    Return whether an upload that is completed never replaces an object, if poller forbids it.
    """
    name = f"{PROBE}{uuid.uuid4().hex}"
    try:
        _try_a_missing_name(name, objects)
        _try_a_name(name, objects)
        _try_a_wrong_sum(f"{name}.sum", objects)
        _try_an_upload(f"{name}.upload", objects)
        _try_a_revoked_upload(f"{name}.revoked", objects)
        never_replaces = _is_refused_where_a_name_is_taken(name, objects)
        with _needs("s3:DeleteObject", objects):
            objects.delete(name)
        return never_replaces
    finally:
        for left in (name, f"{name}.sum", f"{name}.upload", f"{name}.revoked"):
            with suppress(StorageUnusable):
                objects.delete(left)


def _require(is_so: bool, objects: Objects, lack: str) -> None:  # noqa: FBT001
    if not is_so:
        raise StorageUnusable(f"the store of the bucket {objects.where} {lack}")


@contextmanager
def _needs(right: str, objects: Objects) -> Iterator[None]:
    try:
        yield
    except ObjectDenied as error:
        raise StorageUnusable(
            f"the bucket {objects.where} denies poller {right}: give its access key or role that right"
        ) from error


def _try_a_missing_name(name: str, objects: Objects) -> None:
    """Without the right to list, a store answers 403 where an object is missing."""
    with _needs("s3:GetObject or s3:ListBucket", objects):
        _require(objects.head(name) is None, objects, "shows an object that nobody has written")


def _try_a_name(name: str, objects: Objects) -> None:
    with _needs("s3:PutObject", objects):
        objects.put(name, BytesIO(_CONTENT), kind=_KIND)
        is_refused = not objects.put(name, BytesIO(_OTHER), kind=_KIND)
    _require(
        is_refused,
        objects,
        "replaces an object although poller forbade it (it ignores If-None-Match), so a fax could "
        "replace another one: use a store that supports conditional writes",
    )
    found = objects.read(name, len(_CONTENT) + 1)
    _require(found == _CONTENT, objects, "returns other bytes than poller wrote: use another store")
    with _needs("s3:ListBucket", objects):
        listed = [key for keys, _ in objects.pages(name) for key in keys]
    _require(
        name in listed,
        objects,
        "does not list an object as soon as it is written: use a store whose lists are consistent",
    )


def _try_a_wrong_sum(name: str, objects: Objects) -> None:
    with suppress(StorageUnusable):
        objects.put(name, BytesIO(_CONTENT), kind=_KIND, md5=_WRONG_MD5)
    _require(
        objects.head(name) is None,
        objects,
        "keeps an object that was damaged on its way (it ignores Content-MD5): use another store",
    )


def _try_an_upload(name: str, objects: Objects) -> None:
    upload = objects.begin(name, _KIND)
    etag = objects.send_part(name, upload, _CONTENT)
    _require(
        objects.head(name) is None,
        objects,
        "shows an upload before it is complete: use another store",
    )
    is_shown = objects.complete(name, upload, etag) is Completion.SHOWN
    found = objects.read(name, len(_CONTENT) + 1) if is_shown else None
    _require(
        found == _CONTENT, objects, "does not show an upload that is complete: use another store"
    )


def _try_a_revoked_upload(name: str, objects: Objects) -> None:
    upload = objects.begin(name, _KIND)
    etag = objects.send_part(name, upload, _CONTENT)
    with _needs("s3:AbortMultipartUpload", objects):
        objects.abort(name, upload)
    with suppress(StorageUnusable):  # some stores answer 500
        objects.complete(name, upload, etag)
    _require(
        objects.head(name) is None,
        objects,
        "completes an upload that poller has aborted, so a fax could be delivered twice: use another "
        "store",
    )


def _is_refused_where_a_name_is_taken(name: str, objects: Objects) -> bool:
    upload = objects.begin(name, _KIND)
    etag = objects.send_part(name, upload, _OTHER)
    is_refused = objects.complete(name, upload, etag) is Completion.NAME_TAKEN
    if is_refused:
        objects.abort(name, upload)
    return is_refused
