import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from poller.config.model import Config
from poller.errors import ConfigError

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "poller.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or shutil.which("systemd-sysusers") is None,
    reason="systemd is not installed here",
)


def read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit


def seconds(text: str) -> float:
    units = {"": 1, "s": 1, "min": 60, "h": 3600}
    value, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(value) * units[unit]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        pytest.param("Unit", "StartLimitIntervalSec", "0", id="never-gives-up"),
        pytest.param("Unit", "Wants", "network-online.target", id="wants-the-network"),
        pytest.param("Service", "Type", "notify", id="says-when-it-is-ready"),
        pytest.param("Service", "NotifyAccess", "main", id="only-itself-says-so"),
        pytest.param("Service", "ExecStart", "/opt/poller/bin/poller run", id="starts-the-daemon"),
        pytest.param("Service", "ExecReload", "/bin/kill -HUP $MAINPID", id="reloads"),
        pytest.param("Service", "Restart", "on-failure", id="restarts"),
        pytest.param("Service", "RestartSec", "10", id="restarts-after-ten-seconds"),
        pytest.param("Service", "User", "poller", id="its-own-user"),
        pytest.param("Service", "Group", "poller-faxes", id="the-group-of-the-faxes"),
        pytest.param("Service", "StateDirectory", "poller", id="its-directory"),
        pytest.param("Service", "StateDirectoryMode", "0750", id="the-group-gets-to-the-faxes"),
        pytest.param("Service", "LimitCORE", "0", id="no-faxes-in-core-dumps"),
        pytest.param("Service", "ReadOnlyPaths", "/run", id="writes-nothing-in-run"),
        pytest.param("Install", "WantedBy", "multi-user.target", id="starts-at-boot"),
    ],
)
def test_the_unit_keeps_the_contract(section: str, key: str, value: str) -> None:
    assert read(UNIT)[section][key] == value


def test_a_configuration_error_is_not_tried_again() -> None:
    status = read(UNIT)["Service"]["RestartPreventExitStatus"]
    assert int(status) == ConfigError.exit_code


def test_the_network_is_waited_for() -> None:
    assert "network-online.target" in read(UNIT)["Unit"]["After"].split()


def test_there_is_time_to_drain() -> None:
    assert seconds(read(UNIT)["Service"]["TimeoutStopSec"]) >= 2 * Config.drain.total_seconds()


def test_the_credential_is_the_one_of_the_documentation() -> None:
    name, path = read(UNIT)["Service"]["LoadCredential"].split(":")
    assert (name, path) == ("efax-api-key", "/etc/poller/efax-api-key")


def test_set_group_id_directories_for_moving_consumers_are_not_refused() -> None:
    assert "RestrictSUIDSGID" not in read(UNIT)["Service"]


def test_the_drop_in_example_names_a_disk_of_its_own() -> None:
    example = read(SYSTEMD / "poller.service.d-example.conf")
    disk = example["Unit"]["RequiresMountsFor"]
    assert example["Service"]["ReadWritePaths"] == f"-{disk}"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd
def test_systemd_understands_the_unit_and_its_drop_in(tmp_path: Path) -> None:
    program = tmp_path / "poller"
    program.touch(mode=0o755)
    text = UNIT.read_text().replace("/opt/poller/bin/poller", str(program))
    (tmp_path / "poller.service").write_text(text)
    drop_ins = tmp_path / "poller.service.d"
    drop_ins.mkdir()
    shutil.copy(SYSTEMD / "poller.service.d-example.conf", drop_ins / "storage.conf")
    verified = run("systemd-analyze", "verify", "--man=no", tmp_path / "poller.service")
    about_us = [line for line in verified.stderr.splitlines() if "poller" in line]
    assert (verified.returncode, about_us) == (0, [])


@needs_systemd
def test_the_sandbox_is_tight() -> None:
    analysed = run("systemd-analyze", "security", "--offline=true", "--threshold=13", UNIT)
    assert analysed.returncode == 0, analysed.stdout[-300:]


@needs_systemd
def test_the_user_and_the_group_of_the_faxes_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "poller.sysusers")
    assert made.returncode == 0, made.stderr
    groups = dict(
        line.split(":")[0:3:2] for line in (tmp_path / "etc/group").read_text().splitlines()
    )
    (user,) = (tmp_path / "etc/passwd").read_text().splitlines()
    name, _, _, group, _, home, shell = user.split(":")
    assert (name, group, home) == ("poller", groups["poller-faxes"], "/var/lib/poller")
    assert shell.endswith("nologin")
