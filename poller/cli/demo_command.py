"""`poller demo`: a simulated eFax and the real daemon, side by side, for a first look."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from poller.cli.lookup import counted
from poller.simulator import Faults, Simulator
from poller.simulator.state import Fax, SentFax

_APP_ID = "demo-app"
_USER_IDS = ("demo-user-a", "demo-user-b", "demo-user-c")
_NUMBER = "18005550100"  # the first user's
_BACKLOG = 5
_ARRIVALS = 7
_ARRIVES_EVERY_S = 1.5
_HANG_TIMEOUT_S = 60.0  # for a busy machine; the demo ends as soon as all faxes are there
_STOPS_WITHIN_S = 40.0  # its drain and a margin
# Every n-th request fails, not a random one: no fax can fail too often in somebody's first look.
_FAULTS = ("500@image=every:5", "cut-no-length@image=every:7", "429@list+1=first:1")
_GREETING = """\
[bold]poller demo[/]: a simulated eFax on loopback, and the real daemon polling it.
The simulated eFax makes trouble: every fifth image request fails with 500, every seventh answer is \
cut short, and the first list call gets a 429. eFax announces each fax by web-hook, and front-desk \
archives what it sends. At the end a self-test sends a page to front-desk's own number.
"""
_CONFIGURATION = """\
accounts:
  demo:
    base_url: BASE_URL
    app_id: "demo-app"
    api_key: {env: POLLER_DEMO_KEY}
    limits: {requests_per_second: 20, burst: 20, in_flight: 8}
    webhook: {path: /efax/demo, secret: {env: POLLER_DEMO_HOOK}}
    users:
      front-desk: {user_id: "demo-user-a", number: "NUMBER", sent: {archive: image, every: 2s}}
      billing: {user_id: "demo-user-b"}
      records: {user_id: "demo-user-c"}
