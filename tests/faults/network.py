"""An installation that reaches eFax through a harmful proxy, and the state it must reach.

Account `main` (user-a, user-b) is behind the proxy; account `other` (user-c) reaches eFax directly,
and shows whether one account's trouble affects another.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from poller.client import Timeouts
from poller.config.model import (
    Account,
    Config,
    HttpConfig,
    Limits,
    Poll,
    RetryConfig,
    SecretRef,
    StateConfig,
    StorageConfig,
    User,
)
from poller.ingest.account import AccountRunner
from poller.ingest.poll_run import PollOutcome
from poller.ingest.runtime import Runtime, open_runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, faxes, streams
from poller.metrics import Metrics
from poller.simulator import Faults
from poller.simulator.state import Fax
from tests.acceptance.installation import assert_stored
from tests.conftest import APP, KEY, QuickClock, stored_files
from tests.efax import Simulator
from tests.faults.proxy import Proxy, proxied

OTHER_APP, OTHER_KEY = "app-2", "key-of-app-2"
NAMES = {"user-a": "main/user-a", "user-b": "main/user-b", "user-c": "other/user-c"}
PATIENT = Timeouts(error_body_s=0.1)
# Real seconds: short for what never comes, long enough for what comes on a busy machine.
IMPATIENT = Timeouts(
    total_s=1.5, connect_s=1.0, silence_s=1.0, drip_s=1.0, drip_bytes=64 << 10, error_body_s=0.1
)
ATTEMPTS = 2  # requests that one call may take, not counting those that aiohttp repeats by itself


@dataclass
class SteppingClock(QuickClock):
    """A clock whose sleeps cost no time; real time passes on it as well, to measure slowness."""

    began: float = field(default_factory=time.monotonic)

    def monotonic(self) -> float:
        return self.mono + time.monotonic() - self.began


@dataclass
class Bench:
    simulator: Simulator
    proxy: Proxy
    clock: QuickClock
    runtime: Runtime
    storage: Path

    def account(self, app: str = APP) -> AccountRunner:
        return self.runtime.accounts[app]

    def state(self, user: str) -> StreamState:
        return next(state for state in self.runtime.states if state.user.user_id == user)

    async def poll(self, user: str = "user-a") -> PollOutcome:
        state = self.state(user)
        return await self.account(state.user.app_id).poll(state)

    async def fetch(self) -> None:
        """Fetch all that is due, for every account at once."""
        await asyncio.gather(
            *(account.workers.run_until_idle() for account in self.runtime.accounts.values())
        )

    async def cycle(self) -> dict[str, PollOutcome]:
        """Poll everybody once, then fetch what is due, as `poller once` does."""
        outcomes = {user: await self.poll(user) for user in NAMES}
        await self.fetch()
        return outcomes

    def receive(self, user: str = "user-a", **fields: Any) -> Fax:
        app = OTHER_APP if user == "user-c" else APP
        completed = self.simulator.now() - timedelta(minutes=1)
        usual: dict[str, Any] = {"completed": completed, "distinct": False}
        return self.simulator.receive(app, user, **usual | fields)

    def one_each(self) -> tuple[Fax, Fax, Fax]:
        """A new fax for each user."""
        return self.receive("user-a"), self.receive("user-b"), self.receive("user-c")

    async def row(self, fax: Fax) -> FaxRow:
        (found,) = await self.runtime.services.ledger.read(faxes.find, fax.fax_id)
        return found

    async def last_error(self, user: str) -> str | None:
        return (
            await self.runtime.services.ledger.read(streams.one, self.state(user).id)
        ).last_error

    def visible(self, user: str) -> list[Path]:
        """Return what a consumer can see of this user's faxes."""
        return [path for path in stored_files(self.storage) if f"/{user}/" in str(path)]

    def dot_files(self) -> list[Path]:
        found = (path for path in self.storage.rglob(".*") if path.is_file())
        return [path for path in found if path.name != ".poller-storage"]

    async def counted(self, account: str = "main", call: str | None = None) -> int:
        """Return how many requests the program says it has sent."""
        text = (await self.runtime.services.metrics.render()).decode()
        lines = [line for line in text.splitlines() if line.startswith("poller_requests_total{")]
        wanted = [f'account="{account}"', f'call="{call}"' if call else ""]
        return round(
            sum(float(line.split()[-1]) for line in lines if all(w in line for w in wanted))
        )

    async def heal(self, *, within: int = 40) -> None:
        """Remove every harm: soon all is stored, in this many requests, and a last look finds nothing."""
        self.proxy.harms.clear()
        self.proxy.arrival = None
        self.simulator.faults = Faults()
        before = len(self.simulator.requests)
        for _ in range(3):
            self.clock.advance(timedelta(minutes=6))
            await self.cycle()
        assert len(self.simulator.requests) - before <= within
        self.clock.advance(timedelta(minutes=1))
        outcomes = await self.cycle()
        assert not any(outcome.failed or outcome.skipped for outcome in outcomes.values())
        assert not any(outcome.discovered for outcome in outcomes.values())
        assert not any(state.progress.gaps for state in self.runtime.states)
        assert_stored(self, self.simulator, names=NAMES)


@contextmanager
def trying(name: str) -> Iterator[None]:
    """Name the case that failed: one installation tries a table case by case."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {name!r}")
        raise


@asynccontextmanager
async def bench(
    directory: Path,
    *,
    clock: QuickClock | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts = PATIENT,
    base_url: str | None = None,
    **account: Any,
) -> AsyncIterator[Bench]:
    """Run all of it; `base_url` and `account` change the configuration of account `main`."""
    clock = clock or QuickClock()
    async with Simulator(now=clock.now, seed=1) as simulator, proxied(simulator.port) as proxy:
        simulator.add_app(APP, KEY)
        simulator.add_app(OTHER_APP, OTHER_KEY)
        for app, user in ((APP, "user-a"), (APP, "user-b"), (OTHER_APP, "user-c")):
            simulator.add_user(app, user)
        main = _account("main", APP, base_url or proxy.url, ("user-a", "user-b"))
        main = replace(main, limits=limits or main.limits, **account)
        settings = Config(
            accounts=(main, _account("other", OTHER_APP, simulator.base_url, ("user-c",))),
            storage=StorageConfig(directory / "faxes", min_free=1),
            state=StateConfig(directory / "state"),
            retry=RetryConfig(attempts=ATTEMPTS, max_delay=timedelta(seconds=10)),
            http=HttpConfig(host=None),
        )
        secrets = {APP: KEY, OTHER_APP: OTHER_KEY}
        async with open_runtime(
            settings,
            secrets,
            metrics=Metrics("test"),
            clock=clock,
            random=lambda: 0.5,
            timeouts=timeouts,
        ) as runtime:
            yield Bench(simulator, proxy, clock, runtime, settings.storage.directory)


def _account(name: str, app: str, base_url: str, users: tuple[str, ...]) -> Account:
    return Account(
        name=name,
        app_id=app,
        api_key=SecretRef("env", app),
        base_url=base_url,
        limits=Limits(1000, 1000, 8),
        users=tuple(
            User(name, user, app, user, poll=Poll(start=timedelta(days=2))) for user in users
        ),
    )
