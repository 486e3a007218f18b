"""The App IDs, users and faxes of a simulated eFax, and what a test or demo does with them."""

import base64
import heapq
import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from poller.errors import NotInstalled

from .query import Arrival, RefusedError, parse_bearer
from .state import App, Course, Fax, Format, HookTarget, Mailbox, SentFax, whole_milliseconds
from .switches import Switches


class Mailroom:
    """What eFax knows; deterministic, given `seed` and the two clocks.

    `downloads` counts image answers; `served` holds the SHA-256 of the document in each.
    """

    def __init__(
        self,
        *,
        switches: Switches | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        seed: int = 1,
    ) -> None:
        try:
            # Imported here: it needs the packages of an extra, and the options of `simulate` do not.
            from .drawing import as_received, document  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            raise NotInstalled(
                f"the simulator needs {missing.name}, which is not installed; in poller's source "
                f"directory, run: {sys.executable} -m pip install '.[simulator]'"
            ) from missing
        self._document = document
        self.as_received = as_received
        self.switches = switches or Switches()
        self.now = now
        self.monotonic = monotonic
        self.random = random.Random(seed)  # noqa: S311 (made-up data, the same in every run)
        self.apps: dict[str, App] = {}
        self.downloads: Counter[Fax] = Counter()
        self.served: dict[Fax, list[str]] = {}
        self.sign_ins: Counter[str] = Counter()
        self.hooks: dict[str, HookTarget] = {}  # by App ID
        self.notices: list[tuple[datetime, int, Fax]] = []  # a heap: time, and a unique number
        self._owners: dict[str, App] = {}
        self._faxes = self._notices = 0

    def add_app(self, app_id: str, api_key: str) -> App:
        self.apps[app_id] = App(app_id, api_key)
        return self.apps[app_id]

    def add_user(self, app_id: str, user_id: str, *, number: str | None = None) -> Mailbox:
        """Add a user; it receives faxes that others send to its `number`."""
        return self.apps[app_id].users.setdefault(user_id, Mailbox(app_id, user_id, number))

    def receive(
        self,
        app_id: str,
        user_id: str,
        *,
        completed: datetime | None = None,
        visible_at: datetime | None = None,
        document: bytes | None = None,
        **fields: Any,
    ) -> Fax:
        """Make a fax arrive; `completed` is now by default, and `fields` are those of `Fax`.

        Every download gets `document`, whatever the format. Without it the pages are drawn. With
        `distinct=False` they come from a template and only their bytes are unique, which is fast
        (thousands per second). `visible_at` overrides the switch `late_visible_s`.
        """
        self._faxes += 1
        completed = whole_milliseconds(completed or self.now())
        late = timedelta(seconds=self.switches.late_visible_s)
        fields["fax_id"] = fields.get("fax_id") or self.new_uuid()
        visible_at = visible_at or completed + late
        fax = Fax(
            *(app_id, user_id),
            completed=completed,
            visible_at=visible_at,
            number=self._faxes,
            **fields,
        )
        if document is not None:
            fax.documents = {"pdf": document, "tiff": document}
        self.apps[app_id].users[user_id].add(fax)
        self.expect_notice(fax, visible_at)
        return fax

    def sent(
        self,
        app_id: str,
        user_id: str,
        *,
        created: datetime | None = None,
        course: Course = ((0.0, "COMPLETE"),),
        **fields: Any,
    ) -> SentFax:
        """Add a fax that a user sent, now by default; `fields` are those of `SentFax`.

        `course` is the course of its transmission, e.g. `((0, "NEW"), (5, "INPROGRESS"), (60, "ERROR"))`.
        """
        self._faxes += 1
        created = whole_milliseconds(created or self.now())
        mailbox = self.apps[app_id].users[user_id]
        fields["fax_id"] = fields.get("fax_id") or self.new_uuid()
        fields.setdefault("originating", mailbox.number or "18005550100")
        fields.setdefault("destination", "13235551212")
        fax = SentFax(
            *(app_id, user_id),
            completed=whole_milliseconds(created + timedelta(seconds=course[-1][0])),
            visible_at=created,
            number=self._faxes,
            course=course,
            **fields,
        )
        mailbox.add(fax)
        for after_s, _ in course:
            self.expect_notice(fax, created + timedelta(seconds=after_s))
        return fax

    def delete(self, fax: Fax) -> None:
        """Delete a fax, as in the web portal."""
        self.apps[fax.app_id].users[fax.user_id].remove(fax)

    def faxes(self) -> list[Fax]:
        """Return every fax that exists, listed or not."""
        boxes = (box for app in self.apps.values() for box in app.users.values())
        return [fax for box in boxes for fax in box.faxes]

    def expect_notice(self, fax: Fax, at: datetime) -> None:
        """Schedule a notice of the fax, if its App ID has a web-hook."""
        if fax.app_id in self.hooks:
            self._notices += 1
            due = at + timedelta(seconds=self.switches.hook_delay_s)
            heapq.heappush(self.notices, (due, self._notices, fax))

    def owner_of_number(self, number: str) -> tuple[str, str] | None:
        """Return the App ID and the user with this number."""
        for app in self.apps.values():
            for user_id, mailbox in app.users.items():
                if mailbox.number is not None and mailbox.number.lstrip("+") == number.lstrip("+"):
                    return app.app_id, user_id
        return None

    def image_bytes(self, fax: Fax, fmt: Format = "pdf", download: int | None = None) -> bytes:
        """Return the bytes of a download in format `fmt`.

        `download` counts from 1 and is the last one by default; it matters only if the switch
        `pdf_bytes` makes each PDF different.
        """
        if fmt == "pdf" and self.switches.pdf_answer == "tiff":
            fmt = "tiff"
        anew = fmt == "pdf" and self.switches.pdf_bytes == "differ"
        which = self.downloads[fax] if download is None else download
        return self._document(fax, fmt, which if anew else 0)

    def end_token(self, app_id: str) -> None:
        """Simulate a sign-in of another program with this App ID: the present token ends."""
        self.issue_token(self.apps[app_id])

    # Helpers for the calls

    def issue_token(self, app: App) -> str:
        """Give an App ID a new token; the old one ends.

        It looks like eFax's: long, in three parts, opaque to clients.
        """
        claims = {"client_id": app.app_id, "scope": ["fax"], "jti": self.new_uuid()}
        header, signature = b'{"alg":"RS256","typ":"JWT"}', self.random.randbytes(256)
        parts = (header, json.dumps(claims).encode(), signature)
        app.token = ".".join(base64.urlsafe_b64encode(one).decode().rstrip("=") for one in parts)
        app.token_ends = self.now() + timedelta(seconds=self.switches.expires_in_s)
        self._owners[app.token] = app
        return app.token

    def owner_of_token(self, arrival: Arrival) -> App | None:
        """Return the App ID whose token a request carries, valid or not."""
        strict = self.switches.scheme == "Bearer"
        return self._owners.get(parse_bearer(arrival.header("authorization"), strict=strict) or "")

    def authorized(self, arrival: Arrival) -> Mailbox:
        """Return the mailbox of the request's user. Raises RefusedError for a bad token."""
        app = self.owner_of_token(arrival)
        token = arrival.header("authorization").partition(" ")[2]
        if app is None or token != app.token or self.now() >= app.token_ends:
            raise RefusedError(401, "the token is unknown or has ended")
        mailbox = app.users.get(arrival.header("user-id"))
        if mailbox is None:
            raise RefusedError(int(self.switches.wrong_user), "no such user")
        return mailbox

    def said_now(self) -> datetime:
        """Return the time of this eFax, which it also uses to check windows."""
        return self.now() + timedelta(seconds=self.switches.date_skew_s)

    def new_uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))
