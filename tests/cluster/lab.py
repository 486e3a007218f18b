"""Several real `poller run` over one PostgreSQL database and one store, with a hostile eFax.

Each node is a process with a state directory of its own. A test stops, kills and cuts off nodes; a
consumer takes the faxes meanwhile, and a judge counts them.
"""

import asyncio
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from poller.simulator.faults import Fault, Faults
from tests import postgres, s3
from tests.acceptance.installation import (
    KEY,
    KEY_VARIABLE,
    NOTHING,
    Daemon,
    Installation,
    overlaid,
)
from tests.cluster.judge import RATE_WINDOW_S, Consumer, Efax, Identity, Verdict
from tests.cluster.shelf import BucketShelf, DirectoryShelf, Shelf

RATE, BURST, IN_FLIGHT = 6, 6, 4  # of each account
MOST = int(RATE * RATE_WINDOW_S) + BURST
WITHIN_S = 180.0  # for what must come; a wait ends as soon as it comes
TAKEOVER_S = 30.0
HOSTILE = (
    *("500@image=4%", "503@list=4%", "429@image+1=3%", "reset@image=2%"),
    *("cut-document=fax:40", "401@list=every:150"),
)

_HOLDERS = """
SELECT app_id, nodes.name FROM poller.leases JOIN poller.nodes ON run = holder
WHERE expires_at > extract(epoch FROM clock_timestamp()) * 1000000
"""


