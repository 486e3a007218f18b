"""Read the configuration files of `-c`; only this module and `secrets` touch the disk."""

import contextlib
import importlib.util
import os
import ssl
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

from poller.clock import SystemClock
from poller.config.build import Builder, Outside, merged
from poller.config.document import parse
from poller.config.model import Config
from poller.config.position import Node, Problems, Source
from poller.errors import ConfigError

MAX_FILE = 16 << 20
MAX_CERTIFICATE = 4 << 20


def load(paths: Sequence[Path], *, now: datetime | None = None) -> Config:
    """Load and merge files and directories, in the order given.

    Does not read secrets. `now` is the system clock's time unless given. Raises ConfigError with
    every problem in all files.
    """
    problems = Problems()
    files = _without_twins(_expanded(paths, problems), problems)
    documents = [node for file in files if (node := _document(file, problems)) is not None]
    nowhere = Node(_source(files[0] if files else Path()), 1, "", {})
    root = reduce(lambda a, b: merged(a, b, problems), documents) if documents else nowhere
    outside = Outside(
        certificate_problem=certificate_problem,
        is_installed=lambda name: importlib.util.find_spec(name) is not None,
        real=lambda path: Path(os.path.realpath(path)),
        now=max([now or SystemClock().now(), *_written_at(files)]),
    )
    config = Builder(problems, outside).config(root, tuple(files))
    if problems.found:
        raise ConfigError(list(problems.found))
    return config


def _written_at(files: Iterable[Path]) -> Iterator[datetime]:
    """Yield when the files were written: an earlier clock is wrong, as after a boot without NTP."""
    for file in files:
        with contextlib.suppress(OSError, OverflowError, ValueError):
            yield datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _source(file: Path) -> Source:
    name = os.fsencode(file).decode("utf-8", "backslashreplace")
    return Source(name, file.absolute().parent)


def _whole(file: Path) -> Node:
    return Node(_source(file))


def _expanded(paths: Sequence[Path], problems: Problems) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        # Not Path.is_dir(): that raises if we may not search a directory above.
        files += _in_directory(path, problems) if os.path.isdir(path) else [path]  # noqa: PTH112
    if not paths:
        nothing = Node(Source("poller", Path()))
        problems.unreadable(nothing, "no configuration given; use -c PATH")
    return files


def _in_directory(directory: Path, problems: Problems) -> list[Path]:
    """Return the `*.yaml` files in name order, without the dot-files of editors and Kubernetes."""
    try:
        entries = sorted(e for e in directory.iterdir() if not e.name.startswith("."))
    except OSError as error:
        problems.unreadable(_whole(directory), f"cannot be read: {error.strerror}")
        return []
    files = [entry for entry in entries if entry.suffix == ".yaml"]
    misnamed = [entry for entry in entries if entry.suffix == ".yml"]
    for entry in misnamed:
        problems.unreadable(
            _whole(entry), "poller does not read this file; rename it to end in .yaml"
        )
    if not files and not misnamed:
        problems.unreadable(_whole(directory), "there is no *.yaml file in this directory; add one")
    return files


def _without_twins(files: Iterable[Path], problems: Problems) -> list[Path]:
    seen: dict[str, Path] = {}
    for file in files:
        real = os.path.realpath(file)
        if real in seen:
            same = _source(seen[real]).name
            problems.add(_whole(file), f"is the same as {same}; name each file once")
        else:
            seen[real] = file
    return list(seen.values())


def _document(file: Path, problems: Problems) -> Node | None:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        problems.unreadable(_whole(file), f"cannot be read: {error.strerror}")
        return None
    if len(data) > MAX_FILE:
        problems.unreadable(_whole(file), "is larger than 16 MiB, so it cannot be a configuration")
        return None
    return parse(data, _source(file), problems)


def certificate_problem(file: Path) -> str | None:
    """Return why this file cannot be used as a certificate, or None."""
    try:
        with file.open("rb") as stream:
            pem = stream.read(MAX_CERTIFICATE).decode("ascii", "replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}; name a PEM file"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        return "contains no usable certificate; name a file with PEM certificates"
    return None
