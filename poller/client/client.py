"""The client of one account: the calls to eFax and what they return."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from poller.client.body import AnswerBody, whole
from poller.client.pacer import Pacer
from poller.client.ports import ImageSink, Ports
from poller.client.requester import Before, Exchange, Requester, nothing
from poller.config.model import Account, Limits, RetryConfig, User
from poller.efax.image import ImageAnswer, ImageDecoder
from poller.efax.notices import Notice, NoticePage, parse_notices
from poller.efax.outgoing import AcceptedFax, OutgoingFax, parse_accepted, send_body
from poller.efax.requests import (
    PAGE_LIMIT,
    delete_request,
    details_request,
    health_request,
    image_request,
    list_request,
    mark_request,
    metadata_request,
    notifications_request,
    send_request,
    sent_list_request,
)
from poller.efax.responses import Page, parse_done, parse_fields, parse_health, parse_page
from poller.errors import BadAnswer, Rejected, Unreachable
from poller.naming import fax_key
from poller.pacing import Kind, Pacing
from poller.stream import Direction
from poller.window import Interval

_GONE = (404, 410)
_MOST_NOTICES = 100 * PAGE_LIMIT  # per answer; eFax does not say how far back it goes


def _about(kind: Kind, user: User, fax_id: str) -> Exchange[dict[str, Any]]:
    def read(body: bytes) -> dict[str, Any]:
        fields = parse_fields(body)
        if fax_key(str(fields.get("fax_id", fax_id))) != fax_key(fax_id):
            raise BadAnswer("The metadata answer names another fax.")
        return fields

    return Exchange(
        kind,
        user.name,
        lambda token: metadata_request(user.user_id, token, fax_id),
        whole(read),
    )


class Client:
    """Every call to eFax that one account makes; an async context manager.

    Each call waits for its turn, signs in if needed, and retries where that may help (`retry`).
    Raises the ApiError of the last try. While the account is suspended it raises AccountSuspended at
    once, unless the call is a list call that is due as a probe.
    """

    def __init__(
        self, account: Account, ports: Ports, *, api_key: Callable[[], str], retry: RetryConfig
    ) -> None:
        limits = account.limits
        self.account = account
        self.pacing = Pacing(
            limits.requests_per_second, limits.burst, limits.in_flight, ports.clock.monotonic()
        )
        self._clock = ports.clock
        self._pacer = Pacer(self.pacing, ports)
        self._requester = Requester(account, ports, self._pacer, api_key=api_key, retry=retry)
        self._tokens = self._requester.tokens
        self._transport = self._requester.transport
        self.server_clock = self._transport.server_clock
        self.cut_off = self._transport.cut_off
        self.server_now = self._transport.server_now
        self.breaker = self._requester.breaker
        self.suspension = self.breaker.suspension

    async def __aenter__(self) -> Self:
        """Open the session. Raises CannotStart if the account's ca_file cannot be used."""
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

    def set_limits(self, limits: Limits) -> None:
        """Change the limits now; requests under way keep their slots."""
        self._transport.make_room(limits.in_flight)
        self.pacing.set_limits(
            limits.requests_per_second, limits.burst, limits.in_flight, self._clock.monotonic()
        )
        self._pacer.pump()

    def key_changed(self) -> None:
        """Use the new key for the next call; if eFax refused the old key, allow that call now."""
        self._tokens.key_changed()
        self.suspension.key_changed(self._clock.now())

    @property
    def is_at_war(self) -> bool:
        """Return whether another program signs in with this App ID and so ends our tokens."""
        return self._tokens.war.is_on

    async def health(self, user: User | None = None) -> None:
        """Ask whether eFax is up: one try, without a token.

        For a user it counts like a list call: a failure counts towards suspension, and during a
        suspension the call is a probe. Without a user it is always allowed.
        """
        request, read = health_request(), whole(parse_health)
        name = "" if user is None else user.name
        probe = user is not None and self.breaker.is_open
        with self.breaker.probing(name) if probe else nullcontext():
            async with self._pacer.turn(Kind.OTHER, name) as ticket:
                if user is None:
                    await self._transport.send(ticket, request, read)
                else:
                    await self._requester.counted(ticket, request, read, probe=probe)

    async def sign_in(self) -> None:
        """Sign in unless there is a valid token."""
        self.breaker.require_closed()
        await self._requester.repeated(lambda: self._tokens.get(""))

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

        `is_probe`: the call is part of a probe under way, and is allowed during a suspension.
        """
        exchange = Exchange(
            Kind.LIST,
            user.name,
            lambda token: list_request(
                user.user_id, token, bounds, offset=offset, image_downloaded=image_downloaded
            ),
            whole(parse_page),
        )
        if is_probe:
            return await self._requester.attempt(exchange, probe=True)
        if self.breaker.is_open:
            return await self._requester.probe(exchange)
        return await self._requester.call(exchange)

    async def has_fax(self, user: User, fax_id: str, *, is_probe: bool = False) -> bool | None:
        """Ask once for a fax's metadata; return whether eFax has it, None if the answer leaves it open."""
        try:
            fields = await self._requester.attempt(_about(Kind.OTHER, user, fax_id), probe=is_probe)
        except Rejected as error:
            return False if error.status in _GONE else None
        except (BadAnswer, Unreachable):
            return None
        return True if "fax_id" in fields else None

    async def list_sent(
        self,
        user: User,
        bounds: Interval | None,
        offset: int,
        *,
        transmission_status: str | None = None,
        transaction_id: str | None = None,
        waited_for: bool = False,
    ) -> Page:
        """List one page of a user's sent faxes, from record `offset` on.

        A refusal (UserRefused, WindowRefused) concerns only sent faxes. `waited_for`: a sender waits for
        it, so it goes before a backlog of received faxes.
        """
        exchange = Exchange(
            Kind.OTHER if waited_for else Kind.SENT_LIST,
            user.name,
            lambda token: sent_list_request(
                user.user_id,
                token,
                bounds,
                offset=offset,
                transmission_status=transmission_status,
                transaction_id=transaction_id,
            ),
            whole(parse_page),
        )
        return await self._requester.call(exchange)

    async def metadata(
        self,
        user: User,
        fax_id: str,
        *,
        direction: Direction = Direction.RECEIVED,
        waited_for: bool = False,
    ) -> dict[str, Any]:
        """Ask for eFax's metadata of one fax. Raises Rejected (404) if eFax does not have it."""
        is_low = direction is Direction.SENT and not waited_for
        kind = Kind.SENT_LIST if is_low else Kind.OTHER
        return await self._requester.call(_about(kind, user, fax_id))

    async def metadata_once(self, user: User, fax_id: str) -> dict[str, Any]:
        """Ask for metadata once, in the turn of a received image."""
        self.breaker.require_closed()
        return await self._requester.attempt(_about(Kind.IMAGE, user, fax_id))

    async def transmission_details(
        self, user: User, fax_id: str, *, waited_for: bool = False
    ) -> dict[str, Any]:
        """Ask how a transmission went. Raises Rejected if both names of the call give 404."""

        def asked(last: str) -> Exchange[dict[str, Any]]:
            return Exchange(
                Kind.OTHER if waited_for else Kind.SENT_LIST,
                user.name,
                lambda token: details_request(user.user_id, token, fax_id, last=last),
                whole(parse_fields),
            )

        try:
            return await self._requester.call(asked("details"))
        except Rejected as error:
            if error.status != 404:
                raise
        return await self._requester.call(asked("detail"))

    async def send(
        self, user: User, outgoing: OutgoingFax, *, before: Before = nothing
    ) -> tuple[AcceptedFax, ...]:
        """Send a fax; retry only if eFax cannot have accepted it (401, 429, no connection).

        Raises Rejected if eFax refuses it or could never accept it, SendInDoubt if eFax may have
        accepted it. `before` runs before each request; its errors pass through.
        """
        body = send_body(outgoing)
        exchange = Exchange(
            Kind.OTHER,
            user.name,
            lambda token: send_request(user.user_id, token, outgoing.transaction_id, body),
            whole(parse_accepted),
            before,
        )
        return await self._requester.call(exchange)

    async def delete(self, user: User, fax_id: str, *, before: Before = nothing) -> bool:
        """Delete a fax at eFax; return False for 404 or 410. Raises Rejected if eFax refuses."""
        exchange = Exchange(
            Kind.LAST,
            user.name,
            lambda token: delete_request(user.user_id, token, fax_id),
            whole(parse_done),
            before,
        )
        try:
            await self._requester.call(exchange)
        except Rejected as error:
            if error.status not in _GONE:
                raise
            return False
        return True

    async def mark(
        self, user: User, fax_id: str, *, downloaded: bool, before: Before = nothing
    ) -> None:
        """Set eFax's mark of whether a fax's image was downloaded."""
        exchange = Exchange(
            Kind.LAST,
            user.name,
            lambda token: mark_request(user.user_id, token, fax_id, downloaded=downloaded),
            whole(parse_done),
            before,
        )
        await self._requester.call(exchange)

    async def notifications(self, user: User, since: datetime | None) -> tuple[Notice, ...]:
        """Ask for all web-hook notices since then, as far back as eFax's answer goes.

        If eFax refuses the filter, ask without it. After a full page ask for the next one, as long as
        pages show something new. Raises Rejected (404) if eFax has no such call.
        """
        found: dict[str, Notice] = {}
        offset, known = 0, -1
        while known < len(found) and offset < _MOST_NOTICES:
            known = len(found)
            page = await self._notices(user, since, offset)
            found |= {notice.fax_id: notice for notice in page.notices}
            offset += len(page)
            if len(page) < PAGE_LIMIT:
                break
        return tuple(found.values())

    async def _notices(self, user: User, since: datetime | None, offset: int) -> NoticePage:
        exchange = Exchange(
            Kind.OTHER,
            user.name,
            lambda token: notifications_request(user.user_id, token, since, offset=offset),
            whole(parse_notices),
        )
        try:
            return await self._requester.call(exchange)
        except Rejected as error:
            if error.status != 400 or since is None:
                raise
        return await self._notices(user, None, offset)

    async def fetch_image(
        self,
        user: User,
        fax_id: str,
        sink: ImageSink,
        *,
        before: Before = nothing,
        direction: Direction = Direction.RECEIVED,
    ) -> ImageAnswer:
        """Stream a fax's image into `sink`; the sink's errors pass through without a retry.

        `before` runs before each request, once it has its turn; its errors pass through too.
        """
        is_received = direction is Direction.RECEIVED

        async def read(answer: AnswerBody) -> ImageAnswer:
            decoder = ImageDecoder(fax_id)
            await sink.reset()
            async for chunk in answer.chunks():
                if piece := decoder.feed(chunk):
                    await sink.write(piece)
            return decoder.close()

        exchange = Exchange(
            Kind.IMAGE if is_received else Kind.SENT_IMAGE,
            user.name,
            lambda token: image_request(user.user_id, token, fax_id, user.image_format),
            read,
            before,
        )
        try:
            return await self._requester.call(exchange)
        except Unreachable as error:
            if is_received and error.status is not None:
                self.breaker.failed(user.name, error)
            raise
