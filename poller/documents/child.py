"""The process that checks documents: it reads foreign bytes, so it gives up all other rights.

It receives each document as a descriptor and answers with one line of JSON. It has neither the
environment nor the descriptors of the service. Not every kernel offers every protection used here,
so the design relies on no single one.
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
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # Landlock; the same on every architecture

# A document with one page. If this one cannot be checked here, no fax can.
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
    """Answer the parent process until it closes the socket or ends."""
    os.closerange(sys.stderr.fileno() + 1, 1 << 20)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    end_with(int(sys.argv[1]))
    with socket.socket(fileno=SOCKET) as asking:
        open_random()
        give_up_rights()
        if (problem := proof.inspect(io.BytesIO(SAMPLE)).problem) is not None:
            sys.exit(f"no document can be checked: {problem}")
        os.dup2(1, 2)  # until now the parent read the errors
        asking.send(VERSION.encode())
        while _answered(asking):
            pass


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent thread ends, even during a parse."""
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the kernel knew
        sys.exit()


def open_random() -> None:
    """Have qpdf open its source of random numbers now and keep it: it needs one to read AES-256."""
    with pikepdf.new() as pdf:
        pdf.save(io.BytesIO(), encryption=pikepdf.Encryption(R=6))


def give_up_rights() -> None:
    """Give up what a check does not need; call this after all imports."""
    os.chdir("/")
    with suppress(OSError):  # when memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    _control(_PR_SET_NO_NEW_PRIVS, 1)
    _control(_PR_SET_DUMPABLE, 0)  # no other process of this user may inspect it
    # root has some
    ctypes.CDLL(None).capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    _end_when_memory_ends()
    _restrict_itself()
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, _free_descriptor() + 1),  # one for the document
    ):
        _limit(what, limit, limit)


def _free_descriptor() -> int:
    free = os.dup(0)
    os.close(free)
    return free


def _control(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _restrict_itself() -> None:
    """Use Landlock: the process can open no file, use no TCP port and signal no other process."""
    call = ctypes.CDLL(None).syscall
    version = call(_CREATE_RULESET, None, 0, 1)
    files = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # how many rights this version knows
    ruleset = struct.pack("QQQ", (1 << files) - 1, 0b11, 0b11)
    length = 8 if version < 4 else 16 if version < 6 else 24
    if version > 0 and (rules := call(_CREATE_RULESET, ruleset, length, 0)) >= 0:
        call(_RESTRICT_SELF, rules, 0)
        os.close(rules)


def _end_when_memory_ends() -> None:
    """Have C++ abort when memory runs out; otherwise qpdf takes it for a missing object."""
    with suppress(OSError, AttributeError):  # another C++ library
        abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p)
        ctypes.CDLL("libstdc++.so.6")._ZSt15set_new_handlerPFvvE(abort)


def _limit(what: int, soft: int, hard: int) -> None:
    """Lower a limit; keep one that is already lower."""
    _, now = resource.getrlimit(what)
    if now != resource.RLIM_INFINITY:
        hard = now if hard == resource.RLIM_INFINITY else min(hard, now)
        soft = min(soft, now)
    with suppress(OSError, ValueError):
        resource.setrlimit(what, (soft, hard))


def _answered(asking: socket.socket) -> bool:
    """Check one document; return False when no more will come."""
    request, received, _, _ = socket.recv_fds(asking, 1, 1)
    if not request:
        return False
    answer = _checked(received[0])
    asking.send(answer.encode())
    # The allocator may not give memory back; a new process starts with all of it.
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
    """Have the kernel end this process if this document takes too long; others do not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = used.ru_utime + used.ru_stime + CPU_S + size * CPU_S_PER_BYTE
    _limit(resource.RLIMIT_CPU, int(allowed) + 1, resource.RLIM_INFINITY)
