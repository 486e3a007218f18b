"""What is known of one account's lists: their spelling, their contents, and the last proof."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.emptiness import MOST_WITNESSES, Lists, is_proof_due
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, Ledger, accounts, fold
from poller.progress import SweepsForgotten
from poller.window import Interval


@dataclass(frozen=True)
class Witness:
    """A fax that eFax has listed in this window; `stream` is `StreamState.id`."""

    stream: int
    fax_id: str
    window: Interval


class ListMemory:
    """Memory of one account. `proved_s` is when its lists were last proved, `well` for which user."""

    def __init__(
        self, client: Client, ledger: Ledger, clock: Clock, states: Mapping[int, StreamState]
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self.states = states
        self.is_a_look = False  # keep nothing: only polls judge
        self.witnesses: list[Witness] = []  # newest first
        self.proved_s: float | None = None
        self.well: User | None = None
        self.lock = asyncio.Lock()  # held while somebody asks for a proof
        self._lists: Lists | None = None  # None: not yet read from the ledger

    def discovered(self, faxes: Sequence[FaxRow]) -> None:
        """Take a fax of a page as a witness."""
        if (window := faxes[0].first_window) is not None:
            self._add_witnesses([Witness(faxes[0].stream, faxes[0].fax_id, window)])

    def is_due(self, asked_s: float | None) -> bool:
        """Whether the last proof is too old, if it was requested at this time."""
        limits = self._client.account.limits
        return is_proof_due(self._clock.monotonic(), asked_s, limits.requests_per_second)

    async def known(self) -> Lists:
        """Read once what earlier runs have learnt, and which faxes they had listed."""
        if self._lists is None:
            text, faxes = await self._ledger.read(accounts.lists, self._client.account.app_id)
            if self._lists is None:  # nobody else has read it meanwhile
                self._lists = lists = Lists.read(text)
                self._add_witnesses(
                    [Witness(*fax) for fax in faxes if not lists.is_deleted(fax[2].end)]
                )
        return self._lists

    def give_up(self, stream: int, fax_id: str) -> bool:
        """Stop asking for a fax that is about to be deleted; False if somebody may be asking now."""
        mine = [one for one in self.witnesses if (one.stream, one.fax_id) == (stream, fax_id)]
        if mine and self.lock.locked():
            return False
        self.witnesses = [one for one in self.witnesses if one not in mine]
        return True

    async def refill(self) -> None:
        """Take others from the ledger when none is left."""
        if not self.witnesses:
            self._lists = None
            await self.known()

    async def keep(self, lists: Lists) -> None:
        self._lists = lists
        if not self.is_a_look:
            await self._ledger.write(accounts.keep_lists, self._client.account.app_id, lists.text())

    async def doubt(self, *, is_outage: bool = False) -> Lists:
        """Note that eFax lists nothing that it listed before."""
        lists = await self.known()
        await self.keep(doubted := lists.doubted(self._client.server_now(), is_outage=is_outage))
        return doubted

    async def list_again(self, since: datetime | None = None) -> None:
        """List again the empty lists since then, or since the start: they may have been wrong."""
        forgotten = SweepsForgotten(since)
        if self.is_a_look:
            for state in self.states.values():
                state.apply(forgotten)
        else:
            app_id = self._client.account.app_id
            try:
                await self._ledger.write(fold.record_for_account, app_id, forgotten)
            finally:
                for state in self.states.values():
                    state.doubt()
        for state in self.states.values():
            state.sweeps.clear()  # a running sweep must include that
            state.sweep_now = True

    def _add_witnesses(self, new: Sequence[Witness]) -> None:
        """Keep a few witnesses of the newest windows, each once."""
        of_windows = {(one.stream, one.window): one for one in (*self.witnesses, *new)}
        newest_first = sorted(of_windows.values(), key=lambda one: one.window.end, reverse=True)
        self.witnesses = newest_first[:MOST_WITNESSES]
