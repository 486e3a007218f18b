"""What the client is handed: where sign-ins are remembered, who is told, where an image goes."""

from datetime import datetime
from typing import Protocol

from poller.efax import Call


class SignInStore(Protocol):
    """Remembers an App ID's sign-in budget over restarts; the ledger does it."""

    async def load(self, app_id: str) -> tuple[float, datetime] | None: ...
    async def save(self, app_id: str, level: float, at: datetime) -> None: ...


class Observer(Protocol):
    """Is told what happens; it logs and counts, and must neither block nor raise."""

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


class Unobserved:
    """An Observer that does nothing, for callers who look at some of it only, or at nothing."""

    def request(self, call: Call, status: int | None, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def pausing(self, seconds: float) -> None: ...
    def sign_in_waits(self, seconds: float) -> None: ...
    def rate_limited(self, pause_s: float, rate: float) -> None: ...
    def signed_in(self, reason: str, token: str) -> None: ...
    def token_war(self, count: int) -> None: ...
    def token_war_over(self, count: int) -> None: ...
    def suspended(self, until: datetime, reason: str) -> None: ...
    def resumed(self, failures: int, reason: str) -> None: ...


class ImageSink(Protocol):
    """Takes an image as it streams; what its methods raise passes through the client."""

    async def reset(self) -> None:
        """Throw away what was written: the image begins (again)."""

    async def write(self, data: bytes) -> None: ...
