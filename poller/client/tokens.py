"""One token per account: all callers share it, one renews it, and two programs do not fight.

It outlives the process: the ledger keeps it, sealed.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from poller import sealing
from poller.client.ports import Observer, Ports
from poller.efax.responses import Token
from poller.errors import (
    AccountSuspended,
    ApiError,
    LedgerUnavailable,
    SignInDelayed,
    SignInRefused,
)
from poller.own_threads import looked_at
from poller.retry import SignInBudget

_EARLY_S = 300.0  # renew a token this long before its end,
_EARLY_SHARE = 0.05  # or at this share of its life, whichever is shorter
_RENEW_AGAIN_S = 60.0  # after a failed renewal of a token that is still valid
_LONGEST_WAIT_S = 31.0  # wait for a sign-in that may go within this time
_WAR_PAUSES_FOR_S = 3600.0
_WAR_ENDS_AFTER_S = 86_400.0
_WAR_PAUSE_S = 30.0
_WAR_LONGEST_PAUSE_S = 600.0


@dataclass(eq=False)
class Held:
    """A token in use; times are monotonic seconds. `is_kept`: an earlier process signed in for it."""

    value: str = field(repr=False)
    renew_at: float
    ends_at: float
    is_kept: bool = False
    accepted: bool = False


class Tokens:
    """Gives out an account's token. `sign_in` sends the request for a user, with the `api_key`."""

    def __init__(
        self,
        app_id: str,
        sign_in: Callable[[str], Awaitable[Token]],
        ports: Ports,
        *,
        api_key: Callable[[], str],
    ) -> None:
        self.held: Held | None = None
        self.war = TokenRivalry(ports.observer)
        self._app_id = app_id
        self._sign_in = sign_in
        self._api_key = api_key
        self._ports = ports
        self._clock = ports.clock
        self._renewal: asyncio.Task[None] | None = None
        self._reason = "start"
        self._has_looked = False  # for a kept token
        self._doubtful: set[str] = set()
        self._key_changes = self._key_changes_met = 0

    async def get(self, user: str) -> None:
        """Make sure that `held` is a valid token; sign in if needed, and if no earlier process's lives.

        Raises SignInDelayed if the next sign-in is too far away, and the errors of the sign-in.
        """
        now = self._clock.monotonic()
        held = self.held
        if held is not None and now < held.renew_at:
            return
        if held is None or now >= held.ends_at:
            await self._renew(user, self._reason if held is None else "ending")
            return
        try:
            await self._renew(user, "ending" if self._has_newest_key else "new key")
        except (SignInRefused, AccountSuspended):
            raise
        except (
            ApiError,
            LedgerUnavailable,
        ):  # the old token is still valid; a later call tries again
            held.renew_at = min(now + _RENEW_AGAIN_S, held.ends_at)

    def key_changed(self) -> None:
        """Make the next call sign in with the new key.

        If that fails (the budget is spent, eFax does not answer), use the old token while it is valid.
        """
        self._key_changes += 1
        if self.held is not None:
            self.held.renew_at = self._clock.monotonic()

    def accepted(self, held: Held, user: str) -> None:
        """Note that a request with this token got an answer."""
        held.accepted = True
        self._doubtful.discard(user)
        self.war.spared(self._clock.monotonic())

    def refused(self, held: Held, user: str) -> bool:
        """Note a 401 to a request with this token; return False if another token would not help.

        If the token works for other users, and eFax has refused this user with a fresh token before,
        then the user is the problem, not the token.
        """
        if held is not self.held:
            return True  # another call replaced it while the request was under way
        if held.accepted and user in self._doubtful:
            return False
        self.held = None
        self._reason = "refused"
        now = self._clock.monotonic()
        # A kept token may have ended while nobody looked, or by a clock that was wrong.
        if now < held.renew_at and (held.accepted or not held.is_kept):
            self.war.lost(now)
        return True

    def doubt(self, user: str) -> None:
        """Note that eFax refused a user with a fresh token as well."""
        self._doubtful.add(user)

    async def _renew(self, user: str, reason: str) -> None:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renewed(user, reason), name="sign-in")
            self._renewal.add_done_callback(looked_at)
        # Shielded: others wait for it too, and the server may have ended the old token already.
        await asyncio.shield(self._renewal)

    async def _renewed(self, user: str, reason: str) -> None:
        if not self._has_looked:
            await self._take_up()
            if self.held is not None:
                return
        await self._wait_for_leave()
        asked_at, asked = self._clock.monotonic(), self._clock.now()
        key = self._key_changes
        token = await self._sign_in(user)
        ends_at = asked_at + token.expires_in_s
        self._key_changes_met = key
        renew_at = ends_at - self._early_s(token.expires_in_s) if self._has_newest_key else asked_at
        self.held = Held(token.value, renew_at, ends_at)
        self.war.signed_in(self._clock.monotonic())
        self._ports.observer.signed_in(reason, token.value)
        if self._has_newest_key:  # or the next sign-in follows at once
            await self._keep(token, asked)

    async def _take_up(self) -> None:
        """Hold the token that an earlier process kept, unless it has ended or another key sealed it."""
        kept = await self._ports.sign_ins.token(self._app_id)
        self._has_looked = True
        if kept is None or (left_s := kept.left_s(self._clock.now())) <= 0:
            return
        value = sealing.unseal(kept.sealed, api_key=self._api_key(), app_id=self._app_id)
        if value is None:
            return
        self._key_changes_met = self._key_changes
        ends_at = self._clock.monotonic() + left_s
        self.held = Held(value, ends_at - self._early_s(kept.life_s), ends_at, is_kept=True)
        self._ports.observer.took_up(value)

    async def _keep(self, token: Token, asked: datetime) -> None:
        nonce = secrets.token_bytes(sealing.NONCE_BYTES)
        sealed = sealing.seal(
            token.value, api_key=self._api_key(), app_id=self._app_id, nonce=nonce
        )
        ends_at = asked + timedelta(seconds=token.expires_in_s)
        await self._ports.sign_ins.save_token(
            self._app_id, sealing.SealedToken(sealed, asked, ends_at)
        )

    def _early_s(self, life_s: float) -> float:
        """Return how long before its end to renew a token that lives so long."""
        return min(_EARLY_S, _EARLY_SHARE * life_s) * (1 + self._ports.random())

    @property
    def _has_newest_key(self) -> bool:
        """Return whether the last sign-in used the present key, which may change during a sign-in."""
        return self._key_changes_met == self._key_changes

    async def _wait_for_leave(self) -> None:
        while True:
            wait_s = self.war.wait_s(self._clock.monotonic())
            if wait_s <= 0:
                wait_s = await self._spend_sign_in()
            if wait_s <= 0:
                return
            if wait_s > _LONGEST_WAIT_S:
                raise SignInDelayed(
                    f"The next sign-in is allowed in {wait_s:.0f} seconds.", wait_s=wait_s
                )
            self._ports.observer.sign_in_waits(wait_s)
            await self._clock.sleep(wait_s)

    async def _spend_sign_in(self) -> float:
        """Use up one sign-in of the account's budget, or return the seconds until there is one.

        Record it before the request goes, so that it counts even after a crash.
        """
        now, store = self._clock.now(), self._ports.sign_ins
        stored = await store.load(self._app_id)
        budget = SignInBudget.full(now) if stored is None else SignInBudget(*stored)
        taken = budget.take(now)
        if isinstance(taken, float):
            return taken
        await store.save(self._app_id, taken.level, taken.at)
        return 0.0

    async def close(self) -> None:
        """End a sign-in that is under way."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)


class TokenRivalry:
    """Notices that another program signs in with this App ID, and slows our sign-ins down.

    Each sign-in ends the other program's token, so both would sign in again and again. After the
    second token in an hour that eFax refuses long before its end, wait 30 s between sign-ins,
    doubling to 10 min. That is a token war; so is the third such token in a day, which a job that
    runs every few hours may cause. It ends after a day without one.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._losses: list[float] = []
        self._signed_in_at: float | None = None
        self.is_on = False
        self._lost_in_war = 0

    def lost(self, now: float) -> None:
        """Note that eFax refused a token long before its end."""
        self._losses = [*self._since(now - _WAR_ENDS_AFTER_S), now]
        self._lost_in_war += 1
        if self.is_on or (len(self._losses) < 3 and len(self._lately(now)) < 2):
            return
        self.is_on = True
        self._lost_in_war = len(self._losses)
        self._observer.token_war(self._lost_in_war)

    def spared(self, now: float) -> None:
        """Note that a token worked."""
        if self.is_on and not self._since(now - _WAR_ENDS_AFTER_S):
            self.is_on = False
            self._observer.token_war_over(self._lost_in_war)

    def signed_in(self, now: float) -> None:
        self._signed_in_at = now

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next sign-in may go; 0 or less means now."""
        losses = len(self._lately(now))
        if losses < 2 or self._signed_in_at is None:
            return 0.0
        pause_s = min(_WAR_PAUSE_S * 2.0 ** (losses - 2), _WAR_LONGEST_PAUSE_S)
        return self._signed_in_at + pause_s - now

    def _lately(self, now: float) -> list[float]:
        return self._since(now - _WAR_PAUSES_FOR_S)

    def _since(self, instant: float) -> list[float]:
        return [at for at in self._losses if at > instant]
