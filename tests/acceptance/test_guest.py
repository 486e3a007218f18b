"""The real unit under a real systemd, installed, upgraded and removed by the lines of systemd/README.md."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests import earlier_tables
from tests.acceptance.guest import CannotBoot, Guest, booted, until

# On one worker: the guest is booted once.
pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "systemd/README.md").read_text()
SOURCE = "/usr/local/src/poller"  # where that page clones it
PYTHON = "/usr/bin/python3"  # the guest is this machine's system, so it has the same
STATE = "/var/lib/poller/state"


# -- the guest and what is installed in it ---------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and all that it needs, as the manual makes them for a server without an index."""
    made = tmp_path_factory.mktemp("wheels") / "made"
    _make_wheels(made.with_name("builder"), made)
    return made


def _make_wheels(builder: Path, made: Path) -> None:
    # The guest's environment gets a pip of its own; this one borrows ours, which saves installing it.
    makes = "import ensurepip, sys, venv; venv.create(sys.argv[1])"
    venv = subprocess.run((PYTHON, "-c", makes, builder), capture_output=True, check=False)
    if venv.returncode != 0:
        pytest.skip(f"{PYTHON} cannot make a virtual environment here")
    part = made.with_name("wheels.part")
    command = (*_pip_wheel(builder), "-w", str(part), f"{REPOSITORY}[simulator]")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    _make_newer_wheel(builder, part / "newer")
    part.rename(made)


def _pip_wheel(builder: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "pip", "--python", str(builder / "bin/python"), "wheel", "-q")


