"""Turn a redacted event into one line: JSON for machines, columns for a terminal."""

import json
import re
from collections.abc import MutableMapping
from typing import Any, Final

from ecs_logging import StructlogFormatter
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, LogLevelColumnFormatter

from poller.events import Level
from poller.log.redaction import cut

RANKS: Final[dict[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LONGEST_LINE: Final = 40 * 1024  # journald cuts at 48 KiB, in the middle of the JSON
_ECS: Final = StructlogFormatter(ensure_ascii=False)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_EventDict = MutableMapping[str, Any]


def as_json(logger: Any, name: str, event: _EventDict) -> str:
    """Return ECS as `ecs-logging` writes it; cut the middle of long strings if the line is too long."""
    line: str = _ECS(logger, name, dict(event))
    limit = 8192
    while len(line.encode("utf-8")) > LONGEST_LINE:
        line = _dump(_shortened(json.loads(line), limit))
        limit //= 4
    return line


def _shortened(value: Any, limit: int) -> Any:
    """Return `value` with strings cut to `limit` characters; below 32 keep only strings."""
    if isinstance(value, str):
        return cut(value, limit)
    if isinstance(value, dict):
        kept = list(value.items())[: max(8, limit)]
        return {cut(key, max(64, limit)): _shortened(item, limit) for key, item in kept}
    if isinstance(value, list):
        return [_shortened(item, limit) for item in value[:limit]]
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class TerminalRenderer:
    """Renders time, level, action, user, sentence, then `key=value`; a stack trace below."""

    def __init__(self, *, colors: bool) -> None:
        reset, dim, bold, cyan = (
            ("\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[36m") if colors else ("",) * 4
        )
        styles = ConsoleRenderer.get_default_level_styles(colors=colors)
        levels: dict[str, str] = {level: styles[level] for level in RANKS}

        def column(name: str, style: str, width: int = 0) -> Column:
            return Column(name, KeyValueColumnFormatter(None, style, reset, _shown, width))

        self._console = ConsoleRenderer(
            columns=[
                column("time", dim),
                Column("level", LogLevelColumnFormatter(levels, reset)),
                column("action", cyan, width=17),
                column("who", ""),
                column("message", bold),
                Column("", KeyValueColumnFormatter(dim, "", reset, _shown)),
            ]
        )

    def __call__(self, logger: Any, name: str, event: _EventDict) -> str:
        fields = dict(event.get("poller") or {})
        who = "/".join(str(fields.pop(key)) for key in ("account", "user") if fields.get(key))
        error = dict(event.get("error") or {})
        row: dict[str, Any] = {
            "time": str(event.get("@timestamp", ""))[11:19],
            "level": name,
            "action": event.get("event.action", ""),
            "message": event.get("event", ""),
        }
        if who:
            row["who"] = who
        if error.get("type"):
            row["error"] = f"{error['type']}: {error.get('message', '')}"
        row |= {key: value for key, value in fields.items() if value is not None}
        line = str(self._console(logger, name, row)).rstrip()
        trace = error.get("stack_trace")
        return f"{line}\n{_harmless(trace)}" if trace else line


def _shown(value: object) -> str:
    if isinstance(value, str):
        # An escape sequence or a line break from a server must not move the cursor.
        return _harmless(value).replace("\n", "\\n")
    return _dump(value)


def _harmless(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
