"""What the simulator served, as the plain values that the checker takes."""

from poller.simulator import Simulator
from tests.crash.checker import Key, ServedFax


def served_by(simulator: Simulator, late: frozenset[str] = frozenset()) -> list[ServedFax]:
    """All its faxes; `late` ones became visible after their time had been listed."""
    received = [
        ServedFax(
            key=(fax.app_id, fax.user_id, fax.fax_id),
            completed=fax.completed,
            images=frozenset(simulator.served.get(fax, ())),
            late=fax.fax_id in late,
        )
        for fax in simulator.faxes()
    ]
    sent = [
        ServedFax(
            key=(fax.app_id, fax.user_id, fax.fax_id),
            completed=fax.completed,
            images=frozenset(simulator.served.get(fax, ())),
            direction="sent",
            alone=not fax.has_image,
        )
        for app in simulator.apps.values()
        for box in app.users.values()
        for fax in box.sent
    ]
    return [*received, *sent]


def downloads_of(simulator: Simulator) -> dict[Key, int]:
    return {
        (fax.app_id, fax.user_id, fax.fax_id): count for fax, count in simulator.downloads.items()
    }
