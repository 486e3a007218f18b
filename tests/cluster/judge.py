"""Takes faxes as a consumer does, and judges what was delivered against what eFax had.

It uses nothing of poller, only what the simulator served.
"""

import asyncio
import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from aiohttp import web

from poller.simulator import Seen
from poller.simulator.query import Arrival
from poller.simulator.state import Fax
from tests.cluster.shelf import Shelf
from tests.efax import Simulator

Identity = tuple[str, str, str]
RATE_WINDOW_S = 10.0
_LATE_S = 0.5  # how much later this process may notice one request than another


class Efax(Simulator):
    """The simulated eFax; it counts each account's requests that have no answer yet."""

    def __init__(self, *, image_s: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._image_s = image_s  # how long it takes with an image, so that several are open at once
        self.open: Counter[str] = Counter()
        self.most_open: Counter[str] = Counter()
        self._answering: dict[Any, str] = {}

    def see(self, arrival: Arrival) -> Seen:
        seen = super().see(arrival)
        if seen.app_id is not None:
            self._answering[asyncio.current_task()] = seen.app_id
            self.open[seen.app_id] += 1
            most = max(self.open[seen.app_id], self.most_open[seen.app_id])
            self.most_open[seen.app_id] = most
        return seen

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await super()._handle(request)
        finally:
            if app_id := self._answering.pop(asyncio.current_task(), None):
                self.open[app_id] -= 1

    def busiest_window(self) -> int:
        """Return the most requests that one account sent in ten seconds."""
        most, window_s = 0, RATE_WINDOW_S - _LATE_S
        for times in self._times(lambda seen: seen.call != "health").values():
            starts = (bisect_left(times, end - window_s) for end in times)
            most = max(most, *(at + 1 - start for at, start in enumerate(starts)))
        return most

    def needless_sign_ins(self) -> int:
        """Return how many sign-ins were neither an account's first nor followed a refused token."""
        signed_in = self._times(lambda seen: seen.call == "token")
        refused = self._times(lambda seen: seen.status == 401)
        return sum(
            max(0, len(times) - 1 - len(refused.get(app_id, [])))
            for app_id, times in signed_in.items()
        )

    async def before_delivery(self, seen: Seen) -> None:
        await super().before_delivery(seen)
        if seen.call == "image":
            await asyncio.sleep(self._image_s)

    def longest_pause_s(self, since: float, until: float) -> float:
        """Return how long an account went without an answered list between two monotonic times."""
        lists = self._times(lambda seen: seen.call == "list" and seen.status == 200)
        pauses = [0.0]
        for app_id in self.apps:
            asked = [at for at in lists.get(app_id, []) if since < at < until]
            pauses += [later - earlier for earlier, later in pairwise([since, *asked, until])]
        return max(pauses)

    def listed_since(self, since: float) -> set[str]:
        """Return the accounts that got a list after this monotonic time."""
        lists = self._times(lambda seen: seen.call == "list" and seen.status == 200)
        return {app_id for app_id, times in lists.items() if times[-1] > since}

    def _times(self, wanted: Any) -> dict[str, list[float]]:
        times = defaultdict(list)
        for seen in self.requests:
            if seen.app_id is not None and wanted(seen):
                times[seen.app_id].append(seen.at_s)
        return {app_id: sorted(found) for app_id, found in times.items()}


@dataclass
class Consumer:
    """Takes faxes from the shelf: reads sidecar and image, removes the image first, the sidecar last."""

    shelf: Shelf
    efax: Efax
    delivered: Counter[Identity] = field(default_factory=Counter)
    halves: list[str] = field(default_factory=list)
    _doubtful: set[tuple[str, str]] = field(default_factory=set)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def take_all(self) -> int:
        """Take what is there; return how many faxes that was."""
        names = await self.shelf.names()
        sidecars = [name for name in names if name.endswith(".json")]
        for name in names:
            if not name.endswith(".json"):
                await self._look_at(name)
        for name in sidecars:
            await self._take(name)
        return len(sidecars)

    async def keep_taking(self, every_s: float = 0.05) -> None:
        """Take what comes until `rest`."""
        self._ending.clear()
        while not self._ending.is_set():
            await self.take_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), every_s)

    def rest(self) -> None:
        self._ending.set()

    async def _look_at(self, image: str) -> None:
        """An image that can be seen is whole, also before its sidecar is there, or came damaged."""
        data = await self.shelf.read(image)
        served = set().union(*self.efax.served.values())
        if data is not None and (hashed := hashlib.sha256(data).hexdigest()) not in served:
            self._doubtful.add((image, hashed))

    async def _take(self, name: str) -> None:
        written = await self.shelf.read(name)
        if written is None:
            self.halves.append(f"{name} vanished")
            return
        sidecar = json.loads(written)
        image = f"{name.rpartition('/')[0]}/{sidecar['image']['file']}"
        data = await self.shelf.read(image)
        identity = (sidecar["app_id"], sidecar["user_id"], sidecar["fax_id"])
        self.delivered[identity] += 1
        if data is None:
            self.halves.append(f"{name} has no image")
        elif hashlib.sha256(data).hexdigest() != sidecar["image"]["sha256"]:
            self.halves.append(f"{name} has another image")
        elif not self._is_as_served(identity, sidecar["image"], data):
            self.halves.append(f"{name} has an image that eFax never served")
        elif sidecar["image"]["damaged"]:
            self._doubtful.discard((image, sidecar["image"]["sha256"]))
        await self.shelf.remove(image)
        await self.shelf.remove(name)

    def _is_as_served(self, identity: Identity, image: dict[str, Any], data: bytes) -> bool:
        """Whether eFax has sent these bytes: a document, or the beginning of one that it cut."""
        fax = next(one for one in self.efax.faxes() if identity_of(one) == identity)
        if image["damaged"]:
            return self.efax.image_bytes(fax, image["format"]).startswith(data)
        return image["sha256"] in self.efax.served.get(fax, ())

    def faults(self) -> bool:
        return bool(self.missing() or self.twice() or self.half())

    def half(self) -> list[str]:
        return [*self.halves, *(f"{image} is not whole" for image, _ in sorted(self._doubtful))]

    def missing(self) -> list[Identity]:
        wanted = {identity_of(fax) for fax in self.efax.faxes()}
        return sorted(wanted - self.delivered.keys())

    def twice(self) -> list[Identity]:
        return sorted(one for one, count in self.delivered.items() if count > 1)


