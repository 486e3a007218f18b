"""What the client is handed: clock and chance, the sign-ins' memory, who is told, where an image goes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from poller.clock import Clock
from poller.efax.requests import Call


class SignInStore(Protocol):
    """Remembers an App ID's sign-in budget over restarts; the ledger does it."""

    async def load(self, app_id: str) -> tuple[float, datetime] | None: ...
    async def save(self, app_id: str, level: float, at: datetime) -> None: ...


class Observer:
    """Is told what happens and does nothing; who overrides a method must neither block nor raise."""

    def request(self, call: Call, status: int | None, seconds: float) -> None:
        """One request was sent, aiohttp's own repeats included; status None: no whole answer."""

    def waited(self, seconds: float) -> None:
        """A request waited so long for the limits of its account."""

    def pausing(self, seconds: float) -> None:
        """A call failed and is tried again after so long."""

    def sign_in_waits(self, seconds: float) -> None:
        """The next sign-in may go only after so long, and all calls wait for it."""

    def rate_limited(self, pause_s: float, rate: float) -> None:
        """The server said 429; the account pauses and goes on at `rate` requests per second."""

    def signed_in(self, reason: str, token: str) -> None:
        """A new token is here, never to be shown; reason is `start`, `ending` or `refused`."""

    def token_war(self, count: int) -> None:
        """Tokens were refused long before their end `count` times: somebody else signs in."""

    def token_war_over(self, count: int) -> None:
        """No token was refused for a day; `count` were before that."""

    def suspended(self, until: datetime, reason: str) -> None:
        """The account is suspended, or stays so after a probe."""

    def resumed(self, failures: int, reason: str) -> None:
        """The account is well again after so many failures; `reason` is the last one."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a request may take once it had its turn.

    An image has no limit in all, but its answer must begin within `total_s`, never be silent for
    `silence_s`, and bring `drip_bytes` in every `drip_s`: a slow drip would defeat the other two.
    """

    total_s: float = 60.0
    send_s: float = 120.0  # instead of total_s: a fax goes up, and eFax reads it
    connect_s: float = 10.0
    silence_s: float = 30.0
    drip_s: float = 60.0
    drip_bytes: int = 64 << 10
    error_body_s: float = 5.0


@dataclass(frozen=True)
class Ports:
    """What all parts of one account's client share; `random` is uniform in [0, 1)."""

    clock: Clock
    random: Callable[[], float]
    sign_ins: SignInStore
    observer: Observer
    timeouts: Timeouts = Timeouts()


class ImageSink(Protocol):
    """Takes an image as it streams; what its methods raise passes through the client."""

    async def reset(self) -> None:
        """Throw away what was written: the image begins (again)."""

    async def write(self, data: bytes) -> None: ...
