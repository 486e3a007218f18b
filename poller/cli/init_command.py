"""`poller init`: six questions, and a configuration that `poller check --online` accepts."""

import json
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.prompt import Prompt

from poller import config, log
from poller.cli import bootstrap
from poller.config import addresses, values
from poller.config.addresses import SecretRef
from poller.config.model import Account, StateConfig, StorageConfig
from poller.config.position import Node, Source
from poller.errors import CannotStart, ConfigError, UsageError
from poller.state_directory import make, sync
from poller.store import syscalls

T = TypeVar("T")
Parse = Callable[[str], T]
_CONFIG, _KEY = "poller.yaml", "efax-api-key"
_EFAX: str = Account.base_url
_NO_PAGE = "none"
_SYSTEMD = Path("/run/systemd/system")
_WELCOME = """\
Six questions make a configuration. Enter takes the answer in brackets. Ctrl-C leaves nothing behind.
eFax gave you an App ID, an API key, and a User ID for each fax number.
"""


@dataclass(frozen=True)
class _Place:
    """Where the configuration goes. `is_service`: the unit reads it there, and systemd the key."""

    directory: Path
    is_service: bool

    @property
    def file(self) -> Path:
        return self.directory / _CONFIG

    @property
    def key(self) -> Path:
        return self.directory / _KEY

    @property
    def state(self) -> Path:
        return StateConfig().directory if self.is_service else self.directory / "state"

    @property
    def faxes(self) -> Path:
        return StorageConfig().directory if self.is_service else self.directory / "faxes"


@dataclass(frozen=True)
class _Answers:
    app_id: str
    key: str
    users: Mapping[str, str]
    every: str
    faxes: Path
    page: str | None


def init(paths: Sequence[Path], *, output: Path | None, base_url: str | None, **flags: Any) -> int:
    """Write the configuration and, next to it, the key. Raises UsageError and CannotStart.

    On a terminal, ask for what no flag gives. Elsewhere use the default, if there is one.
    """
    place = _place(output)
    if paths:
        raise UsageError("init reads no configuration: name the directory for the new one with -o")
    _require_free(place)
    url = _of_flag("--base-url", _checked(addresses.base_url), base_url or _EFAX)
    asking = _Asking(flags) if sys.stdin.isatty() else _Flags(flags)
    answers = _Answers(
        app_id=asking.value("App ID", "app_id", _checked(values.app_id)),
        key=asking.key(),
        users=asking.users(),
        every=asking.value("How often to look for new faxes", "every", _duration, "30s"),
        faxes=asking.value("Directory for the faxes", "faxes", _apart(place), str(place.faxes)),
        page=asking.value(
            f"Address of the status page, or {_NO_PAGE}", "status_page", _page, "127.0.0.1:9410"
        ),
    )
    _write(place, _yaml(place, answers, url), answers.key)
    print(_next_steps(place))
    return 0


def _place(output: Path | None) -> _Place:
    if output is not None:
        return _Place(output.absolute(), is_service=False)
    if os.geteuid() == 0 and _SYSTEMD.is_dir():
        return _Place(bootstrap.DEFAULT_CONFIG, is_service=True)
    raise UsageError("name the directory for the configuration with -o, such as -o poller")


def _require_free(place: _Place) -> None:
    """Raise CannotStart if there is a configuration already: the service would read both."""
    try:
        found = [path for path in place.directory.iterdir() if path.suffix == ".yaml"]
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(place, error) from error
    for path in (*sorted(found), place.key):
        if os.path.lexists(path):
            raise CannotStart(
                f"{path} exists, and init overwrites nothing: move it away, or name another "
                "directory with -o"
            )


# -- answers ---------------------------------------------------------------------------------------


