"""Why a round failed, and what it waits for: one sentence per cause, not per user."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from poller import log
from poller.cli import bootstrap, stdio
from poller.cli.lookup import counted, listed
from poller.errors import PollerError
from poller.ingest.poll_run import PollOutcome
from poller.ledger import State, Waiting

_WORTH_SAYING_S = 5.0
_NOT_ASKED = "no attempt could be made and recorded"


@dataclass
class _Cause:
    """One cause: its verb in the singular and plural, and whom it affects."""

    verbs: tuple[str, str]
    why: str
    users: list[str] = field(default_factory=list)
    faxes: int = 0

    def sentence(self) -> str:
        users = list(dict.fromkeys(self.users))
        who, count = listed(users), len(users)
        if self.faxes:
            who, count = f"{counted(self.faxes, 'fax', 'faxes')} of {who}", self.faxes
        return f"{who} {self.verbs[count > 1]}: {self.why}"


class Troubles:
    """Collects what went wrong; causes that differ only in numbers count as one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], _Cause] = {}

    def poll_ended(self, user: str, outcome: PollOutcome, suspended: str) -> None:
        """Note a poll; `suspended` is why its account is suspended, or empty."""
        if (cause := outcome.skipped or outcome.error) is not None:
            self._add(user, ("was not polled", "were not polled"), _why(cause, suspended))
        elif outcome.trouble:
            verb = "polled, but some older time could not be listed"
            self._add(user, (f"was {verb}", f"were {verb}"), str(outcome.trouble[0]))

    def unproved(self, account: str, error: PollerError, suspended: str) -> None:
        """Note that no check confirmed the empty lists of an account."""
        verb = "polled, but its empty lists were not confirmed; the next run lists them again"
        self._add(account, (f"was {verb}", f"were {verb}"), _why(error, suspended))

    def faxes_wait(self, user: str, waiting: Waiting, suspended: str) -> None:
        """Note a user's faxes that are still to be fetched."""
        why = waiting.why or (_suspended(suspended) if suspended else _NOT_ASKED)
        verbs = ("is still pending", "are still pending")
        if waiting.state is State.QUARANTINED:
            why = f"{why.rstrip('.')}; remove the cause, then `poller retry`"
            verbs = ("is quarantined", "are quarantined")
        self._add(user, verbs, why, waiting.count)

    def _add(self, who: str, verbs: tuple[str, str], why: str, faxes: int = 0) -> None:
        why = log.redact(why)
        key = (verbs[0], re.sub("[0-9]+", "0", why))
        cause = self._found.setdefault(key, _Cause(verbs, why))
        cause.users.append(who)
        cause.faxes += faxes

    def sentences(self) -> Sequence[str]:
        return [cause.sentence() for cause in self._found.values()]


def _why(cause: object, suspended: str) -> str:
    """Return the suspension's reason if that is the cause, else the cause."""
    why = str(cause)
    is_suspension = suspended and (suspended in why or why.rstrip(".") in suspended)
    return _suspended(suspended) if is_suspension else why


def _suspended(reason: str) -> str:
    return f"the account is suspended: {reason}"


def waits_of(account: str) -> Callable[[str, float], None]:
    """Return a function that prints why and until when an account waits, once per reason."""
    said = set()

    def say(why: str, seconds: float) -> None:
        if seconds < _WORTH_SAYING_S or why in said:
            return
        said.add(why)
        until = bootstrap.now() + timedelta(seconds=seconds)
        stdio.complain(f"poller: account {account} waits until {until:%H:%M:%S} UTC: {why}")

    return say
