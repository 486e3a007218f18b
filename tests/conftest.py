"""What tests share: a clock that they move, a ledger, a simulated eFax, configurations."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

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
from poller.documents.checkers import Checkers
from poller.ingest.runtime import Runtime, open_runtime
from poller.metrics import Metrics
from tests import once_made, postgres
from tests.efax import Simulator
from tests.exhaustive import often

# A process that nohup or a script started in the background ignores Ctrl-C, and so would each
# command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Until all tests are collected almost nothing becomes garbage, and looking for it takes a fifth of the time.
gc.disable()

# Compiled files are kept, or each of the test processes compiles everything again in each run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Their tests share what takes long to make: a guest, a wheel, a browser, an old ledger, a database
# server, the runs that the crash explorer breaks.
TOGETHER = {
    "tests/acceptance/test_guest.py",
    "tests/acceptance/test_manual_in_wheel.py",
    "tests/acceptance/test_page.py",
    "tests/acceptance/test_upgrade.py",
    "tests/crash/test_explore.py",
    "tests/integration/test_postgres.py",
}

# the time of an example depends more on the machine than on the code
settings.register_profile(
    "patient",
    max_examples=often(50),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let each process start elsewhere in a directory, so that each compiles a share of its files."""
    report = yield
    if isinstance(collector, pytest.Directory) and report.passed:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        found = report.result or []
        first = len(found) * worker // count
        report.result = [*found[first:], *found[:first]]
    return report


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def _same_order_in_each_process(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that at the end no process waits for one."""
    items.sort(key=_allowed_s, reverse=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()  # what is there now stays; do not look at it again and again
    gc.enable()


class OneByOne(LoadScopeScheduling):  # type: ignore[misc]  # which has no types
    """Give each free process the next test; one process gets all tests of a file in `TOGETHER`.

    The `xdist_group` of pytest-xdist 3.8 has no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneByOne:
    return OneByOne(config, log)


def _allowed_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


APP, KEY = "app-1", "key-of-app-1"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class QuickClock:
    """A clock whose sleeps cost no time: it moves on, and everybody else runs."""

    wall: datetime = NOON
    mono: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.wall += timedelta(seconds=max(0.0, seconds))
        self.mono += max(0.0, seconds)  # exactly: a sleeper until then must be there
        await asyncio.sleep(0.001)

    def advance(self, by: timedelta) -> None:
        self.wall += by
        self.mono += by.total_seconds()


def pass_time(seconds: float) -> None:
    """Set the event loop's clock forward: it now does what was to come within `seconds`.

    So a deadline passes for work that hangs, and stays long for work on a busy machine.
    """
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def _made_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        once_made.put_in_place(patch.setattr)
        yield


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Restore APScheduler's loggers, which belong to the whole process and which the planner silences."""
    loggers = [logging.getLogger(name) for name in ("apscheduler", "apscheduler.executors")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class _KeptCheckers(Checkers):
    """Stays open for all tests: starting a process for each would double its time."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def _checkers() -> Iterator[Checkers]:
    checkers = _KeptCheckers()
    yield checkers
    Checkers.close(checkers)


@pytest.fixture(autouse=True)
def _documents_are_checked_by_the_same_process(
    _checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.store.storage.Checkers", lambda: _checkers)


def _base_of_run(config: pytest.Config) -> Path:
    """Return the directory that all test processes of this run share."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def _postgres_server(pytestconfig: pytest.Config) -> postgres.Running:
    once_made.put_postgresql_in_place()
    return postgres.running(_base_of_run(pytestconfig))


@pytest.fixture
def postgres_url(_postgres_server: postgres.Running) -> str:
    """The URL of a database in which nothing is yet."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    return postgres.empty(_postgres_server, f"new_{worker}", with_tables=False)


@pytest.fixture
def postgres_ledger_url(_postgres_server: postgres.Running) -> str:
    """The URL of a ledger without rows on the server."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    return postgres.empty(_postgres_server, f"ledger_{worker}", with_tables=True)


in_a_file = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger without rows, in both databases; with `in_a_file`, only in SQLite's."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/poller.db"
    url: str = request.getfixturevalue("postgres_ledger_url")
    return url


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
async def simulator(clock: QuickClock) -> AsyncIterator[Simulator]:
    """A simulated eFax in the time of `clock`, with one App ID and two users."""
    async with Simulator(now=clock.now, seed=1) as running:
        running.add_app(APP, KEY)
        running.add_user(APP, "user-a")
        running.add_user(APP, "user-b")
        yield running


MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Make the configuration of one account at `base_url`; keywords change a user's poll and the rest."""

    def make(
        base_url: str,
        *,
        users: tuple[str, ...] = ("user-a", "user-b"),
        poll: Poll | None = None,
        limits: Limits | None = None,
        of_user: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Config:
        account = Account(
            name="main",
            app_id=APP,
            api_key=SecretRef("env", "KEY"),
            base_url=base_url,
            limits=limits or Limits(1000, 1000, 8),
            users=tuple(
                User("main", name, APP, name, poll=poll or Poll(), **of_user or {})
                for name in users
            ),
        )
        config = Config(
            accounts=(account,),
            storage=StorageConfig(tmp_path / "faxes", min_free=1),
            state=StateConfig(tmp_path / "state"),
            retry=RetryConfig(attempts=3, max_delay=timedelta(seconds=10)),
            http=HttpConfig(host=None),
        )
        return replace(config, **changes)

    return make


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    """An installation that runs on the simulated eFax."""
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as opened:
        yield opened


def opened_runtime(settings: Config, clock: QuickClock) -> Any:
    """Open an installation as `run` and `once` do, with the clock of the test."""
    return open_runtime(
        settings, {"KEY": KEY}, metrics=Metrics("test"), clock=clock, random=lambda: 0.5
    )


@dataclass(frozen=True)
class Event:
    action: str
    message: str
    fields: dict[str, Any]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Return the events so far, by name; redaction has its own tests."""
    said: list[Event] = []

    def event(action: str, message: str, **fields: Any) -> None:
        said.append(Event(action, message, fields))

    monkeypatch.setattr("poller.log.event", event)
    return said


def stored_files(directory: Path) -> list[Path]:
    """Every visible file below the storage directory."""
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
