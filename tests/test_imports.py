"""Imports point one way, and the core touches nothing: no files, no clock, no randomness."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import poller

ROOT = Path(poller.__file__).parent

CORE = [
    "topic",
    "errors",
    "stream",
    "events",
    "clock",
    "window",
    "listing",
    "naming",
    "cron",
    "retry",
    "pacing",
]
CORE += ["suspension", "efax", "config", "schedule", "plan", "silence", "progress", "emptiness"]
CORE += ["deletion"]
CORE += ["hooks", "hook_record", "sealing"]
CORE += ["recognition", "advice", "drawn_page"]
CORE += ["backlog", "slowness"]
SHELL = [
    "manual",
    "own_threads",
    "documents",
    "state_directory",
    "lock",
    "evidence",
    "outbox",
    "store",
    "ledger",
    "runtime_report",
    "cluster",
    "page_progress",
    "catching_up",
    "rebuild",
    "status",
    "problems",
    "log",
    "metrics",
    "reporting",
]
SHELL += ["systemd", "client", "ingest", "daemon", "web", "webhook", "simulator", "cli", "__main__"]
ORDER = [*CORE, *SHELL]

# Modules that only touch the disk, name a system call or wait; a core module may not even import them.
UNCLEAN = {"asyncio", "concurrent", "fcntl", "http", "io", "logging", "mmap", "multiprocessing"}
UNCLEAN |= {"os", "random", "secrets", "select", "selectors", "shutil", "signal", "socket"}
UNCLEAN |= {"sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid"}
UNCLEAN |= {"aiohttp", "alembic", "apscheduler", "pikepdf", "PIL"}
UNCLEAN |= {"prometheus_client", "sqlalchemy", "structlog", "tenacity"}
CLOCK_READERS = {"now", "utcnow", "today"}
FILE_CALLS = {"exists", "glob", "is_dir", "is_file", "iterdir", "lstat", "mkdir", "open", "rglob"}
FILE_CALLS |= {"read_bytes", "read_text", "rename", "resolve", "rmdir", "stat", "touch", "unlink"}
FILE_CALLS |= {"chmod", "symlink_to", "hardlink_to", "write_bytes", "write_text"}

# The few places in the core where the shell begins, and why.
ALLOWED = {
    "clock.py": {"asyncio", "time", "now"},  # SystemClock, the real one that the shell passes in
    "config/load.py": {"os", "ssl", "now", *FILE_CALLS},  # reads the configuration files
    "config/secrets.py": {"os", *FILE_CALLS},  # reads the secrets that they name
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def owner(file: Path) -> str:
    """Return the module of the order that a file belongs to; a folder counts as one."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Return the dotted names that are imported; `package` is where relative ones begin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (
                ".".join([*base, *(node.module or "").split("."), alias.name]).replace("..", ".")
                for alias in node.names
            )


@cache
def imported_by(file: Path) -> set[str]:
    package = ["poller", *file.relative_to(ROOT).parent.parts]
    return set(imports(ast.parse(file.read_text()), package))


def ours(names: set[str]) -> set[str]:
    """Keep the modules of the order among dotted names; `poller.__version__` is none."""
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "poller" and len(part) > 1} & set(ORDER)


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def uses_os_for_text_only(tree: ast.AST) -> bool:
    """Tell whether `os` is there only for `os.path.normpath`, which touches no file."""
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "os"]
    harmless = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n) == "os.path.normpath"
    ]
    return 0 < len(uses) == len(harmless)


def uncleanness(source: str) -> set[str]:
    """Name what a core module must not use: imports, and calls that read the clock or the disk."""
    tree = ast.parse(source)
    roots = {name.split(".")[0] for name in imports(tree, ["poller"])}
    if uses_os_for_text_only(tree):
        roots.discard("os")
    return (roots & UNCLEAN) | (set(calls(tree)) & (CLOCK_READERS | FILE_CALLS))


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", modules(), ids=relative)
def test_imports_point_up_the_list_only(file: Path) -> None:
    module = owner(file)
    if module == "__init__":
        assert not ours(imported_by(file))
        return
    assert module in ORDER, f"{relative(file)} has no place in the order of imports"
    above = set(ORDER[: ORDER.index(module) + 1])
    assert ours(imported_by(file)) <= above