def identity_of(fax: Fax) -> Identity:
    return (fax.app_id, fax.user_id, fax.fax_id)


@dataclass
class Verdict:
    """What a run has shown: `faults` is why it failed, `figures` what it measured."""

    faults: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)

    def of_faxes(self, consumer: Consumer, may_repeat: Collection[Identity] = ()) -> None:
        """No fax lost, none half, and none twice but those that may."""
        lost, twice, half = consumer.missing(), consumer.twice(), consumer.half()
        self.figures |= {
            "faxes": len(consumer.efax.faxes()),
            "lost": len(lost),
            "twice": len(twice),
            "half": len(half),
        }
        self.demand(not lost, f"lost: {lost[:3]}")
        repeated = [one for one in twice if one not in may_repeat]
        self.demand(not repeated, f"twice: {repeated[:3]}")
        self.demand(not half, f"half: {half[:3]}")

    def of_limits(self, efax: Efax, *, most: int, in_flight: int) -> None:
        """Each account's requests within its limits."""
        window, open_ = efax.busiest_window(), max(efax.most_open.values(), default=0)
        needless = efax.needless_sign_ins()
        self.figures |= {
            "in 10 s": f"{window} of {most}",
            "open": f"{open_} of {in_flight}",
            "sign-ins": f"{efax.sign_ins.total()} ({needless} needless)",
        }
        self.demand(window <= most, f"{window} requests in ten seconds, {most} are allowed")
        self.demand(open_ <= in_flight, f"{open_} requests at once, {in_flight} are allowed")
        self.demand(not needless, f"{needless} sign-ins that nothing called for")
