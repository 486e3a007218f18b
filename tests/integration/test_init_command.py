"""`poller init`: what it asks, what it writes, and that eFax then accepts it."""

import errno
import io
import os
import pty
import re
import select
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poller import config
from poller.cli import bootstrap, init_command, main
from poller.config.addresses import SecretRef
from poller.simulator import Simulator
from poller.store import syscalls
from tests.conftest import APP, KEY
from tests.integration.test_cli_commands import directory, efax, receive

__all__ = ["directory", "efax"]
TIMEOUT_S = 60.0
Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(directory: Path) -> Path:
    """An empty directory to work in, with a key in a file; nothing is a terminal."""
    place = directory / "home"
    place.mkdir()
    (place / "key").write_text(f"{KEY}\n")
    os.chdir(place)
    return place


@pytest.fixture
def init(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Init:
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["init", *words])
        return code, *capsys.readouterr()

    return command


ANSWERS = ("--app-id", APP, "--api-key-file", "key", "--user", "desk=user-a")


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_all_as_options_makes_a_configuration_that_efax_accepts(
    init: Init, home: Path, efax: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = init(
        *("-o", "new", *ANSWERS, "--user", "ward-c=user-b", "--every", "5s", "--faxes", "in"),
        *("--status-page", "none", "--base-url", efax.base_url),
    )
    assert (code, err) == (0, "")
    new = home / "new"
    assert names(new) == ["efax-api-key", "poller.yaml"]
    assert [mode(path) for path in (new, new / "efax-api-key", new / "poller.yaml")] == [
        *("700", "600", "600")
    ]
    text = (new / "poller.yaml").read_text()
    assert KEY not in text + out
    assert (new / "efax-api-key").read_text() == f"{KEY}\n"
    settings = config.load([new / "poller.yaml"])
    (account,) = settings.accounts
    assert account.api_key == SecretRef("file", str(new / "efax-api-key"))
    assert [(user.name, user.user_id) for user in account.users] == [
        *(("desk", "user-a"), ("ward-c", "user-b"))
    ]
    assert settings.storage.directory == home / "in"
    assert settings.state_directory == new / "state"
    assert settings.http.host is None
    command = re.findall(r"poller (-c \S+ check --online)", out)[0].split()
    assert main(command) == 0
    assert "main/ward-c: list: ok" in capsys.readouterr().out
    receive(efax)
    assert main(["-c", str(new), "once"]) == 0
    assert len(list((home / "in").rglob("*.pdf"))) == 1


def test_without_a_terminal_what_has_a_default_need_not_be_given(init: Init, home: Path) -> None:
    assert init("-o", "new", *ANSWERS)[0] == 0
    settings = config.load([home / "new/poller.yaml"])
    assert settings.storage.directory == home / "new/faxes"
    assert settings.users[0].poll.every == config.model.Poll().every
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 9410)
    assert settings.accounts[0].base_url == "https://api.securedocex.com"


def test_the_key_can_come_on_stdin(home: Path) -> None:
    words = ["init", "-o", "new", "--app-id", APP, "--api-key-file", "-", "--user", "a=b"]
    done = subprocess.run(
        [sys.executable, "-m", "poller", *words],
        input=f"{KEY}\n".encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "new/efax-api-key").read_text() == f"{KEY}\n"


