"""Decide who may send a request now: the rate, slots and turns of one account."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

_A_TOKEN = 1 - 1e-6  # rounding must not wake a caller a little too early, again and again
_LISTS_IN_A_ROW = 3
_SLOWEST = 1 / 20  # as a share of the configured rate
_RECOVERY_S = 300.0  # of success, from zero to the configured rate
_RECOVERY_STEP_S = 60.0  # a success proves at most the minute before it
_LONGEST_PAUSE_S = 60.0
_UNANSWERED_S = 1.0
_MINUTE_S = 60


class Kind(StrEnum):
    """The purpose of a request, in order of precedence."""

    OTHER = "other"  # token, health, metadata, sending and its outcome: few, and somebody waits
    LIST = "list"
    IMAGE = "image"
    SENT_LIST = "sent-list"  # lists, metadata and details of sent faxes
    SENT_IMAGE = "sent-image"
    LAST = "last"  # deletions and marks


_LOW = (Kind.SENT_LIST, Kind.SENT_IMAGE, Kind.LAST)
_SLOW = (Kind.SENT_IMAGE, Kind.LAST)


@dataclass(frozen=True, eq=False)
class Ticket:
    """One request that waits or is under way; compared by identity."""

    kind: Kind
    user: str


class Turns:
    """Waiting tickets of one kind; users take turns; every operation is O(1).

    Users in a hurry go before all others, and take turns among themselves.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()
        self._ahead: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()
        self._hurried: set[str] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, user: str) -> bool:
        return user in self._users or user in self._ahead

    def hurry(self, user: str) -> None:
        """Let this user go first from now on, until `calm`."""
        self._hurried.add(user)
        waiting = self._users.pop(user, None)
        if waiting is not None:
            self._ahead[user] = waiting

    def calm(self, user: str) -> None:
        """From now on, let this user's requests take turns with the others."""
        self._hurried.discard(user)

    def add(self, ticket: Ticket) -> None:
        is_ahead = ticket.user in self._hurried or ticket.user in self._ahead
        users = self._ahead if is_ahead else self._users
        users.setdefault(ticket.user, OrderedDict())[ticket] = None
        self._count += 1

    def remove(self, ticket: Ticket) -> None:
        """Forget a ticket; ignore one that does not wait here."""
        users = self._ahead if ticket.user in self._ahead else self._users
        waiting = users.get(ticket.user)
        if waiting is None or ticket not in waiting:
            return
        del waiting[ticket]
        self._count -= 1
        if not waiting:
            del users[ticket.user]

    def take(self) -> Ticket:
        """Return the first ticket of the user whose turn it is; then move that user to the end."""
        user, waiting = (self._ahead or self._users).popitem(last=False)
        ticket, _ = waiting.popitem(last=False)
        self._count -= 1
        if waiting:
            (self._ahead if user in self._hurried else self._users)[user] = waiting
        return ticket


class Bucket:
    """Tokens: `rate` per second, at most `capacity`; time is in monotonic seconds.

    `unanswered` requests keep the places of their tokens. The server may not have counted them yet,
    and if they are delayed on the way, they must not arrive together with requests for which this
    time has paid. If nothing was answered for a second, one token at a time comes nevertheless:
    slow answers are no reason to send nothing.
    """

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._unanswered = 0
        self._heard_at = now
        self._tokens = capacity
        self._at = now  # refilled up to this time; in the future during a pause

    def refill(self, now: float) -> None:
        if now <= self._at:
            return
        most = self.capacity - self._unanswered
        if now >= self._heard_at + _UNANSWERED_S:
            most = max(most, 1.0)
        self._tokens = max(self._tokens, min(self._tokens + (now - self._at) * self.rate, most))
        self._at = now

    def expect(self, unanswered: int, now: float) -> None:
        """Set how many requests are unanswered from now on: one was sent, or an answer came."""
        self.refill(now)
        if unanswered <= self._unanswered or not self._unanswered:
            self._heard_at = now
        self._unanswered = unanswered

    def take(self, now: float) -> None:
        """Take a token, even one that is still to come."""
        self.refill(now)
        self._tokens -= 1

    def owed_until(self, now: float) -> float:
        """Return when all taken tokens will have come; now, if none is owed."""
        return now if self._tokens >= 0 else max(self._at, now) - self._tokens / self.rate

    def next_token_at(self, now: float) -> float:
        """Return when there will be a token; now, if there is one."""
        self.refill(now)
        if self._tokens >= _A_TOKEN:
            return now
        refilled_at = self._at + (1 - self._tokens) / self.rate
        if self.capacity - self._unanswered < 1:
            return max(refilled_at, self._heard_at + _UNANSWERED_S)
        return refilled_at

    def stand_still(self, until: float) -> None:
        """Let no token come before `until`."""
        self._at = max(self._at, until)

    def keep_at_most(self, tokens: float) -> None:
        self._tokens = min(self._tokens, tokens)

    def resize(self, rate: float, capacity: float, now: float) -> None:
        self.refill(now)
        self.rate = rate
        self.capacity = capacity
        self.keep_at_most(capacity)