class _Flags:
    """Answers from flags, and defaults for the rest. Raises UsageError if there is neither."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self._flags = flags

    def value(self, label: str, name: str, parse: Parse[T], default: str | None = None) -> T:
        flag, given = f"--{name.replace('_', '-')}", self._flags[name]
        if given is not None:
            return _of_flag(flag, parse, given)
        return self._otherwise(label, flag, parse, default)

    def key(self) -> str:
        given, flag = self._flags["api_key_file"], "--api-key-file"
        if given is None or (given == Path("-") and sys.stdin.isatty()):
            key = self._otherwise("API key", flag, _secret, None)
        else:
            file = "/dev/stdin" if given == Path("-") else str(given)
            try:
                key = config.read_secret(SecretRef("file", file, source=flag), os.environ)
            except ConfigError as error:
                raise UsageError(str(error)) from None
            key = _of_flag(flag, _secret, key)
        log.register_secret(key)
        return key

    def users(self) -> dict[str, str]:
        users: dict[str, str] = {}
        for word in self._flags["user"]:
            users |= _of_flag("--user", _another(users), word)
        label = "A user as NAME=USER_ID; choose the name, such as front-desk"
        return users or self._otherwise(label, "--user", _another({}), None)

    def _otherwise(self, label: str, flag: str, parse: Parse[T], default: str | None) -> T:  # noqa: ARG002
        if default is None:
            raise UsageError(f"{flag} is missing, and there is no terminal to ask on")
        return parse(default)


class _Asking(_Flags):
    """Asks on the terminal for what no flag gives, and again if an answer cannot be used."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        super().__init__(flags)
        self._console = Console(stderr=True, highlight=False)
        self._console.print(_WELCOME, markup=False)

    def users(self) -> dict[str, str]:
        users, is_asked = super().users(), not self._flags["user"]
        while is_asked:
            label = "Another one (Enter: no more)"
            more = self._otherwise(label, "--user", _another(users, may_end=True), "")
            users |= more
            is_asked = bool(more)
        return users

    def _otherwise(self, label: str, flag: str, parse: Parse[T], default: str | None) -> T:
        shown: Any = ... if default is None else default
        while True:
            try:
                if flag == "--api-key-file":
                    return parse(
                        getpass(f"{label}: ").strip()
                    )  # its prompt comes when the echo is off
                word = Prompt.ask(
                    label, console=self._console, default=shown, show_default=bool(default)
                )
                return parse(word.strip())
            except EOFError:
                raise UsageError("the input ended before the last answer") from None
            except values.WrongValueError as error:
                self._console.print(f"It {error}.", style="red", markup=False)


def _of_flag(flag: str, parse: Parse[T], word: str) -> T:
    try:
        return parse(word)
    except values.WrongValueError as error:
        raise UsageError(f"{flag}: it {error}") from None


def _checked(parser: values.Parser[T]) -> Parse[T]:
    return lambda word: parser(_node(word))


def _node(word: str) -> Node:
    return Node(Source("", Path.cwd()), value=word)


_secret = _checked(values.identifier)


def _duration(word: str) -> str:
    values.duration("s")(_node(word))
    return word


def _apart(place: _Place) -> Parse[Path]:
    """Read a directory that does not contain the state, which readers of faxes must not see."""

    def parse(word: str) -> Path:
        faxes = addresses.path(_node(word))
        real, state = (Path(os.path.realpath(path)) for path in (faxes, place.state))
        if real == state or real in state.parents:
            raise values.WrongValueError(f"must not hold {place.state}; name another directory")
        return faxes

    return parse


def _page(word: str) -> str | None:
    if word == _NO_PAGE:
        return None
    host, _ = addresses.listen(9410, _NO_PAGE)(_node(word))
    if not addresses.is_loopback(host):
        raise values.WrongValueError(
            "can be reached by others, and then the page needs a token: take a loopback address "
            "now, and see http.token in `poller help config`"
        )
    return word


def _another(users: Mapping[str, str], *, may_end: bool = False) -> Parse[dict[str, str]]:
    """Read NAME=USER_ID that is not in `users` yet; accept an empty answer if it `may_end` the list."""

    def parse(word: str) -> dict[str, str]:
        if may_end and not word:
            return {}
        name, _, user_id = (part.strip() for part in word.partition("="))
        if not name or not user_id:
            raise values.WrongValueError("must be NAME=USER_ID, such as front-desk=0f8a12")
        if (problem := values.name_problem(name)) is not None:
            raise values.WrongValueError(f"cannot be used: {problem}")
        if name in users or user_id in users.values():
            raise values.WrongValueError("is the name or the User ID of another user")
        return {name: values.identifier(_node(user_id))}

    return parse


