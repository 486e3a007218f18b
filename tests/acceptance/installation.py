"""An installation of poller in a directory: its configuration, its commands as processes, its disk.

The checks of the disk use nothing of poller, only what the simulator served.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from poller.simulator import Simulator
from poller.simulator.replies import listed_fax, metadata_body
from poller.simulator.state import Fax
from tests.crash.checker import tree_problems
from tests.forks import Command, forks
from tests.ready_checker import KEEP_ONE_READY

S = TypeVar("S", bound=Simulator)
APP, KEY = "app-1", "key-of-app-1-that-nobody-may-see"
KEY_VARIABLE = "POLLER_TEST_KEY"
USERS = {"front-desk": "user-a", "billing": "user-b"}
PATIENCE_S = 90.0  # for a loaded machine; a wait ends as soon as its event comes
MARKER = ".poller-storage"
NOTHING: Mapping[str, str] = {}
AS_NEW_PROCESS = ("env",)  # for `before_it`; a fork shares what the fork server has loaded


def populated(simulator: S) -> S:
    """Give the simulator the App ID and the users that `Installation` configures."""
    simulator.add_app(APP, KEY)
    for user_id in USERS.values():
        simulator.add_user(APP, user_id)
    return simulator


def arrived(
    simulator: Simulator, count: int = 1, *, user_id: str = "user-a", **fields: Any
) -> list[Fax]:
    """Faxes of the last minutes, which the next poll lists and covers, however fast it comes.

    A fax that completes right now may lie beyond the now of that poll, because a `Date` has whole
    seconds. The other faxes are older, but within the overlap.
    """
    before = simulator.now() - timedelta(minutes=2)
    return [
        simulator.receive(
            APP,
            user_id,
            completed=before - timedelta(seconds=len(simulator.faxes())),
            **{"distinct": False, **fields},
        )
        for _ in range(count)
    ]


def own_port() -> int:
    """A port that no other test has, and that the system gives to no connection.

    If a test picks a port that is free now, a connection may have it when the daemon wants it.
    """
    with Path("/proc/sys/net/ipv4/ip_local_port_range").open() as given:
        below = int(given.read().split()[0])
    for port in range(below - 1 - os.getpid() % 1000 * 16, 1024, -1):  # sixteen for each process
        with socket.socket() as one, contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def overlaid(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Lay one map over another, at any depth."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = overlaid(below, value) if both else value  # type: ignore[arg-type]
    return merged


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def said_in_one_sentence(self) -> bool:
        """Require exactly one line on stderr, and no traceback."""
        return self.err.count("\n") == 1 and "Traceback" not in self.err


@dataclass
class Daemon:
    """A running `poller run`; every line of its log is in `lines`, those that are JSON in `events`."""

    process: Command
    lines: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _closed: bool = False

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode().rstrip("\n")
            async with self._news:
                self.lines.append(line)
                with contextlib.suppress(ValueError):
                    self.events.append(json.loads(line))
                self._news.notify_all()
        async with self._news:
            self._closed = True
            self._news.notify_all()

    def said(self, action: str, **about: Any) -> list[dict[str, Any]]:
        """Return the events of this name so far that have these poller fields."""
        return [one for one in self.events if _is(one, action, about)]

    async def event(self, action: str, *, count: int = 1, **about: Any) -> dict[str, Any]:
        """Wait until the event came that many times; return the latest."""
        await self.until(lambda: len(self.said(action, **about)) >= count, f"{count} × {action}")
        return self.said(action, **about)[count - 1]

    async def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until something is true; look at it with each line of the log."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                await self._news.wait_for(lambda: happened() or self._closed)
        except TimeoutError:
            pass
        assert happened(), f"waited in vain for {what}; the log was\n" + "\n".join(self.lines[-40:])

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.kill(signal.SIGTERM)
        return await self.ended()


def _is(event: dict[str, Any], action: str, about: dict[str, Any]) -> bool:
    if action_of(event) != action:
        return False
    fields = event.get("poller", {})
    return all(fields.get(name) == value for name, value in about.items())


def action_of(event: dict[str, Any]) -> str | None:
    action = event.get("event", {}).get("action")
    return action if isinstance(action, str) else None


class Installation:
    """A configuration file, a storage and a state directory below `root`.

    `changes` are laid over a configuration of one account with two users that polls each second.
    """

    def __init__(self, root: Path, base_url: str, changes: dict[str, Any] | None = None) -> None:
        self.root = root
        self.config = root / "poller.yaml"
        self.storage = root / "faxes"
        self.ledger = root / "state" / "poller.db"
        self.environ = {**os.environ, KEY_VARIABLE: KEY, "PYTHONWARNINGS": "default"}
        # Without bytecode, each of many hundred short processes would compile poller again.
        for name in ("NOTIFY_SOCKET", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
            self.environ.pop(name, None)
        self.preload: Path | None = None  # the C source of a library for all its commands
        self.before_it: tuple[str, ...] = ()  # a command that starts poller under other conditions
        self.prepare: Mapping[str, Any] = KEEP_ONE_READY  # of `once` and `run` as a fork
        self.settings: dict[str, Any] = {
            "accounts": {"main": account(base_url)},
            "poll": {"every": "1s"},
            "storage": {"directory": "faxes", "min_free": "1MiB"},
            "state": {"url": "sqlite:///state/poller.db"},
            "retry": {"max_delay": "200ms"},
            "http": {"listen": None},
            "log": {"format": "json", "level": "debug"},
        }
        self.write(changes or {})

    def write(self, changes: dict[str, Any]) -> None:
        """Change the configuration; JSON is YAML 1.2."""
        self.settings = overlaid(self.settings, changes)
        self.config.write_text(json.dumps(self.settings, indent=1))

    async def poller(
        self,
        *words: str,
        config: bool = True,
        environ: Mapping[str, str] = NOTHING,
        hang_timeout_s: float = PATIENCE_S * 2,
    ) -> Done:
        """Run a command to its end; `environ` is laid over the usual one."""
        process = await self._start(*words, config=config, environ=environ)
        try:
            async with asyncio.timeout(hang_timeout_s):
                out, err = await process.communicate()
        finally:
            await _end(process)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def once(self, *words: str) -> dict[str, int]:
        """Run `once`, which must succeed; its summary."""
        done = await self.poller("once", "--json", *words)
        assert done.code == 0, done
        summary: dict[str, int] = done.json
        return summary

    async def status(self) -> dict[str, Any]:
        done = await self.poller("status", "--json")
        assert done.code == 0, done
        shown: dict[str, Any] = done.json
        return shown

    @asynccontextmanager
    async def daemon(
        self, *, ready: bool = True, environ: Mapping[str, str] = NOTHING
    ) -> AsyncIterator[Daemon]:
        """Run the daemon; kill it at the end if it still runs."""
        process = await self._start("run", config=True, environ=environ)
        daemon = Daemon(process)
        reading = asyncio.create_task(daemon.read())
        try:
            if ready:
                await daemon.event("service-ready")
            yield daemon
        finally:
            await _end(process)
            await reading
            assert process.stderr is not None
            errors = (await process.stderr.read()).decode()
            assert "Traceback" not in errors, errors

    async def _start(self, *words: str, config: bool, environ: Mapping[str, str]) -> Command:
        """Start a command: as a fork, which is cheap, where it makes no difference."""
        words = (*words, "-c", str(self.config)) if config else words
        server = forks(self.preload)
        preloaded = {"LD_PRELOAD": server.environ["LD_PRELOAD"]} if self.preload else {}
        environ = {**self.environ, **preloaded, **environ}
        if not self.before_it and not _read_at_the_start(environ, server.environ):
            prepare = self.prepare if {"once", "run"} & {*words[:1]} else NOTHING
            return await server.start(words, self.root, environ, prepare)
        return await asyncio.create_subprocess_exec(
            *(*self.before_it, sys.executable, "-m", "poller", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.root,
            env=environ,
            limit=1 << 20,
        )

    def sidecars(self) -> dict[str, Path]:
        """What a consumer sees, by fax id."""
        return {
            json.loads(path.read_text())["fax_id"]: path
            for path in sorted(self.storage.rglob("*.json"))
        }

    def stored(self) -> int:
        """How many faxes the ledger calls stored; after a crash, files may be ahead of it."""
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=20)) as db:
            ((count,),) = db.execute("SELECT count(*) FROM faxes WHERE state = 'stored'")
        return int(count)

    def image_of(self, fax: Fax) -> Path:
        sidecar = self.sidecars()[fax.fax_id]
        return sidecar.with_name(json.loads(sidecar.read_text())["image"]["file"])


def account(base_url: str) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "app_id": APP,
        "api_key": {"env": KEY_VARIABLE},
        "limits": {"requests_per_second": 1000, "burst": 1000, "in_flight": 8},
        "users": {name: {"user_id": user_id} for name, user_id in USERS.items()},
    }


def _read_at_the_start(environ: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether the loader or the interpreter reads what differs here from the fork server's."""
    return any(
        environ.get(name) != theirs.get(name)
        for name in environ.keys() | theirs.keys()
        if name.startswith(("LD_", "PYTHON", "LC_", "LANG", "TZ", "SSL_"))
    )


