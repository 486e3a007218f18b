"""Part of a day with many users: from a fax's arrival to its file, by polls alone and with the web-hook.

python -m tests.benchmarks.hook_day
"""

import asyncio
import json
import os
import random
import signal
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from poller.simulator import Simulator
from tests.acceptance.installation import KEY, KEY_VARIABLE, Daemon, Installation
from tests.benchmarks import measured
from tests.benchmarks.many_users import free_port

_APP = "app-1"
_LIMITS = {"requests_per_second": 5, "burst": 10, "in_flight": 8}


async def main() -> None:
    options = measured.options(users=1_000, minutes=10.0, every=30, faxes_per_hour=1_800)
    alone, hooked = await asyncio.gather(
        _times_s(options, with_hook=False), _times_s(options, with_hook=True)
    )
    measured.told(
        f"{options.users} users every {options.every} s under a limit of 5 requests a second, "
        f"{options.faxes_per_hour} faxes an hour for {options.minutes:g} minutes: from a fax's arrival "
        "to its file.",
        f"polls alone       {_shown(alone)}",
        f"with the web-hook {_shown(hooked)}",
        wanted="a median of at most 5 s with the web-hook",
    )


def _shown(times_s: list[float]) -> str:
    cuts = statistics.quantiles(times_s, n=20, method="inclusive")
    return (
        f"median {statistics.median(times_s):.1f} s, nineteen of twenty within {cuts[-1]:.1f} s, "
        f"longest {max(times_s):.1f} s, of {len(times_s)} faxes"
    )


async def _times_s(options: Any, *, with_hook: bool) -> list[float]:
    """Let faxes arrive for a time, and return how long each one took."""
    async with Simulator(seed=1) as efax:
        efax.add_app(_APP, KEY)
        for number in range(options.users):
            efax.add_user(_APP, f"user-{number}")
        with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as root:
            installation = Installation(Path(root), "")
            port = free_port()
            installation.settings = _settings(options, efax.base_url, port if with_hook else None)
            installation.write({})
            async with installation.daemon() as daemon:
                await _all_polled(installation, daemon, options.users)
                if with_hook:
                    efax.hook(_APP, f"http://127.0.0.1:{port}/efax/main", KEY)
                posting = asyncio.create_task(efax.keep_posting())
                await _let_come(efax, options)
                stored = len(efax.faxes())
                while len(daemon.said("fax-stored")) < stored:
                    await asyncio.sleep(1)
                posting.cancel()
                await daemon.stop()
            return [_took_s(path) for path in installation.sidecars().values()]


def _settings(options: Any, base_url: str, port: int | None) -> dict[str, Any]:
    changes: dict[str, Any] = {"poll": {"every": f"{options.every}s", "start": "1h"}}
    if port is not None:
        changes["webhook"] = {"listen": f"127.0.0.1:{port}"}
    found = measured.settings(options.users, base_url, changes)
    if port is not None:
        hook = {"path": "/efax/main", "secret": {"env": KEY_VARIABLE}}
        found["accounts"]["main"]["webhook"] = hook
    return found


async def _all_polled(installation: Installation, daemon: Daemon, users: int) -> None:
    """Wait for all first polls and sweeps without the limit, which would take half an hour."""
    names: set[str] = set()
    while len(names) < users:
        await asyncio.sleep(1)
        rows = (await installation.status())["users"]
        names = {row["user"] for row in rows if row["last_success_at"] is not None}
    installation.write({"accounts": {"main": {"limits": _LIMITS}}})
    os.kill(daemon.process.pid, signal.SIGHUP)
    await daemon.event("service-reloaded")


async def _let_come(efax: Simulator, options: Any) -> None:
    """Let faxes arrive at random, on average this many an hour."""
    loop, dice = asyncio.get_running_loop(), random.Random(1)
    until = loop.time() + options.minutes * 60
    while loop.time() < until:
        await asyncio.sleep(dice.expovariate(options.faxes_per_hour / 3600))
        user = f"user-{dice.randrange(options.users)}"
        efax.receive(_APP, user, completed=efax.now(), distinct=False)


def _took_s(sidecar: Path) -> float:
    fields = json.loads(sidecar.read_text())
    stored, received = (
        datetime.fromisoformat(fields[f"{name}_at"]) for name in ("stored", "received")
    )
    return (stored - received).total_seconds()


if __name__ == "__main__":
    asyncio.run(main())
