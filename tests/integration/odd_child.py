"""The program of a checking process in tests: a document says what the process does with it."""

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from typing import BinaryIO

from poller.documents import Document, child, proof

PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from tests.integration.odd_child import main; main()"
)
WHOLE, ODD = b"%PDF-1.4 whole ", b"%PDF-1.4 odd "
_inspect = proof.inspect


def odd(act: str) -> bytes:
    """Make a document that does this; `probe N` tells whether the N-th probe succeeds."""
    return ODD + act.encode()


def whole(pages: int) -> bytes:
    return WHOLE + str(pages).encode()


def main() -> None:
    proof.inspect = inspect
    vars(child)["CPU_S"] = 1  # not 0: its start may have used almost a second
    child.main()


def inspect(file: BinaryIO) -> Document:
    content = file.read()
    if content.startswith(WHOLE):
        return Document("pdf", int(content.removeprefix(WHOLE)))
    if not content.startswith(ODD):
        file.seek(0)
        return _inspect(file)
    act, _, number = content.removeprefix(ODD).decode().partition(" ")
    return Document("pdf", ACTS[act](number, file))


def _probe(number: str, file: BinaryIO) -> int:
    try:
        return int(bool(list(PROBES.values())[int(number)](file)))
    except (OSError, MemoryError, ValueError):
        return 0


def _signal(name: str, _: BinaryIO) -> int:
    os.kill(os.getpid(), signal.Signals[name])
    return 1


def _spin(*_: object) -> int:
    while True:
        pass


def _fail(*_: object) -> int:
    raise OSError(errno.EIO, "a bad sector")


def _without_memory(*_: object) -> int:
    raise MemoryError


def _print(*_: object) -> int:
    os.write(1, b"rubbish\n")
    os.write(2, b"rubbish\n")
    return 1


ACTS: dict[str, Callable[[str, BinaryIO], int]] = {
    "probe": _probe,
    "signal": _signal,
    "spin": _spin,
    "fail": _fail,
    "without-memory": _without_memory,
    "print": _print,
}


def _open_socket() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        return opened.fileno() >= 0


def _open_beyond_the_limit() -> bool:
    """First make room among the descriptors: then only Landlock stands in the way."""
    os.close(1)
    return os.open("/etc/passwd", os.O_RDONLY) >= 0


def _look_at_others() -> list[int]:
    return [fd for fd in range(6, 2048) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _raise_limits() -> bool:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    return True


PROBES: dict[str, Callable[[BinaryIO], object]] = {
    "opens a file": lambda _: os.open("/etc/passwd", os.O_RDONLY) >= 0,
    "opens a file in the place of another": lambda _: _open_beyond_the_limit(),
    "makes a file": lambda _: os.open("/tmp", os.O_TMPFILE | os.O_RDWR) >= 0,
    "lists a directory": lambda _: os.listdir("/"),
    "opens a socket": lambda _: _open_socket(),
    "writes to the document": lambda file: os.write(file.fileno(), b"x"),
    "has more descriptors": lambda _: _look_at_others(),
    "has an environment": lambda _: {*os.environ} - {"LC_CTYPE"},  # which the interpreter sets
    "takes 600 MiB": lambda _: bytearray(600 << 20),
    "raises its limits": lambda _: _raise_limits(),
    "gets rights by a program": lambda _: not ctypes.CDLL(None).prctl(39, 0, 0, 0, 0),
    "keeps root's rights": lambda _: any(_capabilities()),
    "dumps core": lambda _: resource.getrlimit(resource.RLIMIT_CORE) != (0, 0),
    "outlives its parent": lambda _: not _dies_with_its_parent(),
    "signals its parent": lambda _: _signals_its_parent(),
}


def _capabilities() -> bytes:
    found = ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(struct.pack("Ii", 0x20080522, 0), found)
    return found.raw[:8]  # in effect, and those that could be


def _signals_its_parent() -> bool:
    os.kill(os.getppid(), 0)
    return True


def _dies_with_its_parent() -> bool:
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)
    return number.value == signal.SIGKILL
