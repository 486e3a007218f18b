"""A migration brings a ledger of the release before revision 0006 up to date and keeps every fact.

It is opened with the program as it is here, looked at from outside and through `ledger_facts`, and
rolled back as systemd/README.md says. What it holds and how that came there is in `tests/data/upgrade`.
"""

import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.ledger import Ledger
from poller.simulator import Simulator
from poller.simulator.state import Fax
from tests.acceptance.installation import (
    KEY,
    KEY_VARIABLE,
    Done,
    Installation,
    account,
)
from tests.acceptance.ledger_facts import due, facts_of
from tests.acceptance.older_ledger import (
    DATA,
    FACTS,
    MADE_AT,
    copied,
    copy_of,
    make,
    without_the_newest_migration,
)
from tests.crash.runs import Order, carry_out, shimmed
from tests.exhaustive import EXHAUSTIVE

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
COPIES, FAXES = (420, 100_000) if EXHAUSTIVE else (42, 10_000)
BEFORE = "0004"  # the interrupted upgrades begin with this revision
LOOKED_AT = COPIES // 7  # one copy in this many is compared fax by fax
MIGRATES = ("retry", "no-such-fax")  # changes nothing once the ledger is open
ACCOUNTS = {
    "main": (
        "app-1",
        {"front-desk": "user-a", "billing": "user-b", "ward-c": "user-c", "refused": "user-d"},
    ),
    "second": ("app-2", {"reception": "user-x"}),
    "third": ("app-3", {"night-desk": "user-y"}),
}
# Parts of the status that belong to the moment of the question.
_OF_THE_MOMENT = {
    *("lag_s", "overdue", "silent_since", "refused", "oldest_failing_s", "failing"),
    *("paused_s", "limit", "rate", "used", "token_war", "stored_today", "stored_by_hour"),
    *("failing_faxes", "evidence"),
}
_ADDED_SINCE = {
    *("direction", "sent", "not_deleted", "lists_left", "slow", "catching_up", "pending_s"),
    *("stored_per_hour", "discovered_per_hour", "unreadable_files"),
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thousands of faxes of hundreds of users; each test takes a copy."""
    return make(tmp_path_factory.mktemp("large") / "poller.db", copies=COPIES)


# -- every fact in its place -----------------------------------------------------------------------


async def facts_at(path: Path, *, looked_at: int = LOOKED_AT) -> dict[str, Any]:
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        assert not ledger.created
        return await facts_of(
            ledger,
            later=lambda of: timedelta(microseconds=copy_of(of)[1]),
            whole=lambda user_id: copy_of(user_id)[1] % looked_at == 0,
        )


def assert_as_it_was(told: dict[str, Any], copies: int) -> None:
    """Nothing is missing, nothing is new, and nothing belongs to another."""
    assert (told["meta"], told["accounts"]) == (FACTS["meta"], FACTS["accounts"])
    assert len(told["users"]) == len(FACTS["users"]) * (copies + 1)
    for key, user in told["users"].items():
        plain, copy = copy_of(key)
        wanted = FACTS["users"][plain]
        if "faxes" not in user:
            wanted = {name: wanted[name] for name in wanted.keys() - {"faxes", "backfills"}}
        assert not list(differences(as_the_first(user, copy), wanted)), key


def as_the_first(user: dict[str, Any], copy: int) -> dict[str, Any]:
    """Remove what distinguishes a copy."""
    if not copy:
        return user
    same = user | {"user": user["user"].removesuffix(f"~{copy}")}
    for fax in same.get("faxes", {}).values():
        for name in ("path", "file"):
            fax[name] = fax[name] and fax[name].removeprefix(f"{copy}/")
    return same


def differences(told: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Name every fact that has changed."""
    if not isinstance(told, dict) or not isinstance(wanted, dict):
        if told != wanted:
            yield f"{where} is {told!r}, was {wanted!r}"
        return
    for name in sorted(told.keys() | wanted.keys()):
        if name not in told or name not in wanted:
            yield f"{where}/{name} is {'lost' if name in wanted else 'new'}"
        else:
            yield from differences(told[name], wanted[name], f"{where}/{name}")


async def test_every_fact_of_thousands_of_faxes_is_in_its_place(
    large: Path, tmp_path: Path
) -> None:
    path = copied(large, tmp_path / "state")
    told = await facts_at(path)
    assert sum(sum(user["faxes_by_state"].values()) for user in told["users"].values()) >= FAXES
    assert_as_it_was(told, COPIES)
    with closing(sqlite3.connect(path)) as ledger:
        assert ledger.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_what_is_due_is_due_at_the_same_time_and_in_the_same_order(tmp_path: Path) -> None:
    path = make(tmp_path / "state" / "poller.db")
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        assert FACTS["due"] == {
            "at once": await due(ledger, MADE_AT),
            "an hour later": await due(ledger, MADE_AT + HOUR),
            "two days later": await due(ledger, MADE_AT + 2 * DAY),
        }


# -- interrupted ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unmigrated(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, one revision older; without free pages, which SQLite need not restore."""
    path = copied(large, tmp_path_factory.mktemp("unmigrated"))
    without_the_newest_migration(path)
    return path


class Upgrade:
    """The first command of the new release that may change the ledger, interrupted at one of its calls."""

    def __init__(self, root: Path, unmigrated: Path) -> None:
        self.root, self._unmigrated = root, unmigrated
        self.installation = Installation(root, "http://127.0.0.1:9")
        self.before = unmigrated.read_bytes()

    def begin(self) -> None:
        """Put the older ledger in place again."""
        shutil.rmtree(self.installation.ledger.parent, ignore_errors=True)
        copied(self._unmigrated, self.installation.ledger.parent)

    async def run(self, at: int = 0, act: str = "") -> Done:
        code, out, err = await carry_out(
            Order(
                words=[*MIGRATES, "-c", str(self.installation.config)],
                directory=str(self.root),
                prefix=str(self.installation.ledger.parent),
                environ={KEY_VARIABLE: KEY},
                at=at,
                act=act,
                names=str(self.root / "names"),
            )
        )
        return Done(code, out, err)

    async def finish(self) -> list[str]:
        """Run it without interruption; return what it did to the disk, call by call."""
        done = await self.run()
        assert (done.code, "no-such-fax" in done.err) == (1, True), done
        assert not self.is_old()
        return (self.root / "names").read_text().splitlines()

    def is_old(self) -> bool:
        """Whether nothing of the upgrade was done; replays its journal first."""
        with closing(sqlite3.connect(self.installation.ledger)) as ledger:
            (version,) = ledger.execute("SELECT version_num FROM alembic_version").fetchone()
        if version == BEFORE:
            assert self.installation.ledger.read_bytes() == self.before
        return bool(version == BEFORE)


@pytest.fixture
def upgrade(unmigrated: Path, tmp_path: Path) -> Upgrade:
    shimmed()  # or skipped
    upgrade = Upgrade(tmp_path, unmigrated)
    upgrade.begin()
    return upgrade


def the_commit(calls: list[str]) -> int:
    """Return the call that empties the journal: interrupted there, nothing is done; after it, all is."""
    return 1 + max(number for number, call in enumerate(calls) if " ftruncate " in call)


async def test_upgrade_that_is_killed_anywhere_leaves_the_old_ledger_or_the_new(
    upgrade: Upgrade,
) -> None:
    calls = await upgrade.finish()
    commit = the_commit(calls)
    for at in (2, commit * 2 // 3, commit):
        upgrade.begin()
        assert (await upgrade.run(at, "kill")).code == -9
        assert upgrade.is_old(), calls[at - 1]
    upgrade.begin()
    assert (await upgrade.run(commit // 2, "kill")).code == -9
    await upgrade.finish()  # with the journal that the kill left
    assert_as_it_was(await facts_at(upgrade.installation.ledger, looked_at=COPIES), COPIES)
    upgrade.begin()
    assert (await upgrade.run(commit + 1, "kill")).code == -9
    assert not upgrade.is_old()


async def test_upgrade_on_a_full_disk_is_refused_in_a_sentence_and_changes_nothing(
    upgrade: Upgrade,
) -> None:
    calls = await upgrade.finish()
    for at in (2, the_commit(calls) // 2):
        upgrade.begin()
        done = await upgrade.run(at, "stick-enospc")
        assert (done.code, done.out) == (73, "")
        assert done.said_in_one_sentence()
        assert "cannot grow: the disk is full" in done.err
        assert upgrade.is_old()
    await upgrade.finish()  # there is room again


# -- from outside ----------------------------------------------------------------------------------


@pytest.fixture
async def efax() -> AsyncIterator[Simulator]:
    async with Simulator(seed=3) as running:
        for app_id, users in ACCOUNTS.values():
            running.add_app(app_id, KEY)
            for user_id in users.values():
                running.add_user(app_id, user_id)
        yield running


class Upgraded(Installation):
    """An installation with the new program, whose service was stopped a few minutes ago."""

    def __init__(self, root: Path, efax: Simulator) -> None:
        accounts = {
            name: account(efax.base_url)
            | {
                "app_id": app_id,
                "users": {user: {"user_id": user_id} for user, user_id in users.items()},
            }
            for name, (app_id, users) in ACCOUNTS.items()
        }
        self.efax = efax
        super().__init__(root, efax.base_url)
        self.settings["accounts"] = accounts
        self.write({"storage": {"path": "{account}/{user}/{received:%Y/%b/%d}/{fax_id}"}})
        shutil.copytree(DATA / "storage", self.storage)
        since = datetime.now(UTC) - MADE_AT - timedelta(minutes=1)
        self.later = timedelta(seconds=since // timedelta(seconds=1))
        make(self.ledger, later=self.later)

    def arrive(self, fax_id: str) -> Fax:
        """Let a fax arrive, from a minute ago, that the ledger does not know."""
        completed = self.efax.now() - timedelta(minutes=1)
        return self.efax.receive(
            "app-1", "user-b", fax_id=fax_id, completed=completed, distinct=False
        )

    def let_efax_have_them(self) -> None:
        """Make eFax list everything that the ledger has of the configured users, at its time."""
        configured = {one for _, users in ACCOUNTS.values() for one in users.values()}
        for key, user in FACTS["users"].items():
            app_id, user_id = key.split("/")
            for fax_id, fax in user["faxes"].items() if user_id in configured else ():
                at = datetime.fromisoformat(fax["received_at"] or fax["first_seen_at"]) + self.later
                fields = {} if fax["received_at"] else {"completed_timestamp": None}
                self.efax.receive(
                    app_id, user_id, fax_id=fax_id, completed=at, distinct=False, fields=fields
                )

    def as_then(self, value: Any) -> Any:
        """Subtract the delay from what a command has shown."""
        return steady(value, self.later)


def steady(value: Any, later: timedelta) -> Any:
    """Leave out what belongs to the moment, and subtract the delay."""
    if isinstance(value, dict):
        left_out = _OF_THE_MOMENT | _ADDED_SINCE
        kept = {name: one for name, one in value.items() if name not in left_out}
        return {name: steady(one, later) for name, one in kept.items()}
    if isinstance(value, list):
        return [steady(one, later) for one in value]
    if isinstance(value, str) and _TIME.fullmatch(value):
        return shown(datetime.fromisoformat(value) - later)
    return value


def shown(at: datetime | str) -> str:
    """Write a time as commands do."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
async def installation(tmp_path: Path, efax: Simulator) -> Upgraded:
    return Upgraded(tmp_path, efax)


def fax_of(name: str) -> dict[str, Any]:
    """The facts of `app_id/user_id/fax_id`."""
    app_id, user_id, fax_id = name.split("/", 2)
    facts: dict[str, Any] = FACTS["users"][f"{app_id}/{user_id}"]["faxes"][fax_id]
    return facts


EXPLAINED = [
    "app-1/user-a/fetch-again",
    "app-1/user-b/came-broken",
    "app-1/user-b/poison-retried",
]


_SAME = (
    *("state", "found_by", "attempts", "failures", "last_error", "dismiss_reason"),
    *("format", "bytes", "sha256", "pages", "damaged"),
)
_TIMES = ("received_at", "next_attempt_at", "quarantined_at", "dismissed_at", "stored_at")


async def test_status_explain_and_verify_say_what_they_said_before(installation: Upgraded) -> None:
    # commands that only look do not migrate
    assert (await installation.poller(*MIGRATES)).code == 1
    await assert_status_is_the_same(installation)
    await assert_faxes_are_explained_with_all_that_befell_them(installation)
    await assert_verify_finds_the_same_files_well_taken_and_damaged(installation)


async def assert_status_is_the_same(installation: Upgraded) -> None:
    told = installation.as_then(await installation.status())
    wanted = steady(FACTS["status"], timedelta(0))
    for one in told["accounts"]:
        del one["pending"]  # which only users had then
        del one["node"]  # which no account had then
    for one in ("accounts", "quarantined_faxes", "damaged_faxes", "users"):
        assert len(told[one]) == len(wanted[one]) > 0
        for now, then in zip(told[one], wanted[one], strict=True):
            assert list(differences(now, then)) == []


async def assert_faxes_are_explained_with_all_that_befell_them(installation: Upgraded) -> None:
    for name in EXPLAINED:
        wanted = fax_of(name)
        done = await installation.poller("explain", "--json", named(name))
        assert done.code == 0, done
        told = installation.as_then(done.json)
        assert {one: told[one] for one in _SAME} == {one: wanted[one] for one in _SAME}, name
        assert [told[one] for one in _TIMES] == [
            wanted[one] and shown(wanted[one]) for one in _TIMES
        ], name
        assert told["harm"] == wanted["damage_on_disk"]
        said = [[one["at"], one["what"], one["why"]] for one in told["timeline"]]
        for at, outcome, error in wanted["history"]:
            assert [shown(at), outcome, error] in said, name


async def assert_verify_finds_the_same_files_well_taken_and_damaged(
    installation: Upgraded,
) -> None:
    done = await installation.poller("verify", "--json")
    report = done.json
    assert done.code == 1
    assert {one["fax_id"] for one in report["damaged"]} == {"changed", "half-gone"}
    on_disk = [
        fax_id
        for user in FACTS["users"].values()
        for fax_id, fax in user["faxes"].items()
        if fax["file"] and (fax["state"] == "stored" or fax["fetch_again"])
    ]
    on_disk.remove("harm-dismissed")
    assert (report["checked"], report["ok"]) == (len(on_disk), 2)
    assert report["taken"] == len(on_disk) - 4
    assert report["unknown_files"] == []


def named(name: str) -> str:
    """Name a fax as an operator does."""
    app_id, user_id, fax_id = name.split("/", 2)
    for label, (app, users) in ACCOUNTS.items():
        for user, one in users.items():
            if (app, one) == (app_id, user_id):
                return f"{label}/{user}/{fax_id}"
    raise AssertionError(name)


async def test_what_operators_decided_can_be_undone_and_decided_again(
    installation: Upgraded,
) -> None:
    async def said(*words: str) -> Any:
        done = await installation.poller(*words, "--json")
        assert done.code == 0, done
        return done.json

    def gap(piece: list[str]) -> tuple[str, ...]:
        times = (datetime.fromisoformat(at) + installation.later for at in piece)
        return ("--gap", "main/billing", *(at.isoformat() for at in times))

    pieces = FACTS["users"]["app-1/user-b"]["failed_slices"]
    first, second = (gap(one["interval"]) for one in pieces[:2])
    assert [one["dismissed"] for one in pieces[:2]] == [True, False]
    assert await said("dismiss", *second, "--reason", "asked") == {"dismissed": 2}
    assert (await said("retry", *first))["made_due"] >= 1
    assert await said("retry", "main/billing/poison-dismissed") == {"made_due": 1}
    assert await said("dismiss", "main/billing/poison", "--reason", "gone") == {"dismissed": 1}
    assert await said("retry") == {"made_due": 2}  # those of `reception`, not of a removed user
    users = {user["user"]: user for user in (await installation.status())["users"]}
    assert (users["billing"]["quarantined"], users["billing"]["dismissed"]) == (0, 1)
    assert (users["reception"]["quarantined"], users["removed"]["quarantined"]) == (0, 1)


# -- at work, and back -----------------------------------------------------------------------------

# what waited when the service was stopped is due by now
WAITED = {
    "app-1/user-a/canary-found",
    "app-1/user-a/fetch-again",
    "app-1/user-a/harm-retried",
    "app-1/user-a/new-of-user-a",
    "app-1/user-b/new-of-user-b",
    "app-1/user-b/pending-fails",
    "app-1/user-b/poison-retried",
    "app-1/user-c/new-of-user-c",
    "app-2/user-x/pending-after-a-pause",
    "app-3/user-y/pending-in-a-pause",
}


def downloaded(efax: Simulator) -> dict[str, int]:
    """Return how often the image of each fax was requested."""
    return {
        f"{fax.app_id}/{fax.user_id}/{fax.fax_id}": count
        for fax, count in efax.downloads.items()
        if count
    }


async def test_first_round_fetches_what_waited_and_nothing_that_was_had_or_given_up(
    installation: Upgraded, efax: Simulator
) -> None:
    installation.let_efax_have_them()
    new = installation.arrive("new-since")
    summary = await installation.once()
    assert (summary["discovered"], summary["stored"]) == (1, len(WAITED) + 1)
    assert downloaded(efax) == dict.fromkeys([*WAITED, f"app-1/user-b/{new.fax_id}"], 1)
    assert (await installation.once())["stored"] == 0
    users = {user["user"]: user for user in (await installation.status())["users"]}
    for key, was in FACTS["users"].items():
        now = users[was["user"]]
        came = sum(name.startswith(f"{key}/") for name in WAITED)
        found = int(key == "app-1/user-b")
        assert now["stored"] == was["stored"] + came + found
        assert now["pending"] == was["pending"] - came
        same = ("quarantined", "dismissed", "damaged", "removed")
        assert [now[name] for name in same] == [was[name] for name in same], key
    (row,) = [user for user in FACTS["users"].values() if user["user"] == "ward-c"]
    assert sum(backfill["done_at"] is None for backfill in row["backfills"]) == 2
    assert users["ward-c"]["backfills"] == []  # the two that waited are listed


async def test_rolling_back_as_the_manual_says_loses_nothing_and_fetches_nothing_twice(
    installation: Upgraded, efax: Simulator
) -> None:
    """The older program is not available here: this one opens its copy of the ledger again."""
    before = make(installation.root / "copy" / "before-upgrade.db", later=installation.later)
    installation.let_efax_have_them()
    for name in ("kept", "taken"):
        installation.arrive(name)
    await installation.once()  # the new release at work
    for file in installation.storage.rglob("taken.*"):
        file.unlink()

    state = installation.ledger.parent
    (state / "newer").mkdir()
    for file in state.glob("poller.db*"):
        file.rename(state / "newer" / file.name)
    shutil.copy2(before, installation.ledger)
    done = await installation.poller("rebuild", "--json")
    assert (done.code, done.err) == (0, "")
    assert (done.json["added"], done.json["doubles"]["count"]) == (len(WAITED) + 1, 0)

    told: dict[str, dict[str, Any]] = {}
    async with await Ledger.open(f"sqlite:///{installation.ledger}") as ledger:
        for key, user in (await facts_of(ledger, later=lambda _: installation.later))[
            "users"
        ].items():
            told |= {f"{key}/{fax_id}": fax for fax_id, fax in user["faxes"].items()}
    assert told.pop("app-1/user-b/kept")["found_by"] == "rebuild"
    for name, fax in told.items():
        if name in WAITED:
            assert fax["state"] == "stored"
        else:
            assert list(differences(fax, fax_of(name))) == [], name
    assert len(told) == sum(len(user["faxes"]) for user in FACTS["users"].values())

    assert (await installation.once())["stored"] == 1
    assert downloaded(efax) == dict.fromkeys([*WAITED, "app-1/user-b/kept"], 1) | {
        "app-1/user-b/taken": 2  # recorded neither in the copy nor in a sidecar
    }
