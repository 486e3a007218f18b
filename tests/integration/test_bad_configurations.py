"""Bad configurations and the commands: tests/data has the messages; here, commands end with them."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poller.cli import main

BAD = Path(__file__).parents[1] / "data" / "configs" / "bad"
CASES = sorted(path.with_suffix("") for path in BAD.glob("*.txt"))
COMMANDS = (
    ("check",),
    ("run",),
    ("once", "--json"),
    ("status",),
    ("retry",),
    ("check", "--online"),
    ("dismiss", "a", "--reason", "x"),
    ("verify",),
    ("backup", "snapshot.db"),
)
GOOD = """\
accounts:
  main: {app_id: "1", api_key: {env: KEY}, users: {a: {user_id: "u"}}}
storage: {directory: faxes}
state: {url: "sqlite:///state/poller.db"}
"""

Ended = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Iterator[Ended]:
    """Run a command in this process: its exit code, stdout and stderr."""
    hangup = signal.getsignal(signal.SIGHUP)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        return code, *capsys.readouterr()

    yield command
    signal.signal(signal.SIGHUP, hangup)


def test_every_bad_configuration_ends_a_command_with_all_its_messages_and_nothing_else(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each case to one of the commands, so that each command gets about fourteen cases."""
    monkeypatch.chdir(BAD)
    before = sorted(BAD.rglob("*"))
    assert len(CASES) >= 130
    for number, case in enumerate(CASES):
        path = case.name if case.is_dir() else f"{case.name}.yaml"
        words = COMMANDS[number % len(COMMANDS)]
        code, out, err = ended("-c", path, *words)
        assert (code, out, err) == (78, "", Path(f"{case.name}.txt").read_text()), (path, words)
    assert sorted(BAD.rglob("*")) == before  # no state, no storage, no snapshot


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_configuration_in_the_same_words(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(BAD)
    said = Path("unknown-keys.txt").read_text()
    assert ended(*words, "-c", "unknown-keys.yaml") == (78, "", said)


def test_a_file_without_text_is_reported_in_one_line(tmp_path: Path, ended: Ended) -> None:
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.symlink_to(tmp_path / "gone.yaml")
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.write(GOOD.encode())
        file.truncate(50 << 20)
    folder = tmp_path / "conf.d"
    (folder / "a.yaml").mkdir(parents=True)
    empty = tmp_path / "empty.d"
    empty.mkdir()
    (empty / "README").write_text("accounts: {}")
    long = tmp_path / ("x" * 300)
    expected = {
        nowhere: f"{nowhere}: cannot be read: No such file or directory",
        loop: f"{loop}: cannot be read: Too many levels of symbolic links",
        huge: f"{huge}: is larger than 16 MiB, so it cannot be a configuration",
        folder: f"{folder}/a.yaml: cannot be read: Is a directory",
        empty: f"{empty}: there is no *.yaml file in this directory; add one",
        long: f"{long}: cannot be read: File name too long",
        Path("/dev/null"): "/dev/null:1: accounts: has no account",
    }
    for path, sentence in expected.items():
        code, out, err = ended("check", "-c", str(path))
        assert (code, out) == (78, ""), path
        assert err.startswith(sentence), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err


@contextmanager
def nobody() -> Iterator[None]:
    """Become a user with few rights; anybody but root is one already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others may read; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_unreadable_file_is_reported_together_with_the_problems_of_another(
    open_directory: Path, ended: Ended
) -> None:
    secret, other = open_directory / "secret.yaml", open_directory / "other.yaml"
    secret.write_text(GOOD)
    other.write_text("drain: soon\n")
    secret.chmod(0)
    ended("once", "-c", str(other))  # loads what this user may be unable to read of this Python
    with nobody():
        code, out, err = ended("once", "-c", str(secret), "-c", str(other))
    assert (code, out) == (78, "")
    assert f"{secret}: cannot be read: Permission denied\n" in err
    assert f"{other}:1: drain: " in err
    assert "Traceback" not in err
