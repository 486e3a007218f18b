"""Several nodes share the accounts: one works on each, another takes over, and no fax comes twice."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command as alembic_command
from sqlalchemy import Connection

from poller.cli import (
    backfill_command,
    bootstrap,
    selftest_command,
    send_command,
    verify_command,
)
from poller.cli.foreground import in_runtime
from poller.config.model import AccountHook, Config, SecretRef
from poller.daemon import reload
from poller.daemon.webhooks import Webhooks
from poller.documents import Staged, StoredFile
from poller.errors import CannotStart, LeaseLost, LedgerUnavailable, LockHeld
from poller.ingest import lease_keeper
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import ask_to_send
from poller.ingest.sending import Sender
from poller.ledger import (
    FaxRow,
    SendState,
    State,
    faxes,
    forwarded,
    jobs,
    leases,
    meta,
    nodes,
    schema,
    sends,
    streams,
)
from poller.ledger.postgres.postgres_backend import PostgresBackend
from poller.ledger.tables import REVISION
from poller.lock import StorageLock
from poller.outbox import OutboxDocument
from poller.pacing import Kind, Ticket
from poller.store import Runs
from poller.store.directory import Directory
from poller.window import Interval
from tests.conftest import APP, KEY, Event, MakeConfig, QuickClock
from tests.efax import Simulator
from tests.integration.at_work import HELD_S, calls, files, said, settled, until
from tests.integration.cluster import LONG_AGO, Cluster, ClusterNode, opened_cluster

STAGED = Staged(StoredFile("main/one.pdf", "pdf", 10, "0" * 64, 1, damaged=False), "ticket")


@pytest.fixture
async def cluster(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    postgres_ledger_url: str,
    tmp_path: Path,
) -> AsyncIterator[Cluster]:
    settings = make_config(simulator.base_url)
    async with opened_cluster(settings, postgres_ledger_url, tmp_path, clock) as opened:
        yield opened


async def pair(cluster: Cluster) -> tuple[ClusterNode, ClusterNode]:
    """Return two nodes, of which the first holds the account."""
    first = await cluster.node("a")
    await first.holding.look()
    second = await cluster.node("b")
    await second.holding.look()
    assert (first.holds, second.holds) == ([APP], [])
    return first, second


async def taken_over(cluster: Cluster, old: ClusterNode, new: ClusterNode) -> None:
    """Let the lease of one node end, and the other take the account."""
    old.let_trust_end()
    await cluster.expire()
    await taken_by(cluster, new)


async def taken_by(cluster: Cluster, node: ClusterNode) -> None:
    """Let a node take the free account, also if another one comes first."""
    for _ in range(2):
        await node.holding.look()
        cluster.clock.mono += 2
    assert node.holds == [APP]


async def arrived(simulator: Simulator, node: ClusterNode) -> str:
    """Let a fax arrive, and a node list it; return its id."""
    fax = simulator.receive(APP, "user-a")
    await node.poll()
    return fax.fax_id


async def row(cluster: Cluster, fax_id: str) -> FaxRow:
    (found,) = await cluster.ledger.read(faxes.find, fax_id)
    return found


def consumed(storage: Path) -> int:
    """Take away all faxes as a consumer does, the sidecar last; return how many there were."""
    sidecars = [one for one in files(storage, "*.json") if not one.name.startswith(".")]
    for sidecar in sidecars:
        sidecar.with_suffix(".pdf").unlink(missing_ok=True)
        sidecar.unlink()
    return len(sidecars)


# -- who works on what ----------------------------------------------------------------------------


async def test_after_an_outage_of_the_database_no_node_takes_an_account_from_itself(
    cluster: Cluster,
) -> None:
    nodes_at_work = await pair(cluster)
    for node in nodes_at_work:  # no renewal was answered
        await cluster.forget(node)
    await cluster.expire()
    for _ in range(2):
        await nodes_at_work[0].holding.look()
        cluster.clock.mono += 61
    assert (await cluster.lease()).term == 1
    assert not any(row.removed for row in await cluster.ledger.read(streams.all_streams))


async def test_an_account_of_other_nodes_is_not_removed_while_nobody_can_report(
    cluster: Cluster,
) -> None:
    node, other = await pair(cluster)
    await cluster.ledger.write(leases.add, ["another"])
    await node.holding.look()
    cluster.clock.mono += 61
    node.boot_s[0] += 11
    await node.holding.look()
    assert (await cluster.ledger.read(leases.all_leases))["another"].term == 0
    await node.holding.renew()
    await node.holding.look()
    cluster.clock.mono += 61
    await node.holding.look()
    assert (await cluster.ledger.read(leases.all_leases))["another"].term == 1
    assert other.holds == []


async def look_thrice(cluster: Cluster, node: ClusterNode) -> None:
    for _ in range(3):
        await node.holding.look()
        cluster.clock.mono += 2


async def test_a_lost_account_is_dropped_before_it_is_taken_again(cluster: Cluster) -> None:
    node, _ = await pair(cluster)
    del node.keeper.held[APP]  # the renewal has found it lost, and the work on it has not ended yet
    await cluster.expire()
    await look_thrice(cluster, node)
    assert node.started == [APP]
    await node.holding._drop(APP)
    await look_thrice(cluster, node)
    assert (node.started, node.ended) == ([APP, APP], [APP])


async def test_one_node_works_on_an_account_and_the_other_waits(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, b = await pair(cluster)
    await arrived(simulator, a)
    await a.fetch_all()
    assert consumed(cluster.settings.storage.directory) == 1
    assert b.runtime.states == []
    assert b.started == []


async def test_node_that_stops_gives_its_account_back_and_another_takes_it_at_once(
    cluster: Cluster, events: list[Event]
) -> None:
    a, b = await pair(cluster)
    await a.holding.stop()
    await b.holding.look()
    assert (a.holds, b.holds) == ([], [APP])
    assert said(events, "lease-released", "lease-taken") == [
        "lease-taken",
        "lease-released",
        "lease-taken",
    ]


@pytest.mark.parametrize("is_killed", [False, True], ids=["after a stop", "after a kill"])
async def test_new_holder_sends_no_second_burst(cluster: Cluster, *, is_killed: bool) -> None:
    def slowly(settings: Config) -> Config:
        (one,) = settings.accounts
        limits = replace(one.limits, requests_per_second=0.001, burst=10, in_flight=20)
        return replace(settings, accounts=(replace(one, limits=limits),))

    a = await cluster.node("a", slowly)
    await a.holding.look()
    b = await cluster.node("b", slowly)
    assert len(granted_at_once(cluster, a)) == 9
    if is_killed:
        a.die()
        await cluster.expire(ago=leases.TRUSTED_FOR)
    else:
        await a.holding.stop()
    await taken_by(cluster, b)
    assert granted_at_once(cluster, b) == []


def granted_at_once(cluster: Cluster, node: ClusterNode) -> list[Ticket]:
    pacing = node.account.client.pacing
    for _ in range(20):
        pacing.slots.enqueue(Ticket(Kind.OTHER, "user-a"))
    return pacing.grant(cluster.clock.monotonic())


async def test_node_that_dies_is_taken_over_when_its_lease_has_ended(
    cluster: Cluster, simulator: Simulator, events: list[Event]
) -> None:
    a, b = await pair(cluster)
    fax_id = await arrived(simulator, a)
    a.die()
    await b.holding.look()
    assert b.holds == []
    sign_ins = calls(simulator, "token")
    await taken_over(cluster, a, b)
    await b.fetch_all()
    assert (await row(cluster, fax_id)).state is State.STORED
    assert consumed(cluster.settings.storage.directory) == 1
    assert calls(simulator, "token") <= sign_ins + 1
    (taken,) = [one for one in events if one.action == "lease-taken"][1:]
    assert taken.fields["level"] == "warning"


async def test_two_nodes_that_start_at_once_share_the_accounts(
    cluster: Cluster, simulator: Simulator
) -> None:
    simulator.add_app("app-2", "key-of-app-1")
    simulator.add_user("app-2", "user-c")

    def with_another(settings: Any) -> Any:
        (one,) = settings.accounts
        user = replace(one.users[0], account="two", app_id="app-2", user_id="user-c")
        other = replace(one, name="two", app_id="app-2", users=(user, user_of(user)))
        return replace(settings, accounts=(one, other))

    def user_of(user: Any) -> Any:
        return replace(user, name="user-d", user_id="user-d")

    a, b = await asyncio.gather(*(cluster.node(name, with_another) for name in "ab"))
    await asyncio.gather(a.holding.look(), b.holding.look())
    cluster.clock.mono += 5
    await asyncio.gather(a.holding.look(), b.holding.look())
    assert sorted(a.holds + b.holds) == ["app-1", "app-2"]
    assert len(a.holds) == len(b.holds) == 1


async def test_account_goes_to_a_node_that_has_fewer_users(
    cluster: Cluster, simulator: Simulator
) -> None:
    def with_another(settings: Any) -> Any:
        (one,) = settings.accounts
        users = tuple(replace(user, account="two", app_id="app-2") for user in one.users)
        return replace(
            settings, accounts=(one, replace(one, name="two", app_id="app-2", users=users))
        )

    a = await cluster.node("a", with_another)
    await a.holding.look()
    assert a.holds == ["app-1", "app-2"]
    b = await cluster.node("b", with_another)
    cluster.clock.mono += 61
    await a.holding.look()
    await b.holding.look()
    assert (len(a.holds), len(b.holds)) == (1, 1)
    cluster.clock.mono += 61
    for node in (a, b):
        await node.holding.look()
    assert (len(a.holds), len(b.holds)) == (1, 1)


async def test_node_that_drains_gives_back_one_account_after_the_other_and_takes_none(
    cluster: Cluster,
) -> None:
    a, b = await pair(cluster)
    await cluster.ledger.write(nodes.set_draining, "a", draining=True)
    await a.holding.renew()
    await a.holding.look()
    await b.holding.look()
    assert (a.holds, b.holds) == ([], [APP])
    await b.holding.stop()
    cluster.clock.mono += 60
    await a.holding.look()
    assert a.holds == []
    await cluster.ledger.write(nodes.set_draining, "a", draining=False)
    await a.holding.renew()
    await a.holding.look()
    assert a.holds == [APP]


async def test_node_that_cannot_store_leaves_its_account_to_one_that_can(cluster: Cluster) -> None:
    a, b = await pair(cluster)
    await lose_storage(a)
    cluster.clock.mono += 29
    await a.holding.look()
    assert a.holds == [APP]
    cluster.clock.mono += 1
    await a.holding.look()
    await taken_by(cluster, b)
    await lose_storage(b)
    cluster.clock.mono += 60
    for node in (a, b):
        await node.holding.look()
    assert (a.holds, b.holds) == ([], [APP])  # no other node could store either


async def test_free_account_is_taken_by_a_node_that_cannot_store_only_if_none_can(
    cluster: Cluster,
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await lose_storage(a)
    for _ in range(4):
        await a.holding.look()
        cluster.clock.mono += 2
    assert a.holds == []
    await lose_storage(b)
    await taken_by(cluster, a)


async def lose_storage(node: ClusterNode) -> None:
    """Let a node find its storage unusable, and report it."""
    node.runtime.services.gate.close("the disk is gone")
    await node.holding.renew()


async def test_account_is_only_taken_by_a_node_that_has_it(cluster: Cluster) -> None:
    a = await cluster.node("a", lambda one: replace(one, accounts=()))
    await a.holding.look()
    assert a.holds == []
    b = await cluster.node("b")
    await b.holding.look()
    assert b.holds == [APP]


async def test_two_configurations_of_an_account_are_named_once(
    cluster: Cluster, events: list[Event]
) -> None:
    a, b = await pair(cluster)
    (account,) = cluster.settings.accounts
    fewer = replace(account, users=account.users[:1])
    c = await cluster.node("c", lambda one: replace(one, accounts=(fewer,)))
    for _ in range(2):
        await a.holding.look()
    (differs,) = [one for one in events if one.action == "config-differs"]
    assert differs.fields["other"] == "c"
    await b.holding.look()
    await c.holding.look()
    assert (b.holds, c.holds) == ([], [])


async def test_users_of_an_account_that_no_node_has_any_more_are_marked_as_removed(
    cluster: Cluster,
) -> None:
    a = await cluster.node("a")
    await a.holding.look()
    a.keeper.leave()
    await a.holding.give_back(APP)
    await a.keeper.renew()
    b = await cluster.node("b", lambda one: replace(one, accounts=()))
    await b.holding.look()
    rows = await cluster.ledger.read(streams.all_streams)
    assert [row.removed for row in rows] == [False, False]
    cluster.clock.mono += 61
    await b.holding.look()
    rows = await cluster.ledger.read(streams.all_streams)
    assert [row.removed for row in rows] == [True, True]


async def test_suspension_outlives_a_takeover_and_ends_with_a_clean_stop(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, b = await pair(cluster)
    a.account.client.breaker.keep_suspended(
        cluster.clock.now() + timedelta(minutes=5), "eFax is down"
    )
    await settled(a.account)
    await taken_over(cluster, a, b)
    assert b.account.is_suspended
    await b.holding.stop()
    c = await cluster.node("c")
    await taken_by(cluster, c)
    assert not c.account.is_suspended


async def test_what_was_stored_is_said_again_to_a_database_that_has_lost_it(
    cluster: Cluster, simulator: Simulator, events: list[Event]
) -> None:
    a = await cluster.node("a")
    await a.holding.look()
    await a.holding.renew()
    fax_id = await arrived(simulator, a)
    await a.fetch_all()
    assert consumed(cluster.settings.storage.directory) == 1
    await cluster.roll_back((await row(cluster, fax_id)).id)
    await a.holding.renew()
    assert (await row(cluster, fax_id)).state is State.STORED
    assert (a.holds, said(events, "ledger-rolled-back")) == ([], ["ledger-rolled-back"])
    await a.holding.look()
    assert a.holds == []  # the other nodes say first what they know
    cluster.clock.mono += 16
    for _ in range(2):
        await a.holding.look()
    assert a.holds == [APP]
    await a.fetch_all()
    assert consumed(cluster.settings.storage.directory) == 0


async def test_notice_that_reaches_another_node_wakes_the_users_at_the_one_that_works(
    cluster: Cluster,
) -> None:
    def with_hook(settings: Config) -> Config:
        (account,) = settings.accounts
        hook = AccountHook("/efax/main", SecretRef("env", "KEY"))
        return replace(settings, accounts=(replace(account, webhook=hook),))

    a, b = [await cluster.node(name, with_hook) for name in "ab"]
    await taken_by(cluster, a)
    woken: list[str] = []
    holder = Webhooks(a.runtime, lambda stream, _: woken.append(stream.user.name))
    holder.start(a.account)
    waiting = Webhooks(b.runtime, lambda *_: None)
    assert await waiting.find("/efax/main") == (APP, KEY)
    waiting.taken(APP, json.dumps({"user_id": "user-b"}).encode())
    await waiting.forward()
    await waiting.forward()
    assert woken == []
    await holder.forward()
    assert woken == ["user-b"]
    await holder.forward()
    assert woken == ["user-b"]
    waiting.taken(APP, json.dumps({"user_id": "user-a"}).encode())
    await waiting.forward()
    await cluster.steal()  # it stays for the new holder
    with pytest.raises(LeaseLost):
        await holder.forward()
    assert await cluster.ledger.read(forwarded.waiting, [APP]) == [APP]
    with suppress(LeaseLost):
        await holder.stop()


# -- commands -------------------------------------------------------------------------------------


async def test_command_takes_the_accounts_that_no_node_holds_and_gives_them_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)

    async def work(runtime: Runtime) -> list[str]:
        assert (await cluster.lease()).is_live
        return sorted(runtime.accounts)

    settings = cluster.of("a")
    assert await in_runtime(settings, StorageLock(), work, needs_storage=False) == [APP]
    assert not (await cluster.lease()).is_live


async def test_command_names_the_node_that_works_on_the_account(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)
    a = await cluster.node("a")
    await a.holding.look()

    async def work(_: Runtime) -> None:
        raise AssertionError

    with pytest.raises(LockHeld, match="node a works on account main"):
        await in_runtime(cluster.of("b"), StorageLock(), work, needs_storage=False)
    assert (await bootstrap.holders(cluster.of("b")))[APP].report.name == "a"


async def test_command_ends_when_another_node_has_taken_its_account(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)

    async def work(_: Runtime) -> None:
        await cluster.steal()
        await asyncio.Event().wait()

    monkeypatch.setattr(lease_keeper, "RENEW_EVERY_S", 0.01)
    with pytest.raises(LeaseLost):
        await in_runtime(cluster.of("a"), StorageLock(), work, needs_storage=False)


async def test_fax_whose_account_moves_before_it_is_sent_fails_and_says_what_to_do(
    cluster: Cluster,
) -> None:
    a, b = await pair(cluster)
    state = next(iter(a.account.states.values()))
    new = sends.NewSend(state.id, "t-1", "operator", "13235551212", None, None)
    row = await ask_to_send(
        a.account.services.ledger,
        a.runtime.config.state_directory,
        new,
        [OutboxDocument("pdf", b"%PDF-")],
        cluster.clock.now(),
    )
    await a.holding.give_back(APP)
    await taken_by(cluster, b)
    failed = await Sender(b.runtime).send(row)
    assert failed.state is SendState.FAILED
    assert "are on the node that was asked: send it again" in str(failed.error)


WINDOW = Interval(LONG_AGO, LONG_AGO + timedelta(hours=1))
ORDER = send_command._Order(
    "main/user-a", "13235551212", [OutboxDocument("pdf", b"%PDF-")], wait=False
)
COMMANDS: dict[str, Callable[[Runtime], Coroutine[Any, Any, Any]]] = {
    "backfill": partial(backfill_command._work, "main/user-a", WINDOW),
    "send": partial(send_command._work, ORDER),
    "selftest": partial(selftest_command._work, "main/user-a", timedelta(minutes=1)),
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_command_writes_nothing_once_another_node_has_its_account(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("KEY", KEY)

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    async def work(runtime: Runtime) -> None:
        await cluster.steal()
        await COMMANDS[command](runtime)

    monkeypatch.setattr(lease_keeper.LeaseKeeper, "renew_until_lost", never)
    settings = cluster.of("a")
    (one,) = settings.accounts
    users = tuple(replace(user, number="13235551212") for user in one.users)
    settings = replace(settings, accounts=(replace(one, users=users),))
    with pytest.raises(LeaseLost):
        await in_runtime(settings, StorageLock(), work, needs_storage=False)
    with psycopg.connect(cluster.url) as connection:
        for table in ("sends", "backfills"):
            assert connection.execute(f"SELECT count(*) FROM poller.{table}").fetchone() == (0,)


# -- trust ----------------------------------------------------------------------------------------


async def test_node_asks_nothing_while_it_cannot_be_sure_of_its_lease_and_goes_on_afterwards(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, _ = await pair(cluster)
    await a.poll()
    before = len(simulator.requests)
    a.let_trust_end()
    polling = asyncio.create_task(a.poll())
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(simulator.requests) == before
    await a.holding.renew()
    assert (await polling).error is None
    assert len(simulator.requests) > before


async def test_node_that_is_no_longer_sure_ends_its_open_requests_and_closes_the_gate(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, _ = await pair(cluster)
    await arrived(simulator, a)
    with simulator.hold("image"):
        fetching = asyncio.create_task(a.fetch_all())
        await until(lambda: simulator.in_flight == 1)
        answers_nothing(a)
        a.let_trust_end()
        await a.holding.renew()
        await until(lambda: simulator.in_flight == 0)
        assert "has not renewed the leases" in str(a.runtime.services.gate.reason)
    fetching.cancel()
    await asyncio.wait({fetching})


async def test_lost_account_ends_its_open_requests_while_a_reload_keeps_it_from_being_dropped(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, _ = await pair(cluster)
    await arrived(simulator, a)
    with simulator.hold("image"):
        fetching = asyncio.create_task(a.fetch_all())
        await until(lambda: simulator.in_flight == 1)
        await cluster.steal()
        async with a.runtime.changing:
            dropping = asyncio.create_task(a.holding.renew())
            await until(lambda: simulator.in_flight == 0)
            same = await reload.prepare(a.runtime, replaced(a.runtime.config))
            assert same.opened == []
        await asyncio.gather(dropping, fetching)
    assert a.holds == []


def replaced(settings: Config) -> Config:
    """Change what makes a reload open the account again."""
    (one,) = settings.accounts
    return replace(settings, accounts=(replace(one, proxy="http://127.0.0.1:9"),))


def answers_nothing(node: ClusterNode) -> None:
    """Let the database not answer this node's renewals."""

    async def never(*_: object) -> None:
        raise LedgerUnavailable("it is away")

    node.keeper._ledger.aside = never  # type: ignore[assignment,method-assign]


