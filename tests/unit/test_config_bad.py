"""What is refused, and in which words: tests/data/configs/bad, each with the messages it must give."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poller.config import load
from poller.errors import ConfigError

BAD = Path(__file__).parents[1] / "data" / "configs" / "bad"
CASES = sorted(path.with_suffix("") for path in BAD.glob("*.txt"))
MINIMAL = """\
accounts:
  main:
    app_id: "12345"
    api_key: {env: EFAX_KEY}
    users: {front-desk: {user_id: "0f8a"}}
"""


def messages(*paths: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(paths)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_configuration_gives_all_its_messages(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD)
    path = Path(case.name) if case.is_dir() else Path(f"{case.name}.yaml")
    assert messages(path) == Path(f"{case.name}.txt").read_text().splitlines()


def test_every_bad_configuration_is_in_the_table() -> None:
    there = {path.with_suffix("") for path in BAD.iterdir() if path.suffix != ".txt"}
    assert there == set(CASES)
    assert len(there) >= 45


def test_no_message_shows_a_secret() -> None:
    shown = [path.name for path in BAD.glob("*.txt") if "s3cr3t" in path.read_text()]
    hidden = [path for path in BAD.glob("*.yaml") if b"s3cr3t" in path.read_bytes()]
    assert shown == []
    assert len(hidden) > 10


def test_no_message_shows_a_fax_number() -> None:
    shown = [
        path.name for path in BAD.glob("*.txt") if re.search(r"5550142|800-FAX", path.read_text())
    ]
    written = [path for path in BAD.glob("*.yaml") if b"5550142" in path.read_bytes()]
    assert shown == []
    assert len(written) >= 2


def test_each_problem_bears_file_line_and_key_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigError) as caught:
        load([Path("durations.yaml")])
    first = caught.value.problems[0]
    assert (first.file, first.line, first.key) == ("durations.yaml", 7, "drain")
    assert caught.value.exit_code == 78


def test_no_path_at_all_is_refused() -> None:
    assert messages() == ["poller: no configuration given; use -c PATH"]


def test_missing_file_and_directory_without_yaml_are_refused_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.yaml").write_text(MINIMAL)
    assert messages(tmp_path / "none.yaml", tmp_path / "empty") == [
        f"{tmp_path}/empty: there is no *.yaml file in this directory; add one",
        f"{tmp_path}/none.yaml: cannot be read: No such file or directory",
    ]


def test_directory_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert messages(tmp_path) == [f"{tmp_path}: cannot be read: Permission denied"]


def test_web_hook_whose_other_half_may_stand_in_a_file_that_cannot_be_read_is_no_problem(
    tmp_path: Path,
) -> None:
    file, none = tmp_path / "poller.yaml", tmp_path / "none.yaml"
    hook = "    webhook: {path: /efax, secret: {env: HOOK}}\n    users:"
    for text in (
        MINIMAL.replace("    users:", hook),
        MINIMAL + "webhook: {listen: '[::1]:9411'}\n",
    ):
        file.write_text(text)
        assert messages(file, none) == [f"{none}: cannot be read: No such file or directory"]


def test_file_given_twice_is_refused_once(tmp_path: Path) -> None:
    file = tmp_path / "poller.yaml"
    file.write_text(MINIMAL)
    (tmp_path / "link.yaml").symlink_to(file)
    assert messages(tmp_path) == [
        f"{file}: is the same as {tmp_path}/link.yaml; name each file once"
    ]
    assert messages(file, file) == [f"{file}: is the same as {file}; name each file once"]


def test_file_that_is_no_configuration_is_not_read_to_its_end() -> None:
    assert messages(Path("/dev/zero")) == [
        "/dev/zero: is larger than 16 MiB, so it cannot be a configuration"
    ]


def test_file_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))
    file.write_text("drain: 1\n" + MINIMAL)
    (message,) = messages(file)
    assert message.startswith(f"{tmp_path}/\\xff.yaml:1: drain: ")


def test_state_directory_that_is_a_link_into_the_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faxes" / "state").mkdir(parents=True)
    (tmp_path / "state").symlink_to(tmp_path / "faxes" / "state")
    file = tmp_path / "poller.yaml"
    file.write_text(
        MINIMAL + "storage: {directory: faxes}\nstate: {url: 'sqlite:///state/poller.db'}\n"
    )
    (message,) = messages(file)
    assert message.startswith(
        f"{file}:7: state.url: the ledger must not be inside storage.directory"
    )


def test_start_is_measured_by_the_clock_and_the_time_at_which_the_file_was_written(
    tmp_path: Path,
) -> None:
    """A machine without a battery may start in 1970; past times must stay past."""
    file = tmp_path / "poller.yaml"
    file.write_text(MINIMAL + "poll: {start: '2026-03-02T12:00:00Z'}\n")
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
    os.utime(file, (0, 0))
    load([file], now=noon)
    with pytest.raises(ConfigError, match="is in the future"):
        load([file], now=noon - timedelta(seconds=1))
    os.utime(file, (noon.timestamp(), noon.timestamp()))
    load([file], now=datetime(1970, 1, 1, tzinfo=UTC))
    (tmp_path / "second.yaml").write_text("drain: 1s\n")
    os.utime(tmp_path / "second.yaml", (1e12, 1e12))  # beyond what a datetime can be
    load([tmp_path], now=noon)


def test_problem_that_users_inherit_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "poller.yaml"
    users = "".join(f"      u{i}: {{user_id: '{i}', poll: {{every: 5m}}}}\n" for i in range(50))
    file.write_text(
        f"accounts:\n  main:\n    app_id: '1'\n    api_key: {{env: K}}\n    users:\n{users}"
        "poll: {overlap: soon}\n"
    )
    assert len(messages(file)) == 1