def _make_newer_wheel(builder: Path, made: Path) -> None:
    """The program with the number of a later version."""
    source = builder / "newer"
    shutil.copytree(
        REPOSITORY, source, ignore=shutil.ignore_patterns(".git", "*venv", "*_cache", "__pycache__")
    )
    project = (REPOSITORY / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(
        re.sub(r'\nversion = ".*"', f'\nversion = "{NEWER}"', project)
    )
    command = (*_pip_wheel(builder), "--no-deps", "-w", str(made), str(source))
    subprocess.run(command, capture_output=True, check=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    lab = tmp_path_factory.mktemp("guest")
    try:
        with booted(lab) as guest:
            yield guest
    except CannotBoot as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def installed(machine: Guest, wheels: Path) -> Guest:
    """The first two steps: the program, its user and its group."""
    source = machine.path(SOURCE)
    shutil.copytree(wheels, source / "wheels")
    for name in ("config", "systemd"):
        shutil.copytree(REPOSITORY / name, source / name)
    machine.run("useradd", "clerk")
    machine.sh(readme("-m venv /opt/poller"))
    machine.sh(readme("systemd-sysusers"))
    return machine


def readme(containing: str) -> str:
    """The shell block of systemd/README.md in which `containing` stands, as it can be run in the guest."""
    (block,) = (
        one for one in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if containing in one
    )
    lines = [
        line.replace("SOMEBODY", "clerk").replace("install -q .", FROM_WHEELS)
        for line in block.splitlines()
        if not line.startswith(("apt ", "git ", "editor ", "curl "))
    ]
    return "\n".join((f"[ ! -d {SOURCE} ] || cd {SOURCE}", *lines))


# with the extra that a server does not need, because the guest's eFax is the simulator
FROM_WHEELS = "install -q --upgrade --no-index --find-links wheels 'poller[simulator]'"
NEWER = "9.9"


@dataclass
class EFax:
    """`poller simulate` in the guest."""

    base_url: str
    key: str
    apps: int
    guest: Guest

    def arrived(self) -> set[str]:
        """Return the ids of the faxes that arrived since its start."""
        log = self.guest.path("/run/efax.log").read_text()
        return set(re.findall(r" fax (\S+), ", log))


class Service:
    """The service as its operator sees it: files, systemctl, journalctl and commands."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.settings: dict[str, Any] = {}
        guest.sh(ANEW)
        self._since = f"--since=@{time.time():.6f}"

    def simulate(self, *words: str) -> EFax:
        """Start the simulated eFax, and write the configuration and the key for it."""
        self.guest.write("/run/efax.yaml", "")  # the unit starts before it has opened this file
        output = ("StandardOutput=file:/run/efax.yaml", "StandardError=file:/run/efax.log")
        properties = [word for one in output for word in ("-p", one)]
        command = ("/opt/poller/bin/poller", "simulate", *words)
        self.guest.run("systemd-run", "-q", "--unit=efax", "--collect", *properties, *command)
        printed = self.guest.path("/run/efax.yaml")
        until(lambda: "state:" in printed.read_text(), "the simulator", printed.read_text)
        keys = re.findall(r"export \w+=(\S+)", printed.read_text())
        (url,) = set(re.findall(r"base_url: (\S+)", printed.read_text()))
        self.guest.write("/etc/poller/efax-api-key", keys[0] + "\n", 0o600)
        for number, key in enumerate(keys[1:], start=2):
            self.guest.write(f"/etc/poller/efax-api-key-{number}", key + "\n", 0o600)
        efax = EFax(url, keys[0], len(keys), self.guest)
        self.configure(account(efax), poll={"every": "1s"}, storage={"min_free": "1MiB"})
        return efax

    def configure(self, *accounts: dict[str, Any], **sections: Any) -> None:
        """Write the configuration; keep what is not given. JSON is YAML 1.2."""
        if accounts:
            sections["accounts"] = {f"app-{number}": one for number, one in enumerate(accounts, 1)}
        self.settings |= sections
        self.guest.write("/etc/poller/poller.yaml", json.dumps(self.settings, indent=1))

    def drop_in(self, text: str) -> None:
        self.guest.write("/etc/systemd/system/poller.service.d/test.conf", text)
        self.systemctl("daemon-reload")

    def systemctl(self, *words: str) -> str:
        return self.guest.run("systemctl", *words)

    def start(self) -> None:
        self.systemctl("start", "poller")

    def show(self, name: str) -> str:
        return self.guest.run(
            "systemctl", "show", "-P", name, "--timestamp=us+utc", "poller"
        ).strip()

    def exited_with(self) -> int:
        return int(self.show("ExecMainStatus"))

    def journal(self, *which: str) -> str:
        """Return what the unit, and systemd about it, said in this test."""
        self.guest.run("journalctl", "--sync")
        return self.guest.run("journalctl", self._since, *(which or ("-u", "poller")))

    def log(self) -> list[dict[str, Any]]:
        """Return what the service said; each line must be JSON."""
        lines = self.journal("_SYSTEMD_UNIT=poller.service", "-o", "cat").splitlines()
        return [json.loads(line) for line in lines]

    def said(self, action: str) -> list[dict[str, Any]]:
        return [one for one in self.log() if one.get("event", {}).get("action") == action]

    def says(self, action: str, count: int = 1) -> dict[str, Any]:
        """Wait until it has said that so many times; return the latest."""
        until(lambda: len(self.said(action)) >= count, f"{count} × {action}", self.journal)
        return self.said(action)[count - 1]

    def stored_for(self, account: str, user: str) -> bool:
        """Whether it has said that it stored a fax of this user."""
        stored = [one["poller"] for one in self.said("fax-stored")]
        return any((one["account"], one["user"]) == (account, user) for one in stored)

    def sidecars(self, storage: str = "/var/lib/poller/faxes") -> dict[str, Path]:
        """Return what a consumer sees, by fax id; a fax that is there twice is an error."""
        paths = list(self.guest.path(storage).rglob("*.json"))
        found = {json.loads(path.read_text())["fax_id"]: path for path in paths}
        assert len(found) == len(paths)
        return found

    def stores(self, count: int, storage: str = "/var/lib/poller/faxes") -> None:
        until(lambda: len(self.sidecars(storage)) >= count, f"{count} faxes", self.journal)

    def poller(self, *words: str) -> str:
        return self.guest.run("/opt/poller/bin/poller", *words)

    def version(self) -> str:
        return str(json.loads(self.poller("status", "--json"))["version"])

    def verified(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.poller("verify", "--json"))
        return shown

    def users(self) -> dict[str, dict[str, Any]]:
        shown = json.loads(self.poller("status", "--json"))
        return {f"{one['account']}/{one['user']}": one for one in shown["users"]}


ANEW = f"""
systemctl kill -s KILL poller efax 2>/dev/null || true
systemctl stop poller efax srv-faxes.mount 2>/dev/null || true
rm -rf /var/lib/poller /etc/poller /etc/systemd/system/poller.service.d /run/efax.* /srv/faxes
install -d /etc/poller
install -m 644 {SOURCE}/systemd/poller.service /etc/systemd/system/poller.service
systemctl daemon-reload
systemctl reset-failed
journalctl --sync
"""


def account(efax: EFax, app: int = 1, users: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    name = f"simulated-app-{app}"
    return {
        "base_url": efax.base_url,
        "app_id": name,
        "api_key": {"credential": "efax-api-key" if app == 1 else f"efax-api-key-{app}"},
        "limits": {"requests_per_second": 50},
        "users": {f"user-{user}": {"user_id": f"{name}-user-{user:03}"} for user in users},
    }


@pytest.fixture
def service(installed: Guest) -> Service:
    """A fresh one: no state, no configuration, the unit as it is shipped."""
    return Service(installed)


# -- installing ------------------------------------------------------------------------------------


EXAMPLE_EDITED = r"""
sed -i -e 's|https://api.securedocex.com|{url}|' -e 's|every: 30s|every: 1s|' \
    -e 's|"12345"|"simulated-app-1"|' -e 's|"0f8a.*\([12]\)"|"simulated-app-1-user-00\1"|' \
    /etc/poller/poller.yaml
echo {key} > /etc/poller/efax-api-key
"""


def test_the_page_installs_a_service_that_stores_faxes(service: Service) -> None:
    efax = service.simulate("--users=2", "--backlog=8", "--arrivals-per-minute=120")
    configured, _, checked = readme("poller.example.yaml").rpartition("\n")
    service.guest.sh(configured + EXAMPLE_EDITED.format(url=efax.base_url, key=efax.key) + checked)

    first_steps = service.guest.sh(readme("as_service=") + "\n" + readme("poller once"))

    assert "main: sign-in: ok\nmain/front-desk: list: ok\nmain/billing: list: ok\n" in first_steps
    assert len(service.sidecars()) >= 8
    service.stores(12)
    looked_at = service.guest.sh(readme("systemctl status poller"))
    assert re.search(r'Status: "2 users, \d+ pending, 0 quarantined', looked_at)
    until(lambda: "largest lag" in service.show("StatusText"), "the lag in the status line")
    assert service.show("UnitFileState") == "enabled"
    assert efax.key not in service.journal()
    for one in service.log():
        assert {"@timestamp", "log.level", "message", "event"} <= one.keys()
    assert service.verified()["damaged"] == []


def test_it_is_activating_until_it_is_ready(service: Service) -> None:
    service.simulate("--users=2")
    service.start()
    started, ready = service.says("service-started"), service.says("service-ready")
    active = service.show("ActiveEnterTimestamp").removesuffix(" UTC").split(" ", 1)[1]
    assert service.show("ActiveState") == "active"
    assert _at(started) < datetime.fromisoformat(active + "+00:00")
    assert _at(ready) >= _at(started)


def _at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["@timestamp"])


def test_members_of_the_group_read_the_faxes_and_nothing_else(service: Service) -> None:
    service.simulate("--users=2", "--backlog=1", "--arrivals-per-minute=0")
    service.start()
    service.stores(1)
    fax = f"/{next(iter(service.sidecars().values())).relative_to(service.guest.path('/'))}"
    assert json.loads(service.guest.run("runuser", "-u", "clerk", "--", "cat", fax))
    for user, command in {"clerk": ("ls", STATE), "nobody": ("cat", fax)}.items():
        assert service.guest.result("runuser", "-u", user, "--", *command).returncode != 0


# -- sandbox ---------------------------------------------------------------------------------------


def test_nothing_can_be_written_outside_its_directories(service: Service) -> None:
    efax = service.simulate("--users=2")
    shutil.copy(Path(__file__).with_name("guest_probe.py"), service.guest.path("/opt/probe.py"))
    service.start()  # once, so that all its directories are there
    service.drop_in("[Service]\nExecStartPre=/opt/poller/bin/python /opt/probe.py\n")
    service.systemctl("restart", "poller")
    (probed,) = [one for one in service.log() if "writable" in one]
    elsewhere = [path for path in probed["writable"] if not path.startswith("/var/lib/poller")]
    assert elsewhere == ["/tmp", "/var/tmp"]  # the unit's own directories, see below
    assert service.show("PrivateTmp") == "yes"
    assert "/var/lib/poller/faxes" in probed["writable"]
    assert probed["credential"] == efax.key
    assert probed["possible"] == []


def test_process_that_checks_documents_has_its_limits_and_dies_alone(service: Service) -> None:
    service.simulate("--users=2", "--backlog=1", "--arrivals-per-minute=60")
    service.start()
    service.stores(1)
    main = service.show("MainPID")
    (child,) = service.guest.run("pgrep", "-P", main).split()
    limits = service.guest.run("cat", f"/proc/{child}/limits")
    for what in ("core file size", "file size", "processes"):
        assert re.search(rf"Max {what} +0 +0 ", limits), limits
    assert re.search(r"Max open files +(\d) +\1 ", limits), limits
    assert re.search(rf"Max address space +{512 << 20} +{512 << 20} ", limits), limits
    assert service.guest.sh(f"tr '\\0' '\\n' < /proc/{child}/environ") == ""
    # as the kernel does when memory runs out; systemd notices
    assert service.show("OOMPolicy") == "continue"
    service.guest.run("kill", "-KILL", child)
    service.stores(len(service.sidecars()) + 2)
    assert service.show("MainPID") == main
    assert not [one for one in service.log() if one["event"]["action"] == "fax-damaged"]


CONFINED = """
import errno, json, os
from poller.documents.child import give_up_rights
give_up_rights()
try:
    os.open("/etc/passwd", os.O_RDONLY)
except OSError as error:
    print(json.dumps({"refused": errno.errorcode[error.errno]}))
"""


def test_process_that_checks_documents_can_give_up_the_file_system(service: Service) -> None:
    service.simulate("--users=2")
    Path(service.guest.path("/opt/confined.py")).write_text(CONFINED)
    service.start()
    service.drop_in("[Service]\nExecStartPre=/opt/poller/bin/python /opt/confined.py\n")
    service.systemctl("restart", "poller")
    assert [one["refused"] for one in service.log() if "refused" in one] == ["EACCES"]


def test_its_exposure_is_small(service: Service) -> None:
    shown = service.guest.run("systemd-analyze", "security", "--no-pager", "poller.service")
    (exposure,) = re.findall(r"Overall exposure level for poller.service: ([\d.]+)", shown)
    assert float(exposure) <= 1.5


# -- trouble ---------------------------------------------------------------------------------------


def test_a_loop_that_hangs_is_restarted_by_the_watchdog(service: Service) -> None:
    efax = service.simulate("--users=2", "--backlog=3", "--arrivals-per-minute=60")
    service.drop_in("[Service]\nWatchdogSec=10\nRestartSec=1\n")
    service.start()
    service.stores(3)
    service.systemctl("kill", "-s", "STOP", "--kill-who=main", "poller")
    until(lambda: int(service.show("NRestarts")) >= 1, "a restart", service.journal)
    assert "Watchdog timeout" in service.journal()
    service.says("service-ready", 2)
    service.stores(3 + len(efax.arrived()))
    assert service.verified()["damaged"] == []


def test_after_kill_9_it_is_started_again_and_nothing_is_lost_or_doubled(service: Service) -> None:
    efax = service.simulate("--users=2", "--backlog=40", "--arrivals-per-minute=0")
    slow = account(efax) | {"limits": {"requests_per_second": 5, "burst": 1}}
    service.configure(slow)
    service.start()
    service.stores(5)
    service.systemctl("kill", "-s", "KILL", "--kill-who=main", "poller")
    until(lambda: service.show("ActiveState") != "active", "its end")
    before = {fax: path.stat().st_ino for fax, path in service.sidecars().items()}
    assert len(before) < 40
    service.configure(account(efax))
    service.stores(40)
    assert int(service.show("NRestarts")) == 1
    after = {fax: path.stat().st_ino for fax, path in service.sidecars().items()}
    assert before.items() <= after.items()
    verified = service.verified()
    assert (verified["checked"], verified["ok"], verified["damaged"]) == (40, 40, [])


def test_sigterm_ends_it_within_the_drain_though_a_download_hangs(service: Service) -> None:
    hanging = "--fault=stall-mid-body@image=first:1"
    service.simulate("--users=2", "--backlog=4", "--arrivals-per-minute=0", hanging)
    service.configure(drain="2s")
    service.start()
    service.stores(3)
    service.systemctl("stop", "poller")
    service.says("service-stopped")
    assert (service.show("Result"), service.exited_with()) == ("success", 0)
    service.start()
    service.stores(4)


def test_a_bad_configuration_is_not_started_again_and_again(service: Service) -> None:
    efax = service.simulate("--users=2", "--backlog=1", "--arrivals-per-minute=0")
    service.configure(poll={"evry": "1s"})
    assert service.guest.result("systemctl", "start", "poller").returncode != 0
    assert service.show("ActiveState") == "failed"  # and not `activating (auto-restart)`
    assert (service.exited_with(), service.show("NRestarts")) == (78, "0")
    assert "poll.evry: " in service.journal()
    service.configure(account(efax), poll={"every": "1s"})
    service.start()
    service.stores(1)


# -- changes ---------------------------------------------------------------------------------------


def test_reload_takes_a_changed_configuration_and_refuses_a_bad_one(service: Service) -> None:
    efax = service.simulate("--users=3", "--backlog=9", "--arrivals-per-minute=60")
    service.start()
    service.says("service-ready")
    process = service.show("MainPID")

    service.configure(account(efax, users=(2, 3)))
    service.systemctl("reload", "poller")
    service.says("service-reloaded")
    users = service.users()
    assert [name for name, one in users.items() if not one["removed"]] == [
        "app-1/user-2",
        "app-1/user-3",
    ]
    until(lambda: service.stored_for("app-1", "user-3"), "faxes of the new user")
    assert service.show("StatusText").startswith("2 users, ")

    service.configure(poll={"every": "soon"})
    service.systemctl("reload", "poller")
    rejected = service.says("config-rejected")
    assert "the old one stays" in rejected["message"]
    assert "poll.every" in rejected["message"]
    known = len(service.sidecars())
    service.stores(known + 1)
    assert (service.show("ActiveState"), service.show("MainPID")) == ("active", process)


def test_reload_says_when_a_credential_needs_a_restart(service: Service) -> None:
    efax = service.simulate("--apps=2", "--users=2", "--arrivals-per-minute=60")
    service.start()
    service.says("service-ready")
    both = (account(efax), account(efax, app=2))
    service.configure(*both)
    service.drop_in("[Service]\nLoadCredential=efax-api-key-2:/etc/poller/efax-api-key-2\n")
    service.systemctl("reload", "poller")
    assert "restart" in service.says("config-rejected")["message"]

    service.systemctl("restart", "poller")
    until(lambda: service.stored_for("app-2", "user-1"), "faxes of the second App ID")

    service.systemctl("reload", "poller")
    assert "a credential that has changed" in service.says("service-reloaded")["message"]


MOUNT = """
[Mount]
What=tmpfs
Where=/srv/faxes
Type=tmpfs
"""


def test_faxes_go_to_a_disk_of_their_own_with_the_drop_in(service: Service) -> None:
    service.simulate("--users=2", "--backlog=5", "--arrivals-per-minute=0")
    service.guest.write("/etc/systemd/system/srv-faxes.mount", MOUNT)
    service.systemctl("daemon-reload")
    service.systemctl("start", "srv-faxes.mount")
    service.guest.sh(readme("poller.service.d-example.conf"))
    service.systemctl("daemon-reload")
    service.configure(storage={"directory": "/srv/faxes/poller", "min_free": "1MiB"})
    service.start()
    service.stores(5, "/srv/faxes/poller")
    service.systemctl("stop", "srv-faxes.mount")
    assert (service.show("ActiveState"), service.exited_with()) == ("inactive", 0)
    service.start()  # mounts it again; this one is empty
    until(lambda: "degraded: " in service.show("StatusText"), "the reason in its status")


# -- upgrading, going back, removing ---------------------------------------------------------------


OLDER_LEDGER = (
    f"{Path(earlier_tables.__file__).read_text()}\nput_back(Path('{STATE}/poller.db'), '0001')\n"
)


def _make_older(guest: Guest) -> None:
    """Put a ledger of the first migration, with everything known, in place of the present one."""
    guest.run("/opt/poller/bin/python", "-c", OLDER_LEDGER)
    guest.sh(f"chown poller:poller-faxes {STATE}/poller.db")


ASK = f"""
import sqlite3, sys
ledger = sqlite3.connect("{STATE}/poller.db", isolation_level=None)
print(*ledger.execute(sys.argv[1]).fetchall())
"""


def test_an_older_ledger_is_upgraded_and_the_copy_made_before_leads_back(service: Service) -> None:
    guest = service.guest
    efax = service.simulate("--users=2", "--backlog=6", "--arrivals-per-minute=30")
    service.start()
    service.stores(6)
    version = service.version()
    service.systemctl("stop", "poller")
    _make_older(guest)
    before = {fax: path.stat().st_ino for fax, path in service.sidecars().items()}

    # As a person pastes it: a failure does not end the shell. Twice, as for a second upgrade.
    upgrade = readme("rm -rf /opt/poller.before")
    guest.run("bash", "-c", upgrade)
    service.systemctl("stop", "poller")
    _make_older(guest)
    for wheel in guest.path(SOURCE).glob("wheels/newer/*.whl"):
        wheel.rename(wheel.parents[1] / wheel.name)
    guest.run("bash", "-c", upgrade)
    assert service.version() == NEWER != version
    service.stores(6 + len(efax.arrived()))
    revision = "SELECT version_num FROM alembic_version"
    assert "0001" not in guest.run(PYTHON, "-c", ASK, revision)
    after = {fax: path.stat().st_ino for fax, path in service.sidecars().items()}
    assert before.items() <= after.items()

    # For the previous version, this one's ledger comes from a newer version.
    service.systemctl("stop", "poller")
    guest.run(PYTHON, "-c", ASK, "UPDATE alembic_version SET version_num = '9999'")
    service.systemctl("start", "--no-block", "poller")
    until(lambda: service.show("SubState") == "auto-restart", "its refusal", service.journal)
    assert service.exited_with() == 73
    assert "was written by a newer poller (revision 9999)" in service.journal()

    guest.sh(readme("mv /opt/poller.before /opt/poller"))
    service.stores(6 + len(efax.arrived()))
    assert service.version() == version
    back = {fax: path.stat().st_ino for fax, path in service.sidecars().items()}
    assert after.items() <= back.items()
    assert service.verified()["damaged"] == []


@pytest.fixture
def kept(installed: Guest) -> Iterator[None]:
    """Restore for the other tests what this test uninstalled."""
    installed.sh(f"cp -a /opt/poller /opt/kept; cp -a {SOURCE} /usr/local/src/kept")
    yield
    installed.sh(f"rm -rf /opt/poller {SOURCE}; mv /opt/kept /opt/poller")
    installed.sh("ln -sf /opt/poller/bin/poller /usr/local/bin/poller")
    installed.sh(f"mv /usr/local/src/kept {SOURCE}; " + readme("systemd-sysusers"))


@pytest.mark.usefixtures("kept")
def test_nothing_is_left_of_it_when_it_is_uninstalled(service: Service) -> None:
    guest = service.guest
    service.simulate("--users=2", "--backlog=2")
    service.start()
    service.stores(2)

    guest.sh(readme("systemctl disable --now poller"))
    assert guest.result("systemctl", "cat", "poller").returncode != 0
    assert len(service.sidecars()) >= 2
    guest.sh(readme("userdel poller"))
    places = ("etc/**/poller*", "opt/poller*", "usr/local/*/poller*", "var/lib/poller*")
    assert [path for place in places for path in guest.path("/").glob(place)] == []
    assert "poller" not in guest.sh("cat /etc/passwd /etc/group")
