"""A bare server of users who have faxes, in its own process, with prepared images.

`python -m tests.benchmarks.faxes_served '{"encoded": PATH, …}'` prints its port. All faxes share
one document; each has its id, its time and its place in the lists.
"""

import asyncio
import bisect
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from tests.benchmarks.served import TOKEN, Connection, head, in_a_process, serve

_PAGE = 100
_PIECE = 256 << 10
_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Faxes:
    """What the server has: `each` faxes of every user from the start, and one more with every `nth` window.

    `encoded` is the file with the document as base64. The first user also has `waiting` faxes. With
    a `rate`, requests beyond a token bucket of `burst` get a 429.
    """

    encoded: str
    users: int
    each: int
    nth: int = 0
    waiting: int = 0
    rate: float = 0.0
    burst: int = 0

    @property
    def ids(self) -> list[str]:
        return [fax_id(f"user-{n}", k) for n in range(self.users) for k in range(self.each)]


def fax_id(user: str, number: int) -> str:
    return f"{user}.{number:06}"


class _User:
    def __init__(self, name: str, faxes: Faxes) -> None:
        self.name = name
        self.windows = 0
        self.completed: list[float] = []
        now = time.time()
        for k in range(faxes.each + (faxes.waiting if name == "user-0" else 0)):
            self.add(now - 3600 + k * 0.001)

    def add(self, at: float) -> None:
        self.completed.append(at)

    def page(self, since: float, until: float, offset: int) -> dict[str, Any]:
        first = bisect.bisect_left(self.completed, since) + offset
        last = min(bisect.bisect_right(self.completed, until), first + _PAGE)
        records = [self._record(number) for number in range(first, last)]
        return {
            "first_record": offset + 1 if records else 0,
            "last_record": offset + len(records) if records else 0,
            "faxes": records,
        }

    def _record(self, number: int) -> dict[str, Any]:
        at = datetime.fromtimestamp(self.completed[number], UTC)
        return {
            "fax_id": fax_id(self.name, number),
            "size": 150_000,
            "duration": 60,
            "pages": 1,
            "image_downloaded": False,
            "fax_status": "STORED",
            "completed_timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "originating_fax_number": "13235550000",
            "destination_fax_number": "18005550000",
        }


class _Answers:
    def __init__(self, faxes: Faxes) -> None:
        self._faxes = faxes
        self._encoded = memoryview(Path(faxes.encoded).read_bytes())
        self._users = {f"user-{n}": _User(f"user-{n}", faxes) for n in range(faxes.users)}
        self.counts: dict[str, float] = {
            "windows": 0,
            "images": 0,
            "first_image_at": 0.0,
            "at_once": 0,
        }
        self.sending: set[object] = set()  # connections on which an image is going out
        self._tokens, self._arrivals = float(faxes.burst), list[float]()
        self._refused = 0

    def answer(self, target: str, headers: dict[bytes, bytes]) -> list[bytes | memoryview]:
        """The body, in pieces."""
        parts = urlsplit(target)
        if parts.path.endswith("/image"):
            return self._image(parts.path.split("/")[2])
        if parts.path == "/faxes/received":
            return [_body(self._list(parse_qs(parts.query), headers))]
        if parts.path == "/counts":
            return [_body(self.counts)]
        if parts.path == "/arrivals":
            return [_body([self._arrivals, self._refused])]
        if parts.path.startswith("/receive/"):
            user, count = parts.path.removeprefix("/receive/").split("/")
            for _ in range(int(count)):
                self._users[user].add(time.time())
            return [_body({})]
        return [_body(TOKEN if parts.path == "/tokens" else {"status": "UP"})]

    def refuses(self, target: str) -> bool:
        """Take a token for a request; return True if there is none."""
        if not self._faxes.rate or target.startswith(("/arrivals", "/counts", "/receive/")):
            return False
        now = time.time()
        passed_s = now - self._arrivals[-1] if self._arrivals else 0.0
        self._arrivals.append(now)
        self._tokens = min(self._tokens + passed_s * self._faxes.rate, self._faxes.burst) - 1
        if self._tokens >= 0:
            return False
        self._tokens += 1
        self._refused += 1
        return True

    def _image(self, fax: str) -> list[bytes | memoryview]:
        self.counts["first_image_at"] = self.counts["first_image_at"] or time.time()
        self.counts["images"] += 1
        start = f'{{"fax_id":"{fax}","file_name":"{fax}.pdf","image":"'.encode()
        return [start, self._encoded, b'"}']

    def _list(self, query: dict[str, list[str]], headers: dict[bytes, bytes]) -> dict[str, Any]:
        user = self._users[headers[b"user-id"].decode()]
        offset = int(headers.get(b"pagination-offset", b"0"))
        if not offset:
            self.counts["windows"] += 1
            user.windows += 1
            if self._faxes.nth and user.windows % self._faxes.nth == 0:
                user.add(time.time())
        since = _instant(query.get("min_completed_timestamp"), 0.0)
        until = _instant(query.get("max_completed_timestamp"), time.time() + 60)
        return user.page(since, until, offset)


