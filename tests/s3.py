"""An S3-compatible store for the tests: ministack, on loopback alone, once per run.

The first test that asks starts it; the processes of pytest-xdist share it. It ends with pytest's main
process, however that ends: `python -m tests.s3 PID PORT` waits for that process and then exits.

A test gets a bucket of its own, and can put a store in front that ignores conditions, checksums or
aborted uploads (`lacking`).
"""

import asyncio
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from poller.config.model import SecretRef, StorageConfig
from poller.store.bucket_calls import Objects

ENVIRON = {name: os.environ.get(name, "test") for name in ("TEST_S3_ID", "TEST_S3_KEY")}
KEYS = {
    "access_key_id": SecretRef("env", "TEST_S3_ID"),
    "secret_access_key": SecretRef("env", "TEST_S3_KEY"),
}
_START_S = 60.0


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The store of this run; POLLER_TEST_S3 names another one, such as Ceph's radosgw."""
    if given := os.environ.get("POLLER_TEST_S3"):
        return given
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    place, main = (base.parent, os.getppid()) if is_worker else (base, os.getpid())
    return started(place / "s3.url", main)


def started(written: Path, main: int) -> str:
    """Start the store unless another process of this run has done so; return its URL."""
    with written.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not written.exists():
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            with written.with_suffix(".log").open("wb") as log:
                server = subprocess.Popen(
                    [sys.executable, "-m", "tests.s3", str(main), str(port)],
                    cwd=Path(__file__).parents[1],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            _wait_for(port, server)
            written.write_text(f"http://127.0.0.1:{port}")
    return written.read_text()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(round(_START_S / 0.05)):
        assert server.poll() is None, "ministack has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                server.returncode = 0  # it outlives this process: nobody waits for it
                return
        time.sleep(0.05)
    raise AssertionError("ministack does not start")


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> StorageConfig:
    """The configuration of an empty bucket."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Objects, "_new_client", _shared_client)
    return new_bucket(s3_url)


_new_client = Objects._new_client
_clients: dict[str | None, Any] = {}


def _shared_client(self: Objects) -> Any:
    """Make one client for all tests at a store: making it takes longer than most tests."""
    endpoint = self._settings.endpoint
    if endpoint not in _clients:
        _clients[endpoint] = _new_client(self)
    return _clients[endpoint]


def new_bucket(url: str, prefix: str = "/poller", **changes: Any) -> StorageConfig:
    name = f"faxes-{uuid.uuid4().hex[:16]}"
    settings = StorageConfig(url=f"s3://{name}{prefix}", endpoint=url, min_free=0, **KEYS | changes)
    client(settings).create_bucket(Bucket=name)
    return settings


def written(settings: StorageConfig) -> dict[str, Any]:
    """The section `storage` of a configuration file that says the same."""
    return {
        "url": settings.url,
        "endpoint": settings.endpoint,
        "min_free": "1MiB",
        "access_key_id": {"env": "TEST_S3_ID"},
        "secret_access_key": {"env": "TEST_S3_KEY"},
    }


def client(settings: StorageConfig) -> Any:
    """What a consumer, or another program, uses."""
    return Objects(settings, os.environ | ENVIRON)._client


def objects(settings: StorageConfig) -> dict[str, bytes]:
    """All objects below the prefix, but the marker."""
    s3, top = client(settings), where(settings, "")
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(
        Bucket=top["Bucket"], Prefix=top["Key"]
    ):
        for one in page.get("Contents", []):
            body = s3.get_object(Bucket=top["Bucket"], Key=one["Key"])["Body"]
            found[one["Key"].removeprefix(top["Key"])] = body.read()
    found.pop(".poller-storage", None)
    return found


def where(settings: StorageConfig, file: str) -> dict[str, str]:
    bucket, _, prefix = str(settings.url).removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": f"{prefix}/{file}" if prefix else file}


def visible(settings: StorageConfig) -> dict[str, bytes]:
    return {name: data for name, data in objects(settings).items() if "/." not in f"/{name}"}


def take(settings: StorageConfig, *files: str) -> None:
    """Take objects away, as a consumer does."""
    for file in files:
        client(settings).delete_object(**where(settings, file))


def write(settings: StorageConfig, file: str, data: bytes) -> None:
    """Write an object as another program does."""
    client(settings).put_object(**where(settings, file), Body=data)


# -- a store with a fault --------------------------------------------------------------------------


class Front(ThreadingHTTPServer):
    """A store in front of another one. It `lacks` something, which a test may change at any time.

    That is: conditions, conditions of uploads, sums, lists or aborts, which it ignores; or a status,
    with which it answers everything.
    """

    daemon_threads = True
    lacks = ""
    store = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on to the store, changed so that it lacks something."""

    protocol_version = "HTTP/1.1"
    server: Front

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        lacks, headers = self.server.lacks, dict(self.headers.items())
        if lacks == "conditions" or (lacks == "conditions of uploads" and self.command == "POST"):
            headers.pop("If-None-Match", None)
        if lacks == "sums":
            headers.pop("Content-MD5", None)
        if lacks == "lists" and "list-type" in self.path:
            return self._answer(200, [], b"<ListBucketResult></ListBucketResult>")
        if lacks == "aborts" and self.command == "DELETE" and "uploadId" in self.path:
            return self._answer(204, [], b"")
        if lacks.isdecimal():
            return self._answer(int(lacks), [], b"")
        store = urlsplit(self.server.store)
        connection = HTTPConnection(str(store.hostname), store.port)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return self._answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection"} and (
                is_head or name.lower() != "content-length"
            ):
                self.send_header(name, value)
        if not is_head and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def lacking(lacks: str, store: str) -> Iterator[Front]:
    with Front(("127.0.0.1", 0), _Handler) as front:
        front.lacks, front.store = lacks, store
        thread = threading.Thread(target=front.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield front
        finally:
            front.shutdown()
            thread.join()


# -- the store as a process ------------------------------------------------------------------------


def _end_with(process: int) -> None:
    """Exit when that process has ended."""
    try:
        select.select([os.pidfd_open(process)], [], [])
    finally:
        os._exit(0)


def _serve(port: int) -> None:
    os.environ |= {"SERVICES": "s3", "S3_PERSIST": "0", "LOG_LEVEL": "ERROR"}
    os.environ |= {"IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0"}  # they listen on all addresses
    from hypercorn.asyncio import serve  # noqa: PLC0415
    from hypercorn.config import Config  # noqa: PLC0415
    from ministack.app import app  # noqa: PLC0415 - it reads the environment

    async def at_once(scope: Any, receive: Any, send: Any) -> None:
        """Give it a body in one piece: joining many takes it half a minute for 75 MB."""
        body = bytearray()

        async def whole() -> Any:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                body.extend(message["body"])
                if not message.get("more_body"):
                    return {**message, "body": bytes(body), "more_body": False}

        await app(scope, whole if scope["type"] == "http" else receive, send)

    settings = Config()
    settings.bind, settings.keep_alive_timeout = [f"127.0.0.1:{port}"], 75.0
    asyncio.run(serve(at_once, settings))


if __name__ == "__main__":
    main, wanted = map(int, sys.argv[1:])
    threading.Thread(target=_end_with, args=(main,), daemon=True).start()
    _serve(wanted)
