"""The one subscriber of what happens: it becomes log lines and metrics."""

from poller import log
from poller.events import Emit, Event
from poller.metrics import Metrics


def subscriber(metrics: Metrics) -> Emit:
    """Return what the work is given to emit its events to."""

    def emit(happened: Event) -> None:
        metrics.count(happened)
        log.say(happened)

    return emit
