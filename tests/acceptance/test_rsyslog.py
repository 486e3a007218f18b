"""The log of a running service, through a real rsyslogd with the shipped configuration."""

import asyncio
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Faults, Simulator
from tests.acceptance.installation import APP, Daemon, Installation, action_of, populated

SHIPPED = Path(__file__).parents[2] / "config/rsyslog/poller.conf"
RSYSLOGD = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin:/sbin")
MODULES = [*Path("/usr").glob("lib*/rsyslog"), *Path("/usr/lib").glob("*/rsyslog")]
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(
    RSYSLOGD is None or not any((place / "mmjsonparse.so").exists() for place in MODULES),
    reason="needs rsyslogd and its mmjsonparse (Debian's package rsyslog)",
)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=11)) as running:
        yield running


async def worked(installation: Installation, simulator: Simulator) -> Daemon:
    """A service that has stored a fax, and has seen an outage begin and end."""
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        completed = simulator.now() - timedelta(minutes=1)
        simulator.receive(APP, "user-a", completed=completed, distinct=False)
        await daemon.event("fax-stored")
        simulator.faults = Faults.of("html-502@list=first:20")
        await daemon.event("account-suspended")
        assert await daemon.stop() == 0
    return daemon


class Rsyslog:
    """The shipped configuration with files below a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.file = directory / "log", directory / "events.json"
        self.readable, self.json = directory / "readable.log", directory / "all.json"
        self.config = directory / "rsyslog.conf"
        work = directory / "work"
        work.mkdir()
        self.config.write_text(
            f'global(workDirectory="{work}" maxMessageSize="64k")\n'
            'module(load="imuxsock" SysSock.Use="off")\n'
            f'input(type="imuxsock" socket="{self.socket}")\n'
            f"{self._shipped()}"
        )

    def _shipped(self) -> str:
        """The whole configuration, with its commented lines active, and files of the test."""
        text = re.sub(r'action\(type="omfwd".* template', f'action(type="omfile" file="{self.json}" template',
                      SHIPPED.read_text())  # fmt: skip
        text = re.sub(r"# ?(module|input|action)\(", r"\1(", text)
        text = text.replace("/var/log/poller/events.json", str(self.file))
        return text.replace("/var/log/poller.log", str(self.readable))

    def events(self) -> list[Any]:
        """Return the whole lines that it would pass on."""
        text = self.json.read_text() if self.json.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def rsyslog(directory: Path) -> AsyncIterator[Rsyslog]:
    assert RSYSLOGD is not None
    directory.mkdir()
    running = Rsyslog(directory)
    process = await asyncio.create_subprocess_exec(
        *(RSYSLOGD, "-n", "-f", str(running.config), "-i", str(directory / "pid"))
    )
    try:
        await running.until(running.socket.exists)
        yield running
    finally:
        process.kill()
        await process.wait()


async def test_rsyslog_parses_every_line_from_a_file(simulator: Simulator, tmp_path: Path) -> None:
    daemon = await worked(Installation(tmp_path, simulator.base_url), simulator)
    async with rsyslog(tmp_path / "rsyslog") as server:
        server.file.write_text("".join(f"{line}\n" for line in daemon.lines))
        await server.until(lambda: len(server.events()) >= len(daemon.events))
        assert server.events() == daemon.events
    lines = server.readable.read_text().splitlines()
    assert len(lines) == len(daemon.events)
    (stored,) = daemon.said("fax-stored")
    (line,) = (line for line in lines if " fax-stored " in line)
    fax_id = stored["poller"]["fax_id"]
    assert line.startswith(
        f"{stored['@timestamp']} info fax-stored account=main user=front-desk fax_id={fax_id} "
    )


async def test_rsyslog_parses_what_journald_passes_on_and_keeps_what_is_no_json(
    simulator: Simulator, tmp_path: Path
) -> None:
    daemon = await worked(Installation(tmp_path, simulator.base_url), simulator)
    long = {**daemon.events[0], "message": "ä" * 20_000}
    lines = [*daemon.lines, json.dumps(long, ensure_ascii=False), "poller: no such file"]
    async with rsyslog(tmp_path / "rsyslog") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.connect(str(server.socket))
            for line in lines:
                journald.send(f"<30>Nov 25 18:00:00 poller[123]: {line}".encode())
            journald.send(b"<30>Nov 25 18:00:00 another[124]: {}")
        await server.until(
            lambda: server.readable.exists() and "no such file" in server.readable.read_text()
        )
        assert server.events() == [*daemon.events, long]
    assert {action_of(event) for event in server.events()} >= {"fax-stored", "account-suspended"}
    assert "another" not in server.readable.read_text()


async def test_rsyslog_accepts_the_file_as_it_is_shipped() -> None:
    assert RSYSLOGD is not None
    process = await asyncio.create_subprocess_exec(
        *(RSYSLOGD, "-N1", "-f", str(SHIPPED)), stderr=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[1].decode()
    assert process.returncode == 0, said
    assert "error" not in said