WRONG = {
    "no App ID": (ANSWERS[2:], "--app-id is missing, and there is no terminal to ask on"),
    "no key": ((*ANSWERS[:2], *ANSWERS[4:]), "--api-key-file is missing"),
    "no user": (ANSWERS[:4], "--user is missing"),
    "a colon": ((*ANSWERS, "--app-id", "a:b"), "--app-id: it must not contain ':'"),
    "no such file": ((*ANSWERS, "--api-key-file", "none"), "file none cannot be read"),
    "a number as a name": ((*ANSWERS, "--user", "5551234567=x"), "seven digits in a row"),
    "no User ID": ((*ANSWERS, "--user", "desk2"), "--user: it must be NAME=USER_ID"),
    "a user twice": ((*ANSWERS, "--user", "two=user-a"), "the name or the User ID of another user"),
    "no unit": ((*ANSWERS, "--every", "30"), "--every: it must be a duration such as"),
    "over the state": ((*ANSWERS, "--faxes", "new"), "must not hold"),
    "for all to see": ((*ANSWERS, "--status-page", "0.0.0.0:80"), "the page needs a token"),
    "no address": ((*ANSWERS, "--status-page", "x"), "host:port"),
    "plain http": ((*ANSWERS, "--base-url", "http://example.com"), "must begin with https://"),
    "a configuration": ((*ANSWERS, "-c", "x"), "init reads no configuration"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_option_is_one_sentence_and_nothing_is_written(
    what: str, init: Init, home: Path
) -> None:
    words, sentence = WRONG[what]
    code, out, err = init("-o", "new", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
    assert names(home) == ["key"]


def test_without_a_place_it_asks_for_one(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_command, "_SYSTEMD", Path("/nowhere"))
    code, _, err = init(*ANSWERS)
    assert code == 2
    assert "name the directory for the configuration with -o" in err


@pytest.mark.parametrize("name", ["poller.yaml", "another.yaml", "efax-api-key"])
def test_nothing_is_overwritten(name: str, init: Init, home: Path) -> None:
    (home / name).write_text("mine")
    code, _, err = init("-o", ".", *ANSWERS)
    assert code == 73
    assert f"{home / name} exists, and init overwrites nothing" in err
    assert (home / name).read_text() == "mine"
    assert names(home) == sorted(["key", name])


def test_what_appears_meanwhile_is_not_overwritten_either(
    init: Init, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.move

    def move(existing: str, new: str, at: int) -> None:
        if new == "poller.yaml":
            (home / "poller.yaml").write_text("another's")
        real(existing, new, at)

    monkeypatch.setattr(syscalls, "move", move)
    code, _, err = init("-o", ".", *ANSWERS)
    assert (code, err.count("\n")) == (73, 1)
    assert "poller.yaml has appeared in the meantime" in err
    assert (home / "poller.yaml").read_text() == "another's"
    assert names(home) == ["key", "poller.yaml"]


def test_a_link_to_nowhere_is_named(init: Init, home: Path) -> None:
    (home / "new").symlink_to("nowhere")
    code, _, err = init("-o", "new", *ANSWERS)
    assert (code, err.count("\n")) == (73, 1)
    assert f"cannot write to {home / 'new'}" in err
    assert names(home) == ["key", "new"]


@pytest.mark.parametrize("step", ["move", "sync_directory"])
def test_an_error_while_it_writes_leaves_nothing_behind(
    step: str, init: Init, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(syscalls, step, fails)
    code, _, err = init("-o", "new", *ANSWERS)
    assert (code, err.count("\n")) == (73, 1)
    assert "No space left on device" in err
    assert names(home) == ["key"]


def test_root_writes_what_the_unit_expects(
    init: Init, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(init_command, "_SYSTEMD", home)
    monkeypatch.setattr(bootstrap, "DEFAULT_CONFIG", home / "etc")
    code, out, _ = init(*ANSWERS)
    assert code == 0
    assert "poller help install" in out
    etc = home / "etc"
    assert [mode(path) for path in (etc, etc / "efax-api-key", etc / "poller.yaml")] == [
        *("755", "600", "644")
    ]
    settings = config.load([etc])
    assert settings.accounts[0].api_key == SecretRef("credential", "efax-api-key")
    assert (settings.storage, settings.state) == (
        config.model.StorageConfig(),
        config.model.StateConfig(),
    )
    unit = (Path(__file__).parents[2] / "systemd/poller.service").read_text()
    assert "LoadCredential=efax-api-key:/etc/poller/efax-api-key" in unit


# -- on a terminal ---------------------------------------------------------------------------------


class Terminal:
    """`poller init` on a terminal of its own."""

    def __init__(self, place: Path, *words: str) -> None:
        self.said = ""
        self._read = 0
        self._fd, theirs = pty.openpty()
        # The first terminal that the leader of a session opens is its own.
        opening = 'exec "$@" <"$TTY" >"$TTY" 2>&1'
        self._command = subprocess.Popen(
            ["sh", "-c", opening, "sh", sys.executable, "-m", "poller", "init", *words],
            cwd=place,
            env=os.environ | {"TERM": "dumb", "TTY": os.ttyname(theirs)},
            start_new_session=True,
        )
        self._more()  # it has the terminal open now: without anybody it would end at once
        os.close(theirs)

    def expect(self, sentence: str) -> None:
        """Wait until it says this, after what was waited for before."""
        while sentence not in (rest := " ".join(self.said[self._read :].split())):
            assert self._more(), f"{sentence!r} was not said, but: {rest}"
        self._read = len(self.said)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], TIMEOUT_S)
        try:
            data = os.read(self._fd, 4096) if ready else b""
        except OSError:  # it has ended
            data = b""
        self.said += data.decode()
        return bool(data)

    def answer(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, then Enter: Python may notice a signal from before its read only after it."""
        os.write(self._fd, b"\x03\n")

    def end(self) -> None:
        os.write(self._fd, b"\x04")

    def ended(self) -> int:
        while self._more():
            pass
        return self._command.wait(TIMEOUT_S)

    def close(self) -> None:
        self._command.kill()
        self._command.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*words: str) -> Terminal:
        opened.append(Terminal(home, *words))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_six_questions_on_a_terminal_make_a_configuration_that_efax_accepts(
    terminal: Callable[..., Terminal],
    home: Path,
    efax: Simulator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = terminal("-o", "new", "--base-url", efax.base_url)
    asked.expect("App ID:")
    asked.answer("a:b")
    asked.expect("It must not contain ':'")
    asked.answer(APP)
    asked.expect("API key:")
    asked.answer(KEY)
    asked.expect("A user as NAME=USER_ID")
    asked.answer("Desk=user-a")
    asked.expect("It cannot be used: a name must be")
    asked.answer("desk=user-a")
    asked.expect("Another one (Enter: no more)")
    asked.answer("ward=user-b")
    asked.expect("Another one")
    asked.answer("")
    asked.expect("How often to look for new faxes (30s):")
    asked.answer("soon")
    asked.expect("It must be a duration")
    asked.answer("2s")
    asked.expect("Directory for the faxes")
    asked.answer("")
    asked.expect("Address of the status page, or none (127.0.0.1:9410):")
    asked.answer("none")
    assert asked.ended() == 0
    assert KEY not in asked.said
    assert mode(home / "new/efax-api-key") == "600"
    assert main(["-c", "new", "check", "--online"]) == 0
    out = capsys.readouterr().out
    assert "main/desk: list: ok" in out
    assert "main/ward: list: ok" in out


def test_what_an_option_says_is_not_asked(terminal: Callable[..., Terminal], home: Path) -> None:
    asked = terminal("-o", "new", *ANSWERS, "--every", "1m", "--faxes", "in")
    asked.expect("Address of the status page")
    asked.answer("")
    assert asked.ended() == 0
    assert "App ID:" not in asked.said
    assert config.load([home / "new"]).storage.directory == home / "in"


def test_a_key_typed_on_the_terminal_as_stdin_is_not_shown(
    terminal: Callable[..., Terminal], home: Path
) -> None:
    asked = terminal("-o", "new", *ANSWERS, "--api-key-file", "-", "--every", "1m", "--faxes", "in")
    asked.expect("API key:")
    asked.answer(KEY)
    asked.expect("Address of the status page")
    asked.answer("")
    assert asked.ended() == 0
    assert KEY not in asked.said
    assert (home / "new/efax-api-key").read_text() == f"{KEY}\n"


@pytest.mark.parametrize("where", ["App ID:", "API key:"])
def test_ctrl_c_leaves_nothing_behind(
    where: str, terminal: Callable[..., Terminal], home: Path
) -> None:
    asked = terminal("-o", "new")
    asked.expect("App ID:")
    if where == "API key:":
        asked.answer(APP)
        asked.expect(where)
    asked.interrupt()
    assert asked.ended() == 130
    assert "Traceback" not in asked.said
    assert names(home) == ["key"]


def test_the_end_of_the_input_is_a_sentence(terminal: Callable[..., Terminal], home: Path) -> None:
    asked = terminal("-o", "new")
    asked.expect("App ID:")
    asked.end()
    assert asked.ended() == 2
    assert "the input ended before the last answer" in asked.said
    assert names(home) == ["key"]
