"""Commands as processes of their own; elsewhere commands are forks that need no imports.

A run starts half of them, with POLLER_EXHAUSTIVE=1 all.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from poller.cli.commands import COMMANDS
from tests.acceptance.installation import Installation, arrived, assert_stored, populated
from tests.efax import Simulator
from tests.exhaustive import sample

# What can be asked of an installation that has no fax, and the exit code.
ASKED = {
    "once --json": 0,
    "check --online": 0,
    "status --json": 0,
    "plan": 0,
    "retry": 0,
    "dismiss no-such-fax --reason gone": 1,
    "explain no-such-fax": 1,
    "verify --json": 0,
    "purge --dry-run --json": 0,
    "backup copy.db": 0,
    "nodes": 0,
    "rebuild": 0,
    "help": 0,
    "completion bash": 0,
    "backfill main/billing --from 2024-05-01T00:00:00Z --to 2024-05-02T00:00:00Z": 0,
    "send main/billing --to 13235550000 no-such-file.pdf": 2,
    "selftest main/billing": 2,
}
OTHERWISE = {"run", "demo", "simulate", "init"}  # here or beside what else they do


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=3)) as running:
        yield running


@pytest.fixture
async def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    """It has a ledger, and its commands are started as a shell starts them."""
    installation = Installation(tmp_path, simulator.base_url)
    await installation.once()
    installation.before_it = ("env",)
    return installation


async def test_a_command_starts_as_a_process_of_its_own(installation: Installation) -> None:
    for words in sample(list(ASKED), 8):
        done = await installation.poller(*words.split())
        assert done.code == ASKED[words], done
        assert "Traceback" not in done.err
        assert "Warning" not in done.err


def test_every_command_is_started_so() -> None:
    assert {words.split()[0] for words in ASKED} == COMMANDS.keys() - OTHERWISE


async def test_the_service_starts_as_a_process_of_its_own_stores_and_stops(
    installation: Installation, simulator: Simulator
) -> None:
    faxes = arrived(simulator, 2)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=len(faxes))
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_the_installed_script_is_the_command(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("poller"), "--version"),
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    out, _ = await process.communicate()
    assert (process.returncode, out[:7]) == (0, b"poller ")


OF_THE_EXTRA = ("psycopg", "boto3", "botocore", "cryptography", "sqlalchemy.dialects.postgresql")


@pytest.mark.parametrize("command", ["once", "status"])
async def test_over_a_file_and_a_directory_nothing_of_the_extra_is_loaded(
    installation: Installation, command: str
) -> None:
    done = await installation.poller(command, "--json", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if "|" in line}
    assert {"poller.ledger", "sqlalchemy"} <= loaded
    assert [one for one in sorted(loaded) if one.startswith(OF_THE_EXTRA)] == []