async def _end(process: Command) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


# What must be on the disk

_KEYS = {
    *("fax_id", "account", "user", "app_id", "user_id", "received_at", "first_seen_at"),
    *("stored_at", "image", "metadata"),
}
_IMAGE_KEYS = {"file", "format", "bytes", "sha256", "pages", "listed_pages", "damaged"}
_TOLD = {
    *("completed_timestamp", "pages"),
    *("originating_fax_number", "destination_fax_number"),
}
_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAGIC = {b"%PDF": ("pdf", ".pdf"), b"II*\0": ("tiff", ".tif"), b"MM\0*": ("tiff", ".tif")}


class HasStorage(Protocol):
    @property
    def storage(self) -> Path: ...


def assert_stored(
    installation: HasStorage,
    simulator: Simulator,
    *,
    faxes: Iterable[Fax] | None = None,
    names: dict[str, str] | None = None,
) -> None:
    """Require each fax to be on the disk exactly once, byte for byte as served, as the contract says.

    `faxes` are all of the simulator's unless given; `names` map user ids to `account/user`. No
    poller may be running.
    """
    wanted = simulator.faxes() if faxes is None else list(faxes)
    names = names or {user_id: f"main/{name}" for name, user_id in USERS.items()}
    problems = list(tree_problems(installation.storage, at_rest=True))
    found = Counter[tuple[str, str, str]]()
    by_identity = {(fax.app_id, fax.user_id, _folded(fax.fax_id)): fax for fax in wanted}
    images: set[Path] = set()
    for path in sorted(installation.storage.rglob("*.json")):
        content = json.loads(path.read_text())
        identity = (content["app_id"], content["user_id"], _folded(content["fax_id"]))
        found[identity] += 1
        image = path.with_name(content["image"]["file"])
        images.add(image)
        fax = by_identity.get(identity)
        if fax is None:
            problems.append(f"{path.name} is of a fax that was not expected")
        else:
            problems += _pair_problems(path, content, image, fax, simulator, names[fax.user_id])
    problems += [f"{fax} is not there" for key, fax in by_identity.items() if not found[key]]
    problems += [f"{key} is there {count} times" for key, count in found.items() if count > 1]
    visible = {path for path in installation.storage.rglob("*") if path.is_file()}
    alone = {path for path in visible - images if path.suffix != ".json" and path.name != MARKER}
    problems += [f"{path.name} has no sidecar" for path in sorted(alone)]
    assert not problems, "\n".join(problems[:20])