@pytest.mark.parametrize("file", [file for file in modules() if owner(file) in CORE], ids=relative)
def test_the_core_touches_no_file_no_clock_and_no_network(file: Path) -> None:
    assert uncleanness(file.read_text()) <= ALLOWED.get(relative(file), set())


@pytest.mark.parametrize("file", [*ALLOWED])
def test_an_exception_of_the_core_is_still_one(file: str) -> None:
    assert uncleanness((ROOT / file).read_text())


# The order for this project names these packages, each in real use: a few lines of ours replace none.
@pytest.mark.parametrize("package", ["aiohttp", "apscheduler", "structlog", "tenacity"])
def test_a_package_that_was_ordered_is_in_use(package: str) -> None:
    names = {name for file in modules() for name in imported_by(file)}
    assert package in {name.split(".")[0] for name in names}


def test_the_scheduler_that_was_ordered_is_apscheduler_3() -> None:
    assert importlib.metadata.version("apscheduler").startswith("3.")


def test_pytest_asyncio_which_was_ordered_too_runs_the_tests(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("asyncio")
    assert pytestconfig.getini("asyncio_mode") == "auto"


# What may read foreign bytes, and the only modules that load it: those of the checking process.
PARSERS = {"pikepdf", "PIL", "img2pdf", "lxml"}
# Run by no daemon.
ELSEWHERE = ("poller.simulator.drawing", "poller.ledger.migrations")
PARSING = ("poller.documents.pdf", "poller.documents.proof", "poller.documents.child")


def test_only_the_process_that_checks_documents_and_the_simulator_load_a_parser_of_them() -> None:
    parts = (file.relative_to(ROOT.parent).with_suffix("").parts for file in modules())
    names = {".".join(one).removesuffix(".__init__") for one in parts} - {*PARSING}
    wanted = sorted(name for name in names if not name.startswith(ELSEWHERE))
    program = (
        "import importlib, json, sys\n"
        "for name in json.load(sys.stdin): importlib.import_module(name)\n"
        f"print(*sorted({PARSERS!r} & sys.modules.keys()))"
    )
    loaded = subprocess.run(
        (sys.executable, "-c", program),
        input=json.dumps([name for name in wanted if name != "poller.__main__"]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []


# Extras: without `postgresql://`, a server that has them loads none.
OF_EXTRAS = {"psycopg", "sqlalchemy.dialects.postgresql"}
OVER_A_FILE = """
import asyncio, importlib, pathlib, sys
import poller.cli
for file in pathlib.Path(poller.cli.__file__).parent.glob("*.py"):
    importlib.import_module(f"poller.cli.{file.stem}")
from poller.ledger import Ledger
async def made(url):
    async with await Ledger.open(url) as ledger:
        await ledger.health()
asyncio.run(made(sys.argv[1]))
"""


def test_a_ledger_in_a_file_loads_no_driver_of_another_database(tmp_path: Path) -> None:
    program = OVER_A_FILE + f"print(*sorted({OF_EXTRAS!r} & sys.modules.keys()))"
    words = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/poller.db"]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_only_its_folder_knows_postgresql() -> None:
    knowing = {
        relative(file)
        for file in modules()
        if "psycopg" in imported_by(file) or "postgresql" in {*imported_by(file)}
    }
    assert knowing
    assert {name.rpartition("/")[0] for name in knowing} == {"ledger/postgres"}


# Only one folder names what only SQLite has, and the migrations, which make the tables.
SQLITE = ("ledger/sqlite/", "ledger/migrations/")
SQLITE_IS_CHOSEN = "ledger/ledger.py"
SQLITES_WORDS = re.compile(r"sqlite3|PRAGMA|BEGIN IMMEDIATE|VACUUM|[-_]journal\b")


def knows_sqlite(source: str) -> set[str]:
    """Name what a module imports or says that only SQLite has."""
    imported = set(imports(ast.parse(source), ["poller"]))
    folder = {name for name in imported if name.startswith("poller.ledger.sqlite")}
    return folder | set(SQLITES_WORDS.findall(source))


@pytest.mark.parametrize(
    "file", [file for file in modules() if not relative(file).startswith(SQLITE)], ids=relative
)
def test_only_its_folder_and_the_migrations_know_sqlite(file: Path) -> None:
    known = knows_sqlite(file.read_text())
    if relative(file) == SQLITE_IS_CHOSEN:
        assert known == {"poller.ledger.sqlite.sqlite_backend.SqliteBackend"}
    else:
        assert known == set()


def test_the_ledger_asks_for_the_room_on_its_disk_in_sqlites_folder_only() -> None:
    looks = {relative(file) for file in modules() if "statvfs" in file.read_text()}
    assert {file for file in looks if not file.startswith("store/")} == {
        "ledger/sqlite/file.py",
        "ledger/sqlite/snapshots.py",
    }


@pytest.mark.parametrize(
    "source",
    [
        "import sqlite3",
        "from poller.ledger.sqlite import engine",
        "def f():\n    from poller.ledger.sqlite.engine import sentence",
        "run('PRAGMA cache_size')",
        "run('BEGIN IMMEDIATE')",
        "path.with_name('poller.db-journal')",
    ],
)
def test_a_module_that_knows_sqlite_is_noticed(source: str) -> None:
    assert knows_sqlite(source)


def test_only_the_system_clock_reads_a_clock() -> None:
    tree = ast.parse((ROOT / "clock.py").read_text())
    rest = [
        node
        for node in tree.body
        if not isinstance(node, (ast.Import, ast.ImportFrom))
        and not (isinstance(node, ast.ClassDef) and node.name == "SystemClock")
    ]
    names = {n.id for top in rest for n in ast.walk(top) if isinstance(n, ast.Name)}
    called = {name for top in rest for name in calls(top)}
    assert not (names & {"asyncio", "time"}) | (called & CLOCK_READERS)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import os.path", id="import"),
        pytest.param("import os\nos.path.normpath(os.getcwd())", id="not-only-text"),
        pytest.param("from time import sleep", id="from"),
        pytest.param("def f():\n    import random", id="inside-a-function"),
        pytest.param("datetime.now(UTC)", id="clock"),
        pytest.param("datetime.date.today()", id="today"),
        pytest.param("open('x')", id="open"),
        pytest.param("Path('x').write_text('y')", id="write"),
    ],
)
def test_an_unclean_module_is_noticed(source: str) -> None:
    assert uncleanness(source)


def test_handling_a_path_as_text_is_clean() -> None:
    assert not uncleanness("import os\nos.path.normpath('a/../b')")


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        pytest.param("import poller.web", ["poller"], {"web"}, id="import"),
        pytest.param("from poller import web, log", ["poller"], {"web", "log"}, id="from-us"),
        pytest.param("from poller.web import page", ["poller"], {"web"}, id="from-a-module"),
        pytest.param("from . import web", ["poller"], {"web"}, id="relative"),
        pytest.param("from .. import web", ["poller", "efax"], {"web"}, id="relative-up"),
        pytest.param("from ..web import page", ["poller", "efax"], {"web"}, id="relative-module"),
        pytest.param("from .page import x", ["poller", "web"], {"web"}, id="inside-a-folder"),
        pytest.param("from poller import __version__", ["poller"], set(), id="no-module"),
        pytest.param("import os", ["poller"], set(), id="not-ours"),
    ],
)
def test_every_way_to_import_is_seen(source: str, package: list[str], names: set[str]) -> None:
    assert ours(set(imports(ast.parse(source), package))) == names
