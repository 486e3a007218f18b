"""A guest: this machine's own systemd, booted in fresh namespaces on a throw-away copy of its root.

It takes a second, downloads nothing and leaves nothing. The guest's network has only loopback. It
does not enforce limits of memory and tasks.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BOOT = Path(__file__).with_name("guest_boot.sh")
PATIENCE_S = 120.0  # every test waits for an event; a busy machine may take its time
_LOOK_S = 0.3  # each look starts processes
_TOOLS = ("bash", "unshare", "nsenter", "setpriv", "systemctl", "journalctl", "dbus-daemon")
_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "HOME=/root",
)


class CannotBoot(Exception):
    """This machine cannot run a guest; `str()` says why."""


@dataclass(frozen=True)
class Guest:
    """A running guest; `pid` is its systemd as this machine sees it."""

    pid: int

    def path(self, inside: str) -> Path:
        """A directory in the guest, to read and write from here; its symbolic links do not lead out."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def result(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root."""
        enter = (
            "nsenter",
            "-t",
            str(self.pid),
            *["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"],
        )
        return subprocess.run(
            (*enter, "env", "-i", *_ENVIRONMENT, *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )

    def run(self, *command: str) -> str:
        """Run a command as root, which must succeed; return what it printed."""
        done = self.result(*command)
        assert done.returncode == 0, (
            f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def sh(self, script: str) -> str:
        """Run lines of shell as root, which must all succeed; return what they printed."""
        return self.run("bash", "-euc", script)


def until(happened: Callable[[], bool], what: str, report: Callable[[], str] = str) -> None:
    """Wait until something is true; show `report` if it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{report()}"
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def booted(lab: Path) -> Iterator[Guest]:
    """Boot a guest on the empty directory `lab`; raises CannotBoot if that is impossible."""
    _require_tools()
    group = _cgroups() / f"poller-guest-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        _make(group)
        stack.callback(_remove, group)
        log = stack.enter_context((lab.parent / f"{lab.name}.log").open("w+"))
        process = subprocess.Popen(
            # It dies with this process, and systemd with it.
            ("setpriv", "--pdeathsig", "KILL", "bash", "-c", _UNSHARE, "-", group, BOOT, lab),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        guest = Guest(_systemd_of(process, log.name))
        until(
            lambda: (
                guest.result("systemctl", "is-system-running").stdout.strip()
                in ("running", "degraded")
            ),
            "the guest to be up",
        )
        yield guest


_UNSHARE = """
echo $$ > "$1/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup --propagation private \
    bash "$2" "$3"
"""


def _require_tools() -> None:
    if os.geteuid() != 0:
        raise CannotBoot("only root can boot a guest")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise CannotBoot(f"a guest needs {', '.join(missing)}")


def _cgroups() -> Path:
    """Return where to make cgroups."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(place.split()[4])
    raise CannotBoot("there is no cgroup2 here")


def _make(group: Path) -> None:
    try:
        group.mkdir()
    except OSError as error:
        raise CannotBoot(f"no cgroup can be made here: {error.strerror}") from error


def _remove(group: Path) -> None:
    """Remove cgroups, which killed processes leave a little later."""

    def removed() -> bool:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not group.exists()

    until(removed, f"{group} to be empty")


def _systemd_of(process: "subprocess.Popen[bytes]", log: str) -> int:
    """The first process of the guest, once it is systemd."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found: list[int] = []

    def is_up() -> bool:
        if process.poll() is not None:
            last = Path(log).read_text().strip().rpartition("\n")[2]
            raise CannotBoot(f"no guest can be booted here: {last}")
        with contextlib.suppress(OSError):
            found[:] = [int(pid) for pid in children.read_text().split()]
            return Path(f"/proc/{found[0]}/comm").read_text() == "systemd\n" if found else False
        return False

    until(is_up, "systemd to begin")
    return found[0]
