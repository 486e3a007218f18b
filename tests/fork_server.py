"""A process that imports poller once and forks for each command; a fork starts in a twentieth of the time.

It reads orders (JSON) from a socket, its stdin. Each order comes with four descriptors: the command's
stdin, stdout and stderr, and a pipe. On the pipe it writes the process id at once, and the exit code
when the command ends. The server ends when the other end of the socket is closed.

It forks while it has no other thread and no event loop, so a child behaves like a new process.
`tests.forks` is the other end.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from poller import cli
from tests.warm_up import warm_up

_ORDER_MAX = 1 << 18
_DESCRIPTORS = 4

# Import now what commands import only when they run.
for _name in (
    *(f"poller.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)),
    "alembic.command",
):
    importlib.import_module(_name)


def _wait_until_alone() -> None:
    """Wait until no other thread runs: a lock that it held would stay locked in a fork."""
    for _ in range(1000):
        if threading.active_count() == 1:
            return
        time.sleep(0.01)
    raise AssertionError([thread.name for thread in threading.enumerate()])


def _serve() -> dict[str, Any] | None:
    """Serve until the socket closes, then return None; in each child, return its order."""
    orders = socket.socket(fileno=0)
    warm_up()
    gc.collect()
    gc.freeze()  # else a collection in a child would copy all these pages
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    _answer_and_close(key.fd, *key.data)
                    continue
                text, descriptors, _, _ = socket.recv_fds(orders, _ORDER_MAX, _DESCRIPTORS)
                if not text:
                    orders.close()
                    return None
                *standard, report = descriptors
                _wait_until_alone()
                if not (child := os.fork()):
                    orders.detach()
                    _become(standard)
                    return dict(json.loads(text))
                for fd in standard:
                    os.close(fd)
                _answer(report, child)
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, report))


def _answer_and_close(pidfd: int, child: int, report: int) -> None:
    _, status = os.waitpid(child, 0)
    _answer(report, os.waitstatus_to_exitcode(status))
    os.close(report)
    os.close(pidfd)


def _answer(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test has ended and closed the pipe
        os.write(report, b"%d\n" % number)


def _become(standard: list[int]) -> None:
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    os.closerange(3, 1 << 16)
    # Open them as the interpreter does at its start, for the new descriptors.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def _carry_out(order: dict[str, Any]) -> int:
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["directory"])
    sys.argv[1:] = order["words"]
    for prepare, about in order["prepare"].items():
        module, _, name = prepare.partition(":")
        getattr(importlib.import_module(module), name)(about)
    return cli.entry()


def _end(code: int) -> NoReturn:
    """Exit as the interpreter does, but leave freeing the memory to the kernel, which is faster."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()  # warns of what was left open
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__" and (_order := _serve()) is not None:
    _end(_carry_out(_order))
