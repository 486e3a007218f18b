"""The daemon to measure, what to measure of it, and how to print a result."""

import argparse
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests import s3
from tests.acceptance.installation import Daemon, Installation

_TICKS = os.sysconf("SC_CLK_TCK")
UNLIMITED = {"requests_per_second": 10_000, "burst": 10_000, "in_flight": 16}


def cpu_s(pid: int) -> float:
    """User and system time of a process and all its threads so far, to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int) -> float:
    return _status_kib(pid, "VmRSS") / 1024


def peak_mib(pid: int) -> float:
    """The largest resident size since the start or `forget_peak`."""
    return _status_kib(pid, "VmHWM") / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_kib(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def settings(users: int, base_url: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of one account; `changes` replace whole sections."""
    return {
        "accounts": {
            "main": {
                "base_url": base_url,
                "app_id": "app-1",
                "api_key": {"env": "POLLER_TEST_KEY"},
                "limits": UNLIMITED,
                "users": {f"u{n}": {"user_id": f"user-{n}"} for n in range(users)},
            }
        },
        "storage": {"directory": "faxes", "min_free": "1MiB"},
        "state": {"url": "sqlite:///state/poller.db"},
        "http": {"listen": None},
        "log": {"format": "json"},
        **(changes or {}),
    }


def in_bucket(store: str, directory: Path) -> dict[str, Any]:
    """Change `settings` to a new bucket in the store with this URL, or in one that this starts `here`."""
    if not store:
        return {}
    os.environ |= s3.ENVIRON
    url = s3.started(directory / "s3.url", os.getpid()) if store == "here" else store
    return {"storage": s3.written(s3.new_bucket(url))}


@asynccontextmanager
async def installed(
    configuration: dict[str, Any], directory: Path | None = None
) -> AsyncIterator[Installation]:
    """An installation in `directory`, or in a temporary one."""
    temporary = tempfile.TemporaryDirectory(prefix="poller-benchmark-")
    with temporary if directory is None else nullcontext(directory) as root:
        installation = Installation(Path(root), "")
        installation.settings = configuration
        installation.write({})
        yield installation


@asynccontextmanager
async def running(
    configuration: dict[str, Any], directory: Path | None = None
) -> AsyncIterator[Daemon]:
    """A ready `poller run`, in `directory` or in a temporary one."""
    async with installed(configuration, directory) as installation, installation.daemon() as daemon:
        yield daemon
        await daemon.stop()


def options(**defaults: int | float | str) -> argparse.Namespace:
    """Read `--rounds N` and the sizes of a benchmark, whose defaults these are."""
    parser = argparse.ArgumentParser()
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def told(sentence: str, *figures: str, ratio: float | None = None, wanted: str) -> None:
    """Print what is compared, the figures, and the ratio with its target."""
    print(sentence)
    for figure in figures:
        print(f"  {figure}")
    ended = "result" if ratio is None else f"ratio {ratio:.2f}"
    print(f"  {ended} (wanted: {wanted})", flush=True)
