"""Why a round did not end well, and what it waits for: a sentence for each cause, not for each user."""

import re
from datetime import timedelta

from poller import log
from poller.cli import bootstrap, stdio
from poller.cli.lookup import counted
from poller.errors import PollerError
from poller.ingest.poll_run import PollOutcome
from poller.ledger import State, Waiting

_NAMED = 3
_WORTH_SAYING_S = 5.0
_NOT_ASKED = "no attempt could be made and recorded"


class Troubles:
    """Collects what went wrong; the same cause with other numbers in it is one cause."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], _Trouble] = {}

    def poll_ended(self, user: str, outcome: PollOutcome, suspended: str) -> None:
        """Note a poll; `suspended` is why its account is suspended, empty where it is not."""
        if (cause := outcome.skipped or outcome.error) is not None:
            why = _why(cause, suspended)
            self._add("was not polled", "were not polled", why).user(user)
        elif outcome.trouble:
            verb = "polled, but not in all older stretches of time"
            self._add(f"was {verb}", f"were {verb}", str(outcome.trouble[0])).user(user)

    def unproved(self, account: str, error: PollerError, suspended: str) -> None:
        """Note that nothing proved the empty lists of an account."""
        verb = "polled, but its empty lists could not be proved and are listed again the next time"
        self._add(f"was {verb}", f"were {verb}", _why(error, suspended)).user(account)

    def faxes_wait(self, user: str, waiting: Waiting, suspended: str) -> None:
        """Note faxes of a user that are still to be fetched."""
        why = waiting.why or (_suspended(suspended) if suspended else _NOT_ASKED)
        if waiting.state is State.QUARANTINED:
            why = f"{why.rstrip('.')}; mend the cause, then `poller retry`"
            found = self._add("is quarantined", "are quarantined", why)
        else:
            found = self._add("is still pending", "are still pending", why)
        found.faxes(user, waiting.count)

    def _add(self, one: str, more: str, why: str) -> "_Trouble":
        why = log.redact(why)
        cause = (one, re.sub("[0-9]+", "0", why))
        return self._found.setdefault(cause, _Trouble(one, more, why))

    def sentences(self) -> list[str]:
        return [trouble.sentence() for trouble in self._found.values()]


def _why(cause: object, suspended: str) -> str:
    """Say what the suspension says where it is the cause."""
    why = str(cause)
    is_suspension = suspended and (suspended in why or why.rstrip(".") in suspended)
    return _suspended(suspended) if is_suspension else why


def _suspended(reason: str) -> str:
    return f"the account is suspended: {reason}"


class _Trouble:
    def __init__(self, one: str, more: str, why: str) -> None:
        self._verbs = (one, more)
        self._why = why
        self._users: dict[str, int] = {}
        self._faxes = 0

    def user(self, user: str) -> None:
        self._users[user] = 1

    def faxes(self, user: str, count: int) -> None:
        self._faxes += count
        self._users[user] = self._users.get(user, 0) + count

    def sentence(self) -> str:
        names = ", ".join(list(self._users)[:_NAMED])
        if len(self._users) > _NAMED:
            names += f" and {len(self._users) - _NAMED:,} more"
        if self._faxes:
            who, is_one = f"{counted(self._faxes, 'fax', 'faxes')} of {names}", self._faxes == 1
        else:
            who, is_one = names, len(self._users) == 1
        return f"{who} {self._verbs[not is_one]}: {self._why}"


class Waits:
    """Says for what an account waits and until when: for each reason once."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._said: set[str] = set()

    def say(self, why: str, seconds: float) -> None:
        if seconds < _WORTH_SAYING_S or why in self._said:
            return
        self._said.add(why)
        until = bootstrap.now() + timedelta(seconds=seconds)
        stdio.complain(f"poller: account {self._account} waits until {until:%H:%M:%S} UTC: {why}")
