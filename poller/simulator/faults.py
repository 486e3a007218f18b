"""Faults to switch on: which, for which calls, and how often."""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

CALLS = (
    *("token", "health", "list", "metadata", "image", "mark", "delete"),
    *("sent-list", "send", "details", "notifications"),
)


class Stage(Enum):
    """The stage of a request at which a fault strikes."""

    BEFORE = "before the call is carried out"
    INSTEAD = "instead of carrying out the call"
    DOCUMENT = "in the document or the image answer"
    BODY = "in the body of the answer"
    DELIVERY = "while the answer is sent"


# An outage that answers 200 with nothing in it, in every form.
NOTHING = {
    "empty-200": "",
    "null-200": "null",
    "list-200": "[]",
    "bare-200": "{}",
    "array-200": '{"faxes": []}',
    "zero-200": '{"first_record": 0, "last_record": 0}',
    "full-200": '{"first_record": 0, "last_record": 0, "faxes": []}',
    "other-200": '{"status": "OK"}',
}

# Effect -> (stage, what it does). A status (400 to 599) is also an effect, of stage INSTEAD.
EFFECTS: dict[str, tuple[Stage, str]] = {
    "end-token": (Stage.BEFORE, "another program signs in: the token in use has ended"),
    "shift-insert": (Stage.BEFORE, "before a later page is read, a new fax arrives"),
    "shift-delete": (Stage.BEFORE, "before a later page is read, a fax listed before is deleted"),
    "html-502": (Stage.INSTEAD, "502 with the HTML page of a proxy"),
    "html-200": (Stage.INSTEAD, "200 with an HTML page instead of JSON"),
    "errors-200": (Stage.INSTEAD, "200 with an error envelope"),
    **{
        effect: (Stage.INSTEAD, f"200 with {body or 'no body'}, whatever faxes there are")
        for effect, body in NOTHING.items()
    },
    "redirect": (Stage.INSTEAD, "307 to another host"),
    "cut-document": (Stage.DOCUMENT, "the PDF or TIFF ends in the middle; the JSON is whole"),
    "no-document": (Stage.DOCUMENT, "the bytes are neither PDF nor TIFF"),
    "empty-document": (Stage.DOCUMENT, "the image is an empty text"),
    "null-image": (Stage.DOCUMENT, "the image is null"),
    "no-image": (Stage.DOCUMENT, "the answer has no image field"),
    "wrong-fax-id": (Stage.DOCUMENT, "the answer names another fax"),
    "bad-base64": (Stage.DOCUMENT, "the image contains a character that is not base64"),
    "bad-padding": (Stage.DOCUMENT, "the last character of the base64 text is missing"),
    "duplicate-image": (Stage.DOCUMENT, "the answer has two image fields"),
    "bad-json": (Stage.BODY, "the JSON lacks its last bracket; the length is right"),
    "bom": (Stage.BODY, "there is a byte order mark before the JSON"),
    "trailing-garbage": (Stage.BODY, "there is more text after the JSON"),
    "done-500": (Stage.BODY, "carried out, but the answer is a 500"),
    "reset": (Stage.DELIVERY, "carried out, but the connection is reset before the answer"),
    "reset-mid-body": (Stage.DELIVERY, "the connection is reset in the middle of the body"),
    "cut": (Stage.DELIVERY, "the connection is closed in mid-body, short of its Content-Length"),
    "cut-no-length": (Stage.DELIVERY, "closed in mid-body, without Content-Length: it looks whole"),
    "cut-chunked": (Stage.DELIVERY, "a chunked body is closed in its middle"),
    "stall": (Stage.DELIVERY, "carried out, but the answer never arrives"),
    "stall-mid-body": (Stage.DELIVERY, "half the body arrives, then nothing"),
    "drip": (Stage.DELIVERY, "the body arrives a few bytes at a time"),
}

_COUNTS = ("every", "first", "nth_fax")
_COUNT = r"[1-9]\d{0,8}"
_WHEN = re.compile(
    rf"every:(?P<every>{_COUNT})|first:(?P<first>{_COUNT})|fax:(?P<nth_fax>{_COUNT})"
    r"|(?P<number>\d{1,3}(?:\.\d+)?)(?P<percent>\s?%)?|always"
)
_REASONABLE_RETRY_AFTER = re.compile(r"[\x20-\x7e]{1,100}")


def stage_of(effect: str) -> Stage:
    """Return where an effect strikes. Raises ValueError for an unknown one."""
    if re.fullmatch(r"[45]\d\d", effect):
        return Stage.INSTEAD
    if effect not in EFFECTS:
        raise ValueError(f"there is no fault {effect!r}; --help lists them")
    return EFFECTS[effect][0]