@dataclass
class Node:
    """One node: its installation, and its process while it runs."""

    name: str
    installation: Installation
    daemon: Daemon | None = None
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, *, ready: bool = True) -> Daemon:
        self.daemon = await self._running.enter_async_context(self.installation.daemon(ready=ready))
        return self.daemon

    async def end(self) -> None:
        """Kill it if it still runs."""
        await self._running.aclose()
        self.daemon = None

    @property
    def running(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    def signal(self, number: int) -> None:
        self.running.kill(number)  # type: ignore[arg-type]


class Lab:
    """`efax`, `shelf` and `consumer` outlive the nodes; `url` is the database's."""

    def __init__(
        self, root: Path, url: str, shelf: Shelf, efax: Efax, accounts: int, users: int
    ) -> None:
        self.root = root
        self.url = url
        self.shelf = shelf
        self.efax = efax
        self.consumer = Consumer(shelf, efax)
        self.nodes: dict[str, Node] = {}
        self.started_at = time.monotonic()
        self.verdict = Verdict()
        self._accounts = {f"account-{at}": f"app-{at}" for at in range(1, accounts + 1)}
        self._users = {f"user-{at}": f"user-{at}" for at in range(1, users + 1)}
        self._faxes = 0
        for app_id in self._accounts.values():
            efax.add_app(app_id, KEY)
            for user_id in self._users.values():
                efax.add_user(app_id, user_id)

    def _settings(self, name: str) -> dict[str, Any]:
        limits = {"requests_per_second": RATE, "burst": BURST, "in_flight": IN_FLIGHT}
        users = {name: {"user_id": user_id} for name, user_id in self._users.items()}
        accounts = {
            account: {
                "base_url": self.efax.base_url,
                "app_id": app_id,
                "api_key": {"env": KEY_VARIABLE},
                "limits": limits,
                "users": users,
            }
            for account, app_id in self._accounts.items()
        }
        return {
            "node": name,
            "accounts": accounts,
            "storage": self.shelf.configured,
            "state": {"url": self.url, "directory": "state"},
            "log": {"format": "json", "level": "info"},
        }

    async def node(
        self,
        name: str,
        changes: Mapping[str, Any] = NOTHING,
        *,
        start: bool = True,
        prepare: Mapping[str, Any] = NOTHING,
        environ: Mapping[str, str] = NOTHING,
    ) -> Node:
        """Add a node. `prepare` is done in its process first: `module:function`, with its argument."""
        directory = self.root / name
        directory.mkdir()
        installation = Installation(directory, self.efax.base_url)
        installation.settings = overlaid(
            {**self._settings(name), "poll": {"every": "1s"}, "retry": {"max_delay": "1s"}},
            dict(changes) | {"http": {"listen": None}},
        )
        installation.write({})
        installation.environ |= {**s3.ENVIRON, **environ}
        installation.prepare = {**installation.prepare, **prepare}
        self.nodes[name] = Node(name, installation)
        if start:
            await self.nodes[name].start()
        return self.nodes[name]

    def receive(self, count: int = 1) -> None:
        """Let faxes come in, in turn for all users of all accounts."""
        for _ in range(count):
            apps, users = list(self._accounts.values()), list(self._users.values())
            at = self._faxes
            self._faxes += 1
            self.efax.receive(apps[at % len(apps)], users[at // len(apps) % len(users)])

    async def arrivals(self, per_second: float) -> None:
        """Let faxes come in until cancelled."""
        while True:
            self.receive()
            await asyncio.sleep(1 / per_second)

    @asynccontextmanager
    async def under_load(self, per_second: float = 10.0) -> AsyncIterator[None]:
        """Let faxes come in, and be consumed, meanwhile."""
        arriving = asyncio.create_task(self.arrivals(per_second))
        taking = asyncio.create_task(self.consumer.keep_taking())
        try:
            yield
        finally:
            arriving.cancel()
            self.consumer.rest()
            await taking

    async def holders(self) -> dict[str, str]:
        """Return each held account's App ID, with the name of its node; none while the database is away."""
        return await asyncio.to_thread(self._holders)

    def _holders(self) -> dict[str, str]:
        try:
            with psycopg.connect(self.url, connect_timeout=2) as connection:
                return dict(connection.execute(_HOLDERS).fetchall())
        except psycopg.OperationalError:
            return {}

    async def held_by(self, *names: str) -> int:
        """Return how many accounts these nodes hold."""
        return sum(name in names for name in (await self.holders()).values())

    async def busiest(self) -> Node:
        """Return the node that holds the most accounts."""
        (name, _), *_ = Counter((await self.holders()).values()).most_common(1)
        return self.nodes[name]

    async def all_held(self, *names: str) -> None:
        """Wait until these nodes (all that run, if none is named) hold all accounts."""
        async with asyncio.timeout(WITHIN_S):
            while await self.held_by(*(names or self.nodes)) < len(self.efax.apps):
                await asyncio.sleep(0.2)

    async def all_polled(self) -> float:
        """Wait until eFax has answered a list of every account from now on; return the seconds."""
        now = self.seconds()
        async with asyncio.timeout(WITHIN_S):
            while not self.efax.listed_since(now) >= set(self._accounts.values()):
                await asyncio.sleep(0.1)
        return self.seconds() - now

    async def all_delivered(self) -> None:
        """Wait until every fax has been consumed; then look whether one comes again."""
        self.efax.faults = Faults()
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                while self.consumer.missing():
                    await self.consumer.take_all()
                    await asyncio.sleep(0.1)
        await asyncio.sleep(3)  # a few polls more
        await self.consumer.take_all()

    def seconds(self) -> float:
        """The simulator's monotonic time."""
        return self.efax.monotonic()

    def judged(self, may_repeat: Collection[Identity] = ()) -> Verdict:
        """Judge faxes and limits; what else a check demands is in `verdict` already."""
        self.verdict.of_faxes(self.consumer, may_repeat)
        self.verdict.of_limits(self.efax, most=MOST, in_flight=IN_FLIGHT)
        return self.verdict


@asynccontextmanager
async def opened_lab(
    *,
    store: str = "directory",
    accounts: int = 6,
    users: int = 2,
    hostile: bool = True,
    url: str | None = None,
) -> AsyncIterator[Lab]:
    """Start all that nodes need; at the end, end all of it. `url`: an empty database."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="poller-cluster-")))
        shelf: Shelf
        if store == "bucket":
            given = os.environ.get("POLLER_TEST_S3")
            shelf = BucketShelf(given or s3.started(root / "s3.url", os.getpid()))
        else:
            (root / "faxes").mkdir()
            shelf = DirectoryShelf(root / "faxes")
        faults = Faults(rules=tuple(map(Fault.parse, HOSTILE))) if hostile else Faults()
        efax = await stack.enter_async_context(Efax(faults=faults, image_s=0.8 if hostile else 0.0))
        lab = Lab(root, url or a_database(stack), shelf, efax, accounts, users)
        stack.push_async_callback(_end_all, lab)
        yield lab


async def _end_all(lab: Lab) -> None:
    for node in lab.nodes.values():
        await node.end()


def a_database(stack: AsyncExitStack, address: str = "") -> str:
    """Start a server of the lab's own; return the URL of an empty database, at `address` if given."""
    programs, *_ = postgres.servers()
    server, pid = postgres.start(programs, address)
    stack.callback(postgres.kill, pid)
    name = f"lab_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    at = f"postgresql://{postgres.USER}@{address}:{server.port}/{name}"
    return at if address else server.url(name)
