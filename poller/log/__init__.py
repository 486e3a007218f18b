"""Log what happens: one redacted line per event on stdout, for machines or for a terminal.

Use `say` to log. Libraries that use the standard library's logging, and uncaught exceptions, go
through the same redaction to the same output.
"""

import asyncio
import logging
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import structlog

from poller import events
from poller.errors import PollerError
from poller.events import Event, Level
from poller.log.episode import Episode as Episode
from poller.log.key import load_or_create_key as load_or_create_key
from poller.log.output import LineOutput
from poller.log.redaction import Redactor, message_of
from poller.log.rendering import RANKS, TerminalRenderer, as_json
from poller.stream import Direction

_EventDict = MutableMapping[str, Any]
_DEEPEST_TRACE: Final = 40

# One per process: a registered secret stays hidden, whatever the configuration.
# Until `configure` gets the key of the state directory, codes hold only within this process.
_redactor: Final = Redactor(secrets.token_bytes(32))
number = _redactor.number
redact = _redactor.text
for_evidence = _redactor.evidence
register_secret = _redactor.register


def configure(
    level: Level = "info",
    format: Literal["auto", "json", "console"] = "auto",  # noqa: A002 - the configuration's word
    key: bytes | None = None,
    stream: TextIO | None = None,
    node: str | None = None,
) -> None:
    """Send events to `stream`, by default the present stdout, from now on.

    Each line names this `node` if there are several.

    `auto` means columns on a terminal and JSON elsewhere. `key` comes from `load_or_create_key`.
    Call it again after a reload of the configuration.
    """
    if key is not None:
        _redactor.set_key(key)
    output = _configured.output = LineOutput(stream)
    _configured.node = node
    terminal = output.is_terminal()
    console = format == "console" or (format == "auto" and terminal)
    structlog.configure(
        processors=[
            _timestamp,
            _exception,
            _redact,  # the last before rendering: only the names of this machine come after it
            *([TerminalRenderer(colors=terminal)] if console else [_node, as_json]),
        ],
        logger_factory=lambda *_: _Lines(output),
        cache_logger_on_first_use=False,
    )
    set_level(level)
    _route_standard_logging()


def set_level(level: Level) -> None:
    """Log events of this level and above from now on."""
    _configured.rank = RANKS[level]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(RANKS[level]))


def say(happened: Event) -> None:
    """Write the log line of an event, if it has one."""
    level = happened.level
    if level is not None:
        about = {name: getattr(happened, name) for name in happened.fields}
        if isinstance(happened, events.OfUser) and happened.direction is not Direction.RECEIVED:
            about["direction"] = happened.direction
        event(happened.action, happened.message, level=level, **about)


def event(
    action: str,
    message: str,
    *,
    level: Level = "info",
    error: BaseException | None = None,
    **about: object,
) -> None:
    """Write one line: `message` says in a sentence that `action` happened; `about` goes to `poller`.

    `error` becomes `error.type` and `error.message`; a bug, any error but PollerError, also becomes
    `error.stack_trace`. The caller passes fax numbers through `number`; redaction does the rest.
    """
    if RANKS[level] < _configured.rank:  # earlier than structlog, as each empty poll gets here
        return
    known = {name: value for name, value in about.items() if value is not None}
    extra: dict[str, Any] = {"event.action": action, "poller": known}
    if error is not None:
        extra["error"] = _described(error)
    _say(level, message, extra)


def flush(within_s: float) -> None:
    """Wait this long for the last lines if a terminal or a share is blocked."""
    _configured.output.flush(within_s)


def install_hooks() -> None:
    """Log uncaught exceptions as events, also those in threads and finalizers."""

    def uncaught(
        kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        _bug("An unexpected error ended the program.", error)

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            _bug("An unexpected error ended a thread.", args.exc_value)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = lambda args: _bug(
        "An unexpected error occurred in a finalizer.", args.exc_value
    )


def handle_loop_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that nothing awaited; for `loop.set_exception_handler`."""
    message = str(context.get("message") or "An error occurred in the event loop.")
    _bug(message, context.get("exception"))


def _bug(message: str, error: BaseException | None) -> None:
    say(events.InternalError(message, error))


def _say(severity: str, message: str, extra: dict[str, Any]) -> None:
    getattr(structlog.get_logger(), severity)(message, **extra)


@dataclass
class _Configured:
    """The lowest rank to log, which of several nodes this is, and where the lines go."""

    rank: int = 0
    node: str | None = None
    output: LineOutput = field(default_factory=LineOutput)


_configured = _Configured()


class _Lines:
    """The logger that structlog calls with a finished line, by the name of the level."""

    def __init__(self, output: LineOutput) -> None:
        self._output = output
        self.debug = self.info = self.warning = self.error = self.critical = self._write

    def _write(self, line: str) -> None:
        self._output.write(line)
        if lost := self._output.take_lost():
            say(events.LogLinesLost(lost))


def _timestamp(_logger: Any, _name: str, event_dict: _EventDict) -> _EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    event_dict["@timestamp"] = now.replace("+00:00", "Z")
    return event_dict


def _exception(_logger: Any, _name: str, event_dict: _EventDict) -> _EventDict:
    """Describe `exc_info` of a plain structlog call in the same way as `event` does its `error`."""
    raised = event_dict.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()
    error = raised[1] if isinstance(raised, tuple) else raised
    if isinstance(error, BaseException):
        event_dict.setdefault("error", _described(error))
    return event_dict


def _redact(_logger: Any, _name: str, event_dict: _EventDict) -> _EventDict:
    # First the parts that the limit on examined text must not cut.
    first = {"event": event_dict.get("event") or "", "error": event_dict.pop("error", {})}
    clean: dict[str, Any] = _redactor.value({**first, **event_dict})
    return clean if clean["error"] else {k: v for k, v in clean.items() if k != "error"}


def _node(_logger: Any, _name: str, event_dict: _EventDict) -> _EventDict:
    if _configured.node is not None:
        event_dict["poller"] = {**event_dict.get("poller", {}), "node": _configured.node}
        event_dict["host"] = {"name": socket.gethostname()}
    return event_dict


def _described(error: BaseException) -> dict[str, str]:
    described = {"type": type(error).__name__, "message": message_of(error)}
    # Bugs get a trace. One of our own errors says all in its sentence, and the end of the program
    # is not an error.
    if isinstance(error, Exception) and not isinstance(error, PollerError):
        described["stack_trace"] = _trace(error)
    return described


def _trace(error: BaseException) -> str:
    report = traceback.TracebackException.from_exception(
        error, limit=-_DEEPEST_TRACE, capture_locals=False, compact=True
    )
    return "".join(report.format())


class _Forwarder(logging.Handler):
    """Pass what libraries log, from warnings up, through the same chain."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the format
            message = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        extra: dict[str, Any] = {
            "event.action": events.LibraryMessage.action,
            "poller": {},
            "log.logger": record.name,
        }
        if error is not None:
            extra["error"] = _described(error)
        _say("error" if record.levelno >= logging.ERROR else "warning", message, extra)


def _route_standard_logging() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        # Another handler that writes to the terminal would bypass the redaction.
        if isinstance(handler, _Forwarder) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.addHandler(_Forwarder(logging.WARNING))
    logging.captureWarnings(capture=True)
