"""The runs to explore: an installation's first run, and a later one in which everything happens.

The first run makes the ledger and the marker and lists several slices and pages; one download is
cut and tried again, one document comes damaged, one fax cannot be downloaded. Two hours later new
faxes have arrived, one of them with an old date (the sweeps find it), and the fax that could not be
downloaded is quarantined.

A third run, of its own installation, archives sent faxes: one with its image, and two without an
image at eFax, which are only their sidecars.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.simulator import Fault, Faults, Simulator, Switches
from poller.simulator.drawing import document
from poller.simulator.state import Fax
from tests.acceptance.installation import APP, Installation, populated
from tests.crash.checker import Key

LATER = timedelta(hours=2)
SETTINGS = {
    "poll": {"start": "3d", "max_window": "24h"},
    "retry": {"give_up_after": "1h", "max_delay": "200ms"},
    "accounts": {
        "main": {
            "limits": {"in_flight": 2},
            "users": {"billing": {"image": {"format": "tiff"}}},
        }
    },
}
CUT_ONCE, POISONED, DAMAGED = "f-02", "f-poisoned", "f-damaged"
UNOBTAINABLE: Key = (APP, "user-a", POISONED)


@dataclass(frozen=True)
class Moment:
    """One of the runs: `later` is how far its clock, and eFax's, are ahead of ours."""

    name: str
    later: timedelta


FIRST, SECOND = Moment("first", timedelta(0)), Moment("second", LATER)
SENT = Moment("sent", timedelta(0))


def clock_of(moment: Moment) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + moment.later


def efax(moment: Moment, began: datetime) -> Simulator:
    """Return the simulated eFax at that moment; `began` is when the exploration began."""
    cut = Fault("cut", calls=frozenset({"image"}), first=1, fax_id=CUT_ONCE)
    cut_later = Fault("500", calls=frozenset({"image"}), first=1, fax_id="f-11")
    simulator = Simulator(
        now=clock_of(moment),
        seed=1,
        switches=Switches(page_cap=3),
        faults=Faults(rules=(cut, cut_later)),
    )
    populated(simulator)
    if moment is SENT:
        _sent(simulator, began)
        return simulator
    _first_wave(simulator, began)
    if moment is SECOND:
        _second_wave(simulator, began)
    return simulator


def _first_wave(simulator: Simulator, began: datetime) -> None:
    for number, hours in enumerate((1, 2, 3, 4, 30)):
        _receive(simulator, "user-a", f"f-{number:02}", began - timedelta(hours=hours))
    _receive(simulator, "user-a", POISONED, began - timedelta(hours=5), trouble="bad-base64")
    _receive(simulator, "user-b", "f-05", began - timedelta(hours=2))
    fax = _receive(simulator, "user-b", DAMAGED, began - timedelta(hours=6))
    whole = document(fax, "tiff")
    fax.documents = {"tiff": whole[: len(whole) // 2]}


def _second_wave(simulator: Simulator, began: datetime) -> None:
    for number, minutes in ((10, 20), (11, 40)):
        _receive(simulator, "user-a", f"f-{number}", began + timedelta(minutes=minutes))
    _receive(simulator, "user-b", "f-12", began + timedelta(minutes=30))
    _receive(simulator, "user-b", "f-late", began - timedelta(hours=20))


def _receive(
    simulator: Simulator, user: str, fax_id: str, completed: datetime, trouble: str | None = None
) -> Fax:
    return simulator.receive(
        APP,
        user,
        fax_id=fax_id,
        completed=completed,
        visible_at=completed,
        distinct=False,
        trouble=trouble,
    )


def _sent(simulator: Simulator, began: datetime) -> None:
    for user, fax_id, state in (
        ("user-a", "s-image", "COMPLETE"),
        ("user-a", "s-error", "ERROR"),
        ("user-b", "s-cancelled", "CANCELED"),
    ):
        simulator.sent(
            APP,
            user,
            fax_id=fax_id,
            created=began - timedelta(hours=1),
            course=((0.0, state),),
            has_image=state == "COMPLETE",
        )


def install(root: Path, base_url: str, moment: Moment) -> Installation:
    sent = {"sent": {"archive": "image"}} if moment is SENT else {}
    return Installation(root, base_url, {**SETTINGS, **sent})
