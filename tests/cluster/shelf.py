"""What a consumer sees of a store, and takes: a directory, or a bucket."""

import asyncio
from pathlib import Path
from typing import Any, Protocol

from poller.config.model import StorageConfig
from tests import s3


class Shelf(Protocol):
    """`configured` is the section `storage` of a node's configuration."""

    configured: dict[str, Any]

    async def names(self) -> list[str]:
        """Return the names of all visible files."""

    async def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none."""

    async def remove(self, name: str) -> None: ...


class DirectoryShelf:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.configured: dict[str, Any] = {"directory": str(directory), "min_free": "1MiB"}

    async def names(self) -> list[str]:
        found = self._directory.rglob("*")
        relative = (path.relative_to(self._directory) for path in found if path.is_file())
        return [str(path) for path in relative if not any(p.startswith(".") for p in path.parts)]

    async def read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    async def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class BucketShelf:
    """A new bucket in the store at this URL."""

    def __init__(self, url: str, *, endpoint: str | None = None) -> None:
        self._settings: StorageConfig = s3.new_bucket(url)
        self.configured = s3.written(self._settings)
        if endpoint is not None:  # nodes reach it there
            self.configured["endpoint"] = endpoint
        self._client = s3.client(self._settings)
        top = s3.where(self._settings, "")
        self._bucket, self._prefix = top["Bucket"], top["Key"]

    async def names(self) -> list[str]:
        found = await asyncio.to_thread(self._list)
        return [name for name in found if "/." not in f"/{name}"]

    def _list(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self._bucket, Prefix=self._prefix)
        keys = [one["Key"] for page in found for one in page.get("Contents", [])]
        return [key.removeprefix(self._prefix) for key in keys]

    async def read(self, name: str) -> bytes | None:
        return await asyncio.to_thread(self._read, name)

    def _read(self, name: str) -> bytes | None:
        try:
            found = self._client.get_object(**s3.where(self._settings, name))
        except self._client.exceptions.NoSuchKey:
            return None
        body: bytes = found["Body"].read()
        return body

    async def remove(self, name: str) -> None:
        where = s3.where(self._settings, name)
        await asyncio.to_thread(lambda: self._client.delete_object(**where))
