"""The calls to an S3-compatible store; nothing else here knows boto3. They block.

poller decides itself what to repeat, so each call is one request. Newer checksums are off, because
many stores refuse them; instead, each body comes with its MD5 and its signed SHA-256.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from io import BytesIO
from threading import Lock
from typing import Any, BinaryIO

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from poller import config
from poller.config.model import SecretRef, StorageConfig
from poller.store.bucket_errors import code_of, refused, status_of, unanswered

_CHUNK = 1 << 20
_TRIES = 3  # AWS answers 409 while it decides between two puts at one time
_CONNECT_S, _ANSWER_S = 10, 30
_CONNECTIONS = 16


class Completion(Enum):
    """What became of an upload that poller completed."""

    SHOWN = auto()
    GONE = auto()  # it was completed or aborted before
    NAME_TAKEN = auto()


@dataclass(frozen=True)
class StoredObject:
    """An object that is there; `sha256` is what its writer said."""

    bytes: int
    sha256: str | None
    etag: str


class Objects:
    """One bucket, below one prefix; keys are relative to it. Raises StorageUnusable.

    The first call reads the access key; raises ConfigError if that is impossible.
    """

    def __init__(self, settings: StorageConfig, environ: Mapping[str, str]) -> None:
        self.where = str(settings.url)
        self._settings = settings
        self._environ = environ
        self._bucket, _, prefix = self.where.removeprefix("s3://").partition("/")
        self._prefix = prefix and f"{prefix}/"
        self._lock = Lock()
        self._made: Any = None

    # -- objects -----------------------------------------------------------------------------------

    def head(self, key: str) -> StoredObject | None:
        found = self._found("head_object", key)
        if found is None:
            return None
        return StoredObject(found["ContentLength"], found["Metadata"].get("sha256"), found["ETag"])

    def chunks(self, key: str) -> Iterator[bytes] | None:
        """Read an object piece by piece; return None if it is missing."""
        found = self._found("get_object", key)
        return None if found is None else self._pieces(found["Body"])

    def _pieces(self, body: Any) -> Iterator[bytes]:
        with self._translated(), closing(body):
            yield from body.iter_chunks(_CHUNK)

    def read(self, key: str, limit: int) -> bytes | None:
        """Read the beginning of a small object; return None if it is missing."""
        found = self._found("get_object", key)
        if found is None:
            return None
        with self._translated(), closing(found["Body"]) as body:
            return bytes(body.read(limit))

    def put(
        self,
        key: str,
        body: BinaryIO,
        *,
        kind: str,
        metadata: Mapping[str, str] | None = None,
        md5: str | None = None,
        replacing: bool = False,
    ) -> bool:
        """Write an object, whole or not at all; return False if its key is taken."""
        given = {"ContentType": kind, "Metadata": dict(metadata or {})}
        given |= {"ContentMD5": md5 or _md5(body)} | ({} if replacing else {"IfNoneMatch": "*"})
        with self._translated():
            for left in reversed(range(_TRIES)):
                body.seek(0)
                try:
                    self._client.put_object(**self._at(key), Body=body, **given)
                    break
                except ClientError as error:
                    if status_of(error) == 412:
                        return False
                    if status_of(error) != 409 or not left:
                        raise
        return True

    def copy(self, key: str, to: str) -> None:
        with self._translated():
            self._client.copy_object(**self._at(to), CopySource=self._at(key))

    def delete(self, key: str) -> None:
        with self._translated():
            self._client.delete_object(**self._at(key))

    def pages(self, below: str = "", *, deep: bool = True) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the keys that begin with `below`, up to 1,000 at a time, and the prefixes of others.

        Only if it is not `deep` are there others: whatever has a further slash.
        """
        given: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        skip = len(self._prefix)
        while True:
            with self._translated():
                found = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + below, **given
                )
            yield (
                [one["Key"][skip:] for one in found.get("Contents", [])],
                [one["Prefix"][skip:] for one in found.get("CommonPrefixes", [])],
            )
            if not found.get("IsTruncated"):
                return
            given["ContinuationToken"] = found["NextContinuationToken"]

    # -- uploads that are not visible yet ----------------------------------------------------------

    def begin(self, key: str, kind: str) -> str:
        """Begin an upload of one part; return its id."""
        with self._translated():
            begun = self._client.create_multipart_upload(**self._at(key), ContentType=kind)
            return str(begun["UploadId"])

    def send_part(self, key: str, upload: str, data: bytes) -> str:
        """Send the part; return its ETag."""
        with self._translated():
            answer = self._client.upload_part(
                **self._at(key),
                UploadId=upload,
                PartNumber=1,
                Body=data,
                ContentMD5=_md5(BytesIO(data)),
            )
            return str(answer["ETag"])

    def complete(self, key: str, upload: str, etag: str) -> Completion:
        """Make the upload visible if its key is free; some stores ignore this condition."""
        parts = [{"PartNumber": 1, "ETag": etag}]
        with self._translated():
            try:
                self._client.complete_multipart_upload(
                    **self._at(key),
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if code_of(error) == "NoSuchUpload":
                    return Completion.GONE
                if status_of(error) == 412:
                    return Completion.NAME_TAKEN
                raise
        return Completion.SHOWN

    def abort(self, key: str, upload: str) -> None:
        """Make sure that the upload never becomes visible; you may call this repeatedly."""
        with self._translated():
            try:
                self._client.abort_multipart_upload(**self._at(key), UploadId=upload)
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    # -- the client --------------------------------------------------------------------------------

    def _found(self, operation: str, key: str) -> Any:
        with self._translated():
            try:
                return getattr(self._client, operation)(**self._at(key))
            except ClientError as error:
                if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                    return None
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise refused(self.where, error) from error
        except ParamValidationError:  # a bug of ours
            raise
        except BotoCoreError as error:
            raise unanswered(self.where, error) from error

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._new_client()
            return self._made

    def _new_client(self) -> Any:
        settings = self._settings
        session = boto3.session.Session(
            aws_access_key_id=self._secret(settings.access_key_id),
            aws_secret_access_key=self._secret(settings.secret_access_key),
            region_name=settings.region or (settings.endpoint and "us-east-1"),
        )
        return session.client(
            "s3",
            endpoint_url=settings.endpoint,
            config=ClientConfig(
                signature_version="s3v4",
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},
                connect_timeout=_CONNECT_S,
                read_timeout=_ANSWER_S,
                max_pool_connections=_CONNECTIONS,
                proxies={},  # never taken from the environment
                s3={
                    "addressing_style": "path" if settings.endpoint else "auto",
                    "payload_signing_enabled": True,
                },
            ),
        )

    def _secret(self, reference: SecretRef | None) -> str | None:
        return None if reference is None else config.read_secret(reference, self._environ)


def _md5(body: BinaryIO) -> str:
    body.seek(0)
    found = hashlib.md5(usedforsecurity=False)
    while chunk := body.read(_CHUNK):
        found.update(chunk)
    return base64.b64encode(found.digest()).decode()
