"""eFax without its network: App IDs, users, faxes, and an answer to every call."""

import base64
import hashlib
import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from poller.errors import NotInstalled

from . import query, replies, selection
from .faults import NOTHING, Chooser, Fault, Faults, Stage, Target
from .query import MalformedError
from .replies import Reply
from .state import App, Fax, Format, Mailbox, RateLimit, is_uuid, whole_milliseconds
from .switches import Switches

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
_TOKEN_BODY = b"grant_type=client_credentials"
_IMAGE_PARAMETERS = frozenset({"desired_format"})
_NO_PARAMETERS: frozenset[str] = frozenset()


@dataclass(eq=False)
class Seen:
    """A request as it arrived.

    `status` is None until it is answered, and stays so when it never is; `at` is the server's time,
    `at_s` its monotonic time; `headers` (lower-case names) hold no secret; `fault` names what
    struck it; `call` is None for a path that the API does not have.
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


@dataclass(frozen=True)
class Arrival:
    """One request off the wire; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def transaction_id(self) -> str:
        return self.headers.get("transaction-id", "")


class RefusedError(Exception):
    """The call is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeEfax:
    """What eFax knows and how it answers; deterministic by `seed` and the two clocks.

    `rate` (requests a second, with `burst`) makes each App ID's token bucket answer 429; `/health`
    names no App ID and is not counted there. Faults may be replaced at any time.
    """

    def __init__(
        self,
        *,
        switches: Switches | None = None,
        faults: Faults | None = None,
        now: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rate: float | None = None,
        burst: int = 10,
        seed: int = 1,
    ) -> None:
        try:
            # Here, because its packages are an extra, and the options of `simulate` need none.
            from .drawing import document  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            raise NotInstalled(
                f"the simulator needs {missing.name}, which is not installed; in poller's source "
                f"directory, run: {sys.executable} -m pip install '.[simulator]'"
            ) from missing
        self._document = document
        self.switches = switches or Switches()
        self.now = now or _utc_now
        self.monotonic = monotonic
        self.rate, self.burst = rate, burst
        self.random = random.Random(seed)  # noqa: S311 (made-up data, and the same at every run)
        self.apps: dict[str, App] = {}
        self.requests: list[Seen] = []
        self.downloads: Counter[Fax] = Counter()
        self.served: dict[Fax, list[str]] = {}
        self.sign_ins: Counter[str] = Counter()
        self.refused_429 = 0
        self._chooser = Chooser(faults or Faults(), self.random)
        self._buckets: dict[str, RateLimit] = {}
        self._owners: dict[str, App] = {}
        self._faxes = 0

    # What a test or a demonstration does to it

    @property
    def faults(self) -> Faults:
        return self._chooser.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """New rules count from the beginning, and so does a new script."""
        self._chooser = Chooser(faults, self.random)

    def outage(self, on: bool, effect: str = "503") -> None:  # noqa: FBT001 (reads well: outage(True))
        """Begin or end a whole outage; `effect` is what every request then meets."""
        self._chooser.faults = replace(self.faults, outage=on, outage_effect=effect)

    def add_app(self, app_id: str, api_key: str) -> App:
        self.apps[app_id] = App(app_id, api_key)
        return self.apps[app_id]

    def add_user(self, app_id: str, user_id: str) -> Mailbox:
        return self.apps[app_id].users.setdefault(user_id, Mailbox())

    def receive(
        self,
        app_id: str,
        user_id: str,
        *,
        pages: int = 1,
        completed: datetime | None = None,
        visible_at: datetime | None = None,
        fax_id: str | None = None,
        document: bytes | None = None,
        **fields: Any,
    ) -> Fax:
        """Let a fax come in; `completed` is now by default and `fields` are those of `Fax`.

        `document` is answered whatever format is asked for; without it pages are drawn, or, with
        `distinct=False`, taken from a template and only their bytes made unique (thousands a
        second). `visible_at` overrides the switch `late_visible_s`.
        """
        self._faxes += 1
        completed = whole_milliseconds(completed or self.now())
        late = timedelta(seconds=self.switches.late_visible_s)
        fax = Fax(
            app_id=app_id,
            user_id=user_id,
            fax_id=fax_id or self._uuid(),
            completed=completed,
            visible_at=visible_at or completed + late,
            number=self._faxes,
            pages=pages,
            **fields,
        )
        if document is not None:
            fax.documents = {"pdf": document, "tiff": document}
        self.apps[app_id].users[user_id].add(fax)
        return fax

    def delete(self, fax: Fax) -> None:
        """Delete a fax as the web portal would."""
        self.apps[fax.app_id].users[fax.user_id].remove(fax)

    def faxes(self) -> list[Fax]:
        """Give every fax that exists, listed yet or not."""
        boxes = (box for app in self.apps.values() for box in app.users.values())
        return [fax for box in boxes for fax in box.faxes]

    def image_bytes(self, fax: Fax, fmt: Format = "pdf", download: int | None = None) -> bytes:
        """Give the bytes that a download gets when `fmt` is asked for.

        `download` counts from 1 and is the last one by default; it matters only where the switch
        `pdf_bytes` makes each PDF anew.
        """
        if fmt == "pdf" and self.switches.pdf_answer == "tiff":
            fmt = "tiff"
        anew = fmt == "pdf" and self.switches.pdf_bytes == "differ"
        which = self.downloads[fax] if download is None else download
        return self._document(fax, fmt, which if anew else 0)

    def end_token(self, app_id: str) -> None:
        """Let another program sign in with this App ID: the token in use has ended."""
        self._issue(self.apps[app_id])

    # What a request does to it

    def see(self, arrival: Arrival) -> Seen:
        """Write down a request, before anything is done about it."""
        segments, _ = query.split_target(arrival.target)
        call, fax_id = _route(arrival.method, segments)
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
        """Carry a request out and give its answer, and the fault that strikes it, if any."""
        wait_s = 0.0 if self.faults.outage else self._limit(seen)
        if wait_s > 0:
            self.refused_429 += 1
            return self._dated(self._too_many(seen, arrival, wait_s)), None
        fault = self._choose(seen)
        seen.fault = fault.effect if fault else None
        if fault and fault.stage is Stage.INSTEAD:
            return self._dated(self._instead(fault, arrival)), fault
        if fault and fault.stage is Stage.BEFORE:
            self._before(fault.effect, seen, arrival)
        answer = self._carried_out(seen, arrival, fault)
        if fault and fault.stage is Stage.BODY:
            _spoil(answer, fault.effect)
        return self._dated(answer), fault

    def _choose(self, seen: Seen) -> Fault | None:
        if seen.call is None:
            return None
        fax = self._fax_of(seen)
        return self._chooser.choose(
            Target(
                seen.call,
                seen.user,
                seen.fax_id,
                fax.number if fax else None,
                fax.trouble if fax else None,
            )
        )

    def _carried_out(self, seen: Seen, arrival: Arrival, fault: Fault | None) -> Reply:
        try:
            return self._call(seen, arrival, fault)
        except MalformedError as wrong:
            status, message, element = 400, str(wrong), wrong.element
        except RefusedError as refused:
            status, message, element = refused.status, str(refused), ""
        return replies.error_reply(
            self.switches,
            status,
            message,
            element=element,
            transaction_id=arrival.transaction_id,
        )

    def _call(self, seen: Seen, arrival: Arrival, fault: Fault | None) -> Reply:
        if seen.call == "health":
            return replies.json_reply(self.switches, {"status": "UP"})
        if seen.call == "token":
            return self._sign_in(arrival)
        if seen.call is None:
            raise RefusedError(404, "no such resource")
        mailbox = self._authorized(arrival)
        if seen.call == "list":
            return self._list(mailbox, arrival)
        trouble = fault.effect if fault and fault.stage is Stage.DOCUMENT else None
        return self._one_fax(seen, mailbox, arrival, trouble)

    # The calls

    def _sign_in(self, arrival: Arrival) -> Reply:
        if _media_type(arrival) != "application/x-www-form-urlencoded":
            raise MalformedError("Content-Type", "application/x-www-form-urlencoded is needed")
        if arrival.body != _TOKEN_BODY:
            raise MalformedError("grant_type", "client_credentials is needed")
        credentials = query.parse_basic(arrival.headers.get("authorization", ""))
        app = self.apps.get(credentials[0]) if credentials else None
        if app is None or credentials is None or app.api_key != credentials[1]:
            refusal = {"error": "invalid_client", "error_description": "Bad client credentials"}
            status = int(self.switches.sign_in_refusal)
            return replies.json_reply(self.switches, refusal, status)
        self.sign_ins[app.app_id] += 1
        body = {
            "access_token": self._issue(app),
            "token_type": "bearer",
            "expires_in": self.switches.expires_in_s,
            "scope": "fax",
            "jti": self._uuid(),
        }
        return replies.json_reply(self.switches, body)

    def _list(self, mailbox: Mailbox, arrival: Arrival) -> Reply:
        _, raw_query = query.split_target(arrival.target)
        window, faxes = self._listed(mailbox, raw_query)
        selection.check_window(self.switches, window, self._said_now())
        refuse = self.switches.limit_above_100 == "refuse"
        paging = query.parse_paging(arrival.headers, refuse_above_100=refuse)
        in_order = selection.ordered(self.switches, faxes, self.random)
        page, offset = selection.page_of(self.switches, in_order, paging)
        how = self._letters(self.switches.list_fax_id)
        spelled = [_spelled(fax, how) for fax in page]
        return replies.json_reply(self.switches, replies.list_body(self.switches, spelled, offset))

    def _listed(self, mailbox: Mailbox, raw_query: str) -> tuple[query.Window, list[Fax]]:
        values = self._query(raw_query, query.LIST_PARAMETERS)
        window, filters = query.parse_window(values), query.parse_filters(values)
        return window, selection.matching(self.switches, mailbox, window, filters, self.now())

    def _one_fax(
        self, seen: Seen, mailbox: Mailbox, arrival: Arrival, trouble: str | None
    ) -> Reply:
        _, raw_query = query.split_target(arrival.target)
        allowed = _IMAGE_PARAMETERS if seen.call == "image" else _NO_PARAMETERS
        values = self._query(raw_query, allowed)
        fax = mailbox.find(seen.fax_id or "")
        if fax is None or fax.visible_at > self.now():
            raise RefusedError(404, "no such fax")
        if seen.call == "image":
            return self._image(fax, values.get("desired_format", "PDF"), trouble)
        if seen.call == "delete":
            mailbox.remove(fax)
            return Reply(204)
        if seen.call == "mark":
            fax.image_downloaded = _wanted_mark(arrival)
        return replies.json_reply(self.switches, replies.metadata_body(self.switches, fax))

    def _image(self, fax: Fax, wanted: str, trouble: str | None) -> Reply:
        formats: dict[str, Format] = {"PDF": "pdf", "TIFF": "tiff"}
        if wanted not in formats:
            raise MalformedError("desired_format", "PDF or TIFF")
        not_yet = timedelta(seconds=self.switches.image_not_yet_s)
        if self.now() < fax.visible_at + not_yet:
            raise RefusedError(404, "there is no image")
        fax.image_downloaded = True
        self.downloads[fax] += 1
        fmt = formats[wanted]
        document = self.image_bytes(fax, fmt)
        self.served.setdefault(fax, []).append(hashlib.sha256(document).hexdigest())
        spelled = _spelled(fax, self._letters(self.switches.image_fax_id))
        return replies.image_reply(self.switches, spelled, document, fmt, trouble)

    def _letters(self, how: str) -> str:
        return self.random.choice(("lower", "upper")) if how == "mixed" else how

    # Who asks, and how often

    def _app_of(self, call: str | None, arrival: Arrival) -> App | None:
        header = arrival.headers.get("authorization", "")
        if call == "token":
            credentials = query.parse_basic(header)
            return self.apps.get(credentials[0]) if credentials else None
        return self._owners.get(self._token(header) or "")

    def _token(self, header: str) -> str | None:
        return query.parse_bearer(header, strict=self.switches.scheme == "Bearer")

    def _authorized(self, arrival: Arrival) -> Mailbox:
        token = self._token(arrival.headers.get("authorization", ""))
        app = self._owners.get(token or "")
        if app is None or token is None or not app.accepts(token, self.now()):
            raise RefusedError(401, "the token is unknown or has ended")
        mailbox = app.users.get(arrival.headers.get("user-id", ""))
        if mailbox is None:
            raise RefusedError(int(self.switches.wrong_user), "no such user")
        return mailbox

    def _fax_of(self, seen: Seen) -> Fax | None:
        app = self.apps.get(seen.app_id or "")
        mailbox = app.users.get(seen.user or "") if app else None
        return mailbox.find(seen.fax_id or "") if mailbox else None

    def _issue(self, app: App) -> str:
        ends = self.now() + timedelta(seconds=self.switches.expires_in_s)
        token = self._jwt(app.app_id)
        self._owners[token] = app
        app.issue(token, ends)
        return token

    def _limit(self, seen: Seen) -> float:
        if self.rate is None or seen.app_id is None:
            return 0.0
        fresh = RateLimit(self.rate, self.burst, level=self.burst, at=seen.at_s)
        return self._buckets.setdefault(seen.app_id, fresh).take(seen.at_s)

    def _too_many(self, seen: Seen, arrival: Arrival, wait_s: float) -> Reply:
        answer = self._error(429, arrival)
        after = replies.retry_after(self.switches, int(wait_s) + 1, seen.at)
        answer.headers["Retry-After"] = after
        return answer

    # Faults

    def _instead(self, fault: Fault, arrival: Arrival) -> Reply:
        if fault.effect == "html-502":
            return replies.html_reply(502, "502 Bad Gateway")
        if fault.effect == "html-200":
            return replies.html_reply(200, "Welcome")
        if fault.effect in NOTHING:
            return Reply(200, NOTHING[fault.effect].encode(), {"Content-Type": "application/json"})
        if fault.effect == "redirect":
            location = self.faults.redirect_to.rstrip("/") + arrival.target
            return Reply(307, headers={"Location": location})
        if fault.effect == "errors-200":
            answer = self._error(500, arrival)
            answer.status = 200
            return answer
        answer = self._error(int(fault.effect), arrival)
        answer.headers["Retry-After"] = fault.retry_after
        return answer

    def _error(self, status: int, arrival: Arrival) -> Reply:
        return replies.error_reply(
            self.switches, status, f"status {status}", transaction_id=arrival.transaction_id
        )

    def _before(self, effect: str, seen: Seen, arrival: Arrival) -> None:
        if effect == "end-token":
            if seen.app_id is not None and seen.call != "token":
                self.end_token(seen.app_id)
            return
        try:
            mailbox = self._authorized(arrival)
            _, faxes = self._listed(mailbox, query.split_target(arrival.target)[1])
            offset = query.parse_paging(arrival.headers, refuse_above_100=False).offset
        except (MalformedError, RefusedError):
            return  # the call itself will say so
        if offset and faxes:
            self._shift(effect, faxes, offset)

    def _shift(self, effect: str, faxes: list[Fax], offset: int) -> None:
        """Move the list between two pages of it; what is deleted has been on a page before."""
        newest = faxes[0]
        if effect == "shift-insert":
            self.receive(
                newest.app_id,
                newest.user_id,
                completed=newest.completed,
                visible_at=self.now(),
                distinct=False,
            )
            return
        read = faxes[:offset]
        self.delete(next((fax for fax in read if fax.image_downloaded), newest))

    def _dated(self, answer: Reply) -> Reply:
        """Put the server's own time into the answer, as far as the switches let it."""
        answer.headers.setdefault("Content-Type", None)
        missing = self.switches.date_header == "missing"
        answer.headers["Date"] = None if missing else replies.http_date(self._said_now())
        return answer

    def _said_now(self) -> datetime:
        """The time that this eFax says, and judges windows by."""
        return self.now() + timedelta(seconds=self.switches.date_skew_s)

    def _query(self, raw: str, allowed: frozenset[str]) -> dict[str, str]:
        colon = self.switches.refuse_bare_colon
        return query.parse_query(raw, allowed=allowed, refuse_bare_colon=colon)

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _jwt(self, app_id: str) -> str:
        """Make a token that looks like theirs: long, three parts, opaque to clients."""
        claims = json.dumps({"client_id": app_id, "scope": ["fax"], "jti": self._uuid()})
        parts = (b'{"alg":"RS256","typ":"JWT"}', claims.encode(), self.random.randbytes(256))
        return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