def _instant(values: list[str] | None, default: float) -> float:
    return datetime.fromisoformat(values[0]).timestamp() if values else default


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


class _Connection(Connection):
    """Sends no faster than the client takes it."""

    def __init__(self, answers: _Answers) -> None:
        super().__init__()
        self._answers = answers
        self._rest: deque[bytes | memoryview] = deque()
        self._paused = False

    def connection_lost(self, _: Exception | None) -> None:
        self._answers.sending.discard(self)

    def asked(self, target: str, headers: dict[bytes, bytes]) -> None:
        if self._answers.refuses(target):
            self._rest.append(_REFUSAL)
        else:
            self._rest.extend(_pieces(self._answers.answer(target, headers)))
        self._send()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def _send(self) -> None:
        while self._rest and not self._paused:
            self._transport.write(self._rest.popleft())
        self._note_sending()

    def _note_sending(self) -> None:
        if not self._rest:
            self._answers.sending.discard(self)
            return
        self._answers.sending.add(self)
        counts = self._answers.counts
        counts["at_once"] = max(counts["at_once"], len(self._answers.sending))


def _pieces(body: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    length = sum(len(part) for part in body)
    if length <= _PIECE:
        yield head(length) + b"".join(body)
        return
    yield head(length)
    for part in body:
        for at in range(0, len(part), _PIECE):
            yield part[at : at + _PIECE]


@dataclass(frozen=True)
class Served:
    """The server as the benchmark sees it."""

    base_url: str

    async def counts(self) -> dict[str, float]:
        """Return the windows (first pages of lists), the images, and the time of the first image request.

        The time is by the wall clock; `at_once` is how many large images went out at once at most.
        """
        counts: dict[str, float] = await self._get("/counts")
        return counts

    async def arrivals(self) -> tuple[list[float], int]:
        """Return when requests of any kind came (wall clock), and how many got a 429."""
        arrivals, refused = await self._get("/arrivals")
        return arrivals, refused

    async def receive(self, user: str, count: int = 1) -> None:
        """Let faxes come for `user` now."""
        await self._get(f"/receive/{user}/{count}")

    async def _get(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.base_url + path) as answer,
        ):
            return await answer.json()


@asynccontextmanager
async def served(faxes: Faxes) -> AsyncIterator[Served]:
    """Run the server in its own process."""
    module = "tests.benchmarks.faxes_served"
    async with in_a_process(module, json.dumps(asdict(faxes))) as base_url:
        yield Served(base_url)


if __name__ == "__main__":
    answers = _Answers(Faxes(**json.loads(sys.argv[1])))
    asyncio.run(serve(lambda: _Connection(answers)))
