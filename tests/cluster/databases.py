"""Database servers of a check's own: alone, behind a pooler, or with a standby."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from tests import postgres
from tests.postgres import OwnServer


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[OwnServer, str]]:
    """Run a server; give it and the URL of an empty database."""
    programs, *_ = postgres.servers()
    server = OwnServer.started(programs)
    try:
        yield server, server.url
    finally:
        await asyncio.to_thread(server.kill)


@asynccontextmanager
async def pooled() -> AsyncIterator[tuple[OwnServer, str]]:
    """Run a server behind PgBouncer, which gives each transaction another connection."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    async with alone() as (server, _):
        with postgres.pooling(program, server.at) as url:
            yield server, url


@asynccontextmanager
async def with_standby(*, synchronous: bool) -> AsyncIterator[tuple[OwnServer, OwnServer, str]]:
    """Run a server and a standby, for which it waits if `synchronous`; give the URL that names both."""
    async with alone() as (primary, _):
        if not (primary.programs / "pg_basebackup").exists():
            pytest.skip("this PostgreSQL has no pg_basebackup")
        standby = primary.follower()
        try:
            if synchronous:
                primary.set("synchronous_standby_names", "standby")
            one, other = (quote(str(server.at.directory), "") for server in (primary, standby))
            yield primary, standby, primary.url.replace(one, f"{one},{other}")
        finally:
            await asyncio.to_thread(standby.kill)