# -- files -----------------------------------------------------------------------------------------


def _yaml(place: _Place, answers: _Answers, base_url: str) -> str:
    server = "" if base_url == _EFAX else f"    base_url: {_quoted(base_url)}\n"
    users = "".join(
        f"      {name}: {{user_id: {_quoted(user_id)}}}\n"
        for name, user_id in answers.users.items()
    )
    if place.is_service:
        key, state = f"{{credential: {_KEY}}}  # systemd passes it on from {place.key}", ""
    else:
        key = f"{{file: {_KEY}}}  # in that file, never in this one"
        state = (
            "state: {directory: state}  # what poller knows about them; keep it on a local disk\n"
        )
    page = "null" if answers.page is None else _quoted(answers.page)
    return f"""\
# Written by `poller init`. Every other key has its default; `poller help config` explains them.
accounts:
  main:  # your name for this App ID; it appears in paths and logs
{server}    app_id: {_quoted(answers.app_id)}
    api_key: {key}
    users:  # one for each fax number
{users}poll: {{every: {answers.every}}}  # how often poller asks eFax for new faxes
storage: {{directory: {_quoted(str(answers.faxes))}}}  # where the faxes go
{state}http: {{listen: {page}}}  # the status page
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _write(place: _Place, text: str, key: str) -> None:
    """Write both files durably, or leave nothing. The configuration comes last."""
    mode = 0o644 if place.is_service else 0o600
    try:
        with _opened(place) as at, _undone(at) as made:
            for name, content, its_mode in ((_KEY, f"{key}\n", 0o600), (_CONFIG, text, mode)):
                draft = f".{name}.{secrets.token_hex(4)}"
                made.append(draft)
                _draft(at, draft, content, its_mode)
                syscalls.move(draft, name, at)
                made.append(name)
            syscalls.sync_directory(at)
    except OSError as error:
        if isinstance(error, FileExistsError) and error.filename2:
            raise CannotStart(
                f"{error.filename2} has appeared in the meantime; init overwrites nothing"
            ) from error
        raise _unusable(place, error) from error


def _unusable(place: _Place, error: OSError) -> CannotStart:
    return CannotStart(f"cannot write to {place.directory}: {error.strerror}")


@contextmanager
def _opened(place: _Place) -> Iterator[int]:
    """Open the directory; if this made it and something fails, remove it again."""
    is_new = not place.directory.is_dir()
    make(place.directory)
    try:
        if is_new and place.is_service:
            place.directory.chmod(0o755)  # the service's user reads the configuration
            sync(place.directory)
        with syscalls.held(syscalls.open_root(str(place.directory))) as at:
            yield at
    except BaseException:
        if is_new:
            with suppress(OSError):
                place.directory.rmdir()
        raise


@contextmanager
def _undone(at: int) -> Iterator[list[str]]:
    """Remove these names again if something fails."""
    made: list[str] = []
    try:
        yield made
    except BaseException:
        for name in reversed(made):
            with suppress(OSError):
                syscalls.unlink(name, at)
        raise


def _draft(at: int, name: str, content: str, mode: int) -> None:
    descriptor = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at
    )
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _next_steps(place: _Place) -> str:
    if place.is_service:
        return (
            f"Written: {place.file}\nThe key: {place.key}, for root alone; systemd passes it on.\n\n"
            "Next:\n"
            "  poller check           is it right?\n"
            "  poller help install    where the faxes go, the unit, and a test with eFax"
        )
    poller = f"poller -c {shlex.quote(str(place.file))}"
    return (
        f"Written: {place.file}\nThe key: {place.key}, for you alone.\n\n"
        "Next:\n"
        f"  {poller} check --online    does eFax accept it?\n"
        f"  {poller} once              poll and fetch once\n"
        f"  {poller} run               the service, in the foreground"
    )
