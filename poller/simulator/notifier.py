"""The web-hook: post a notice of each received fax, and of each state of a sent one."""

import asyncio
import hashlib
import heapq
import hmac
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from poller.client import Resolver

from . import replies
from .mailroom import Mailroom
from .state import Fax, HookTarget, SentFax

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# The fields that name something, before nesting; hook_names keeps only the fields of one row.
_NAMING = {
    "user": ("user_id",),
    "fax": ("fax_id",),
    "number": ("destination_fax_number", "originating_fax_number"),
}


@dataclass(frozen=True)
class Posted:
    """One posted notice; `status` is None if there was no answer."""

    fax: Fax
    status: int | None


class Notifier:
    """Posts due notices; `posted` holds those sent, `lost` those that the switches suppressed."""

    def __init__(self, efax: Mailroom) -> None:
        self.posted: list[Posted] = []
        self.lost: list[Fax] = []
        self._efax = efax
        self._count = 0

    async def post_due(self) -> int:
        """Post all due notices now; return how many."""
        due = self._due()
        if not due:
            return 0
        connector = aiohttp.TCPConnector(resolver=Resolver("the web-hook"))
        async with aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, trust_env=False
        ) as session:
            posts = (self._post(session, self._efax.hooks[fax.app_id], fax) for fax in due)
            self.posted += await asyncio.gather(*posts)
        return len(due)

    def _due(self) -> list[Fax]:
        efax, due = self._efax, []
        while efax.notices and efax.notices[0][0] <= efax.now():
            fax = heapq.heappop(efax.notices)[-1]
            self._count += 1
            if efax.switches.hook_lost and self._count % efax.switches.hook_lost == 0:
                self.lost.append(fax)
                continue
            due += [fax] * (1 + efax.switches.hook_repeats)
        return due

    async def _post(self, session: aiohttp.ClientSession, target: HookTarget, fax: Fax) -> Posted:
        media_type, body = notice(self._efax, fax)
        headers = {"Content-Type": media_type, **self._signature(target.secret, body)}
        try:
            # Any certificate will do: the listener is on this machine.
            async with session.post(
                target.url, data=body, headers=headers, ssl=False, allow_redirects=False
            ) as answer:
                return Posted(fax, answer.status)
        except (aiohttp.ClientError, TimeoutError):
            return Posted(fax, None)

    def _signature(self, secret: str, body: bytes) -> dict[str, str]:
        how = self._efax.switches.hook_signature
        if how == "missing":
            return {}
        key = secret + "?" if how == "wrong" else secret
        signed = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
        return {"X-HMAC-Signature": f"sha256={signed}" if how == "prefixed" else signed}


def hook_target(url: str, secret: str) -> HookTarget:
    """Check that notices go to this machine. Raises ValueError with the reason if not."""
    parsed = URL(url)
    if parsed.scheme not in ("http", "https") or parsed.host not in _LOOPBACK:
        raise ValueError(f"{url!r} is not an http address on this machine")
    return HookTarget(url, secret)


def notice(efax: Mailroom, fax: Fax) -> tuple[str, bytes]:
    """Return media type and body of a notice, in the form that the switches set."""
    fields = _fields(efax, fax)
    names = efax.switches.hook_names
    for row, keys in _NAMING.items():
        if names not in ("all", row):
            for key in keys:
                del fields[key]
    spelling = efax.switches.hook_fields
    if spelling == "form":
        return "application/x-www-form-urlencoded", urlencode(fields).encode()
    if spelling == "camel":
        fields = {_camel(name): value for name, value in fields.items()}
    elif spelling == "nested":
        kind = fields.pop("event")
        fields = {"event": {"type": kind, "data": {"records": [{"fax": fields}]}}}
    return "application/json", json.dumps(fields).encode()


def _fields(efax: Mailroom, fax: Fax) -> dict[str, Any]:
    fields = {
        "event": "fax.received",
        "user_id": fax.user_id,
        "fax_id": fax.fax_id,
        "fax_direction": "INBOUND",
        "fax_completed_timestamp": replies.timestamp(efax.switches, fax.completed),
        "originating_fax_number": fax.originating,
        "destination_fax_number": efax.apps[fax.app_id].users[fax.user_id].number
        or fax.destination,
        "download_url": f"https://elsewhere.invalid/download/{fax.number}",
    }
    if isinstance(fax, SentFax):
        fields |= {
            "event": "fax.sent",
            "fax_direction": "OUTBOUND",
            "transmission_status": fax.status(efax.now()),
            "originating_fax_number": fax.originating,
            "destination_fax_number": fax.destination,
        }
    return fields


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