class AdaptiveRate:
    """Requests per second: halved by each 429 that begins a pause, and recovering afterwards."""

    def __init__(self, limit: float, now: float) -> None:
        self.limit = self.rate = limit
        self.paused_until: float | None = None
        self._pause_began = -math.inf
        self._rate_limited_in_a_row = 0
        self._recovering_from = now

    def is_paused(self, now: float) -> bool:
        if self.paused_until is not None and self.paused_until <= now:
            self.paused_until = None
        return self.paused_until is not None

    def set_limit(self, limit: float) -> None:
        """Change the limit; a slowed rate stays slowed."""
        self.rate *= limit / self.limit
        self.limit = limit

    def rate_limited(self, now: float, retry_after_s: float | None, sent_at: float | None) -> bool:
        """Take a 429; return whether it began a pause and halved the rate."""
        begins = not self._is_from_before_pause(now, sent_at)
        if begins:
            self._rate_limited_in_a_row += 1
            self._pause_began = now
            self.rate = max(self.rate / 2, self.limit * _SLOWEST)
        if begins or retry_after_s:
            until = now + (retry_after_s or self._growing_pause_s())
            self.paused_until = self._recovering_from = max(self.paused_until or until, until)
        return begins

    def succeeded(self, now: float, sent_at: float | None) -> None:
        if self._is_from_before_pause(now, sent_at):
            return
        self._rate_limited_in_a_row = 0
        elapsed_s = min(max(now - self._recovering_from, 0.0), _RECOVERY_STEP_S)
        self._recovering_from = max(now, self._recovering_from)
        if self.rate < self.limit:
            self.rate = min(self.rate + self.limit * elapsed_s / _RECOVERY_S, self.limit)

    def _is_from_before_pause(self, now: float, sent_at: float | None) -> bool:
        return self.is_paused(now) or (sent_at is not None and sent_at <= self._pause_began)

    def _growing_pause_s(self) -> float:
        return min(2.0 ** min(self._rate_limited_in_a_row - 1, 10), _LONGEST_PAUSE_S)


