"""A kill at each step of sending: no fax goes out twice, and each is sent once, failed or in doubt."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poller import outbox
from poller.config.model import Config
from poller.drawn_page import page
from poller.efax.requests import Call, Request
from poller.errors import CannotStart, LedgerUnavailable
from poller.ingest.runtime import Runtime, open_runtime
from poller.ingest.send_request import ask_to_send, new_fax
from poller.ingest.sending import Sender
from poller.ledger import SendRow, SendState, sends
from poller.metrics import Metrics
from poller.outbox import OutboxDocument
from poller.simulator import Switches
from poller.simulator.replies import Reply
from tests.conftest import APP, KEY, MakeConfig
from tests.integration.world import Crash, World, in_place

MOST_STEPS = 30
FINAL = {
    SendState.TRANSMITTED: 1,
    SendState.FAILED: 0,
    SendState.IN_DOUBT: 0,  # because this eFax lists everything that it has taken
}


class SendWorld(World):
    """The process may also die just before eFax takes a fax, and just after."""

    def answer(self, request: Request) -> tuple[Reply, str | None]:
        if request.call is not Call.SEND:
            return super().answer(request)
        self.death.step()
        answered = super().answer(request)
        self.death.step()
        return answered

    def sent(self) -> dict[str, int]:
        """Return how many faxes eFax has taken, by our transaction id."""
        boxes = [box for app in self.efax.apps.values() for box in app.users.values()]
        found: dict[str, int] = {}
        for fax in (fax for box in boxes for fax in box.sent):
            found[fax.reference] = found.get(fax.reference, 0) + 1
        return found


class Lab:
    """One installation and its eFax; each `life` is a process, which may die at a step."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.world = SendWorld()
        self.world.efax.switches = Switches(send_takes_s=0.0)
        self.world.efax.add_app(APP, KEY)
        self.world.efax.add_user(APP, "user-a")
        self.config = config
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self.rows: list[SendRow] = []

    def life(self, work: Callable[[Runtime], Coroutine[Any, Any, None]], dies_at: int = 0) -> bool:
        """Run until it is done, or dead before that step of its work; return whether it died."""
        death = self.world.death
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _loop, _context: None)
            death.loop = loop
            runner.run(self._lived(work, dies_at))
        died = death.dead
        death.revive()
        return died

    async def _lived(
        self, work: Callable[[Runtime], Coroutine[Any, Any, None]], dies_at: int
    ) -> None:
        opening = open_runtime(
            self.config,
            {"KEY": KEY},
            metrics=Metrics("test"),
            clock=self.world.clocks,
            random=lambda: 0.5,
        )
        with suppress(Crash, CannotStart, LedgerUnavailable):
            async with opening as runtime:
                self.world.death.countdown = dies_at or None
                task = asyncio.ensure_future(work(runtime))
                died = asyncio.ensure_future(self.world.death.noticed.wait())
                await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
                for one in asyncio.all_tasks() - {asyncio.current_task()}:
                    if one is not task and one.get_name() == "ledger writer":
                        continue
                    one.cancel()
                await asyncio.gather(task, died, return_exceptions=True)

    async def ask_and_send(self, runtime: Runtime) -> None:
        services = runtime.services
        (state,) = runtime.states
        documents = [OutboxDocument("pdf", page("ORDER", ["one"]))] * 2
        await ask_to_send(
            services.ledger,
            self.config.state_directory,
            new_fax(state.id, "13235551212"),
            documents,
            services.clock.now(),
        )
        await self.serve(runtime)

    async def serve(self, runtime: Runtime) -> None:
        """Work as the service does until nothing is under way."""
        sender = Sender(runtime)
        running = asyncio.ensure_future(sender.run())
        try:
            while await runtime.services.ledger.read(sends.unfinished) or sender._tasks:
                await asyncio.sleep(0)
                if running.done():
                    running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        self.rows = [
            await runtime.services.ledger.read(sends.one, send + 1)
            for send in range(await runtime.services.ledger.read(_count))
        ]

    def problems(self) -> list[str]:
        """Return what is wrong when everything has come to rest."""
        sent = self.world.sent()
        found = [f"twice: {one} was sent {n} times" for one, n in sent.items() if n > 1]
        known = {row.transaction_id for row in self.rows}
        found += [
            f"unknown: {one} was sent, and no row says so" for one in sent if one not in known
        ]
        for row in self.rows:
            wanted = FINAL.get(row.state)
            if wanted is None:
                found.append(f"unfinished: {row.transaction_id} is {row.state}")
            elif sent.get(row.transaction_id, 0) != wanted and row.state != SendState.IN_DOUBT:
                found.append(f"wrong: {row.transaction_id} is {row.state}")
            elif row.state is SendState.IN_DOUBT and row.transaction_id in sent:
                found.append(f"not found: {row.transaction_id} was sent and is in doubt")
            if (self.config.state_directory / "outbox" / row.transaction_id).exists():
                found.append(f"left over: documents of {row.transaction_id}")
        return found


