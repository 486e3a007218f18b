"""`poller demo`: a simulated eFax and the real daemon, side by side, for a first look."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from poller.simulator import Fault, Faults, Simulator, Switches
from poller.simulator.state import Fax

_USERS = {"front-desk": "demo-user-a", "billing": "demo-user-b", "records": "demo-user-c"}
_APP_ID = "demo-app"
_KEY_VARIABLE = "POLLER_DEMO_KEY"
_BACKLOG = 5
_ARRIVALS = 7
_ARRIVES_EVERY_S = 1.5
_PATIENCE_S = 60.0  # on a busy machine; it ends as soon as all are there
_STOPS_WITHIN_S = 40.0  # its drain, and some
_TROUBLE = (
    "every fifth image request fails with 500, every seventh is cut in the middle, and the first "
    "list call is answered with 429"
)


def demo() -> int:
    """Show faxes arriving for half a minute; 0 when every one of them is on the disk."""
    directory = Path(tempfile.mkdtemp(prefix="poller-demo-"))
    return asyncio.run(_Demo(directory).run())


class _Demo:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._faxes = directory / "faxes"
        self._console = Console(highlight=False)
        self._simulator = Simulator(
            switches=Switches(),
            faults=Faults(
                rules=(
                    # Counted, not by chance: nobody's first look ends with a fax that had bad luck.
                    Fault.parse("500@image=every:5"),
                    Fault.parse("cut-no-length@image=every:7"),
                    Fault.parse("429@list+1=first:1"),
                )
            ),
            seed=secrets.randbits(32),
        )
        self._key = secrets.token_urlsafe(18)
        self._last_error = ""

    async def run(self) -> int:
        say = self._console.print
        say("[bold]poller demo[/]: a simulated eFax on loopback, and the real daemon polling it.")
        say(f"To make it hard, {_TROUBLE}.\n")
        self._populate()
        async with self._simulator, self._daemon() as daemon:
            watching = asyncio.create_task(self._watch(daemon))
            await self._arrivals(daemon)
            await self._wait_until_stored(daemon)
            died = daemon.returncode is not None
            exit_code = await _stopped(daemon)
            await watching
        return self._sum_up(died=died, exit_code=exit_code)

    def _populate(self) -> None:
        self._simulator.add_app(_APP_ID, self._key)
        now = self._simulator.now()
        for user_id in _USERS.values():
            self._simulator.add_user(_APP_ID, user_id)
        for number in range(_BACKLOG):
            age = timedelta(hours=5 * number + 1)
            self._simulator.receive_somewhere(completed=now - age)

    async def _arrivals(self, daemon: asyncio.subprocess.Process) -> None:
        for _ in range(_ARRIVALS):
            if await _ends_within(daemon, _ARRIVES_EVERY_S):
                return
            fax = self._simulator.receive_somewhere()
            self._console.print(f"[dim]eFax       received {_pages(fax.pages)}[/]")

    async def _wait_until_stored(self, daemon: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while len(self._stored()) < len(self._simulator.faxes()):
                    if await _ends_within(daemon, 0.2):
                        return

    @asynccontextmanager
    async def _daemon(self) -> AsyncIterator[asyncio.subprocess.Process]:
        config = self._directory / "poller.yaml"
        config.write_text(self._configuration())
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "poller", "run", "-c", str(config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, _KEY_VARIABLE: self._key},
        )
        try:
            yield daemon
        finally:
            with contextlib.suppress(ProcessLookupError):
                daemon.kill()
            await daemon.wait()

    def _configuration(self) -> str:
        users = "\n".join(
            f'      {name}: {{user_id: "{user_id}"}}' for name, user_id in _USERS.items()
        )
        return f"""\