_FIXED_ROUTES = {
    ("POST", "tokens"): "token",
    ("GET", "health"): "health",
    ("GET", "faxes/received"): "list",
}
# What follows after /faxes/{fax_id}.
_FAX_ROUTES = {
    ("DELETE", ""): "delete",
    ("GET", "image"): "image",
    ("GET", "metadata"): "metadata",
    ("PATCH", "metadata"): "mark",
}


def _route(method: str, segments: list[str]) -> tuple[str | None, str | None]:
    """Give the call that a path names, and the fax id in it."""
    fixed = _FIXED_ROUTES.get((method, "/".join(segments)))
    if fixed or len(segments) < 2 or segments[0] != "faxes":
        return fixed, None
    call = _FAX_ROUTES.get((method, "/".join(segments[2:])))
    return call, segments[1] if call else None


def _spelled(fax: Fax, how: str) -> Fax:
    """Give the fax as an answer spells its id."""
    if how == "same" or not is_uuid(fax.fax_id):
        return fax
    return replace(fax, fax_id=fax.fax_id.lower() if how == "lower" else fax.fax_id.upper())


def _media_type(arrival: Arrival) -> str:
    return arrival.headers.get("content-type", "").partition(";")[0].strip().lower()


def _wanted_mark(arrival: Arrival) -> bool:
    if _media_type(arrival) != "application/json":
        raise MalformedError("Content-Type", "application/json is needed")
    try:
        wanted = json.loads(arrival.body)["image_downloaded"]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError("image_downloaded", "a JSON object with it is needed") from error
    if not isinstance(wanted, bool):
        raise MalformedError("image_downloaded", "true or false")
    return wanted


def _spoil(answer: Reply, effect: str) -> None:
    if effect == "bad-json":
        answer.body = answer.body[:-1]
    elif effect == "bom":
        answer.body = b"\xef\xbb\xbf" + answer.body
    else:
        answer.body += b"<!-- end -->"


def _utc_now() -> datetime:
    return datetime.now(UTC)