def _count(connection: Any) -> int:
    return int(connection.exec_driver_sql("SELECT count(*) FROM sends").scalar())


@pytest.fixture
def lab(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make labs in which the outbox's steps are deadly too."""
    deaths: list[Any] = []
    for name in ("_write", "remove"):
        real = getattr(outbox, name)

        def mortal(*args: Any, _real: Any = real) -> Any:
            deaths[-1].step()
            return _real(*args)

        monkeypatch.setattr(outbox, name, mortal)

    def made() -> Lab:
        directory = tmp_path / "installation"
        config = make_config("http://127.0.0.1:1", users=("user-a",))
        one = Lab(directory, _moved(config, directory))
        deaths.append(one.world.death)
        return one

    return made


def _moved(config: Config, directory: Path) -> Config:
    storage = replace(config.storage, directory=directory / "faxes")
    state = replace(config.state, directory=directory / "state")
    return replace(config, storage=storage, state=state)


def explored(
    lab: Callable[[], Lab], *, twice: bool = False, every: int = 1
) -> tuple[int, list[str]]:
    """Kill at each step, then let the next process live; return how many steps there were, and the errors.

    With `twice`, also kill the second process, each time at another step.
    """
    found: list[str] = []
    for step in range(1, MOST_STEPS, every):
        one = lab()
        with in_place(one.world):
            one.life(_nothing)  # so that sending is killed, not the first start
            died = one.life(one.ask_and_send, dies_at=step)
            if twice:
                one.life(one.serve, dies_at=1 + step * 7 % 11)
            one.life(one.serve)
        found += [f"kill at {step}: {problem}" for problem in one.problems()]
        if not died or found:
            return step, found
    raise AssertionError("it has more steps than anybody thought")


async def _nothing(_: Runtime) -> None: ...


def test_a_kill_at_each_step_sends_nothing_twice_and_loses_nothing(lab: Any) -> None:
    steps, found = explored(lab)
    assert found == []
    assert steps > 12


def test_a_kill_of_the_process_that_looks_for_it_changes_nothing(lab: Any) -> None:
    _, found = explored(lab, twice=True, every=2)
    assert found == []


def test_it_is_found_when_the_ledger_does_not_say_that_a_request_goes_out(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug, which shows that this can fail."""
    monkeypatch.setattr(sends, "begin", lambda *_: True)
    _, found = explored(lab)
    assert any("twice" in problem for problem in found), found


def test_it_is_found_when_what_was_perhaps_sent_is_taken_for_not_sent(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sent_again(self: Sender, row: SendRow, _: str) -> SendRow:
        return await self._post(replace(row, state=SendState.WAITING))

    def any_may_begin(connection: Any, send: int, _: Any, now: Any) -> bool:
        sends._set(connection, send, state=SendState.SENDING, sent_at=now)
        return True

    monkeypatch.setattr(Sender, "_look_for", sent_again)
    monkeypatch.setattr(sends, "begin", any_may_begin)
    _, found = explored(lab)
    assert any("twice" in problem for problem in found), found
