"""A process that checks documents, forked ahead: a new one would import pikepdf first, for 0.1 s.

For a command that is a fork itself. It calls `keep_one_ready` while it has one thread; its first
`Checker` then takes that process, and each later one starts as always.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from typing import Any, NoReturn

from poller.documents import checker, child

NAME = "checks "  # in /proc, before the number of the process that it checks for
_PR_SET_NAME = 15

KEEP_ONE_READY = {"tests.ready_checker:keep_one_ready": None}  # how to order it in a fork


def keep_one_ready(_about: None) -> None:
    """Fork the process that this command's first `Checker` takes."""
    parent = os.getpid()
    orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        orders.close()
        _check(theirs, parent)
    theirs.close()

    def start(*args: Any, **how: Any) -> Any:
        vars(checker)["Popen"] = subprocess.Popen
        return _Taken(pid, orders, how["stdin"])

    vars(checker)["Popen"] = start


class _Taken:
    """What `Checker` uses of a Popen."""

    def __init__(self, pid: int, orders: socket.socket, stdin: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        errors, theirs = os.pipe()
        with orders, os.fdopen(theirs):
            socket.send_fds(orders, [b"!"], [stdin, theirs])
        self.stderr = os.fdopen(errors, "rb", buffering=0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _check(orders: socket.socket, parent: int) -> NoReturn:
    """Wait until the command wants it; then be what `Checker` starts."""
    child.end_with(parent)
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"{NAME}{parent}".encode(), 0, 0, 0)
    _, given, _, _ = socket.recv_fds(orders, 1, 2)
    if given:
        os.environ.clear()
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number, fd in enumerate((given[0], nothing, given[1])):
            os.dup2(fd, number)
        sys.argv = ["-c", str(parent)]
        child.main()
    os._exit(0)
