"""A hypothesis state machine over the real ledger, storage and ingest code, in a world in memory.

`python -m tests.integration.state_machine [EXAMPLES [STEPS [SEED]]]` explores as long as you like,
and prints how many steps that were.
"""

import asyncio
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from poller.config.model import (
    Account,
    AccountHook,
    Archive,
    Config,
    Delete,
    HttpConfig,
    Limits,
    Poll,
    RetryConfig,
    SecretRef,
    Sent,
    StateConfig,
    StorageConfig,
    Sweep,
    User,
)
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.daemon.webhooks import Webhooks
from poller.errors import ApiError, CannotStart, LedgerUnavailable
from poller.ingest.account import AccountRunner
from poller.ingest.notifications import NoticeReader
from poller.ingest.runtime import Runtime, open_runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import faxes, jobs
from poller.metrics import Metrics
from poller.simulator import Faults, Switches
from poller.simulator.state import Course, Fax, SentFax
from poller.store.marker import MARKER
from poller.stream import Direction
from tests.integration import checks
from tests.integration.checks import Book, Fact, Shelf, Shown
from tests.integration.world import Crash, Key, World, in_place, stream_of

KEYS = {"app-1": "key-1", "app-2": "key-2"}
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
GIVE_UP_AFTER = 2 * DAY
POLL = Poll(
    start=2 * DAY,
    overlap=timedelta(minutes=15),
    max_window=DAY,
    sweep=Sweep(every=HOUR, back=DAY),
    deep_sweep=Sweep(every=DAY, back=3 * DAY),
)
_ODD_IDS = (
    "..",
    ".",
    "../../x",
    "a/b",
    ".hidden",
    "x" * 200,
    "ü ö",
    "%2e%2E",
    "A",
    "a",
    "con.json",
)
_EFFECTS = (
    None,
    None,
    "400",
    "401",
    "403",
    "404",
    "413",
    "429",
    "429+1",
    "429+99999",
    "500",
    "503",
    "reset",
    "reset-mid-body",
    "cut",
    "cut-no-length",
    "stall",
    "stall-mid-body",
    "end-token",
    "html-200",
    "html-502",
    "errors-200",
    "redirect",
    "bad-json",
    "bom",
    "shift-insert",
    "shift-delete",
    "wrong-fax-id",
    "cut-document",
    "no-document",
    "null-image",
    "bad-base64",
)
_SWITCHES: tuple[dict[str, Any], ...] = (
    {},
    {"paging_headers": "ignored"},
    {"order": "oldest"},
    {"order": "unstable"},
    {"lower_bound": "exclusive", "upper_bound": "exclusive"},
    {"oldest_window_s": 86_400.0},
    {"longest_window_s": 10_800.0},
    {"future_window": "refused"},
    {"image_not_yet_s": 60.0},
    {"list_fields": "only-id"},
    {"list_fields": "only-id", "metadata_fields": "as-listed"},
    {"sent_filter_by": "created", "sent_under_way_listed": "no"},
    {"sent_status_demanded": "yes"},
    {"sent_status_demanded": "defaults-to-complete", "transmission_data": "missing-in-list"},
    {"empty_list": "bare"},
    {"pdf_bytes": "differ"},
    {"sign_in_refusal": "403"},
)
_COURSES: tuple[Course, ...] = (
    ((0, "COMPLETE"),),
    ((0, "NEW"), (90, "INPROGRESS"), (400, "COMPLETE")),
    ((0, "INPROGRESS"), (600, "PENDING RETRY"), (5400, "ERROR")),
    ((0, "NEW"), (30, "CANCELED")),
)
_WRONG_DATES = (
    None,
    "missing",
    "never",
    "Mon, 02 Mar 2026 05:43:00 GMT",
    "Fri, 06 Mar 2026 19:17:00 GMT",
)


def _seconds(count: int) -> timedelta:
    return timedelta(seconds=count)


users = st.integers(0, 1)
which = st.integers(0, 30)
crashes = st.none() | st.integers(1, 60)
works = st.booleans()  # whether poller works before the next thing happens
times = st.sampled_from([1, 30, 300, 300, 1200, 7200, 86_400, 259_200]).map(_seconds)
_ARRIVAL: dict[str, Any] = {
    "then": works,
    "user": users,
    "minutes_ago": st.sampled_from([0, 0, 0, 1, 5, 14, 50, 1200, 1800, 3600, -1, -120, -4320]),
    "late": st.sampled_from([0] * 8 + [5, 14, 50, 1200, 1800, 3600, 5000]),
    "kind": st.sampled_from(
        ["plain"] * 8 + ["same time", "same time", "no time", "no id", "odd id", "trouble"]
    ),
    "odd": st.sampled_from(_ODD_IDS),
    "trouble": st.sampled_from(["cut-document", "no-document", "wrong-fax-id", "413"]),
}
_WORK: dict[str, Any] = {
    "well": st.booleans(),
    "by": times,
    "what": st.sampled_from(["poll 0", "poll 1", "fetch", "all", "all", "all"]),
    "crash": crashes,
}
_NOTHING: dict[str, Any] = {
    "effect": st.sampled_from(["bare-200", "array-200", "zero-200", "full-200"]),
    "user": users,
    "polls": st.integers(1, 3),
}
STEPS: Counter[str] = Counter()  # what was done in this process
SAID: Counter[str] = Counter()  # its log events


