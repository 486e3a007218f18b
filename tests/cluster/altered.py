"""What is changed in a node's process before it starts: faults that the checks must find, and stops.

`Lab.node(prepare=…)` names these functions.
"""

import asyncio
import functools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from poller.daemon import holding
from poller.documents import Staged
from poller.ingest import lease_keeper
from poller.ingest.lease_keeper import LeaseKeeper
from poller.ledger import jobs, leases, nodes
from poller.ledger.writer import Writer
from poller.store import Identity, Runs, Store, recovery, syscalls
from poller.store.bucket import BucketStore
from poller.store.bucket_calls import Objects
from poller.store.directory import Directory
from poller.store.recovery import Fate
from poller.store.sidecars import path_of
from poller.store.spool import Spool

_HERE = __name__
_ASLEEP_S, _UNAWARE_S = 2.5, 2.0
_PLANTS = ("no_fence", "no_ticket", "no_revoke", "ticket_believed")
PLANTS = {"bucket": _PLANTS, "directory": (*_PLANTS, "shared_dot_names")}


def named(*functions: str) -> dict[str, None]:
    """Return how to order functions of this module."""
    return {f"{_HERE}:{function}": None for function in functions}


def short_leases(_about: None) -> None:
    """Let a takeover take seconds, so that many can be tried."""
    ttl = timedelta(seconds=3)
    leases.TTL = nodes.LIVE_FOR = ttl
    for function in (leases.take, leases.renew):
        function.__defaults__ = (ttl,)
    lease_keeper._TRUSTED_FOR_S, lease_keeper._RENEW_WITHIN_S = 2.0, 0.8
    lease_keeper.RENEW_EVERY_S, lease_keeper._AGAIN_AFTER_S = 0.8, 0.2
    holding._LOOK_S, holding._RANK_S = 0.3, 0.1


def unaware(_about: None) -> None:
    """After it was stopped, let a node not notice for two seconds that its leases are lost.

    Only the fence and the tickets are left to keep it from harm then.
    """
    renew, renewed_at = LeaseKeeper.renew, time.monotonic()

    async def late(self: LeaseKeeper, *given: Any, **how: Any) -> Any:
        nonlocal renewed_at
        if time.monotonic() - renewed_at > _ASLEEP_S:
            await asyncio.sleep(_UNAWARE_S)
        renewed_at = time.monotonic()
        return await renew(self, *given, **how)

    LeaseKeeper.renew = late  # type: ignore[method-assign]
    LeaseKeeper.may_ask = lambda self, lease: lease.app_id in self.held  # type: ignore[method-assign]


def in_group(number: int) -> None:
    """Let the firewall know this process by its group."""
    os.setegid(number)


# -- planted faults --------------------------------------------------------------------------------


def no_fence(_about: None) -> None:
    leases.fence = lambda _, wanted: set(wanted)  # type: ignore[assignment]


def no_ticket(_about: None) -> None:
    """Publish a sidecar whose ticket the ledger does not have."""
    jobs.staged = lambda *_: None


def no_revoke(_about: None) -> None:
    """Leave a former holder its ticket: neither revoke it nor tidy up."""
    for store in (Directory, BucketStore):
        setattr(store, "revoke", lambda *_: True)  # noqa: B010 (mypy)
    Directory.tidy = lambda *_: 0  # type: ignore[method-assign]


def ticket_believed(_about: None) -> None:
    """Take a ticket that is gone for a fax that was delivered, without a look at the image."""

    def settle(store: Store, staged: Staged, identity: Identity) -> Fate:
        store.revoke(path_of(staged.file), staged.ticket)
        return Fate.PUBLISHED

    recovery.settle = settle


def shared_dot_names(_about: None) -> None:
    Runs.mark = "the same"  # type: ignore[assignment,method-assign]


# -- stops -----------------------------------------------------------------------------------------

_CHANGES = (
    *("create", "create_synced", "sync_file", "sync_directory", "close_written"),
    *("move", "rename", "unlink"),
)
_CALLS = ("put", "begin", "send_part", "complete", "abort", "delete", "head")
NOTED, ORDERED, STOPPED = "steps", "stop at", "stopped"  # files in the lab's directory


class Steps:
    """Counts the steps of this process, notes them, and stops it before one that is ordered."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._since = ""
        self._count: Counter[str] = Counter()

    def reach(self, name: str) -> None:
        """Note a step, as its name and number; stop here if it is ordered and no process came first."""
        ordered, noted = self._directory / ORDERED, self._directory / NOTED
        try:
            since = ordered.read_text()
        except FileNotFoundError:
            since = "noted" if noted.exists() else ""
        if since != self._since:
            self._since, self._count = since, Counter()
        self._count[name] += 1
        step = f"{name} {self._count[name]}"
        if since == "noted":
            with noted.open("a") as file:
                file.write(f"{step}\n")
        elif since == step:
            with suppress(FileNotFoundError):
                ordered.rename(self._directory / STOPPED)  # only one process can do it
                # Sent to the process, it could stop this thread a little later.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def before(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def counted(*args: Any, **how: Any) -> Any:
            self.reach(name)
            return real(*args, **how)

        setattr(owner, name, counted)


def stoppable(directory: str) -> None:
    """Let each change of the store, and each commit of a fax's rows, be a step."""
    steps = Steps(Path(directory))
    for name in _CHANGES:
        steps.before(syscalls, name)
    for name in _CALLS:
        steps.before(Objects, name)
    steps.before(Spool, "write")
    transaction = Writer._transaction

    async def stepped(self: Writer, wanted: list[Any]) -> list[list[Any]]:
        about = next((one.work.__name__ for one in wanted if one.work in _OF_FAXES), None)
        if about is None:
            return await transaction(self, wanted)
        steps.reach(f"before {about}")
        database = self._database
        begun = database._transaction

        def in_steps(work: Callable[[Connection], Any]) -> Any:
            def to_its_end(connection: Connection) -> Any:
                done = work(connection)
                steps.reach(f"before the commit of {about}")
                return done

            return begun(to_its_end)

        database._transaction = in_steps  # type: ignore[method-assign]
        try:
            done = await transaction(self, wanted)
        finally:
            database._transaction = begun  # type: ignore[method-assign]
        steps.reach(f"after {about}")
        return done

    Writer._transaction = stepped  # type: ignore[method-assign,assignment]


_OF_FAXES = (jobs.staged, jobs.stored)
