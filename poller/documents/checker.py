"""The service's side of one process that checks documents; `child` runs in that process."""

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Lock

from poller import VERSION
from poller.documents import Document, DocumentFormat, not_whole
from poller.documents.protocol import MESSAGE_MAX, WALL_S, CheckResult
from poller.errors import NotChecked, StorageUnusable

# Import the modules of this process, wherever they are; do not let `runtime` look for them again.
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from poller.documents.child import main; main()"
# Some systems cannot start the interpreter without these; other variables may hold secrets.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PYTHONHOME")
_ITSELF = "/proc/self/exe"
# the signal of the CPU limit, and the child's own abort when memory runs out
_ENDS: dict[int, str] = {signal.SIGXCPU: "unchecked-time", signal.SIGABRT: "unchecked-memory"}
_DIES_WITHIN_S = 1.0
NOT_READY = "it was not ready in time"


class Ended(Exception):
    """The process had ended before it got the document, so the document did not end it."""


class Killed(NotChecked):
    """Something else killed the process, perhaps the kernel because memory ran out."""

    def __init__(self, kind: DocumentFormat) -> None:
        super().__init__("the kernel or a person killed the process that checked the document")
        self.kind = kind


class Checker:
    """A process that checks documents; starting one raises OSError.

    Call `get_ready`, then `check`, and at last `close`. Use it from one thread at a time; any
    thread may call `kill`. Start it in a thread that lives at least as long and that blocks the
    signals that must not end the process.
    """

    def __init__(self) -> None:
        self.used_at = time.monotonic()
        self.usable = True
        self._lock = Lock()  # once the process has ended, the system may give its number to another
        with ExitStack() as undo:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._socket.close)
            with theirs:
                self._process: Popen[bytes] = Popen(  # noqa: S603  # what it runs is our own
                    [sys.executable, "-S", "-P", "-c", _PROGRAM, str(os.getpid()), *_modules()],
                    executable=_interpreter(),
                    bufsize=0,
                    stdin=theirs.fileno(),
                    stdout=DEVNULL,
                    stderr=PIPE,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    # Only the service ends it, not a signal that a terminal or systemd sends to the group.
                    start_new_session=True,
                )
            undo.pop_all()
        assert self._process.stderr is not None
        self._errors = self._process.stderr
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended, for any reason."""
        with self._lock:
            return self._process.poll() is not None

    def get_ready(self, within_s: float) -> None:
        """Wait until it can check documents; if it cannot, close it and raise StorageUnusable."""
        self._socket.settimeout(max(within_s, 0.01))
        said = why = ""
        try:
            said = self._socket.recv(MESSAGE_MAX).decode(errors="replace")
        except TimeoutError:
            why = NOT_READY
        except OSError as error:
            why = str(error)
        self._socket.settimeout(WALL_S)
        if said == VERSION:
            self._errors.close()
            return
        if said:
            why = f"poller {said} was installed while {VERSION} runs; restart the service"
        why = why or self._last_error() or "it ended before it was ready"
        self.close()
        raise cannot_be_started(why)

    def _last_error(self) -> str:
        os.set_blocking(self._errors.fileno(), False)
        lines = (self._errors.read(1 << 16) or b"").decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def check(self, fd: int, kind: DocumentFormat) -> Document:
        """Have the document behind `fd` checked; raises Ended, Killed, StorageUnusable.

        If the process ends during the check, that counts against the document. OSError is about the
        file.
        """
        # Usable again only after an answer: a late answer would be taken for the next document's.
        self.usable = False
        self.used_at = time.monotonic()
        try:
            socket.send_fds(self._socket, [b"?"], [fd])
            answer = self._socket.recv(MESSAGE_MAX)
        except (BrokenPipeError, ConnectionResetError):
            raise Ended from None
        except TimeoutError:
            if not self.kill():
                raise StorageUnusable("the file of a fax cannot be read: the disk hangs") from None
            return not_whole(kind, "unchecked-time")
        if not answer:
            return not_whole(kind, self._how_it_ended(kind))
        return self._understood(answer, kind)

    def _how_it_ended(self, kind: DocumentFormat) -> str:
        by_itself = self._wait()
        self.kill()
        signalled = -(self._process.returncode or 0)
        if by_itself and signalled == signal.SIGKILL:  # its limits use other signals
            raise Killed(kind)
        return _ENDS.get(signalled, "unchecked-crash")

    def _understood(self, answer: bytes, kind: DocumentFormat) -> Document:
        """Distrust the answer: a process that has read foreign bytes gave it."""
        try:
            said = CheckResult.read(answer)
        except ValueError:
            return not_whole(kind, "unchecked-crash")
        self.usable = True
        if said.errno is not None:
            raise OSError(said.errno, os.strerror(said.errno))
        return not_whole(kind, said.code, said.pages) if said.code else Document(kind, said.pages)

    def kill(self) -> bool:
        """End the process; return False if the system cannot, because it hangs in a disk access."""
        with self._lock:
            self._process.kill()
        return self._wait()

    def _wait(self) -> bool:
        deadline = time.monotonic() + _DIES_WITHIN_S
        while not self.ended and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.ended

    def close(self) -> None:
        self.kill()
        self._errors.close()
        self._socket.close()


def cannot_be_started(why: str) -> StorageUnusable:
    return StorageUnusable(f"no document can be checked: the process for it does not start: {why}")


def _interpreter() -> str:
    """Return the running interpreter, even if an upgrade has replaced its file."""
    return _ITSELF if os.access(_ITSELF, os.X_OK) else sys.executable


def _modules() -> list[str]:
    return [str(Path(entry).absolute()) for entry in sys.path]