@cache
def _fresh_installation() -> Path:
    """What a first start leaves behind, made once, because migrating an empty ledger takes long."""
    directory = Path(tempfile.mkdtemp(prefix="poller-template-"))

    async def make() -> None:
        world = World()
        with in_place(world):
            async with open_runtime(
                _config(directory, False),
                KEYS,
                metrics=Metrics("test"),
                clock=world.clocks,
            ):
                pass

    asyncio.run(make())
    return directory


def _config(
    directory: Path,
    two_accounts: bool,
    archive: Archive = "none",
    delete: Delete = Delete(),  # noqa: B008 - it is frozen
) -> Config:
    owners = ("app-1", "app-2") if two_accounts else ("app-1", "app-1")
    names = ("user-a", "user-b")
    accounts = tuple(
        Account(
            name=f"account-{app_id[-1]}",
            app_id=app_id,
            api_key=SecretRef("env", app_id),
            base_url="http://127.0.0.1:9",
            limits=Limits(1000, 1000, 8),
            webhook=AccountHook(f"/efax/{app_id}", SecretRef("env", app_id)),
            users=tuple(
                User(
                    *(f"account-{app_id[-1]}", name, app_id, name),
                    poll=POLL,
                    sent=Sent(archive=archive if name == names[0] else "none"),
                    delete=delete,
                    mark_downloaded=delete.after is None,
                )
                for owner, name in zip(owners, names, strict=True)
                if owner == app_id
            ),
        )
        for app_id in dict.fromkeys(owners)
    )
    return Config(
        accounts=accounts,
        storage=StorageConfig(directory / "faxes", min_free=1),
        state=StateConfig(directory / "state"),
        retry=RetryConfig(attempts=2, max_delay=timedelta(seconds=10), give_up_after=GIVE_UP_AFTER),
        http=HttpConfig(host=None),
    )


