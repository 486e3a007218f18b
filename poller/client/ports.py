"""The client's dependencies: clock, randomness, sign-in memory, observer, image sink."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from poller.clock import Clock
from poller.efax.requests import Call
from poller.sealing import SealedToken


class SignInStore(Protocol):
    """Remembers an App ID's sign-in budget and last token across restarts; the ledger implements it."""

    async def load(self, app_id: str) -> tuple[float, datetime] | None: ...
    async def save(self, app_id: str, level: float, at: datetime) -> None: ...
    async def token(self, app_id: str) -> SealedToken | None: ...
    async def save_token(self, app_id: str, kept: SealedToken) -> None: ...


class Observer:
    """Receives what happens, and by default ignores it; an override must not block or raise."""

    def request(self, call: Call, status: int | None, seconds: float) -> None:
        """One request was sent, possibly repeated by aiohttp; status None: no whole answer."""

    def waited(self, seconds: float) -> None:
        """A request waited this long because of its account's limits."""

    def pausing(self, seconds: float) -> None:
        """A call failed, and poller retries it after this time."""

    def sign_in_waits(self, seconds: float) -> None:
        """The next sign-in may go only after this time, and all calls wait for it."""

    def rate_limited(self, pause_s: float, rate: float) -> None:
        """The server answered 429; the account pauses, then continues at `rate` requests per second."""

    def signed_in(self, reason: str, token: str) -> None:
        """A new token arrived; never show it. The reason is `start`, `ending`, `refused` or `new key`."""

    def took_up(self, token: str) -> None:
        """A token kept by an earlier process is used, without a sign-in; never show it."""

    def token_war(self, count: int) -> None:
        """eFax refused tokens long before their end `count` times: another program signs in."""

    def token_war_over(self, count: int) -> None:
        """eFax refused no token for a day; before that it refused `count`."""

    def suspended(self, until: datetime, reason: str) -> None:
        """The account is suspended, or stays suspended after a probe."""

    def resumed(self, failures: int, reason: str) -> None:
        """The account works again after this many failures; `reason` is the last one."""


@dataclass(frozen=True)
class Timeouts:
    """Time limits in seconds for a request after its turn.

    An image has no overall limit, but its answer must start within `total_s`, never pause for
    `silence_s`, and deliver `drip_bytes` in every `drip_s`, as a slow drip would pass the other two.
    """

    total_s: float = 60.0
    send_s: float = (
        120.0  # instead of total_s: uploading a fax takes time, and so does eFax's check
    )
    connect_s: float = 10.0
    silence_s: float = 30.0
    drip_s: float = 60.0
    drip_bytes: int = 64 << 10
    error_body_s: float = 5.0


@dataclass(frozen=True)
class Ports:
    """Dependencies shared by all parts of one account's client; `random` is uniform in [0, 1)."""

    clock: Clock
    random: Callable[[], float]
    sign_ins: SignInStore
    observer: Observer
    timeouts: Timeouts = Timeouts()
    may_ask: Callable[[], bool] = lambda: True  # False: another node may be asking for the account


class ImageSink(Protocol):
    """Takes an image as it streams; errors of its methods pass through the client."""

    async def reset(self) -> None:
        """Throw away everything written: the image starts, perhaps again."""

    async def write(self, data: bytes) -> None: ...
