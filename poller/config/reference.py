"""The page config/REFERENCE.md, made from the table of keys: `python -m poller.config.reference`."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from datetime import timedelta
from typing import Any, Final

from poller.config import model, values

_INTRODUCTION: Final = """\
# Configuration

poller reads YAML 1.2. [poller.example.yaml](poller.example.yaml) has every key with its default. Only
`accounts`, with their `app_id`, `api_key` and users, are needed:

```yaml
accounts:
  main:
    app_id: "12345"
    api_key: {credential: efax-api-key}
    users:
      front-desk: {user_id: "0f8a0000-0000-0000-0000-000000000001"}
```

`poller check` prints every mistake with its file, line and key. It knows every key: a misspelt one is a
mistake.

## Rules

- **Files.** `-c PATH` may be given several times, before or after the command. From a directory,
  poller reads every `*.yaml` in the order of the names; a `*.yml` there is a mistake. The default is
  `/etc/poller`. poller merges the maps of all files. Any other key may be given only once, in all files
  together.
- **Levels.** `poll`, `image`, `expect`, `sent`, `delete` and `canary` can be set at the top level, for an
  account and for a user. The nearest one counts, key by key. `every` and `cron` replace each other; both
  in one map are a mistake. Write `null` to turn off the `expect` or `canary` of the level above.
- **Durations**: `500ms` `30s` `15m` `24h` `7d`, at most `3650d`. **Sizes**: `512MiB` `1GiB` (B, KiB, MiB,
  GiB, TiB).
- **Names** of accounts and users appear in paths, logs and metrics: 1 to 63 of `a-z` `0-9` `.` `_` `-`, a
  letter or digit first, and no seven digits in a row, which could be a fax number.
- **Relative paths** start from the directory of the configuration file.
- **Aliases**: `*name` repeats the value with the anchor `&name`, up to 100,000 values in all. poller
  refuses a file with more, because it could use up all memory.
- **Sweeps** look for faxes that polls have missed. `poll.sweep` lists the last day again; `poll.deep_sweep`
  lists the last week, and eFax's list of faxes that were never downloaded. Both also run after a start.
- **Secrets** never go into the configuration. Write where to find them: `{credential: NAME}` (systemd's
  `LoadCredential=`, the best way), `{file: PATH}` or `{env: NAME}`. poller ignores blanks and empty lines
  around a secret, and says so at its start.
- **Changes** to accounts, users and their settings take effect with `systemctl reload poller`; other
  changes need `systemctl restart poller`. See [changes](../systemd/README.md#changes).

*Needed* in the tables below means that the key has no default: if you use its section, write the key.
"""
_NAMED: Final = {"accounts": model.Account, "accounts.NAME.users": model.User}
_USER: Final = "accounts.NAME.users.NAME."
_NEEDED: Final = "needed"
_OF_USERS_ALONE: Final = ("user_id", "number")
_UNITS: Final = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


def page() -> str:
    """Return the whole page."""
    tables: dict[str, str] = {}
    for path, default, meaning in _keys(model.Config, ""):
        top = path.partition(".")[0]
        tables[top] = tables.get(top, "") + f"| `{path}` | {default} | {meaning} |\n"
    return _INTRODUCTION + "".join(
        f"\n## {top}\n\n| key | default | meaning |\n| --- | --- | --- |\n{rows}"
        for top, rows in tables.items()
    )


def _keys(of: Any, above: str) -> Iterator[tuple[str, str, str]]:
    """Yield the keys of a dataclass, or of a value with other defaults, with those below them.

    Keys that can also be set at the top level are shown there, not for users.
    """
    for field in fields(of):
        default, key = getattr(of, field.name, field.default), field.metadata
        path = _at_top(f"{above}{key.get('at', field.name)}")
        if is_dataclass(default):
            yield from _keys(default, f"{path}.")
        elif path in _NAMED:
            yield f"{path}.NAME", _NEEDED, key["doc"]
            yield from _keys(_NAMED[path], f"{path}.NAME.")
        elif key:
            shown = key.get("shown") or _written(default, key["kind"])
            yield path, _NEEDED if default is MISSING else f"`{shown}`", key["doc"]
            if isinstance(key["kind"], type):
                yield from _keys(key["kind"], f"{path}.")


def _at_top(path: str) -> str:
    below = path.removeprefix(_USER)
    return path if below in _OF_USERS_ALONE else below


def _written(default: object, kind: object) -> str:
    """Return a default in YAML."""
    match default:
        case None:
            return "null"
        case bool():
            return str(default).lower()
        case timedelta():
            seconds = round(default.total_seconds())
            unit = next(unit for unit, least in _UNITS.items() if seconds % least == 0)
            return f"{seconds // _UNITS[unit]}{unit}" if seconds != _UNITS["d"] else "24h"
        case int() if kind is values.size:
            return values.size_text(default).replace(".0 ", "")
        case float():
            return f"{default:g}"
        case _:
            return str(default)


if __name__ == "__main__":  # pragma: no cover
    print(page(), end="")  # noqa: T201 - this module is also a program
