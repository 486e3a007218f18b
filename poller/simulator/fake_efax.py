"""eFax without a network: the record of requests, the faults and the answers."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from . import answering, query, replies
from .faults import NOTHING, Chooser, Fault, Faults, Stage, Target
from .mailroom import Mailroom
from .query import Arrival, RefusedError
from .replies import Reply, error_reply, html_reply
from .state import App, Fax, RateLimit

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})


@dataclass(eq=False)
class Seen:
    """A request as it arrived.

    `status` is None as long as there is no answer; `at` is the server's time, `at_s` its monotonic
    time; `headers` (lower-case names) contain no secret; `fault` names the fault that struck, if
    any; `call` is None for a path that the API does not have.
    """

    call: str | None
    method: str
    target: str
    at: datetime
    at_s: float
    headers: dict[str, str]
    app_id: str | None = None
    user: str | None = None
    fax_id: str | None = None
    status: int | None = None
    fault: str | None = None


class FakeEfax(Mailroom):
    """Answers every call according to the switches and faults.

    With `rate` (requests per second) and `burst`, an App ID over its limit gets 429. `/health`
    names no App ID and does not count. Faults may be replaced at any time.
    """

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        rate: float | None = None,
        burst: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.rate, self.burst = rate, burst
        self.requests: list[Seen] = []
        self.refused_429 = 0
        self.faults = faults or Faults()
        self._limits: dict[str, RateLimit] = {}

    @property
    def faults(self) -> Faults:
        return self._chooser.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """Set new faults; rules and script start from the beginning."""
        self._chooser = Chooser(faults, self.random)

    def outage(self, on: bool, effect: str = "503") -> None:  # noqa: FBT001 (reads well: outage(True))
        """Start or end a complete outage, in which every request meets `effect`."""
        self._chooser.faults = replace(self.faults, outage=on, outage_effect=effect)

    def see(self, arrival: Arrival) -> Seen:
        """Record a request before anything else."""
        call, fax_id = answering.route(arrival)
        app = self._app_of(call, arrival)
        seen = Seen(
            call=call,
            method=arrival.method,
            target=arrival.target,
            at=self.now(),
            at_s=self.monotonic(),
            headers={k: v for k, v in arrival.headers.items() if k not in _SECRET_HEADERS},
            app_id=app.app_id if app else None,
            user=arrival.headers.get("user-id"),
            fax_id=fax_id,
        )
        self.requests.append(seen)
        return seen

    def answer(self, seen: Seen, arrival: Arrival) -> tuple[Reply, Fault | None]:
        """Carry out a request; return its answer, and the fault that strikes it, if any."""
        wait_s = 0.0 if self.faults.outage else self._limit(seen)
        if wait_s > 0:
            self.refused_429 += 1
            fault = None
            reply = self._status(429, arrival)
            after = replies.retry_after(self.switches, int(wait_s) + 1, seen.at)
            reply.headers["Retry-After"] = after
        else:
            fault = self._choose(seen)
            seen.fault = fault.effect if fault else None
            reply = self._struck(fault, seen, arrival)
        reply.headers.setdefault("Content-Type", None)
        # The server's time, if the switches allow it.
        missing = self.switches.date_header == "missing"
        reply.headers["Date"] = None if missing else replies.http_date(self.said_now())
        return reply, fault

    def _app_of(self, call: str | None, arrival: Arrival) -> App | None:
        if call != "token":
            return self.owner_of_token(arrival)
        app_id, _ = query.parse_basic(arrival.header("authorization")) or ("", "")
        return self.apps.get(app_id)

    def _limit(self, seen: Seen) -> float:
        if self.rate is None or seen.app_id is None:
            return 0.0
        fresh = RateLimit(self.rate, self.burst, level=self.burst, at=seen.at_s)
        return self._limits.setdefault(seen.app_id, fresh).take(seen.at_s)

    def _choose(self, seen: Seen) -> Fault | None:
        if seen.call is None:
            return None
        app = self.apps.get(seen.app_id or "")
        mailbox = app.users.get(seen.user or "") if app else None
        fax = mailbox.find(seen.fax_id or "") if mailbox else None
        number, trouble = (fax.number, fax.trouble) if fax else (None, None)
        return self._chooser.choose(Target(seen.call, seen.user, seen.fax_id, number, trouble))

    def _struck(self, fault: Fault | None, seen: Seen, arrival: Arrival) -> Reply:
        """Answer a request that a fault may have struck before, instead of or during the call."""
        stage, effect = (fault.stage, fault.effect) if fault else (None, "")
        if fault and stage is Stage.INSTEAD:
            return self._instead(fault, arrival)
        if stage is Stage.BEFORE:
            self._before(effect, seen, arrival)
        try:
            trouble = effect if stage is Stage.DOCUMENT else None
            reply = answering.carry_out(self, arrival, trouble)
        except RefusedError as refused:
            reply = self._error(refused, arrival)
        if effect == "done-500":
            return self._status(500, arrival)
        if stage is Stage.BODY:
            _spoil(reply, effect)
        return reply

    def _instead(self, fault: Fault, arrival: Arrival) -> Reply:
        effect = fault.effect
        if effect == "html-502":
            return html_reply(502, "502 Bad Gateway")
        if effect == "html-200":
            return html_reply(200, "Welcome")
        if effect in NOTHING:
            return Reply(200, NOTHING[effect].encode(), {"Content-Type": "application/json"})
        if effect == "redirect":
            return Reply(307, headers={"Location": f"http://elsewhere.invalid{arrival.target}"})
        if effect == "errors-200":
            return replace(self._status(500, arrival), status=200)
        reply = self._status(int(effect), arrival)
        reply.headers["Retry-After"] = fault.retry_after
        return reply

    def _status(self, status: int, arrival: Arrival) -> Reply:
        return self._error(RefusedError(status, f"status {status}"), arrival)

    def _error(self, refused: RefusedError, arrival: Arrival) -> Reply:
        return error_reply(self.switches, refused, arrival.header("transaction-id"))

    def _before(self, effect: str, seen: Seen, arrival: Arrival) -> None:
        if effect == "end-token":
            if seen.app_id is not None and seen.call != "token":
                self.end_token(seen.app_id)
            return
        try:
            _, faxes = answering.listed(self, self.authorized(arrival), arrival)
            offset = query.parse_paging(arrival.headers, refuse_above_100=False).offset
        except RefusedError:
            return  # the call itself will report it
        if offset and faxes:
            self._shift(effect, faxes, offset)

    def _shift(self, effect: str, faxes: list[Fax], offset: int) -> None:
        """Shift a list between two of its pages; a deleted fax was on an earlier page."""
        newest = faxes[0]
        if effect == "shift-delete":
            self.delete(next((fax for fax in faxes[:offset] if fax.image_downloaded), newest))
            return
        self.receive(
            newest.app_id,
            newest.user_id,
            completed=newest.completed,
            visible_at=self.now(),
            distinct=False,
        )


def _spoil(reply: Reply, effect: str) -> None:
    if effect == "bad-json":
        reply.body = reply.body[:-1]
    elif effect == "bom":
        reply.body = b"\xef\xbb\xbf" + reply.body
    else:
        reply.body += b"<!-- end -->"
