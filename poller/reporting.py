"""The only subscriber of events: turn them into log lines and metrics."""

from poller import log
from poller.events import Emit, Event
from poller.metrics import Metrics


def subscriber(metrics: Metrics) -> Emit:
    """Return the function to which all work emits its events."""

    def emit(happened: Event) -> None:
        metrics.count(happened)
        log.say(happened)

    return emit