def _folded(fax_id: str) -> str:
    """Return a UUID in small letters, as eFax may spell it in any; other ids are exact."""
    return fax_id.lower() if _UUID.fullmatch(fax_id) else fax_id


def _pair_problems(
    path: Path,
    content: dict[str, Any],
    image: Path,
    fax: Fax,
    simulator: Simulator,
    name: str,
) -> Iterable[str]:
    about = content["image"]
    if not content.keys() >= _KEYS or not about.keys() >= _IMAGE_KEYS:
        yield f"{path.name} lacks {(_KEYS - content.keys()) | (_IMAGE_KEYS - about.keys())}"
        return
    if not image.is_file():
        yield f"{path.name} has no image"
        return
    data = image.read_bytes()
    listed = listed_fax(simulator.switches, fax)
    if "image_downloaded" in listed:
        listed["image_downloaded"] = False  # as it was when the fax was discovered
    day = _received(simulator, fax, listed) or datetime.fromisoformat(content["first_seen_at"])
    if not listed.keys() >= _TOLD:
        said = metadata_body(simulator.switches, fax)
        listed = {name: said[name] for name in said if name != "image_downloaded"} | listed
    kind, extension = _MAGIC.get(data[:4], ("?", "?"))
    hashed = hashlib.sha256(data).hexdigest()
    received = _received(simulator, fax, listed)
    checks = {
        "bytes as served": (hashed in simulator.served.get(fax, ()), True),
        "sha256": (about["sha256"], hashed),
        "bytes": (about["bytes"], len(data)),
        "format": ((about["format"], image.suffix), (kind, extension)),
        "pages": (about["pages"], fax.pages),
        "listed_pages": (about["listed_pages"], fax.pages if "pages" in listed else None),
        "damaged": (about["damaged"], False),
        "metadata": (content["metadata"], listed | {"fax_id": content["fax_id"]}),
        "name": (f"{content['account']}/{content['user']}", name),
        "received_at": (content["received_at"], None if received is None else _spelled(received)),
        "stem": ((path.stem, image.stem), (content["fax_id"], content["fax_id"])),
        "order": (content["first_seen_at"] <= content["stored_at"], True),
    }
    folder = f"{name}/{day:%Y/%m/%d}"
    checks["folder"] = (str(path.parent)[-len(folder) :], folder)
    for what, (is_, should) in checks.items():
        if is_ != should:
            yield f"{path.name}: {what} is {is_!r}, should be {should!r}"


def _received(simulator: Simulator, fax: Fax, listed: dict[str, Any]) -> datetime | None:
    if "completed_timestamp" not in listed:
        return None
    whole = simulator.switches.timestamp == "no-fraction"
    return fax.completed.replace(microsecond=0) if whole else fax.completed


def _spelled(instant: datetime) -> str:
    text = instant.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