@dataclass(frozen=True)
class Fault:
    """One effect and when it strikes: at random, every n-th time, the first n times, or always for
    every n-th fax (a poison fax). If several are given, one of them is enough.

    Empty `calls` means all calls that the effect can strike. `user_id` and `fax_id` narrow it down.
    """

    effect: str
    calls: frozenset[str] = frozenset()
    probability: float = 0.0
    every: int = 0
    first: int = 0
    nth_fax: int = 0
    user_id: str | None = None
    fax_id: str | None = None
    retry_after: str | None = None

    def __post_init__(self) -> None:
        stage_of(self.effect)
        if unknown := self.calls - set(CALLS):
            raise ValueError(f"fault {self.effect}: there is no call {min(unknown)!r}")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(
                f"fault {self.effect}: a chance must be from 0 to 1, or from 0 % to 100 %"
            )
        if min(self.every, self.first, self.nth_fax) < 0:
            raise ValueError(f"fault {self.effect}: a count must be 1 or more")
        if self.retry_after is not None and not _REASONABLE_RETRY_AFTER.fullmatch(self.retry_after):
            raise ValueError(f"fault {self.effect}: Retry-After must be a line of printable ASCII")

    @property
    def stage(self) -> Stage:
        return stage_of(self.effect)

    def concerns(self, call: str, user_id: str | None, fax_id: str | None) -> bool:
        """Return whether this fault can strike such a request."""
        return (
            call in (self.calls or self._default_calls())
            and self.user_id in (None, user_id)
            and self.fax_id in (None, fax_id)
        )

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read EFFECT[@CALL,CALL][+RETRY_AFTER]=WHEN. Raises ValueError with a sentence.

        WHEN is `5%` or `0.05` (chance), `every:7`, `first:3`, `fax:10` (always, for every tenth
        fax) or `always`; RETRY_AFTER is the header's value.
        """
        name, equals, when = text.partition("=")
        head, _, retry_after = name.partition("+")
        effect, at, calls = head.partition("@")
        stage_of(effect)
        if "@" in retry_after:
            raise ValueError(
                f"fault {effect}: the calls come before the Retry-After: EFFECT@CALL+S"
            )
        if not equals:
            raise ValueError(f"fault {effect}: say when, e.g. {effect}=5%")
        match = _WHEN.fullmatch(when)
        if not match:
            raise ValueError(
                f"fault {effect}: {when!r} is not one of 5%, every:N, first:N, fax:N, always"
            )
        struck: dict[str, Any] = {name: int(match[name]) for name in _COUNTS if match[name]}
        if not struck:
            chance = float(match["number"] or 1) / (100 if match["percent"] else 1)
            struck["probability"] = chance
        named = frozenset(calls.split(",")) if at else frozenset()
        return cls(effect, named, retry_after=retry_after or None, **struck)

    def _default_calls(self) -> tuple[str, ...]:
        """Return the calls to strike if none are given: images for a fault of certain faxes, else all."""
        if self.effect.startswith("shift-"):
            return ("list",)
        if self.stage is Stage.DOCUMENT or self.nth_fax or self.fax_id:
            return ("image",)
        return CALLS


@dataclass(frozen=True)
class Faults:
    """The faults that strike.

    The script goes first: entry i strikes the i-th request of `script_calls` (if empty, of all
    calls); None lets a request pass. After the script, the first matching rule strikes. `429+30` in
    the script is a 429 with Retry-After 30.

    `outage` answers everything with `outage_effect`, by default 503.
    """

    rules: tuple[Fault, ...] = ()
    script: tuple[str | None, ...] = ()
    script_calls: frozenset[str] = frozenset()
    outage: bool = False
    outage_effect: str = "503"
    drip_bytes: int = 16
    drip_interval_s: float = 0.05

    def __post_init__(self) -> None:
        stage_of(self.outage_effect)
        for entry in filter(None, self.script):
            _scripted(entry)
        if self.drip_bytes < 1:
            raise ValueError("drip_bytes must be 1 or more")

    @classmethod
    def of(cls, *texts: str) -> "Faults":
        """Read rules as on the command line, e.g. `Faults.of("500@image=5%", "reset=every:10")`."""
        return cls(rules=tuple(Fault.parse(text) for text in texts))


def _scripted(entry: str) -> Fault:
    effect, _, retry_after = entry.partition("+")
    return Fault(effect, retry_after=retry_after or None)


@dataclass(frozen=True)
class Target:
    """The facts about a request that faults need; `fax_number` counts faxes from 1."""

    call: str
    user_id: str | None = None
    fax_id: str | None = None
    fax_number: int | None = None
    trouble: str | None = None


@dataclass
class Chooser:
    """Chooses the fault for the next request; deterministic, given the random generator."""

    faults: Faults
    random: random.Random
    _seen: Counter[int] = field(default_factory=Counter)
    _scripted: int = 0

    def choose(self, target: Target) -> Fault | None:
        """Return the fault for this request, at most one; the fax's own fault goes before rules."""
        faults, script = self.faults, self.faults.script[self._scripted :]
        if faults.outage:
            return Fault(faults.outage_effect)
        if script and target.call in (faults.script_calls or CALLS):
            self._scripted += 1
            return _scripted(script[0]) if script[0] else None
        if target.trouble:
            own = Fault(target.trouble, fax_id=target.fax_id)
            if own.concerns(target.call, None, target.fax_id):
                return own
        return self._first_rule(target)

    def _first_rule(self, target: Target) -> Fault | None:
        """Return the first rule that strikes; every rule counts the request, also the later ones."""
        striking = []
        for index, rule in enumerate(self.faults.rules):
            if not rule.concerns(target.call, target.user_id, target.fax_id):
                continue
            self._seen[index] += 1
            if self._strikes(rule, self._seen[index], target.fax_number):
                striking.append(rule)
        return striking[0] if striking else None

    def _strikes(self, rule: Fault, count: int, fax_number: int | None) -> bool:
        return (
            (rule.probability > 0 and self.random.random() < rule.probability)
            or (rule.every > 0 and count % rule.every == 0)
            or count <= rule.first
            or (rule.nth_fax > 0 and fax_number is not None and fax_number % rule.nth_fax == 0)
        )


def describe() -> str:
    lines = ["  400 … 599: that status as an error of the API, instead of carrying out the call"]
    lines += [f"  {effect}: {text}" for effect, (_, text) in EFFECTS.items()]
    return "\n".join(lines)