class PollerMachine(RuleBasedStateMachine):
    """poller and its world; `world` has what is true of eFax, and the disk is read."""

    delete: ClassVar[Delete] = Delete()

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="poller-machine-"))
        self.world = World()
        self.exits = ExitStack()
        self.exits.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.exits.enter_context(in_place(self.world))
        self.runner = self.exits.enter_context(asyncio.Runner())
        loop = self.runner.get_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # of tasks that died in a crash
        self.world.death.loop = loop
        self.runtime: Runtime | None = None
        self.opened: Any = None
        self.book = Book()
        self.taken: set[Key] = set()
        self.stored: set[Key] = set()  # never to be requested again
        self.dismissed: set[Key] = set()
        self.crashed_with: set[Key] = set()  # listed in a moment that a crash erased
        self.first_failures: dict[Key, tuple[datetime, timedelta]] = {}
        self.stood_still = timedelta(0)  # how long give-up clocks have stood still
        self.jumped = timedelta(0)  # by how much our clock was set in all
        self.began = self.world.clocks.true
        self.kept_ledger: tuple[Path, Book, set[Key]] | None = None
        self.numbered = 0
        self.checked_at = self.world.clocks.true
        self.checked_faxes: list[Fax] = []
        self.is_well = True
        self.owed_by_overlap: set[Key] = set()
        self.listed_without_times = False
        self.wrongly_deleted: list[str] = []

    @initialize(
        two_accounts=st.booleans(),
        dates=st.sampled_from([True, True, False]),
        page_cap=st.sampled_from([1, 2, 3, 100]),
        archive=st.sampled_from(["none", "image", "image", "metadata"]),
    )
    def install(self, two_accounts: bool, dates: bool, page_cap: int, archive: Archive) -> None:
        shutil.copytree(_fresh_installation(), self.directory, dirs_exist_ok=True)
        self.config = _config(self.directory, two_accounts, archive, self.delete)
        self.world.on_delete = self._is_deleted
        self.with_images = {
            user.user_id for user in self.config.users if user.sent.archive == "image"
        }
        self.shelf = Shelf(self.config.storage.directory)
        self.has_dates = dates
        self.natural = Switches(date_header="present" if dates else "missing", page_cap=page_cap)
        efax = self.world.efax
        efax.switches = self.natural
        for account in self.config.accounts:
            efax.add_app(account.app_id, KEYS[account.app_id])
            for user in account.users:
                efax.add_user(account.app_id, user.user_id)
        self._start()

    # -- time and faxes ---------------------------------------------------------------------------

    @rule(by=times)
    def time_passes(self, by: timedelta) -> None:
        self._pass_time(by)

    def _pass_time(self, by: timedelta) -> None:
        if self._is_paused():
            self.stood_still += by
        self.world.clocks.pass_time(by)

    @rule(arrival=st.fixed_dictionaries(_ARRIVAL))
    def fax_arrives(self, arrival: dict[str, Any]) -> None:
        self._let_arrive(**arrival)

    def _let_arrive(
        self,
        then: bool,
        user: int,
        minutes_ago: int,
        late: int,
        kind: str,
        odd: str,
        trouble: str,
    ) -> None:
        """Received this long ago (or ahead of time), listed at once or this many minutes late."""
        app_id, user_id = self.world.efax.users()[user]
        now = self.world.clocks.true
        self.numbered += 1
        fields: dict[str, Any] = {
            "completed": now - timedelta(minutes=minutes_ago),
            "visible_at": now + timedelta(minutes=late),
            "fax_id": f"fax-{self.numbered // 2}",  # two users may have the same
        }
        if kind == "same time" and self.world.efax.ever:
            fields["completed"] = self.world.efax.ever[-1].completed
        elif kind == "no time":
            fields["fields"] = {"completed_timestamp": None}
        elif kind == "no id":
            fields["fields"] = {"fax_id": None}
        elif kind == "odd id":
            fields["fax_id"] = odd
        elif kind == "trouble":
            fields["trouble"] = trouble
        if (app_id, user_id, fields["fax_id"]) not in {_key(fax) for fax in self._ever()}:
            self.world.efax.receive(app_id, user_id, **fields)
        self._then(then)

    def _then(self, works: bool) -> None:
        """The service polls every few minutes, whatever happens."""
        if works:
            self._pass_time(timedelta(minutes=2))
            self._do(self._work, None)

    @rule(user=users, count=st.integers(2, 8), then=works)
    def many_arrive_at_once(self, user: int, count: int, then: bool) -> None:
        app_id, user_id = self.world.efax.users()[user]
        for _ in range(count):
            self.world.efax.receive(app_id, user_id, completed=self.world.clocks.true)
        self._then(then)

    @rule(
        course=st.sampled_from(_COURSES),
        has_image=st.sampled_from([True, True, False]),
        then=works,
    )
    def fax_is_sent(self, course: Course, has_image: bool, then: bool) -> None:
        app_id, user_id = self.world.efax.users()[0]
        self.world.efax.sent(app_id, user_id, course=course, has_image=has_image)
        self._then(then)

    @rule(index=which)
    def fax_vanishes(self, index: int) -> None:
        if there := self.world.efax.faxes():
            self.world.efax.delete(there[index % len(there)])

    @rule(index=which)
    def portal_opens_a_fax(self, index: int) -> None:
        if there := self.world.efax.faxes():
            there[index % len(there)].image_downloaded = True

    # -- eFax misbehaves -----------------------------------------------------------------------------

    @rule(
        script=st.lists(st.sampled_from(_EFFECTS), min_size=1, max_size=6),
        calls=st.sampled_from([(), ("list",), ("image",), ("token",)]),
        then=works,
    )
    def calls_will_fail(self, script: list[str | None], calls: tuple[str, ...], then: bool) -> None:
        script = [self._told(effect) for effect in script]
        self.world.efax.faults = Faults(script=tuple(script), script_calls=frozenset(calls))
        self._then(then)

    @rule(
        user=users,
        count=st.integers(3, 8),
        effect=st.sampled_from(["shift-insert", "shift-delete"]),
        every=st.integers(1, 3),
        then=works,
    )
    def lists_will_shift(self, user: int, count: int, effect: str, every: int, then: bool) -> None:
        """Faxes come or vanish between two pages of a list that has several."""
        app_id, user_id = self.world.efax.users()[user]
        for number in range(count):
            completed = self.world.clocks.true - timedelta(seconds=number)
            self.world.efax.receive(app_id, user_id, completed=completed)
        told = self._told(effect)
        script = tuple(told if number % every == 0 else None for number in range(12))
        self.world.efax.faults = Faults(script=script, script_calls=frozenset({"list"}))
        self._then(then)

    def _told(self, effect: str | None) -> str | None:
        """Pages of one record cannot overlap, so a deletion between two of them may remain unseen
        until a sweep (see poller.listing)."""
        unseen = effect == "shift-delete" and self.natural.page_cap == 1
        return None if unseen else effect

    @rule(
        effect=st.sampled_from(["503", "429", "reset", "stall", "html-200", "401", "403"]),
        then=works,
    )
    def outage_begins(self, effect: str, then: bool) -> None:
        self.world.efax.outage(True, effect)
        self._then(then)

    @rule(**_NOTHING)
    def efax_answers_with_nothing(self, effect: str, user: int, polls: int) -> None:
        self._answer_with_nothing(effect, user, polls)

    @rule(**_NOTHING)
    def efax_answers_with_nothing_again(self, effect: str, user: int, polls: int) -> None:
        self._answer_with_nothing(effect, user, polls)

    def _answer_with_nothing(self, effect: str, user: int, polls: int) -> None:
        """A fax arrives meanwhile, which no poll may count as listed.

        If nothing was ever listed, or everything was deleted, nobody can tell.
        """
        facts = self.book.faxes
        there = {
            fax.app_id
            for fax in self.world.efax.faxes()
            if _key(fax) in facts
            and not facts[_key(fax)].to_delete
            and not facts[_key(fax)].deleted
        }
        if there != self.world.efax.apps.keys():
            return
        self.world.efax.outage(True, effect)
        app_id, user_id = self.world.efax.users()[user]
        self.world.efax.receive(app_id, user_id, completed=self.world.clocks.true)
        self.promises_are_kept()
        for _ in range(polls):
            self._then(works=True)

    @rule(then=works)
    def efax_is_well(self, then: bool) -> None:
        self._heal_efax()
        self._then(then)

    def _heal_efax(self) -> None:
        self.world.efax.faults = Faults()
        self.world.efax.switches = self.natural
        self.world.dates.clear()
        for app_id, key in KEYS.items():
            if app_id in self.world.efax.apps:
                self.world.efax.app(app_id).api_key = key

    @rule(switches=st.sampled_from(_SWITCHES), then=works)
    def efax_changes(self, switches: dict[str, Any], then: bool) -> None:
        if "paging_headers" in switches and self.natural.page_cap == 1:
            return  # a list of one page with one record counts as whole (see poller.listing)
        self.world.efax.switches = replace(self.world.efax.switches, **switches)
        self.listed_without_times |= self.world.efax.switches.list_fields != "all"
        self._then(then)

    @rule(dates=st.lists(st.sampled_from(_WRONG_DATES), min_size=1, max_size=4), then=works)
    def dates_will_be_wrong(self, dates: list[str | None], then: bool) -> None:
        if self.has_dates:
            self.world.dates = list(dates)
        self._then(then)

    @rule(user=users)
    def key_is_changed_at_efax(self, user: int) -> None:
        self.world.efax.app(self.world.efax.users()[user][0]).api_key = "another"

    # -- poller at work ----------------------------------------------------------------------------

    @rule(**_WORK)
    def work_is_done(self, well: bool, by: timedelta, what: str, crash: int | None) -> None:
        self._let_work(well, by, what, crash)

    def _let_work(self, well: bool, by: timedelta, what: str, crash: int | None) -> None:
        if well:
            self._heal_efax()
            self._mount()
        self._pass_time(by)
        works = {
            "poll 0": lambda: self._poll(0),
            "poll 1": lambda: self._poll(1),
            "fetch": self._fetch_all,
            "all": self._work,
        }
        self._do(works[what], crash)

    # rules are drawn evenly, so the most frequent events need more of them

    @rule(**_WORK)
    def work_is_done_again(self, well: bool, by: timedelta, what: str, crash: int | None) -> None:
        self._let_work(well, by, what, crash)

    @rule(**_WORK)
    def work_is_done_once_more(
        self, well: bool, by: timedelta, what: str, crash: int | None
    ) -> None:
        self._let_work(well, by, what, crash)

    @rule(arrival=st.fixed_dictionaries(_ARRIVAL))
    def another_fax_arrives(self, arrival: dict[str, Any]) -> None:
        self._let_arrive(**arrival)

    @rule(count=st.integers(1, 6))
    def poll_regularly(self, count: int) -> None:
        """The service as usual: a poll of all users every five minutes."""
        for _ in range(count):
            self._pass_time(timedelta(minutes=5))
            self._do(self._work, None)

    @rule(crash=st.none() | st.integers(1, 12))
    def restart(self, crash: int | None) -> None:
        self._stop()
        self._start(crash)

    @rule()
    def kill(self) -> None:
        if self.runtime is not None:
            self.world.death.dead = True
            self._bury()

    @rule(count=st.integers(1, 4))
    def ledger_will_be_locked(self, count: int) -> None:
        self.world.refusing_transactions = count

    @rule(
        user=users,
        names=st.sampled_from(["user", "fax", "nobody", "no sense"]),
        is_forged=st.booleans(),
        repeats=st.integers(1, 3),
        asks_for_notices=st.booleans(),
        crash=crashes,
    )
    def notice_comes(self, crash: int | None, **notice: Any) -> None:
        """Somebody posts to the web-hook: signed or not, once or again, about a fax or about none."""
        self._pass_time(timedelta(seconds=6))  # a user is woken at most every five
        self._do(lambda: self._take_notice(**notice), crash)

    # -- its machine ----------------------------------------------------------------------------------

    @rule(
        by=st.sampled_from(
            [HOUR, -HOUR, DAY, -DAY, 12 * DAY, timedelta(minutes=2), timedelta(minutes=-3)]
        )
    )
    def clock_is_set(self, by: timedelta) -> None:
        if not self.has_dates or abs(self.world.clocks.ahead + by) > 20 * DAY:
            return
        self.world.clocks.ahead += by
        self.jumped += abs(by)
        self._do(lambda: self._notice_step(by), None)

    @rule(mounted=st.booleans())
    def storage_comes_or_goes(self, mounted: bool) -> None:
        marker = self.config.storage.directory / MARKER
        if mounted:
            self._mount()
        elif marker.exists():
            marker.rename(self.directory / "marker")
        self.world.clocks.pass_time(timedelta(seconds=2))  # a look is believed for a second
        self._do(self._watch_gate, None)

    # -- people ------------------------------------------------------------------------------------

    @rule(index=st.none() | which)
    def operator_retries(self, index: int | None) -> None:
        known = sorted(self.book.faxes)
        key = known[index % len(known)] if known and index is not None else None
        self._do(lambda: self._retry(key), None)

    @rule(index=which)
    def operator_dismisses(self, index: int) -> None:
        if self.book.faxes:
            key = sorted(self.book.faxes)[index % len(self.book.faxes)]
            self._do(lambda: self._dismiss(key), None)

    @rule(index=which)
    def consumer_takes_a_fax(self, index: int) -> None:
        """The image first, the sidecar last."""
        there = sorted(
            key
            for key, fact in self.book.faxes.items()
            if fact.state == "stored" and key not in self.taken
        )
        if there:
            key = there[index % len(there)]
            path = self.config.storage.directory / str(self.book.faxes[key].file)
            path.unlink()
            if path.suffix != ".json":  # a sent fax without an image
                path.with_name(path.name.rpartition(".")[0] + ".json").unlink()
            self.taken.add(key)

    @rule()
    def ledger_is_copied(self) -> None:
        self._stop()
        kept = self.directory / "kept.db"
        shutil.copyfile(self._ledger_path(), kept)
        self.kept_ledger = (kept, checks.read_ledger(kept), set(self.taken))

    @rule()
    def old_ledger_is_put_back(self) -> None:
        """What was taken since then is no longer known to be ours: the one exception."""
        if self.kept_ledger is None:
            return
        kept, book, taken = self.kept_ledger
        self._stop()
        forgotten_faxes = self.book.faxes.keys() - book.faxes.keys()
        is_sent = any(key[1].endswith("/sent") for key in forgotten_faxes)
        if is_sent or (self._lacks_a_time() and forgotten_faxes):
            return  # a path contains the day when the fax was first seen, so it gets another
        shutil.copyfile(kept, self._ledger_path())
        forgotten = {key for key in self.taken - taken if not _is_stored(book.faxes.get(key))}
        self.stored -= forgotten
        self.taken -= forgotten
        self.crashed_with |= self.book.faxes.keys() - book.faxes.keys()
        self.book = book
        self.dismissed &= {key for key, fact in book.faxes.items() if fact.state == "dismissed"}
        # failures after this may have begun at any time before
        self.first_failures = {
            key: (self.began, timedelta(0))
            for key, fact in book.faxes.items()
            if fact.first_failed_at is not None
        }

    # -- how it is done ----------------------------------------------------------------------------

    def _do(self, work: Callable[[], Coroutine[Any, Any, Any]], crash: int | None) -> None:
        """Let poller work; it may die before its `crash`-th step on disk or ledger."""
        if self.runtime is None:
            self._start()
        if self.runtime is None:
            return
        before = set(self.world.listed)
        self.world.death.countdown = crash
        refused = self.world.refusing_transactions
        self.runner.run(self._until_death(work()))
        self.world.death.countdown = None
        if self.world.death.dead:
            STEPS["deaths"] += 1
            self._bury()
        if self.runtime is None or self.world.refusing_transactions != refused:
            self.crashed_with |= self.world.listed - before

    async def _until_death(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(self._settled(work))
        died = asyncio.ensure_future(self.world.death.noticed.wait())
        await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if not self.world.death.dead:
            task.result()
            return
        task.cancel()
        await asyncio.wait({task, died})
        if not task.cancelled():
            task.exception()

    async def _settled(self, work: Coroutine[Any, Any, Any]) -> None:
        await work
        assert self.runtime is not None
        for account in self.runtime.accounts.values():
            while account._notes:
                await asyncio.wait(account._notes)

    def _start(self, crash: int | None = None) -> None:
        self.world.death.countdown = crash
        locked = self.world.refusing_transactions > 0
        try:
            self.runner.run(self._open())
        except (Crash, CannotStart, LedgerUnavailable):
            assert crash is not None or locked
            self.opened = self.runtime = None
        self.world.death.countdown = None
        if self.world.death.dead:
            STEPS["deaths at start"] += 1
            self._bury()

    async def _open(self) -> None:
        self.opened = open_runtime(
            self.config,
            KEYS,
            metrics=Metrics("test"),
            clock=self.world.clocks,
            random=lambda: 0.5,
        )
        self.runtime = runtime = await self.opened.__aenter__()
        self.monitor = Monitor(runtime, Planner(runtime))
        self.woken: set[int] = set()
        self.webhooks = Webhooks(runtime, lambda state, _: self.woken.add(state.id))
        # the third net is asked when a rule says so
        setattr(self.webhooks, "_follow", lambda _: None)  # noqa: B010
        for account in runtime.accounts.values():
            self.webhooks.start(account)
            account.errands.at_once = 1
            for lane in account.lanes.values():
                lane.workers.at_once = 1  # one after the other, so that a run can be repeated
            account.note_pause()

        def pause() -> None:
            for account in runtime.accounts.values():
                account.note_pause()

        runtime.services.gate.on_change = pause
        await self._settled(asyncio.sleep(0))

    def _stop(self) -> None:
        if self.runtime is not None:
            self.runner.run(self._close())

    async def _close(self) -> None:
        opened, self.opened, self.runtime = self.opened, None, None
        if opened is not None:
            await opened.__aexit__(None, None, None)

    def _bury(self) -> None:
        """Let what the dead process still had in hand change nothing; only free its memory."""
        self.runner.run(self._free())
        self.world.death.revive()

    async def _free(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        tasks = {task for task in tasks if task.get_name() != "ledger writer"}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(Crash, Exception):
            await self._close()

    # -- requests to poller -----------------------------------------------------------------------

    def _parts(self) -> list[tuple[AccountRunner, StreamState]]:
        assert self.runtime is not None
        return [
            (account, state)
            for account in self.runtime.accounts.values()
            for state in account.states.values()
        ]

    async def _poll(self, user: int) -> None:
        account, state = self._parts()[user]
        newest_end, now = state.progress.coverage.newest_end, self.world.clocks.true
        visible = [fax for fax in self._ever() if fax.visible_at <= now and not fax.deleted]
        outcome = await account.poll(state)
        if outcome.error is not None or outcome.skipped is not None or newest_end is None:
            return
        end = now - timedelta(minutes=1 if self.has_dates else 6)
        begin = max(min(newest_end, now) - POLL.overlap, now - HOUR) + timedelta(minutes=1)
        self.owed_by_overlap |= {
            _key(fax)
            for fax in visible
            if (fax.app_id, fax.user_id) == (state.user.app_id, state.user.user_id)
            and begin <= fax.completed < end
            and not any(f.interval.end > fax.completed for f in state.progress.failed_slices)
        }

    async def _take_notice(
        self, user: int, names: str, is_forged: bool, repeats: int, asks_for_notices: bool
    ) -> None:
        """Poll at once the users that the notice wakes, and read eFax's own list of notices."""
        account, state = self._parts()[user]
        app_id = account.account.app_id
        fax = self._ever()[-1].fax_id if self._ever() else "none"
        named = {"user": {"user_id": state.user.user_id}, "fax": {"fax_id": fax}, "nobody": {}}
        body = json.dumps(named[names]).encode() if names in named else b"\xff{["
        for _ in range(repeats):
            if is_forged:
                self.webhooks.refused(app_id)
            else:
                self.webhooks.taken(app_id, body)
        while self.webhooks._look_ups:
            await self.webhooks._look_up_next()
        woken, self.woken = self.woken, set()
        assert is_forged != bool(woken), "a forged notice wakes nobody, and any other somebody"
        for index, (_, one) in enumerate(self._parts()):
            if one.id in woken:
                await self._poll(index)
        if asks_for_notices and not is_forged:
            reader = NoticeReader(account, account.services.ledger, self.world.clocks)
            with suppress(ApiError, LedgerUnavailable):
                await reader.read(state)
        await self._fetch_all()

    async def _fetch_all(self) -> None:
        assert self.runtime is not None
        for account in self.runtime.accounts.values():
            for lane in account.lanes.values():
                await lane.workers.run_until_idle()

    async def _work(self) -> None:
        for user in range(2):
            await self._poll(user)
        assert self.runtime is not None
        for account in self.runtime.accounts.values():
            for state in account.lanes[Direction.SENT].states.values():
                await account.poll(state)
        await self._watch_gate()
        await self._fetch_all()

    async def _watch_gate(self) -> None:
        assert self.runtime is not None
        await self.runtime.services.gate.check()

    async def _notice_step(self, by: timedelta) -> None:
        await self.monitor._stepped(by)

    async def _retry(self, key: Key | None) -> None:
        assert self.runtime is not None
        ledger = self.runtime.services.ledger
        with suppress(LedgerUnavailable):
            rows = (
                None if key is None else [row.id for row in await ledger.read(faxes.find, key[2])]
            )
            await ledger.write(jobs.make_due, rows, self.world.clocks.now())

    async def _dismiss(self, key: Key) -> None:
        assert self.runtime is not None
        ledger = self.runtime.services.ledger
        with suppress(LedgerUnavailable):
            for row in await ledger.read(faxes.find, key[2]):
                whose = stream_of(row.user_id, row.direction)
                self.dismissed.add((row.app_id, whose, row.fax_id))
                await ledger.write(jobs.dismiss, row.id, now=self.world.clocks.now(), reason="test")

    def _is_deleted(self, key: Key) -> None:
        """eFax is asked to delete a fax now: check that it may."""
        STEPS["deletions"] += 1
        book, taken = checks.read_ledger(self._ledger_path()), key in self.taken
        why = checks.may_be_deleted(key, book, self.shelf.look(), self.world.served)
        if why is not None and not (taken and self.delete.taken == "delete" and key in self.stored):
            self.wrongly_deleted.append(why)
        if not (self.config.storage.directory / MARKER).exists():
            self.wrongly_deleted.append(f"{key} was deleted at eFax without a storage")

    # -- checks -------------------------------------------------------------------------------------

    def _ever(self) -> list[Fax]:
        return self.world.efax.ever

    def _ledger_path(self) -> Path:
        return self.directory / "state/poller.db"

    def _lacks_a_time(self) -> bool:
        """Whether a fax may have been listed without its receiving time."""
        return self.listed_without_times or any(
            "completed_timestamp" in fax.fields for fax in self._ever()
        )

    def _mount(self) -> None:
        marker = self.config.storage.directory / MARKER
        if not marker.exists():
            (self.directory / "marker").rename(marker)

    def _is_paused(self) -> bool:
        if self.runtime is None:
            return False
        suspended = any(account.is_suspended for account in self.runtime.accounts.values())
        return suspended or not self.runtime.services.gate.usable

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "config"):
            return
        STEPS["steps"] += 1
        self.is_well = False
        owed, self.owed_by_overlap = self.owed_by_overlap, set()
        before, now = self.book, checks.read_ledger(self._ledger_path())
        shown = self.shelf.look()
        vanished = {_key(fax) for fax in self._ever() if fax.deleted}
        checks.rows_only_go_forward(before, now, vanished)
        checks.coverage_only_grows(before, now)
        checks.nothing_of_the_future_is_covered(now, self.world.clocks.true)
        checks.counters_equal_the_rows(now)
        checks.visible_is_whole(shown, self.world.served)
        checks.stored_is_there(now, shown, self.taken)
        self._sent_faxes_are_shown_in_their_end(now, shown)
        self._coverage_is_true(before, now)
        self._what_was_listed_is_known(now)
        late = owed - vanished - self.crashed_with - now.faxes.keys()
        assert not late, f"{late} were late by less than the overlap, and a poll missed them"
        self._nothing_is_asked_for_again(now)
        self._only_failures_quarantine(before, now)
        assert not self.world.unexpected, self.world.unexpected
        assert not self.wrongly_deleted, self.wrongly_deleted
        self.book = now
        self.checked_at = self.world.clocks.true
        self.checked_faxes = list(self._ever())
        self.is_well = True

    def _coverage_is_true(self, before: Book, now: Book) -> None:
        """A fax that was visible before this step, within the first list's time, has a row."""
        for fax in self.checked_faxes:
            user = (fax.app_id, fax.user_id)
            visible = not fax.deleted and fax.visible_at <= self.checked_at
            if not visible or not now.users[user].covers(fax.completed):
                continue
            if not before.users or not before.users[user].covers(fax.completed):
                assert _key(fax) in now.faxes, f"{fax} is covered, but has no row"

    def _sent_faxes_are_shown_in_their_end(self, now: Book, shown: Shown) -> None:
        for fax in self.world.efax.ever_sent:
            key, at = _key(fax), self.world.clocks.true
            if _is_stored(now.faxes.get(key)):
                assert fax.is_final(at), f"{fax} is stored while it is {fax.status(at)}"
            if key not in shown.sidecars:
                continue
            _, content = shown.sidecars[key]
            assert fax.is_final(at), f"{fax} is shown while it is {fax.status(at)}"
            said = content["metadata"]["transmission_data"]["transmission_status"]
            assert said == fax.course[-1][1], f"the sidecar of {fax} says {said}"
            is_alone = not fax.has_image or content["user_id"] not in self.with_images
            assert (content["image"] is None) == is_alone, f"{fax}: {content['image']}"

    def _what_was_listed_is_known(self, now: Book) -> None:
        unknown = self.world.listed - self.crashed_with - now.faxes.keys()
        assert not unknown, f"{unknown} were listed to us and have no row"

    def _nothing_is_asked_for_again(self, now: Book) -> None:
        asked = set(self.world.image_requests)
        assert not asked & self.stored, f"{asked & self.stored} were stored and asked for again"
        if asked:
            assert (self.config.storage.directory / MARKER).exists(), "asked for without a storage"
        self.world.image_requests.clear()
        self.stored |= {key for key, fact in now.faxes.items() if fact.state == "stored"}

    def _only_failures_quarantine(self, before: Book, now: Book) -> None:
        """Give up only later than `give_up_after` after the first failure, unless our clock was set."""
        for key, fact in now.faxes.items():
            was = before.faxes.get(key)
            if fact.state == "dismissed":
                assert key in self.dismissed, f"nobody dismissed {key}"
            if fact.first_failed_at is None:
                self.first_failures.pop(key, None)
            elif was is None or fact.first_failed_at != was.first_failed_at:
                self.first_failures[key] = (
                    self.checked_at,
                    self.stood_still - self.jumped,
                )
            if fact.state != "quarantined" or (was is not None and was.state == "quarantined"):
                continue
            assert was is not None, f"{key} was quarantined at once"
            assert fact.attempts > was.attempts, f"{key} was quarantined without an attempt"
            since, still = self.first_failures[key]
            ran = self.world.clocks.true - since - (self.stood_still - self.jumped - still)
            assert ran > GIVE_UP_AFTER - timedelta(minutes=1), f"{key} was given up after {ran}"

    # -- the end ---------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "config") and self.is_well:
                STEPS["examples"] += 1
                SAID.update(self.world.actions)
                self._everything_heals()
        finally:
            with suppress(Crash):
                self._stop()
            self.exits.close()

    def _everything_heals(self) -> None:
        """Everything works again and time passes: all that is owed arrives, with bounded effort."""
        self._heal_efax()
        self.world.refusing_transactions = 0
        for fax in self._ever():
            fax.trouble = None
            if "fax_id" in fax.fields:
                fax.fields.clear()
        self._mount()
        behind = -self.world.clocks.ahead
        self.world.clocks.ahead = timedelta(0)
        self.jumped += abs(behind)
        self._stop()
        self._start()
        self.world.requests = 0
        owed_at = self.world.clocks.true + 2 * HOUR
        for by in (HOUR, HOUR, HOUR, 2 * HOUR, 6 * HOUR, 26 * HOUR, 26 * HOUR, 26 * HOUR):
            self._pass_time(by)
            self._do(self._work, None)
            self.promises_are_kept()
        for fax in self._ever():
            if not fax.deleted and fax.visible_at <= owed_at:
                self._is_done(fax)
        for sent in self.world.efax.ever_sent if self._archives() else ():
            fact = self.book.faxes.get(_key(sent))
            done = _is_stored(fact) or _key(sent) in self.dismissed
            assert done, f"{sent} is {fact and fact.state}"
        # A fax without an image that was dismissed: `retry` takes its hidden sidecar up again.
        waiting = {f".{key[2]}.alone.json.part" for key in self.dismissed}
        left = [name for name in self.shelf.look().dot_files if name.endswith(".part")]
        left = [name for name in left if name not in waiting]
        assert not left, f"{left} are left behind"
        most = 400 + 40 * len(self._ever()) + 300 * self._archives()
        most += 40 * len(self.world.efax.ever_sent) * self._archives()
        assert self.world.requests <= most, f"{self.world.requests} requests to heal"
        STEPS["requests to heal"] = max(STEPS["requests to heal"], self.world.requests)

    def _archives(self) -> bool:
        return any(user.sent.archive != "none" for user in self.config.users)

    def _is_done(self, fax: Fax) -> None:
        start = self.book.users[fax.app_id, fax.user_id].pinned_start
        assert start is not None, "a user was never polled"
        late = fax.visible_at - fax.completed
        if fax.completed < start or fax.completed > self.world.clocks.true - 2 * HOUR:
            return
        fact = self.book.faxes.get(_key(fax))
        if fact is None:
            # later than the deep sweep looks back, and opened by others: nobody can know about it
            unknowable = late > POLL.deep_sweep.back - HOUR and fax.image_downloaded
            assert unknowable, f"{fax} was visible {late} late and is not known"
            return
        done = fact.state == "stored" or (fact.state == "dismissed" and fact.key in self.dismissed)
        assert done, f"{fax} is {fact.state}"


class DeletingMachine(PollerMachine):
    """The same, but stored faxes are deleted at eFax two hours later, and eFax's mark is restored.

    It is a separate machine, because one more possible event would change all examples.
    """

    delete = Delete(after=2 * HOUR, taken="delete")

    @rule(by=times, crash=crashes)
    def errands_are_run(self, by: timedelta, crash: int | None) -> None:
        self._pass_time(by)
        self._do(self._run_errands, crash)

    @rule(user=users, trouble=st.sampled_from(["cut-document", None, None]), take=st.booleans())
    def a_fax_grows_old(self, user: int, trouble: str | None, take: bool) -> None:
        self.efax_is_well(then=False)
        app_id, user_id = self.world.efax.users()[user]
        self.world.efax.receive(app_id, user_id, completed=self.world.clocks.true, trouble=trouble)
        self._then(works=True)
        self.promises_are_kept()
        if take:
            self.consumer_takes_a_fax(index=30)
        self._pass_time(3 * HOUR)
        self._do(self._run_errands, None)

    async def _work(self) -> None:
        await super()._work()
        await self._run_errands()

    async def _run_errands(self) -> None:
        assert self.runtime is not None
        for account in self.runtime.accounts.values():
            await account.errands.look()
            with suppress(LedgerUnavailable):
                await account.errands.run_until_idle()


class KeepingMachine(DeletingMachine):
    """What a consumer took stays at eFax, and few faxes go in a day."""

    delete = Delete(after=2 * HOUR, max_per_day=2)


def _key(fax: Fax) -> Key:
    direction = Direction.SENT if isinstance(fax, SentFax) else Direction.RECEIVED
    return (fax.app_id, stream_of(fax.user_id, direction), fax.fax_id)


def _is_stored(fact: Fact | None) -> bool:
    return fact is not None and fact.state == "stored"


def fixed(examples: int, steps: int) -> settings:
    """The same examples at every run."""
    return settings(explored(examples, steps), derandomize=True)


def explored(examples: int, steps: int) -> settings:
    """Show the first failing example as it is: shrinking it takes many minutes."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def explore(examples: int, steps: int, number: int) -> None:
    began = time.monotonic()
    try:
        for machine in (PollerMachine, DeletingMachine, KeepingMachine):
            run_state_machine_as_test(seed(number)(machine), settings=explored(examples, steps))
    finally:
        print(f"seed {number}, {time.monotonic() - began:.0f} s: {dict(STEPS)} {dict(SAID)}")


def main(arguments: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    examples, steps, number = [*map(int, arguments), *(1000, 50, 1)[len(arguments) :]]
    explore(examples, steps, number)


if __name__ == "__main__":
    main(sys.argv[1:])
