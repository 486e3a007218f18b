"""From a call to its answer: turn, token, suspension, and trying again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from poller.client.body import Reader, whole
from poller.client.breaker import Breaker
from poller.client.pacer import Pacer
from poller.client.ports import Ports
from poller.client.tokens import Tokens
from poller.client.transport import Transport
from poller.config.model import Account, RetryConfig
from poller.efax.outgoing import leaves_in_doubt
from poller.efax.requests import Call, Request, token_request
from poller.efax.responses import Token, parse_token
from poller.errors import (
    ApiError,
    BadAnswer,
    SendInDoubt,
    SignInRefused,
    TokenRefused,
    Unreachable,
)
from poller.pacing import Kind, Ticket
from poller.retry import pause_s, worth_repeating

T = TypeVar("T")
Before = Callable[[], Awaitable[None]]

# Calls that say something about the account however they fail; others may fail for one fax only.
_OF_THE_ACCOUNT = (Call.TOKEN, Call.HEALTH, Call.LIST)


async def nothing() -> None:
    return


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """One call of a user: the request that a token gives, and how its answer is read.

    `before` runs before each request, when it is its turn; what it raises passes through.
    """

    kind: Kind
    user: str
    request: Callable[[str], Request]
    read: Reader[T]
    before: Before = nothing


class Requester:
    """Makes the calls of one account; `api_key` is asked for at each sign-in."""

    def __init__(
        self,
        account: Account,
        ports: Ports,
        pacer: Pacer,
        *,
        api_key: Callable[[], str],
        retry: RetryConfig,
    ) -> None:
        self.breaker = Breaker(account, pacer, ports)
        self.transport = Transport(account, pacer, ports)
        self.tokens = Tokens(account.app_id, self._sign_in, ports)
        self._app_id = account.app_id
        self._api_key = api_key
        self._retry = retry
        self._ports = ports
        self._pacer = pacer

    async def call(self, exchange: Exchange[T]) -> T:
        """Make a call, again where that may help; raises AccountSuspended while it is suspended."""
        self.breaker.require_closed()
        return await self.repeated(lambda: self.attempt(exchange))

    async def probe(self, exchange: Exchange[T]) -> T:
        """Make a call once that finds out whether a suspended account is well again."""
        with self.breaker.probing(exchange.user):
            return await self.attempt(exchange, probe=True)

    async def repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run a step up to `retry.attempts` times; raises what the last one ended with.

        tenacity takes over once the step has failed: from the start it would cost each poll 40 µs,
        of the millisecond that a poll takes in all.
        """
        failed: list[ApiError] = []
        try:
            return await step()
        except ApiError as error:
            failed.append(error)

        async def again() -> T:
            if failed:
                raise failed.pop()  # to tenacity this is the first try
            return await step()

        return await self._retrying()(again)

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            sleep=self._ports.clock.sleep,
            stop=stop_after_attempt(self._retry.attempts),
            wait=self._pause_s,
            retry=retry_if_exception(worth_repeating),
            before_sleep=lambda state: self._ports.observer.pausing(state.upcoming_sleep),
            reraise=True,
        )

    def _pause_s(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        assert isinstance(error, ApiError)  # nothing else is worth repeating
        cap, u = self._retry.max_delay, self._ports.random()
        return pause_s(state.attempt_number, error, cap=cap, u=u)

    async def attempt(self, exchange: Exchange[T], *, probe: bool = False) -> T:
        """Send with a token; a 401 counts against that token and is met once with a new one."""
        user, refusals = exchange.user, 0
        while True:
            if not probe:
                self.breaker.require_closed()
            await self.tokens.get(user)
            async with self._pacer.turn(exchange.kind, user) as ticket:
                await exchange.before()
                if not probe:  # it may have come about while this call waited
                    self.breaker.require_closed()
                held = self.tokens.held
                if held is None:
                    continue  # it was refused while this call waited for its turn
                request = exchange.request(held.value)
                try:
                    value = await self.counted(ticket, request, exchange.read, probe=probe)
                except TokenRefused:
                    refusals += 1
                    if refusals == 2:
                        self.tokens.doubt(user)
                    elif self.tokens.refused(held, user):
                        continue
                    self.breaker.answered(probe=probe)
                    raise
                self.tokens.accepted(held, user)
                return value

    async def counted(self, ticket: Ticket, request: Request, read: Reader[T], *, probe: bool) -> T:
        """Send, and let the account's suspension know how it ended."""
        try:
            value = await self.transport.send(ticket, request, read)
        except (Unreachable, BadAnswer) as error:  # the latter may be a proxy's
            # One fax that eFax cannot render, or does not know, says little about the account:
            # `fetch_image` counts it once, however often it was tried. What is not about receiving
            # says nothing: received faxes must not wait for it.
            is_unanswered = ticket.kind is Kind.IMAGE and error.status is None
            told = request.call in _OF_THE_ACCOUNT or is_unanswered
            if told and isinstance(error, Unreachable):
                self.breaker.failed(ticket.user, error)
            if leaves_in_doubt(request.call, error):
                raise SendInDoubt(str(error), evidence=error.evidence) from error
            raise
        except TokenRefused:  # it is met first
            raise
        except ApiError:
            self.breaker.answered(probe=probe)
            raise
        self.breaker.answered(probe=probe, is_list=request.call is Call.LIST)
        return value

    async def _sign_in(self, user: str) -> Token:
        """Sign in on behalf of a user; a refusal suspends the account."""
        async with self._pacer.turn(Kind.OTHER, user) as ticket:
            request = token_request(self._app_id, self._api_key())
            try:
                return await self.transport.send(ticket, request, whole(parse_token))
            except SignInRefused as error:
                self.breaker.sign_in_refused(error)
                raise
            except Unreachable as error:
                self.breaker.failed(None, error)  # it would fail for all users
                raise