class Slots:
    """Which requests wait, which are under way, and whose turn is next.

    Kind OTHER goes first, then lists, then images; but every fourth turn goes to an image if one
    waits and may go. Images leave a quarter of the slots free. Within a kind, users take turns;
    lists of users whom a notice names go before those of others.

    Requests about sent faxes, deletions and marks go when none of those may go. They leave a
    quarter of all slots free; images of sent faxes, deletions and marks leave half free. Received
    faxes use the slots that these do not occupy, and their images leave a quarter of the rest free.
    """

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self._queues = {kind: Turns() for kind in Kind}
        self._under_way: dict[Kind, set[Ticket]] = {kind: set() for kind in Kind}
        self._since_image = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def has_waiting(self, user: str) -> bool:
        """Whether a request of this user waits for its turn."""
        return any(user in queue for queue in self._queues.values())

    def hurry(self, user: str) -> None:
        """Let this user's lists of received faxes go before those of others, until `calm`."""
        self._queues[Kind.LIST].hurry(user)

    def calm(self, user: str) -> None:
        self._queues[Kind.LIST].calm(user)

    @property
    def under_way(self) -> int:
        return sum(map(len, self._under_way.values()))

    def enqueue(self, ticket: Ticket) -> None:
        self._queues[ticket.kind].add(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Forget a ticket, waiting or under way; a second time does no harm."""
        self._queues[ticket.kind].remove(ticket)
        self._under_way[ticket.kind].discard(ticket)

    def next_kind(self) -> Kind | None:
        """Return whose turn it is, tokens aside; None if nobody waits or no slot is free."""
        if self.under_way >= self.in_flight:
            return None
        if self._since_image >= _LISTS_IN_A_ROW and self._image_may_go():
            return Kind.IMAGE
        for kind in (Kind.OTHER, Kind.LIST):
            if self._queues[kind]:
                return kind
        if self._image_may_go():
            return Kind.IMAGE
        return next((kind for kind in _LOW if self._low_may_go(kind)), None)

    def start(self, kind: Kind) -> Ticket:
        """Give a slot to the next ticket of a kind."""
        if kind is Kind.IMAGE:
            self._since_image = 0
        elif self._image_may_go():
            self._since_image += 1
        ticket = self._queues[kind].take()
        self._under_way[kind].add(ticket)
        return ticket

    def _image_may_go(self) -> bool:
        if not self._queues[Kind.IMAGE]:
            return False
        return self._at_work(Kind.IMAGE) < _three_quarters(self.in_flight - self._at_work(*_LOW))

    def _low_may_go(self, kind: Kind) -> bool:
        if not self._queues[kind] or self._at_work(*_LOW) >= _three_quarters(self.in_flight):
            return False
        return kind is Kind.SENT_LIST or self._at_work(*_SLOW) < max(1, self.in_flight // 2)

    def _at_work(self, *kinds: Kind) -> int:
        return sum(len(self._under_way[kind]) for kind in kinds)


def _three_quarters(slots: int) -> int:
    return max(1, slots - math.ceil(slots / 4))


class Pacing:
    """The rate, slots and turns of one account; the caller tells the time and does the waiting.

    A token bucket of `burst - 1` (at least 1): in no window of t seconds do more than `rate * t +
    burst - 1` requests begin. Unanswered requests hold their places. So while at most `burst - 1`
    are unanswered, a server that counts the same way never refuses requests that the network
    bunches together.
    """

    def __init__(self, limits_rate: float, burst: int, in_flight: int, now: float) -> None:
        self.speed = AdaptiveRate(limits_rate, now)
        self.slots = Slots(in_flight)
        self._bucket = Bucket(limits_rate, max(1, burst - 1), now)
        self._sent: dict[int, int] = {}  # by second, for the last minute
        self._unanswered: set[Ticket] = set()

    def follow(self, quiet_s: float) -> None:
        """Begin after another poller that sent its last request this long ago, perhaps a whole burst."""
        self._bucket.keep_at_most(self.speed.rate * quiet_s)

    def used(self, now: float) -> float:
        """Requests per second, on average over the last minute."""
        return sum(n for second, n in self._sent.items() if second > now - _MINUTE_S) / _MINUTE_S

    def set_limits(self, limits_rate: float, burst: int, in_flight: int, now: float) -> None:
        """Change the limits, even while requests are under way; a slowed account stays slowed."""
        self.slots.in_flight = in_flight
        self.speed.set_limit(limits_rate)
        self._bucket.resize(self.speed.rate, max(1, burst - 1), now)

    def cancel(self, ticket: Ticket) -> None:
        """Take back a ticket, waiting or granted.

        A granted one does not return its token, because the request may have been sent.
        """
        self._unanswered.discard(ticket)
        self.slots.drop(ticket)

    def grant(self, now: float) -> list[Ticket]:
        """Return the tickets that may go now; each has taken a token and a slot."""
        granted = []
        while (kind := self.slots.next_kind()) and self._may_send(now):
            self._take(now)
            ticket = self.slots.start(kind)
            self._unanswered.add(ticket)
            self._bucket.expect(len(self._unanswered), now)
            granted.append(ticket)
        return granted

    def _may_send(self, now: float) -> bool:
        return not self.speed.is_paused(now) and self._bucket.next_token_at(now) <= now

    def wakes_at(self, now: float) -> float | None:
        """Return when to call `grant` again if nothing is released before; None means never."""
        if self.slots.next_kind() is None:
            return None
        return max(self._bucket.next_token_at(now), self.speed.paused_until or now, now)

    def release(self, ticket: Ticket, now: float) -> None:
        """Release the slot of a request that has ended, well or not; a second time does no harm."""
        self.answered(ticket, now)
        self.slots.drop(ticket)

    def answered(self, ticket: Ticket, now: float) -> None:
        """Note that an answer has begun, so the server has counted this request."""
        if ticket in self._unanswered:
            self._unanswered.remove(ticket)
            self._bucket.expect(len(self._unanswered), now)

    def repeat(self, now: float) -> float:
        """Take a token for a request that the HTTP client repeats by itself.

        Returns the seconds to wait before sending; it takes the token at once, so all others wait
        longer.
        """
        self._take(now)
        return max(self._bucket.owed_until(now), self.speed.paused_until or now) - now

    def _take(self, now: float) -> None:
        self._bucket.take(now)
        second = int(now)
        if second not in self._sent:
            self._sent = {at: n for at, n in self._sent.items() if at > second - _MINUTE_S}
            self._sent[second] = 0
        self._sent[second] += 1

    def rate_limited(
        self, now: float, retry_after_s: float | None, *, sent_at: float | None = None
    ) -> bool:
        """Pause after a 429 and halve the rate; 429s to requests sent before the pause count once.

        Returns whether this one began the pause. Without Retry-After (or with 0, which means
        nothing), the pause grows from 1 s to 60 s over 429s in a row. `sent_at` also recognizes an
        answer that took longer than the pause.
        """
        begins = self.speed.rate_limited(now, retry_after_s, sent_at)
        if begins:
            self._bucket.resize(self.speed.rate, self._bucket.capacity, now)
            self._bucket.keep_at_most(1)
        if self.speed.paused_until is not None:
            self._bucket.stand_still(self.speed.paused_until)
        return begins

    def succeeded(self, now: float, *, sent_at: float | None = None) -> None:
        """Let the rate recover linearly: five minutes of success restore the limit."""
        before = self.speed.rate
        self.speed.succeeded(now, sent_at)
        if self.speed.rate != before:
            self._bucket.resize(self.speed.rate, self._bucket.capacity, now)
