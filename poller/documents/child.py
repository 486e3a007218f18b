"""What the process does that checks documents: it reads foreign bytes, so it may do nothing else.

It gets each document as a descriptor, and says what it found as one line of JSON. It has neither
the environment nor the descriptors of the service, and gives up what else it can. None of that is
certain on every kernel, so nothing rests on a single one.
"""

import ctypes
import errno
import io
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pikepdf

from poller import VERSION
from poller.documents import proof
from poller.documents.protocol import CPU_S, CPU_S_PER_BYTE, MEMORY_BYTES, SOCKET, CheckResult

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # Landlock's, the same on every architecture

# One page. What cannot be said of it here cannot be said of any fax.
SAMPLE = (
    b"%PDF-1.4\n"
    b"1 0 obj<</Type/Catalog/Pages 2 0 R>> endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>> endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<<>>>> endobj\n"
    b"xref\n"
    b"0 4\n"
    b"0000000000 65535 f \n"
    b"0000000009 00000 n \n"
    b"0000000053 00000 n \n"
    b"0000000103 00000 n \n"
    b"trailer<</Size 4/Root 1 0 R>>\n"
    b"startxref\n"
    b"177\n"
    b"%%EOF\n"
)


def main() -> None:
    """Serve the one that started this process until it closes the socket or ends."""
    os.closerange(sys.stderr.fileno() + 1, 1 << 20)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    end_with(int(sys.argv[1]))
    with socket.socket(fileno=SOCKET) as asking:
        open_random()
        give_up_rights()
        if (problem := proof.inspect(io.BytesIO(SAMPLE)).problem) is not None:
            sys.exit(f"no document can be checked: {problem}")
        os.dup2(1, 2)  # until now errors were read by the one that started this process
        asking.send(VERSION.encode())
        while _answered(asking):
            pass


def end_with(parent: int) -> None:
    """Let the kernel end this process when the thread that started it ends, in a parse as well."""
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit()


def open_random() -> None:
    """Have qpdf open its source of random numbers, which it keeps: AES-256 needs it to read, too."""
    with pikepdf.new() as pdf:
        pdf.save(io.BytesIO(), encryption=pikepdf.Encryption(R=6))


def give_up_rights() -> None:
    """Give up what a check does not need; call it when everything is imported."""
    os.chdir("/")
    with suppress(OSError):  # where memory is short, the kernel takes this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    _control(_PR_SET_NO_NEW_PRIVS, 1)
    _control(_PR_SET_DUMPABLE, 0)  # no other process of this user may look into it
    ctypes.CDLL(None).capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24))  # root's
    _end_when_memory_ends()
    _restrict_itself()
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, _free_descriptor() + 1),  # for one document
    ):
        _limit(what, limit, limit)


def _free_descriptor() -> int:
    free = os.dup(0)
    os.close(free)
    return free


def _control(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _restrict_itself() -> None:
    """Landlock: no file can be opened, no TCP port used, no process outside signalled."""
    call = ctypes.CDLL(None).syscall
    version = call(_CREATE_RULESET, None, 0, 1)
    files = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # how many rights it knows
    ruleset = struct.pack("QQQ", (1 << files) - 1, 0b11, 0b11)
    length = 8 if version < 4 else 16 if version < 6 else 24
    if version > 0 and (rules := call(_CREATE_RULESET, ruleset, length, 0)) >= 0:
        call(_RESTRICT_SELF, rules, 0)
        os.close(rules)


def _end_when_memory_ends() -> None:
    """Have C++ abort where it finds no memory: qpdf takes that for an object that is not there."""
    with suppress(OSError, AttributeError):  # another C++ library
        abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p)
        ctypes.CDLL("libstdc++.so.6")._ZSt15set_new_handlerPFvvE(abort)


def _limit(what: int, soft: int, hard: int) -> None:
    """Lower a limit; one that is lower already stays."""
    _, now = resource.getrlimit(what)
    if now != resource.RLIM_INFINITY:
        hard = now if hard == resource.RLIM_INFINITY else min(hard, now)
        soft = min(soft, now)
    with suppress(OSError, ValueError):
        resource.setrlimit(what, (soft, hard))


def _answered(asking: socket.socket) -> bool:
    """Check one document; False when no further one will come."""
    request, received, _, _ = socket.recv_fds(asking, 1, 1)
    if not request:
        return False
    answer = _checked(received[0])
    asking.send(answer.encode())
    # What was allocated may not be given back: a new process has room again.
    return answer.code != "unchecked-memory"


def _checked(fd: int) -> CheckResult:
    try:
        with os.fdopen(fd, "rb") as file:
            _allow_time(os.fstat(fd).st_size)
            document = proof.inspect(file)
    except MemoryError:
        return CheckResult(code="unchecked-memory")
    except OSError as error:
        return CheckResult(errno=error.errno or errno.EIO)
    code = None if document.problem is None else document.problem.partition(":")[0]
    return CheckResult(document.pages, code)


def _allow_time(size: int) -> None:
    """The kernel ends this process when a document takes longer; what it took for others is past."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = used.ru_utime + used.ru_stime + CPU_S + size * CPU_S_PER_BYTE
    _limit(resource.RLIMIT_CPU, int(allowed) + 1, resource.RLIM_INFINITY)