accounts:
  demo:
    base_url: {self._simulator.base_url}
    app_id: "{_APP_ID}"
    api_key: {{env: {_KEY_VARIABLE}}}
    limits: {{requests_per_second: 20, burst: 20, in_flight: 8}}
    users:
{users}
poll: {{every: 2s}}
storage: {{directory: faxes, min_free: 16MiB}}
state: {{url: "sqlite:///state/poller.db"}}
http: {{listen: null}}
log: {{format: json}}
"""

    async def _watch(self, daemon: asyncio.subprocess.Process) -> None:
        """Show what the daemon's log says, in short."""
        assert daemon.stdout is not None
        async for line in daemon.stdout:
            text = line.decode(errors="replace").rstrip()
            try:
                event = json.loads(text)
            except ValueError:
                event = None
            if isinstance(event, dict):
                self._show(event)
            elif text:
                self._last_error = text
                self._console.print(text, markup=False)

    def _show(self, event: dict[str, Any]) -> None:
        about = event.get("poller", {})
        who = about.get("user") or about.get("account") or "poller"
        match event.get("event", {}).get("action"):
            case "fax-stored":
                text = f"[green]{who:<10} stored {_pages(about.get('pages'))}[/]: {about['file']}"
            case "fax-retry":
                text = f"[yellow]{who:<10} {event['message']}[/] {event['error']['message']}"
            case "poll-completed":
                text = f"{who:<10} {about.get('discovered')} new in the list"
            case "service-ready" | "service-stopped" | "rate-limited" | "service-stopping":
                text = f"{who:<10} {event['message']}"
            case _ if event.get("log.level") in ("error", "critical"):
                error = event.get("error", {})
                why = f" {error['type']}: {error['message']}" if error else ""
                self._last_error = event["message"] + why
                text = f"[red]{who:<10} {escape(self._last_error)}[/]"
            case _:
                return
        self._console.print(text, soft_wrap=True)

    def _stored(self) -> dict[str, Path]:
        return {
            json.loads(sidecar.read_text())["fax_id"]: sidecar
            for sidecar in self._faxes.glob("**/[!.]*.json")
        }

    def _missing(self) -> list[Fax]:
        """The faxes that are not on the disk byte for byte as they were served."""
        stored = self._stored()
        return [fax for fax in self._simulator.faxes() if not self._is_there(fax, stored)]

    def _is_there(self, fax: Fax, stored: dict[str, Path]) -> bool:
        sidecar = stored.get(fax.fax_id)
        if sidecar is None:
            return False
        image = json.loads(sidecar.read_text())["image"]
        content = (sidecar.parent / image["file"]).read_bytes()
        served = self._simulator.image_bytes(fax)
        return content == served and bool(hashlib.sha256(content).hexdigest() == image["sha256"])

    def _sum_up(self, *, died: bool, exit_code: int) -> int:
        total, missing = len(self._simulator.faxes()), len(self._missing())
        say = self._console.print
        say()
        if died or missing or exit_code != 0:
            why = f"; its last error: {escape(self._last_error)}" if self._last_error else ""
            say(
                f"[bold red]{missing} of {total} faxes did not arrive; the daemon ended with "
                f"{exit_code}{why}[/]\nLook into {self._directory}.",
                soft_wrap=True,
            )
            return 1
        say(
            f"[bold green]All {total} faxes are on the disk, byte for byte, once each.[/]\n"
            f"The faxes, each with its sidecar: {self._faxes}\n"
            f"The configuration:                {self._directory / 'poller.yaml'}\n"
            f"How it did:  poller -c {self._directory / 'poller.yaml'} status",
            soft_wrap=True,
        )
        return 0


async def _ends_within(daemon: asyncio.subprocess.Process, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(daemon.wait(), seconds)
    return daemon.returncode is not None


async def _stopped(daemon: asyncio.subprocess.Process) -> int:
    """Stop the daemon, if need be the hard way; its exit code."""
    with contextlib.suppress(ProcessLookupError):
        daemon.terminate()
        if not await _ends_within(daemon, _STOPS_WITHIN_S):
            daemon.kill()
    return await daemon.wait()


def _pages(count: int | None) -> str:
    return "1 page" if count == 1 else f"{count} pages"
