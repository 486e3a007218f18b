"""From a call to its answer: turn, token, suspension and retries."""

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
    LeaseLost,
    SendInDoubt,
    SignInRefused,
    TokenRefused,
    Unreachable,
)
from poller.pacing import Kind, Ticket
from poller.retry import pause_s, worth_repeating

T = TypeVar("T")
Before = Callable[[], Awaitable[None]]

# Any failure of these calls concerns the account; other calls may fail because of one fax.
_OF_THE_ACCOUNT = (Call.TOKEN, Call.HEALTH, Call.LIST)


async def nothing() -> None:
    return


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """One call of a user: how to make its request from a token, and how to read its answer.

    `before` runs before each request, once it has its turn; its errors pass through.
    """

    kind: Kind
    user: str
    request: Callable[[str], Request]
    read: Reader[T]
    before: Before = nothing


class Requester:
    """Makes the calls of one account; it calls `api_key` for each sign-in."""

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
        self.tokens = Tokens(account.app_id, self._sign_in, ports, api_key=api_key)
        self._app_id = account.app_id
        self._api_key = api_key
        self._retry = retry
        self._ports = ports
        self._pacer = pacer

    async def call(self, exchange: Exchange[T]) -> T:
        """Make a call and retry where that may help. Raises AccountSuspended during a suspension."""
        self.breaker.require_closed()
        return await self.repeated(lambda: self.attempt(exchange))

    async def probe(self, exchange: Exchange[T]) -> T:
        """Make one call that tests whether a suspended account works again."""
        with self.breaker.probing(exchange.user):
            return await self.attempt(exchange, probe=True)

    async def repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run a step up to `retry.attempts` times. Raises the error of the last one.

        tenacity takes over only after the first failure: otherwise it would cost each poll 40 µs, and
        a whole poll takes one millisecond.
        """
        failed: list[ApiError] = []
        try:
            return await step()
        except ApiError as error:
            failed.append(error)

        async def again() -> T:
            if failed:
                raise failed.pop()  # for tenacity this is the first try
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
        assert isinstance(error, ApiError)  # no other error is retried
        cap, u = self._retry.max_delay, self._ports.random()
        return pause_s(state.attempt_number, error, cap=cap, u=u)

    async def attempt(self, exchange: Exchange[T], *, probe: bool = False) -> T:
        """Send with a token; a 401 counts against that token, and is retried once with a new one."""
        user, refusals = exchange.user, 0
        while True:
            if not probe:
                self.breaker.require_closed()
            await self.tokens.get(user)
            async with self._pacer.turn(exchange.kind, user) as ticket:
                await exchange.before()
                if not self._ports.may_ask():  # it may have taken long
                    raise LeaseLost(self._app_id)
                if not probe:  # the suspension may have started while this call waited
                    self.breaker.require_closed()
                held = self.tokens.held
                if held is None:
                    continue  # eFax refused the token while this call waited for its turn
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
        """Send, and pass the outcome to the account's suspension."""
        try:
            value = await self.transport.send(ticket, request, read)
        except (Unreachable, BadAnswer) as error:  # a proxy may send a bad answer
            # A fax that eFax cannot render, or does not know, says little about the account, so
            # `fetch_image` counts it once for all its tries. Calls that do not concern received
            # faxes do not count at all: received faxes must not wait because of them.
            is_unanswered = ticket.kind is Kind.IMAGE and error.status is None
            told = request.call in _OF_THE_ACCOUNT or is_unanswered
            if told and isinstance(error, Unreachable):
                self.breaker.failed(ticket.user, error)
            if leaves_in_doubt(request.call, error):
                raise SendInDoubt(str(error), evidence=error.evidence) from error
            raise
        except TokenRefused:  # a new token comes first
            raise
        except ApiError:
            self.breaker.answered(probe=probe)
            raise
        self.breaker.answered(probe=probe, is_list=request.call is Call.LIST)
        return value

    async def _sign_in(self, user: str) -> Token:
        """Sign in for a user; a refusal suspends the account."""
        async with self._pacer.turn(Kind.OTHER, user) as ticket:
            request = token_request(self._app_id, self._api_key())
            try:
                return await self.transport.send(ticket, request, whole(parse_token))
            except SignInRefused as error:
                self.breaker.sign_in_refused(error)
                raise
            except Unreachable as error:
                self.breaker.failed(None, error)  # a sign-in fails for all users
                raise
