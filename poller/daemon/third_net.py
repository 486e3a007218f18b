"""Ask `GET /notifications` hourly and after a notice, if a web-hook is configured."""

from collections import deque
from dataclasses import dataclass, field

from poller import events
from poller.errors import ApiError, BadAnswer, LedgerUnavailable, Rejected
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Services
from poller.ingest.notifications import NoticeReader
from poller.ingest.stream_state import StreamState

_TICK_S = 1.0
_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S
_POLL_FIRST_S = 5.0  # so that a poll can list the fax first
_APART_S = 15.0
_AFTER_FAILURE_S = 300.0
_SHARE = 0.1  # of the account's limit, at most


@dataclass
class ThirdNet:
    """Asks for one account; `run` goes on until the account ends."""

    account: AccountRunner
    services: Services
    found: int = 0  # faxes that neither polls nor sweeps had listed
    _soon: dict[int, float] = field(
        default_factory=dict
    )  # by stream: the earliest time (monotonic)
    _round: deque[int] = field(default_factory=deque)
    _round_at: float = 0.0
    _not_before: float = 0.0
    _is_off: bool = False

    def __post_init__(self) -> None:
        self._clock = self.services.clock
        self._reader = NoticeReader(self.account, self.services.ledger, self._clock)

    def ask_soon(self, streams: list[StreamState]) -> None:
        """Ask after the poll that a notice caused."""
        at = self._clock.monotonic() + _POLL_FIRST_S
        for stream in streams:
            self._soon.setdefault(stream.id, at)

    async def run(self) -> None:
        while True:
            await self._ask_next()
            await self._clock.sleep(_TICK_S)

    async def _ask_next(self) -> None:
        stream, is_of_round = self._next()
        if stream is None:
            return
        now = self._clock.monotonic()
        limit = self.account.account.limits.requests_per_second
        self._not_before = now + max(
            _APART_S if self._reader.is_of_all else 1.0, 1 / limit / _SHARE
        )
        try:
            found = await self._reader.read(stream, shortly=not is_of_round)
            self.found += found
            self._is_off = False
            if self._reader.is_of_all:  # then the answer covered all users
                if is_of_round:
                    self._round.clear()
                self._soon = {one: at for one, at in self._soon.items() if at > now}
        except (Rejected, BadAnswer) as error:
            self._turn_off(error)
        except (ApiError, LedgerUnavailable):
            self._not_before = self._clock.monotonic() + _AFTER_FAILURE_S  # polls report the error
        except Exception as bug:  # noqa: BLE001 - polls and sweeps do not need this
            self._not_before = self._clock.monotonic() + _HOUR_S
            what = "An unexpected error ended the reading of GET /notifications."
            self.services.emit(events.InternalError(what, bug, self.account.account.name))

    def _next(self) -> tuple[StreamState | None, bool]:
        """Return the next stream, and whether it is part of the hourly round; None before a first poll."""
        now, states = self._clock.monotonic(), self.account.states
        if now < self._not_before or self.account.is_suspended:
            return None, False
        is_due = now >= self._round_at and not self._round  # a round of many users takes longer
        if is_due and any(state.polled for state in states.values()):
            self._round = deque(states)
            self._round_at = now + _HOUR_S
        due = [stream for stream, at in self._soon.items() if at <= now]
        if not due and not self._round:
            return None, False
        chosen = due[0] if due else self._round.popleft()
        self._soon.pop(chosen, None)
        return states.get(chosen), not due

    def _turn_off(self, error: ApiError) -> None:
        if not self._is_off:
            self._is_off = True
            self.services.emit(events.NotificationsOff(self.account.account.name, error))
        self._soon.clear()
        self._round.clear()
        self._round_at = self._not_before = self._clock.monotonic() + _DAY_S