poll: {every: 2s}
storage: {directory: faxes, min_free: 16MiB}
state: {url: "sqlite:///state/poller.db"}
http: {listen: null}
webhook: {listen: "127.0.0.1:HOOK_PORT"}
log: {format: json}
"""


def demo(_paths: Sequence[Path]) -> int:
    """Show faxes arriving for half a minute; return 0 if every one of them is on disk."""
    return asyncio.run(_Demo().run())


class _Demo:
    def __init__(self) -> None:
        self._simulator = Simulator(faults=Faults.of(*_FAULTS), seed=secrets.randbits(32))
        self._key = secrets.token_urlsafe(18)
        self._simulator.add_app(_APP_ID, self._key)
        for user_id in _USER_IDS:
            own = _NUMBER if user_id == _USER_IDS[0] else None
            self._simulator.add_user(_APP_ID, user_id, number=own)
        self._hook_secret, self._hook_port = secrets.token_urlsafe(18), _free_port()
        sent_at = self._simulator.now() - timedelta(hours=2)
        self._simulator.sent(_APP_ID, _USER_IDS[0], created=sent_at)
        for number in range(_BACKLOG):
            age = timedelta(hours=5 * number + 1)
            self._simulator.receive_somewhere(completed=self._simulator.now() - age)
        self._directory = Path(tempfile.mkdtemp(prefix="poller-demo-"))
        self._faxes, self._config = self._directory / "faxes", self._directory / "poller.yaml"
        self._say = partial(Console(highlight=False).print, soft_wrap=True)
        self._last_error = ""

    async def run(self) -> int:
        self._say(_GREETING)
        async with self._simulator:
            daemon = await self._started()
            watching = asyncio.create_task(self._watch(daemon))
            url = f"http://127.0.0.1:{self._hook_port}/efax/demo"
            self._simulator.hook(_APP_ID, url, self._hook_secret)
            posting = asyncio.create_task(self._simulator.keep_posting())
            try:
                await self._faxes_arrive(daemon)
                tested = await self._self_test(daemon)
                await self._all_stored(daemon)
                died = daemon.returncode is not None
                exit_code = await _stopped(daemon, _STOPS_WITHIN_S)
                await watching
            finally:
                posting.cancel()
                await _stopped(daemon, 0)
        return self._sum_up(died=died, tested=tested, exit_code=exit_code)

    async def _started(self) -> asyncio.subprocess.Process:
        text = _CONFIGURATION.replace("BASE_URL", self._simulator.base_url)
        text = text.replace("NUMBER", _NUMBER).replace("HOOK_PORT", str(self._hook_port))
        self._config.write_text(text)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "poller", "run", "-c", str(self._config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ(),
        )

    def _environ(self) -> dict[str, str]:
        ours = {"POLLER_DEMO_KEY": self._key, "POLLER_DEMO_HOOK": self._hook_secret}
        return {**os.environ, **ours}

    async def _faxes_arrive(self, daemon: asyncio.subprocess.Process) -> None:
        """Have faxes arrive, and wait until all are stored or the daemon has ended."""
        for _ in range(_ARRIVALS):
            if await _ends_within(daemon, _ARRIVES_EVERY_S):
                return
            fax = self._simulator.receive_somewhere()
            self._say(f"[dim]eFax       received {counted(fax.pages, 'page', 'pages')}[/]")
        await self._all_stored(daemon)

    async def _all_stored(self, daemon: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HANG_TIMEOUT_S):
                while len(self._sidecars()) < len(self._served()):
                    if await _ends_within(daemon, 0.2):
                        return

    def _served(self) -> list[Fax]:
        """Return the faxes that must be on disk: all received ones, and those front-desk has sent."""
        return [*self._simulator.faxes(), *self._sent()]

    def _sent(self) -> list[SentFax]:
        return self._simulator.apps[_APP_ID].users[_USER_IDS[0]].sent

    async def _self_test(self, daemon: asyncio.subprocess.Process) -> bool:
        """Send a page to front-desk's own number, and return whether it came back."""
        if daemon.returncode is not None:
            return False
        self._say("[dim]poller     selftest demo/front-desk[/]")
        test = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "poller", "selftest", "demo/front-desk"),
            *("-c", str(self._config), "--within", "1m"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environ(),
        )
        try:
            async with asyncio.timeout(_HANG_TIMEOUT_S):
                out, _ = await test.communicate()
        except TimeoutError:
            return False
        finally:
            await _stopped(test, 0)
        for line in out.decode(errors="replace").splitlines():
            self._say(f"[cyan]self-test  {escape(line)}[/]")
        return test.returncode == 0

    async def _watch(self, daemon: asyncio.subprocess.Process) -> None:
        """Show the daemon's log in short form."""
        assert daemon.stdout is not None
        async for line in daemon.stdout:
            text = line.decode(errors="replace").rstrip()
            event = None
            with contextlib.suppress(ValueError):
                event = json.loads(text)
            if isinstance(event, dict):
                self._show(event)
            elif text:
                self._last_error = text
                self._say(text, markup=False)

    def _show(self, event: dict[str, Any]) -> None:
        about = event.get("poller", {})
        who = about.get("user") or about.get("account") or "poller"
        match event.get("event", {}).get("action"):
            case "fax-stored":
                pages = counted(about["pages"], "page", "pages")
                what = "archived a sent fax" if about.get("direction") == "sent" else "stored"
                text = f"[green]{who:<10} {what}, {pages}[/]: {about['file']}"
            case "fax-retry":
                text = f"[yellow]{who:<10} {event['message']}[/] {event['error']['message']}"
            case "webhook-received" | "fax-sent":
                text = f"[cyan]{who:<10} {event['message']}[/]"
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
        self._say(text)

    def _sidecars(self) -> list[Path]:
        return list(self._faxes.glob("**/[!.]*.json"))

    def _missing(self) -> int:
        """Return how many faxes are not on disk byte for byte as eFax served them."""
        found = {}
        for sidecar in self._sidecars():
            content = json.loads(sidecar.read_text())
            image = (sidecar.parent / content["image"]["file"]).read_bytes()
            if hashlib.sha256(image).hexdigest() == content["image"]["sha256"]:
                found[content["fax_id"]] = image
        served = {fax.fax_id: self._simulator.image_bytes(fax) for fax in self._served()}
        return sum(found.get(fax_id) != image for fax_id, image in served.items())

    def _sum_up(self, *, died: bool, tested: bool, exit_code: int) -> int:
        total, missing = len(self._served()), self._missing()
        received, sent = len(self._simulator.faxes()), len(self._sent())
        if died or missing or exit_code != 0:
            why = f"; its last error was: {escape(self._last_error)}" if self._last_error else ""
            self._say(
                f"\n[bold red]{missing} of {total} faxes did not arrive; the daemon exited with "
                f"{exit_code}{why}[/]\nFor the cause, look into {self._directory}."
            )
            return 1
        if not tested:
            self._say(
                f"\n[bold red]The self-test failed.[/]\nFor the cause, look into {self._directory}."
            )
            return 1
        self._say(
            f"\n[bold green]All {total} faxes are on disk, byte for byte, once each:[/] {received} "
            f"received, {sent} sent.\n"
            f"The faxes, each with its sidecar: {self._faxes}\n"
            f"The configuration:                {self._config}\n"
            f"How it went: poller -c {self._config} status"
        )
        return 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def _ends_within(daemon: asyncio.subprocess.Process, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(daemon.wait(), seconds)
    return daemon.returncode is not None


async def _stopped(daemon: asyncio.subprocess.Process, within_s: float) -> int:
    """Stop the daemon, kill it if it does not stop in time, and return its exit code."""
    with contextlib.suppress(ProcessLookupError):
        daemon.terminate()
        if not await _ends_within(daemon, within_s):
            daemon.kill()
    return await daemon.wait()