async def test_renewal_without_an_answer_is_sent_again_soon_and_a_late_answer_counts_from_its_sending(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_keeper, "_RENEW_WITHIN_S", 0.05)
    a, _ = await pair(cluster)
    await a.holding.renew()
    ledger, slow = a.keeper._ledger, asyncio.Event()
    aside = ledger.aside

    async def late(*what: Any) -> Any:
        await slow.wait()
        return await aside(*what)

    ledger.aside = late  # type: ignore[assignment,method-assign]
    first = await a.keeper.renew()
    assert (first.is_answered, first.pause_s) == (False, 1.0)
    a.boot_s[0] += 8
    slow.set()
    assert (await a.keeper.renew()).is_answered
    lease = a.keeper.held[APP].lease
    assert a.keeper.may_ask(lease)
    a.boot_s[0] += 2
    assert not a.keeper.may_ask(lease)


async def test_account_whose_last_holder_is_stopped_in_a_transaction_does_not_delay_renewals(
    cluster: Cluster,
) -> None:
    a, _ = await pair(cluster)
    await cluster.ledger.write(leases.add, ["other"])
    with psycopg.connect(cluster.url) as stopped:
        stopped.execute("SELECT 1 FROM poller.leases WHERE app_id = 'other' FOR KEY SHARE")
        assert await a.keeper.take("other") is None
        assert (await a.keeper.renew()).is_answered
    assert await a.keeper.take("other") is not None


