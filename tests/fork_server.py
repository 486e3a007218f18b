"""One process that has poller imported, and forks for each command: so a start costs a twentieth.

It reads orders (JSON) from the socket that is its stdin, each with four descriptors: the command's
stdin, stdout and stderr, and a pipe on which it answers with the number of the process at once, and
with its exit code when it has ended. It ends when nobody can order any more.

It forks while there is no other thread and no event loop, so a child is as good as a process that
was started for the command. `tests.forks` is the other end.
"""

import gc
import importlib
import json
import os
import pkgutil
import selectors
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from poller import cli

_ORDER_MAX = 1 << 18
_DESCRIPTORS = 4

# What a command imports later than its own module.
for _name in (
    *(f"poller.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)),
    "alembic.command",
):
    importlib.import_module(_name)


def _serve() -> dict[str, Any] | None:
    """Serve until the end; in each child, give the order that it is to carry out."""
    orders = socket.socket(fileno=0)
    gc.collect()
    gc.freeze()  # or each child would copy all of it when it collects
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
                assert threading.active_count() == 1  # what another thread locks would stay locked
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
    with suppress(BrokenPipeError):  # the test has ended without it
        os.write(report, b"%d\n" % number)


def _become(standard: list[int]) -> None:
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    os.closerange(3, 1 << 16)
    # As the interpreter makes them at its start, for what these descriptors now are.
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


if __name__ == "__main__" and (_order := _serve()) is not None:
    raise SystemExit(_carry_out(_order))
