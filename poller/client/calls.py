"""The client of one account: every call, with its turn, its token, its retries."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from poller import efax
from poller.client.body import AnswerBody, Timeouts
from poller.client.pacer import Pacer
from poller.client.ports import ImageSink, Observer, SignInStore
from poller.client.tokens import StoredBudget, Tokens
from poller.client.transport import Transport
from poller.clock import Clock, ServerClock
from poller.config.model import Account, Limits, RetryConfig, User
from poller.efax import Call, ImageAnswer, Page, Request, Token
from poller.errors import (
    AccountSuspended,
    ApiError,
    BadAnswer,
    DeadlinePassed,
    RateLimited,
    Rejected,
    SignInDelayed,
    SignInRefused,
    TokenRefused,
    Unreachable,
)
from poller.naming import fax_key
from poller.pacing import EndsBy, Kind, Pacing, Suspension, Ticket
from poller.retry import backoff
from poller.window import Interval

T = TypeVar("T")
Reader = Callable[[AnswerBody], Awaitable[T]]
Builder = Callable[[str], Request]  # from the token
Before = Callable[[], Awaitable[None]]

_FIRST_PAUSE = timedelta(seconds=1)


async def _nothing() -> None:
    return


class Client:
    """Every call to eFax that one account makes; an async context manager.

    Each call waits for its turn, signs in when it must, and repeats what is worth repeating
    (`retry`). Raises the ApiError that the last try ended with, or at once AccountSuspended while
    the account is suspended, unless it is a list call whose turn it is to probe.
    """

    def __init__(
        self,
        account: Account,
        *,
        api_key: Callable[[], str],
        retry: RetryConfig,
        clock: Clock,
        sign_ins: SignInStore,
        random: Callable[[], float],
        observer: Observer,
        timeouts: Timeouts | None = None,
    ) -> None:
        limits = account.limits
        self.account = account
        self.server_clock = ServerClock()
        self.suspension = Suspension(len(account.users))
        self.pacing = Pacing(
            limits.requests_per_second, limits.burst, limits.in_flight, clock.monotonic()
        )
        self._api_key = api_key
        self._retry = retry
        self._clock = clock
        self._random = random
        self._observer = observer
        self._pacer = Pacer(self.pacing, clock, observer.waited)
        self._transport = Transport(
            account,
            pacer=self._pacer,
            clock=clock,
            server_clock=self.server_clock,
            observer=observer,
            timeouts=timeouts or Timeouts(),
        )
        self._tokens = Tokens(
            self._sign_in,
            StoredBudget(sign_ins, account.app_id),
            clock=clock,
            random=random,
            observer=observer,
        )

    async def __aenter__(self) -> Self:
        """Open the session; CannotStart when the account's ca_file cannot be used."""
        await self._transport.open(self.account.limits.in_flight)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tokens.close()
        await self._pacer.close()
        await self._transport.close()

    def server_now(self) -> datetime:
        """Return eFax's time as far as it is known, else ours."""
        return self._transport.server_now()

    def set_limits(self, limits: Limits) -> None:
        """Change the limits at once; requests under way keep their slots."""
        self._transport.make_room(limits.in_flight)
        self.pacing.set_limits(
            limits.requests_per_second, limits.burst, limits.in_flight, self._clock.monotonic()
        )
        self._pacer.pump()

    def key_changed(self) -> None:
        """Use the new key with the next call, and let that be now where the old one was refused."""
        self._tokens.key_changed()
        self.suspension.key_changed(self._clock.now())

    @property
    def is_at_war(self) -> bool:
        """Whether another program signs in with this App ID and ends our tokens."""
        return self._tokens.is_at_war

    # -- calls --------------------------------------------------------------------------------

    async def health(self, user: User | None = None) -> None:
        """Ask whether eFax is up: one try, without a token.

        On behalf of a user it counts as a list call does: its failure towards suspension, and in a
        suspension it is a probe. On nobody's behalf it is always allowed.
        """
        request = efax.health_request()

        async def read(answer: AnswerBody) -> None:
            efax.parse_health(await answer.body())

        if user is None:
            async with self._pacer.turn(Kind.OTHER, "") as ticket:
                await self._sent(ticket, request, read)
            return
        probe = self.suspension.until is not None
        if not self.suspension.may_probe(self._clock.now()):
            self._refuse_while_suspended()
        try:
            async with self._pacer.turn(Kind.OTHER, user.name) as ticket:
                await self._counted(ticket, request, read, probe=probe)
        except BadAnswer as error:
            if probe:
                self._failed(user.name, error)
            raise

    async def sign_in(self) -> None:
        """See to it that there is a token that lives."""
        self._refuse_while_suspended()
        await self._retrying()(self._tokens.get, "")

    async def list_received(
        self,
        user: User,
        bounds: Interval | None,
        offset: int,
        *,
        image_downloaded: bool | None = None,
        is_probe: bool = False,
    ) -> Page:
        """List one page of a user's received faxes, from record `offset` on.

        `is_probe`: it belongs to a probe that is under way, and goes in a suspension, too.
        """

        def request(token: str) -> Request:
            return efax.list_request(
                user.user_id, token, bounds, offset=offset, image_downloaded=image_downloaded
            )

        async def read(answer: AnswerBody) -> Page:
            return efax.parse_page(await answer.body())

        if is_probe:
            return await self._try(Kind.LIST, user, request, read, probe=True)
        if self.suspension.until is not None:
            return await self._probe(user, request, read)
        return await self._call(Kind.LIST, user, request, read)

    async def has_fax(self, user: User, fax_id: str, *, is_probe: bool = False) -> bool | None:
        """Ask once for a fax's metadata: whether eFax has it, None where the answer does not tell."""

        async def read(answer: AnswerBody) -> dict[str, Any]:
            return efax.parse_fields(await answer.body())

        def request(token: str) -> Request:
            return efax.metadata_request(user.user_id, token, fax_id)

        try:
            fields = await self._try(Kind.OTHER, user, request, read, probe=is_probe)
        except Rejected as error:
            return False if error.status in (404, 410) else None
        except (BadAnswer, Unreachable):
            return None
        is_its_own = fax_key(str(fields.get("fax_id"))) == fax_key(fax_id)
        return True if is_its_own else None

    async def fetch_image(
        self, user: User, fax_id: str, sink: ImageSink, *, before: Before = _nothing
    ) -> ImageAnswer:
        """Stream a fax's image into `sink`; what the sink raises passes through, unrepeated.

        `before` runs before each request, when it is its turn; what it raises passes through too.
        """

        def request(token: str) -> Request:
            return efax.image_request(user.user_id, token, fax_id, user.image_format)

        async def read(answer: AnswerBody) -> ImageAnswer:
            decoder = efax.ImageDecoder(fax_id)
            await sink.reset()
            async for chunk in answer.chunks():
                if piece := decoder.feed(chunk):
                    await sink.write(piece)
            return decoder.close()

        try:
            return await self._call(Kind.IMAGE, user, request, read, before=before)
        except Unreachable as error:
            if error.status is not None:
                self._failed(user.name, error)
            raise

    async def metadata(self, user: User, fax_id: str) -> dict[str, Any]:
        """Read a fax's metadata."""

        async def read(answer: AnswerBody) -> dict[str, Any]:
            return efax.parse_fields(await answer.body())

        return await self._call(
            Kind.OTHER,
            user,
            lambda token: efax.metadata_request(user.user_id, token, fax_id),
            read,
        )

    async def mark_downloaded(
        self,
        user: User,
        fax_id: str,
        downloaded: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Set or clear the mark that a fax was downloaded."""
        await self._call(
            Kind.OTHER,
            user,
            lambda token: efax.mark_downloaded_request(
                user.user_id, token, fax_id, downloaded=downloaded
            ),
            AnswerBody.body,
        )

    async def delete(self, user: User, fax_id: str) -> None:
        """Delete a fax at eFax; one that is gone already is deleted, too."""
        await self._call(
            Kind.OTHER,
            user,
            lambda token: efax.delete_request(user.user_id, token, fax_id),
            AnswerBody.body,
        )

    # -- repeating ----------------------------------------------------------------------------

    async def _call(
        self,
        kind: Kind,
        user: User,
        build: Builder,
        read: Reader[T],
        *,
        before: Before = _nothing,
    ) -> T:
        self._refuse_while_suspended()
        try:
            return await self._try(kind, user, build, read, before=before)
        except ApiError as error:
            if not _worth_repeating(error):
                raise
            failed: ApiError | None = error

        async def again() -> T:
            """To tenacity the try that has failed is the first; asking it before would cost all polls."""
            nonlocal failed
            if failed is not None:
                error, failed = failed, None
                raise error
            return await self._try(kind, user, build, read, before=before)

        return await self._retrying()(again)

    async def _probe(self, user: User, build: Builder, read: Reader[T]) -> T:
        """Make the one call that finds out whether a suspended account is well again."""
        if not self.suspension.may_probe(self._clock.now()):
            self._refuse_while_suspended()
        try:
            return await self._try(Kind.LIST, user, build, read, probe=True)
        except (BadAnswer, SignInDelayed) as error:  # other errors have been counted
            self._failed(user.name, error)
            raise

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            sleep=self._clock.sleep,
            stop=stop_after_attempt(self._retry.attempts),
            wait=self._pause_s,
            retry=retry_if_exception(_worth_repeating),
            before_sleep=self._say_pausing,
            reraise=True,
        )

    def _say_pausing(self, state: RetryCallState) -> None:
        self._observer.pausing(state.upcoming_sleep)

    def _pause_s(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, RateLimited):
            return 0.0  # pacing holds back the whole account
        cap_s = self._retry.max_delay.total_seconds()
        pause = backoff(
            state.attempt_number, base=_FIRST_PAUSE, cap=self._retry.max_delay, u=self._random()
        )
        asked_s = error.retry_after_s if isinstance(error, Unreachable) else None
        return min(max(pause.total_seconds(), asked_s or 0.0), cap_s)

    # -- one try ------------------------------------------------------------------------------

    async def _try(
        self,
        kind: Kind,
        user: User,
        build: Builder,
        read: Reader[T],
        *,
        probe: bool = False,
        before: Before = _nothing,
    ) -> T:
        """Send with a token; a 401 counts against that token and is met once with a new one."""
        refusals = 0
        while True:
            if not probe:
                self._refuse_while_suspended()
            await self._tokens.get(user.name)
            async with self._pacer.turn(kind, user.name) as ticket:
                await before()
                if not probe:  # it may have come about while this call waited
                    self._refuse_while_suspended()
                held = self._tokens.held
                if held is None:
                    continue  # it was refused while this call waited for its turn
                try:
                    value = await self._counted(ticket, build(held.value), read, probe=probe)
                except TokenRefused:
                    refusals += 1
                    if refusals == 2:
                        self._tokens.doubt(user.name)
                    elif self._tokens.refused(held, user.name):
                        continue
                    self._answered(probe=probe)
                    raise
                else:
                    self._tokens.accepted(held, user.name)
                    return value

    async def _counted(
        self, ticket: Ticket, request: Request, read: Reader[T], *, probe: bool
    ) -> T:
        """Send, and let the account's suspension know how it ended."""
        try:
            value = await self._sent(ticket, request, read)
        except Unreachable as error:
            # One fax that eFax cannot render, or does not know, says little about the account:
            # `fetch_image` counts it once, however often it was tried.
            if request.call not in (Call.IMAGE, Call.METADATA) or error.status is None:
                self._failed(ticket.user, error)
            raise
        except (BadAnswer, TokenRefused):  # the one may be a proxy's, the other is met first
            raise
        except ApiError:
            self._answered(probe=probe)
            raise
        self._answered(probe=probe, is_list=request.call is Call.LIST)
        return value

    async def _sent(self, ticket: Ticket, request: Request, read: Reader[T]) -> T:
        """Send, and let pacing know how it ended."""
        sent_at = self._clock.monotonic()
        try:
            value = await self._transport.send(
                request, read, answered=lambda: self._pacer.answered(ticket)
            )
        except RateLimited as error:
            self._slow_down(error, sent_at)
            raise
        self.pacing.succeeded(self._clock.monotonic(), sent_at=sent_at)
        return value

    def _slow_down(self, error: RateLimited, sent_at: float) -> None:
        now = self._clock.monotonic()
        if self.pacing.rate_limited(now, error.retry_after_s, sent_at=sent_at):
            until = self.pacing.paused_until or now
            self._observer.rate_limited(until - now, self.pacing.rate)

    async def _sign_in(self, user: str) -> Token:
        """Sign in on behalf of a user; a refusal suspends the account."""
        async with self._pacer.turn(Kind.OTHER, user) as ticket:
            request = efax.token_request(self.account.app_id, self._api_key())

            async def read(answer: AnswerBody) -> Token:
                return efax.parse_token(await answer.body())

            try:
                return await self._sent(ticket, request, read)
            except SignInRefused as error:
                now = self._clock.now()
                if self.suspension.sign_in_refused(now, self._random(), str(error)):
                    self._say_suspended()
                raise
            except Unreachable as error:
                self._failed(None, error)  # nobody's in particular: it would fail for all
                raise

    # -- suspension ---------------------------------------------------------------------------

    def _refuse_while_suspended(self) -> None:
        if self.suspension.until is not None:
            raise self._suspended(self.suspension.until)

    def _suspended(self, until: datetime) -> AccountSuspended:
        return AccountSuspended(
            f"Account {self.account.name} is suspended until {until:%H:%M:%S} UTC:"
            f" {self.suspension.reason}",
            until=until,
        )

    def _failed(self, user: str | None, error: ApiError) -> None:
        if self.suspension.failed(user, self._clock.now(), self._random(), str(error)):
            self._say_suspended()

    def distrust(self, reason: str, ends_by: EndsBy) -> AccountSuspended:
        """Suspend the account for what its answers say, or keep it so; returns the error to raise."""
        if self.suspension.distrusted(self._clock.now(), self._random(), reason, ends_by):
            self._say_suspended()
        assert self.suspension.until is not None
        return self._suspended(self.suspension.until)

    def trust(self) -> None:
        """Note that the account is well; this ends any suspension."""
        failures, reason = self.suspension.failures, self.suspension.reason
        if self.suspension.succeeded():
            self._observer.resumed(failures, reason)

    def _answered(self, *, probe: bool, is_list: bool = False) -> None:
        """Count an answer; in a suspension only the probe's says that it is over."""
        ends_by = self.suspension.ends_by
        if self.suspension.until is None or (probe and ends_by is EndsBy.ANSWER):
            self.trust()
        elif probe and ends_by is EndsBy.LIST:
            if is_list:
                self.trust()
            else:
                self.distrust(self.suspension.reason, ends_by)

    def _say_suspended(self) -> None:
        until = self.suspension.until
        assert until is not None
        self._observer.suspended(until, self.suspension.reason)
        # Those who wait would only find out at their turn, and hold up the probe till then.
        self._pacer.dismiss((Kind.LIST, Kind.IMAGE), lambda: self._suspended(until))


def _worth_repeating(error: BaseException) -> bool:
    """Say whether the same call may end better in a moment."""
    if isinstance(error, DeadlinePassed):
        return False
    return isinstance(error, (RateLimited, Unreachable, BadAnswer))