async def test_lease_that_has_ended_goes_on_if_nobody_has_taken_the_account(
    cluster: Cluster,
) -> None:
    a, _ = await pair(cluster)
    term = (await cluster.lease()).term
    await cluster.expire()
    await a.holding.renew()
    held = await cluster.lease()
    assert (held.term, held.is_live, a.holds) == (term, True, [APP])


async def test_node_that_lost_its_lease_drops_the_account_and_says_nothing_of_polls(
    cluster: Cluster, simulator: Simulator, events: list[Event]
) -> None:
    a, b = await pair(cluster)
    await arrived(simulator, a)
    await taken_over(cluster, a, b)
    state = a.runtime.states[0]
    with pytest.raises(LeaseLost):
        await state.record()
    await a.holding.renew()
    assert (a.holds, a.ended) == ([], [APP])
    assert said(events, "lease-lost", "poll-failed", "fax-retry", "storage-unusable") == [
        "lease-lost"
    ]
    assert a.runtime.services.gate.usable


async def test_node_that_is_cut_off_from_the_database_has_its_fax_settled_by_another(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, b = await pair(cluster)
    fax_id = await arrived(simulator, a)
    ledger = a.account.services.ledger
    real = ledger.write_together

    async def cut_off(command: Any, item: Any) -> None:
        if command is jobs.stored:
            raise LedgerUnavailable("the server does not answer")
        await real(command, item)

    ledger.write_together = cut_off  # type: ignore[method-assign]
    await a.fetch_all()
    assert not a.runtime.services.gate.usable
    assert consumed(cluster.settings.storage.directory) == 1  # published, and not recorded
    await taken_over(cluster, a, b)
    await b.fetch_all()
    assert (await row(cluster, fax_id)).state is State.STORED
    assert consumed(cluster.settings.storage.directory) == 0
    assert calls(simulator, "image") == 1


# -- a stop past the lease, at each step of a fax ----------------------------------------------------


class Stop:
    """Stops a node at a step of a fax, as SIGSTOP would, until the test lets it go on."""

    def __init__(self) -> None:
        self._at, self._on = threading.Event(), threading.Event()
        self._goes_on = asyncio.Event()

    def before(self, owner: Any, name: str) -> None:
        """Stop before a verb of the store."""
        real = getattr(owner, name)

        def stopped(*args: Any, **how: Any) -> Any:
            self._at.set()
            assert self._on.wait(HELD_S)
            return real(*args, **how)

        setattr(owner, name, stopped)

    def around_write(self, node: ClusterNode, command: Any, *, after: bool) -> None:
        """Stop before or after a write to the ledger."""
        ledger = node.account.services.ledger
        real = ledger.write_together

        async def stopped(wanted: Any, item: Any) -> None:
            if wanted is not command:
                await real(wanted, item)
                return
            if after:
                await real(wanted, item)
            self._at.set()
            await self._goes_on.wait()
            if not after:
                await real(wanted, item)

        ledger.write_together = stopped  # type: ignore[method-assign,assignment]

    async def reached(self) -> None:
        await until(self._at.is_set)

    def go_on(self) -> None:
        self._on.set()
        self._goes_on.set()


STEPS: dict[str, Callable[[Stop, ClusterNode], None]] = {
    "place": lambda stop, node: stop.before(node.runtime.services.storage.store, "place"),
    "stage": lambda stop, node: stop.before(node.runtime.services.storage.store, "stage"),
    "ticket": lambda stop, node: stop.around_write(node, jobs.staged, after=False),
    "ticket recorded": lambda stop, node: stop.around_write(node, jobs.staged, after=True),
    "publish": lambda stop, node: stop.before(node.runtime.services.storage.store, "publish"),
    "record": lambda stop, node: stop.around_write(node, jobs.stored, after=False),
    "recorded": lambda stop, node: stop.around_write(node, jobs.stored, after=True),
}


@pytest.mark.parametrize("is_taken_before", [False, True], ids=["", "taken before"])
@pytest.mark.parametrize("step", STEPS)
async def test_node_that_is_stopped_past_its_lease_delivers_nothing_twice(
    cluster: Cluster, simulator: Simulator, step: str, *, is_taken_before: bool
) -> None:
    assert (
        await delivered_around_a_stop(cluster, simulator, step, is_taken_before=is_taken_before)
        == 1
    )
    assert files(cluster.settings.storage.directory, "*.pdf") == []


async def delivered_around_a_stop(
    cluster: Cluster, simulator: Simulator, step: str, *, is_taken_before: bool
) -> int:
    """Stop a node, let another one take over, and wake the first; return how often a fax was there.

    A consumer takes everything at once, `is_taken_before` also before the takeover.
    """
    storage = cluster.settings.storage.directory
    a, b = await pair(cluster)
    fax_id = await arrived(simulator, a)
    stop = Stop()
    STEPS[step](stop, a)
    account = a.account
    fetching = asyncio.create_task(account.workers.run_until_idle())
    await stop.reached()
    taken = consumed(storage) if is_taken_before else 0
    await taken_over(cluster, a, b)
    await b.fetch_all()
    taken += consumed(storage)
    stop.go_on()
    await until(lambda: fetching.done() or is_asking_in_vain(a))
    await a.holding.renew()
    await fetching
    found = await row(cluster, fax_id)
    assert (found.state, found.staged) == (State.STORED, None)
    assert files(storage, ".*.part") == []
    return taken + consumed(storage)


def is_asking_in_vain(node: ClusterNode) -> bool:
    """Whether the account's work waits for a turn, which a node without trust never gives."""
    return APP not in node.runtime.accounts or bool(node.account.client._pacer._waiting)


async def test_image_that_a_stopped_node_placed_stays_if_another_one_has_adopted_it(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, b = await pair(cluster)
    fax_id = await arrived(simulator, a)
    stop = Stop()
    STEPS["ticket"](stop, a)
    fetching = asyncio.create_task(a.account.workers.run_until_idle())
    await stop.reached()
    await taken_over(cluster, a, b)
    await b.fetch_all()
    stop.go_on()
    await until(fetching.done)
    assert (await row(cluster, fax_id)).state is State.STORED
    (image,) = files(cluster.settings.storage.directory, "*.pdf")
    assert image.with_suffix(".json").exists()


async def test_image_that_came_after_its_fax_was_taken_is_named_and_never_delivered_again(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, _ = await pair(cluster)
    await arrived(simulator, a)
    await a.fetch_all()
    storage = cluster.settings.storage.directory
    (image,) = files(storage, "*.pdf")
    data = image.read_bytes()
    assert consumed(storage) == 1
    image.write_bytes(data)  # by a node that was killed then
    report = verify_command.VerifyReport()
    await verify_command._audit(cluster.settings, cluster.ledger, report, set(), thorough=True)
    shown = report.shown()
    assert (shown["taken"], shown["damaged"], shown["unknown"]) == (1, [], 0)
    (left_over,) = shown["left_over"]
    assert left_over["path"] == str(image.relative_to(storage))
    assert left_over["why"] == "the sidecar is gone, but the image is still there"
    assert report.amiss == set()  # so `--repair` fetches nothing
    rows = await cluster.ledger.read(faxes.with_damage, 9)
    assert rows == []


async def test_node_never_places_what_another_one_is_still_writing(
    cluster: Cluster, simulator: Simulator
) -> None:
    assert await placed_while_another_node_writes(cluster, simulator) == []


async def placed_while_another_node_writes(cluster: Cluster, simulator: Simulator) -> list[Path]:
    """Wake a node that was stopped before it placed an image; return what is visible then."""
    a, b = await pair(cluster)
    await arrived(simulator, a)
    stop, writing = Stop(), Stop()
    STEPS["place"](stop, a)
    fetching = [asyncio.create_task(a.account.workers.run_until_idle())]
    await stop.reached()
    await taken_over(cluster, a, b)
    store = b.runtime.services.storage.store
    new_spool = store.spool

    def spool(path: str) -> Any:
        opened = new_spool(path)
        writing.before(opened, "write")
        return opened

    store.spool = spool  # type: ignore[method-assign]
    fetching.append(asyncio.create_task(b.account.workers.run_until_idle()))
    await writing.reached()
    stop.go_on()
    storage = cluster.settings.storage.directory
    await until(lambda: files(storage, "*.pdf") or fetching[0].done())
    empty = [image for image in files(storage, "*.pdf") if not image.stat().st_size]
    await a.holding.renew()
    writing.go_on()
    await asyncio.wait(fetching)
    return empty


# -- planted faults ----------------------------------------------------------------------------------


def no_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leases, "fence", lambda _, wanted: set(wanted))


def no_ticket(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jobs, "staged", lambda *_: None)


def no_revoke(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "revoke", lambda *_: True)


@pytest.mark.parametrize(
    ("plant", "step"),
    [(no_fence, "ticket"), (no_ticket, "publish"), (no_revoke, "publish"), (no_revoke, "stage")],
)
async def test_planted_fault_is_found_by_the_tests_above(
    cluster: Cluster,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    step: str,
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        assert await delivered_around_a_stop(cluster, simulator, step, is_taken_before=False) == 1


async def test_planted_names_that_nodes_share_are_found(
    cluster: Cluster, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runs, "mark", "the same")
    assert await placed_while_another_node_writes(cluster, simulator) != []


# -- a rolling upgrade -------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["0011", "9999", None])
async def test_older_program_works_on_newer_tables_only_if_they_allow_it(
    cluster: Cluster, reads: str | None
) -> None:
    await cluster.ledger.write(tables_of, "9998", reads)
    try:
        if reads == "0011":
            a = await cluster.node("a")
            await a.holding.look()
            assert a.holds == [APP]
        else:
            with pytest.raises(CannotStart, match="newer poller"):
                await cluster.node("a")
    finally:  # other tests use this database
        await cluster.ledger.write(tables_of, REVISION, None)


def tables_of(connection: Connection, revision: str, reads: str | None) -> None:
    connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    connection.exec_driver_sql("DELETE FROM meta WHERE name = 'reads'")
    if reads is not None:
        meta.keep(connection, "reads", reads)


async def test_migration_that_takes_something_away_waits_for_the_end_of_older_nodes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrated: list[str] = []
    monkeypatch.setattr(alembic_command, "upgrade", lambda _, to: migrated.append(to))
    old = replace((await cluster.node("old")).keeper.report, newest="0010", version="0.2.0")
    await cluster.ledger.write(nodes.report, old)
    await cluster.ledger.write(tables_of, "0010", None)
    try:
        with pytest.raises(CannotStart, match=r"while old \(poller 0.2.0\) cannot work on the new"):
            await cluster.ledger.write(schema.migrate)
        assert migrated == []
        monkeypatch.setattr(schema, "READS", "0010")  # a migration that only adds
        await cluster.ledger.write(schema.migrate)
        monkeypatch.setattr(schema, "READS", "0011")
        await cluster.ledger.write(nodes.end, old.run)
        await cluster.ledger.write(schema.migrate)
        assert migrated == ["head", "head"]
    finally:  # other tests use this database
        await cluster.ledger.write(tables_of, REVISION, None)


async def test_failover_of_the_server_counts_as_one_that_lost_something(
    cluster: Cluster, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await cluster.node("a")
    await a.holding.look()
    await a.holding.renew()
    assert a.holds == [APP]
    monkeypatch.setattr(PostgresBackend, "history", lambda *_: "another timeline")
    await a.holding.renew()
    assert (a.holds, said(events, "ledger-rolled-back")) == ([], ["ledger-rolled-back"])


# -- a database that has lost what it had confirmed -------------------------------------------------


async def stored_and_consumed(cluster: Cluster, simulator: Simulator) -> tuple[ClusterNode, FaxRow]:
    """Return a node and the fax that it has delivered."""
    node = await cluster.node("a")
    await node.holding.look()
    await node.holding.renew()
    fax_id = await arrived(simulator, node)
    await node.fetch_all()
    assert consumed(cluster.settings.storage.directory) == 1
    return node, await row(cluster, fax_id)


async def test_fax_whose_row_is_lost_is_recorded_as_it_was_and_not_delivered_again(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, before = await stored_and_consumed(cluster, simulator)
    await cluster.lose_all()
    await a.holding.renew()
    after = await row(cluster, before.fax_id)
    assert replace(after, id=before.id) == before
    cluster.clock.mono += 16
    await look_thrice(cluster, a)
    await a.poll()
    await a.fetch_all()
    assert consumed(cluster.settings.storage.directory) == 0
    counted = await cluster.ledger.read(streams.one, after.stream)
    assert (counted.discovered, counted.stored, counted.pending) == (1, 1, 0)


async def test_fax_that_its_node_has_stored_is_recorded_and_not_asked_for_again(
    cluster: Cluster, simulator: Simulator
) -> None:
    a, before = await stored_and_consumed(cluster, simulator)
    asked = calls(simulator, "image")
    await cluster.lose_all()
    await a.poll()  # before a renewal finds out what has happened
    await a.fetch_all()
    after = await row(cluster, before.fax_id)
    assert (after.state, after.file, after.stored_at) == (
        State.STORED,
        before.file,
        before.stored_at,
    )
    assert calls(simulator, "image") == asked


async def test_repair_that_an_operator_has_asked_for_stays_after_a_failover(
    cluster: Cluster, simulator: Simulator, events: list[Event]
) -> None:
    a, before = await stored_and_consumed(cluster, simulator)
    await cluster.ledger.write(jobs.fetch_again, [before.id], cluster.clock.now())
    asked = await row(cluster, before.fax_id)
    a.keeper._history = "another timeline"
    await a.holding.renew()
    assert said(events, "ledger-rolled-back") == ["ledger-rolled-back"]
    assert await row(cluster, before.fax_id) == asked


async def test_ticket_that_is_lost_is_said_again_unless_an_operator_has_decided_since(
    cluster: Cluster, simulator: Simulator
) -> None:
    a = await cluster.node("a")
    await a.holding.look()
    held = await row(cluster, await arrived(simulator, a))
    decided = await row(cluster, await arrived(simulator, a))
    for one in (held, decided):
        a.runtime.services.facts.add(one, STAGED)
    await cluster.ledger.write(jobs.make_due, [decided.id], cluster.clock.now())
    assert await a.runtime.services.facts.say_again(cluster.ledger) == 1
    assert (await row(cluster, held.fax_id)).staged == STAGED
    assert (await row(cluster, decided.fax_id)).staged is None


async def test_lease_from_before_a_failover_reads_and_writes_nothing(cluster: Cluster) -> None:
    """What its holder has in memory may be about rows that the new server does not have."""
    a = await cluster.node("a")
    await a.holding.look()
    ledger = a.account.services.ledger
    await ledger.confirm()
    assert ledger._writer is not None
    for database in (ledger._writer._database, ledger._readers):
        database._timeline = "'another'"  # type: ignore[attr-defined]
    with pytest.raises(LeaseLost):
        await ledger.confirm()
    with pytest.raises(LeaseLost):
        await ledger.read(nodes.database_now)
    await a.holding.give_back(APP)
    cluster.clock.mono += 31
    await taken_by(cluster, a)
    await a.account.services.ledger.confirm()
