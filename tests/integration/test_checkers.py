"""Documents are checked in separate processes, which may crash and can do nothing else."""

import asyncio
import ctypes
import io
import os
import resource
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from threading import Event
from typing import Any

import pytest

from poller.documents import Document, NotADocument, checker, proof
from poller.documents.checker import Checker, Ended, Killed
from poller.documents.checkers import MOST, Checkers
from poller.documents.child import SAMPLE
from poller.documents.protocol import FREE_S, START_S, WALL_S, CheckResult
from poller.errors import NotChecked, StorageUnusable
from poller.store.threads import HUNG_S
from tests.benchmarks.documents import pdf
from tests.hostile_documents import SEGFAULT, bomb
from tests.integration import odd_child
from tests.integration.odd_child import PROBES, PROGRAM, odd, whole
from tests.integration.produced import PRODUCERS

PATIENCE_S = 60


@pytest.fixture
def checkers() -> Iterator[Checkers]:
    made = Checkers()
    yield made
    made.close()


@pytest.fixture
def odd_checkers(checkers: Checkers, monkeypatch: pytest.MonkeyPatch) -> Checkers:
    """Checkers that run the program of `odd_child`."""
    monkeypatch.setattr(checker, "_PROGRAM", PROGRAM)
    return checkers


@pytest.fixture
def check(tmp_path: Path) -> Callable[[Checkers, bytes], Document]:
    def one(checkers: Checkers, document: bytes) -> Document:
        with _file(tmp_path, document) as fd:
            return checkers.inspect(fd)

    return one


@contextmanager
def _file(directory: Path, document: bytes) -> Iterator[int]:
    file = directory / uuid.uuid4().hex  # several threads may check the same document
    file.write_bytes(document)
    fd = os.open(file, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


Check = Callable[[Checkers, bytes], Document]


def code(document: Document) -> str:
    assert document.problem is not None
    return document.problem.partition(":")[0]


def only(checkers: Checkers) -> int:
    """Return the number of the process that is kept."""
    (kept,) = checkers._idle
    return kept.pid


# What a document can cause


def test_document_that_ends_its_process_could_not_be_checked_and_the_next_one_is(
    odd_checkers: Checkers, check: Check
) -> None:
    for _ in range(2):
        found = check(odd_checkers, odd("signal SIGSEGV"))
        assert (found.format, found.pages, code(found)) == ("pdf", None, "unchecked-crash")
        assert found == check(odd_checkers, odd("signal SIGSEGV"))  # two downloads are compared
        assert check(odd_checkers, SAMPLE) == Document("pdf", 1)


def test_document_that_ended_a_process_is_damaged_even_if_another_thread_notices(
    checkers: Checkers, check: Check
) -> None:
    assert check(checkers, SEGFAULT).problem
    assert check(checkers, SAMPLE) == Document("pdf", 1)


def test_document_that_unfolds_to_gigabytes_could_not_be_checked(
    checkers: Checkers, check: Check
) -> None:
    assert code(check(checkers, bomb(2000))) == "unchecked-memory"
    assert check(checkers, bomb(10)) == Document("pdf", 1)


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        ("signal SIGSEGV", "unchecked-crash"),
        ("signal SIGABRT", "unchecked-memory"),
        ("without-memory", "unchecked-memory"),
        ("spin", "unchecked-time"),
    ],
)
def test_process_that_ends_is_replaced(
    odd_checkers: Checkers, check: Check, act: str, problem: str
) -> None:
    odd_checkers.look()
    before = only(odd_checkers)
    assert code(check(odd_checkers, odd(act))) == problem
    assert check(odd_checkers, whole(3)) == Document("pdf", 3)
    assert only(odd_checkers) != before


def test_process_that_hangs_is_ended(
    odd_checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(checker, "WALL_S", 0.2)
        assert code(check(odd_checkers, odd("signal SIGSTOP"))) == "unchecked-time"
    assert check(odd_checkers, whole(3)) == Document("pdf", 3)


def test_file_that_cannot_be_read_is_no_fault_of_the_document(
    odd_checkers: Checkers, check: Check
) -> None:
    odd_checkers.look()
    before = only(odd_checkers)
    with pytest.raises(OSError, match="Input/output error"):
        check(odd_checkers, odd("fail"))
    assert only(odd_checkers) == before


@pytest.mark.parametrize("document", [b"", b"<html>", b"\0" * 2000])
def test_other_bytes_are_not_even_handed_over(
    checkers: Checkers, check: Check, document: bytes
) -> None:
    with pytest.raises(NotADocument):
        check(checkers, document)
    assert not checkers._count


def test_process_that_was_killed_before_it_was_asked_is_no_fault_of_the_document(
    odd_checkers: Checkers, check: Check
) -> None:
    odd_checkers.look()
    pid = only(odd_checkers)
    os.kill(pid, signal.SIGKILL)
    while state(pid) not in ("", "Z"):
        pass
    assert check(odd_checkers, whole(2)) == Document("pdf", 2)


def test_process_that_was_killed_before_it_took_the_document_is_no_fault_of_it(
    odd_checkers: Checkers, check: Check
) -> None:
    odd_checkers.look()
    pid = only(odd_checkers)
    os.kill(pid, signal.SIGSTOP)
    while state(pid) != "T":
        pass
    with ThreadPoolExecutor(1) as threads:
        checked = threads.submit(check, odd_checkers, whole(2))
        while not odd_checkers._busy:
            pass
        os.kill(pid, signal.SIGKILL)
        assert checked.result(PATIENCE_S) == Document("pdf", 2)


def test_process_that_somebody_kills_says_nothing_of_its_document(
    odd_checkers: Checkers, check: Check
) -> None:
    with pytest.raises(Killed, match="killed"):
        check(odd_checkers, odd("signal SIGKILL"))
    assert check(odd_checkers, whole(3)) == Document("pdf", 3)


def test_kernel_takes_it_first_where_memory_is_short(odd_checkers: Checkers) -> None:
    odd_checkers.look()
    score = Path(f"/proc/{only(odd_checkers)}/oom_score_adj").read_text()
    assert int(score) == 1000


def test_process_that_ended_while_idle_is_replaced_before_it_is_needed(
    odd_checkers: Checkers,
) -> None:
    odd_checkers.look()
    before = only(odd_checkers)
    os.kill(before, signal.SIGKILL)
    while not odd_checkers._idle[0].ended:
        pass
    odd_checkers.look()
    assert only(odd_checkers) != before


def test_findings_do_not_depend_on_the_process_that_checks(
    checkers: Checkers, check: Check
) -> None:
    whole_pdf, large = SAMPLE, pdf(2 << 20)
    small_tiff = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    for document in (whole_pdf, whole_pdf[:-30], large, small_tiff, bomb(1), b"%PDF-1.4%%EOF"):
        (checkers_say, we_say) = (check(checkers, document), _in_this_process(document))
        assert checkers_say == we_say


@pytest.mark.parametrize("name", PRODUCERS)
def test_whole_documents_of_all_producers_are_whole_in_a_process_of_their_own(
    checkers: Checkers, check: Check, name: str
) -> None:
    if missing := PRODUCERS[name].missing():
        pytest.skip(f"{' and '.join(missing)} cannot be run here")
    samples = PRODUCERS[name].samples()
    found = {(one.name, one.pages): check(checkers, one.data) for one in samples}
    assert {of: document.pages for of, document in found.items()} == {of: of[1] for of in found}
    assert not any(document.problem for document in found.values())


def _in_this_process(document: bytes) -> Document:
    return proof.inspect(io.BytesIO(document))


# What the process may do


# The version of Landlock that makes a probe fail.
LANDLOCK = {"opens a file in the place of another": 1, "signals its parent": 6}


@pytest.mark.parametrize("probe", PROBES)
def test_process_that_checks_documents_never(
    odd_checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < LANDLOCK.get(probe, 0):
        pytest.skip("this kernel's Landlock does not know it")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    monkeypatch.setenv("POLLER_KEY", "secret")
    with open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        found = check(odd_checkers, odd(f"probe {list(PROBES).index(probe)}"))
    assert found == Document("pdf", 0)


def test_probe_that_works_is_seen(odd_checkers: Checkers) -> None:
    """Without limits each of them succeeds: in this process."""
    harmless = ["opens a file", "lists a directory", "opens a socket", "has an environment"]
    with open(os.devnull, "rb") as file:
        for name in [*harmless, "signals its parent", "outlives its parent", "takes 600 MiB"]:
            assert odd_child._probe(str(list(PROBES).index(name)), file) == 1, name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_tells_the_whole_group_to_end_does_not_end_it(
    odd_checkers: Checkers, check: Check, name: str
) -> None:
    odd_checkers.look()
    pid = only(odd_checkers)
    os.kill(pid, signal.Signals[name])
    assert os.getsid(pid) == pid  # a terminal's signals do not reach it
    assert check(odd_checkers, whole(2)) == Document("pdf", 2)
    assert only(odd_checkers) == pid


def test_what_it_prints_is_seen_nowhere(
    odd_checkers: Checkers, check: Check, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(odd_checkers, odd("print")) == Document("pdf", 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"[" * 4000,
        b'{"pages": null}',
        b'{"pages": -1}',
        b'{"pages": 1.5}',
        b'{"pages": true}',
        b'{"pages": 99999999999999999999}',
        b'{"pages": 1, "code": "<script>"}',
        b'{"pages": "1", "code": "pdf-no-eof"}',
        b'{"errno": "x"}',
        b'{"errno": -1}',
        b'{"pages": 1, "more": 2}',
    ],
)
def test_answer_that_makes_no_sense_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError):
        CheckResult.read(answer)


@pytest.mark.parametrize(
    "answer",
    [
        CheckResult(3),
        CheckResult(None, "pdf-no-eof"),
        CheckResult(2, "tiff-cut"),
        CheckResult(errno=5),
    ],
)
def test_answer_is_read_correctly(answer: CheckResult) -> None:
    assert CheckResult.read(answer.encode()) == answer


# If no process can be started


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/there/is/none", "No such file or directory"),
        ("/bin/false", "it ended before it was ready"),
    ],
)
def test_process_that_cannot_be_started_is_nobodys_fault_and_started_when_it_can(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(checker, "_interpreter", lambda: program)
        for _ in range(3):
            with pytest.raises(StorageUnusable, match=why):
                check(checkers, SAMPLE)
            with pytest.raises(StorageUnusable, match=why):
                checkers.look()
    assert check(checkers, SAMPLE) == Document("pdf", 1)


def test_process_that_is_killed_while_it_starts_is_started_once_more(
    checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Checker] = []
    get_ready, program = Checker.get_ready, checker._PROGRAM

    def killed(one: Checker, within_s: float) -> None:
        started.append(one)
        if len(started) == 1:
            os.kill(one.pid, signal.SIGKILL)
            monkeypatch.setattr(checker, "_PROGRAM", program)
        get_ready(one, within_s)

    monkeypatch.setattr(checker, "_PROGRAM", "import signal; signal.pause()")
    monkeypatch.setattr(Checker, "get_ready", killed)
    checkers.look()
    assert len(started) == 2
    assert checkers._idle == started[1:]


def test_interpreter_that_was_replaced_or_is_out_of_reach_still_starts(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/replaced/by/an/upgrade")
    assert check(checkers, SAMPLE) == Document("pdf", 1)
    checkers.close()
    monkeypatch.setattr(checker, "_ITSELF", "/where/there/is/no/proc")
    with pytest.raises(StorageUnusable, match="/replaced/by/an/upgrade"):
        Checkers().look()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('it is broken')", "it is broken"),
    ],
)
def test_what_the_interpreter_said_is_the_reason(
    checkers: Checkers, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.setattr(checker, "_PROGRAM", program)
    with pytest.raises(StorageUnusable, match=why):
        checkers.look()


def test_another_version_that_was_installed_meanwhile_asks_for_a_restart(
    checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "VERSION", "0.0.9")
    with pytest.raises(StorageUnusable, match=r"installed while 0\.0\.9 runs; restart the service"):
        checkers.look()


def test_process_that_does_not_get_ready_is_ended(
    checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "_PROGRAM", "import signal; signal.pause()")
    monkeypatch.setattr("poller.documents.checkers.START_S", 0.1)
    with pytest.raises(StorageUnusable, match="not ready in time"):
        checkers.look()


def test_look_says_that_a_start_hangs(checkers: Checkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "_PROGRAM", "import signal; signal.pause()")
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(checkers._taken, _soon() + 2 * PATIENCE_S)
        while not checkers._count:
            time.sleep(0.01)
        monkeypatch.setattr("poller.documents.checkers.START_S", 0.1)
        with pytest.raises(StorageUnusable, match="not ready in time"):
            checkers.look()
        assert not starting.done()
        while not starting.done():  # a start that fails is tried once more
            for child in _started_with(checker._PROGRAM):
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        with pytest.raises(StorageUnusable, match="ended before"):
            starting.result(PATIENCE_S)


def test_start_that_the_system_delays_is_given_up_and_ended_when_it_comes(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, pids = Event(), list[int]()

    def slow(*args: Any, **more: Any) -> "Popen[bytes]":
        assert goes_on.wait(PATIENCE_S)
        started = Popen(*args, **more)
        pids.append(started.pid)
        return started

    checkers.look()
    checkers._idle.pop().close()
    checkers._count = 0
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(checker, "Popen", slow)
        patched.setattr("poller.documents.checkers.START_S", 0.1)
        with pytest.raises(StorageUnusable, match="not ready in time"):
            checkers.look()
    goes_on.set()
    assert check(checkers, SAMPLE) == Document("pdf", 1)  # from the same thread, after it
    assert state(pids[0]) in ("", "Z")
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the socket of the one that is kept


def test_limits_of_time_leave_some_of_a_steps_two_minutes_to_the_disk() -> None:
    assert FREE_S + START_S + WALL_S + 3 * checker._DIES_WITHIN_S < HUNG_S - 15


def test_what_fails_on_the_way_to_a_process_takes_no_further_time(
    odd_checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something killed the process late, before it took the document: no second wait begins."""
    passed_s, real = 0.0, time.monotonic

    def killed_late(*_: object) -> Document:
        nonlocal passed_s
        passed_s += WALL_S
        raise Ended

    monkeypatch.setattr(time, "monotonic", lambda: real() + passed_s)
    monkeypatch.setattr(Checker, "check", killed_late)
    with pytest.raises(NotChecked):
        check(odd_checkers, whole(1))
    assert passed_s == WALL_S


def _soon() -> float:
    return time.monotonic() + PATIENCE_S


def _started_with(program: str) -> list[int]:
    """Return the children that run this; a fork server is a child, too."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [pid for task in tasks for pid in task.read_text().split()]
    runs = [pid for pid in children if program in Path(f"/proc/{pid}/cmdline").read_text()]
    return [int(pid) for pid in runs]


@pytest.mark.parametrize(
    "refusal", [BlockingIOError(11, "Resource temporarily unavailable"), MemoryError()]
)
def test_system_that_has_no_further_process_is_asked_again(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise refusal

    with monkeypatch.context() as refused:
        refused.setattr(checker, "Popen", refuse)
        with pytest.raises(StorageUnusable, match=r"unavailable|no memory"):
            check(checkers, SAMPLE)
    assert check(checkers, SAMPLE) == Document("pdf", 1)


def test_start_that_fails_unexpectedly_takes_no_room_from_the_next(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Checker, "get_ready", without_memory)
        for _ in range(MOST):
            with pytest.raises(MemoryError):
                checkers.look()
    checkers.look()
    assert check(checkers, SAMPLE) == Document("pdf", 1)


def test_start_without_enough_descriptors_releases_those_that_it_had() -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))
    before = len(os.listdir("/proc/self/fd"))
    refusals = 0
    try:
        for free in range(7):  # a socket at both ends, and what the start of a process needs
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
            with suppress(OSError):
                Checker().close()
                break
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(os.listdir("/proc/self/fd")) == before
            refusals += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert refusals >= 4


def test_start_that_had_no_thread_is_not_made_up_for_later(
    checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as refused:
        refused.setattr(ThreadPoolExecutor, "_adjust_thread_count", refuse)
        with pytest.raises(StorageUnusable, match="thread"):
            check(checkers, SAMPLE)
    assert check(checkers, SAMPLE) == Document("pdf", 1)
    assert checkers._count == 1


# Many at once


def test_each_thread_gets_the_answer_about_its_own_document(
    odd_checkers: Checkers, tmp_path: Path
) -> None:
    def some(first: int) -> list[Document]:
        found = []
        for pages in range(first, first + 100):
            with _file(tmp_path, whole(pages)) as fd:
                found.append(odd_checkers.inspect(fd))
        return found

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(some, [1000, 2000, 3000, 4000]))
    for first, found in zip([1000, 2000, 3000, 4000], results, strict=True):
        assert found == [Document("pdf", pages) for pages in range(first, first + 100)]


def test_document_that_hangs_delays_no_other(odd_checkers: Checkers, check: Check) -> None:
    with ThreadPoolExecutor(1) as threads:
        hung = threads.submit(check, odd_checkers, odd("signal SIGSTOP"))
        while not odd_checkers._busy:
            assert not hung.done()
            time.sleep(0.001)
        for _ in range(3):
            assert check(odd_checkers, whole(2)) == Document("pdf", 2)
        assert not hung.done()
        (busy,) = odd_checkers._busy
        busy.kill()
        with pytest.raises(Killed):
            hung.result(PATIENCE_S)


def _wait_until_all_are_busy(checkers: Checkers, hung: list[Future[Document]]) -> None:
    while len(checkers._busy) < MOST:
        for one in hung:
            assert not one.done(), one.exception() or one.result()
        time.sleep(0.001)


def test_no_more_than_three_processes_are_started(
    odd_checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(MOST) as threads:
        stop = odd("signal SIGSTOP")
        hung = [threads.submit(check, odd_checkers, stop) for _ in range(MOST)]
        _wait_until_all_are_busy(odd_checkers, hung)
        with monkeypatch.context() as impatient:
            impatient.setattr("poller.documents.checkers.FREE_S", 0.1)
            with pytest.raises(NotChecked, match="busy"):
                check(odd_checkers, whole(1))
        for busy in [*odd_checkers._busy]:
            busy.kill()
        for one in hung:
            with pytest.raises(Killed):
                one.result(PATIENCE_S)
    assert check(odd_checkers, whole(1)) == Document("pdf", 1)


async def test_a_busy_hours_processes_end_when_it_is_over(
    odd_checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [odd_checkers._started(_soon()) for _ in range(2)]
    odd_checkers._count = 2
    for one in two:
        odd_checkers._give_back(one)
    odd_checkers.look()
    assert len(odd_checkers._idle) == 2
    monkeypatch.setattr("poller.documents.checkers._UNUSED_S", -1)
    odd_checkers.look()
    assert only(odd_checkers)


def test_a_waiting_thread_uses_room_for_another_process(
    odd_checkers: Checkers, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.documents.checkers.FREE_S", 10 * PATIENCE_S)
    with ThreadPoolExecutor(MOST + 2) as threads:
        monkeypatch.setattr("poller.documents.checkers._MOMENT_S", 0)
        hung = [threads.submit(check, odd_checkers, odd("signal SIGSTOP")) for _ in range(MOST)]
        _wait_until_all_are_busy(odd_checkers, hung)
        try:
            for moment_s, number in ((10 * PATIENCE_S, 1), (0, 2)):
                monkeypatch.setattr("poller.documents.checkers._MOMENT_S", moment_s)
                patient = threads.submit(check, odd_checkers, whole(number))
                while len(odd_checkers._changed._waiters) < number:  # type: ignore[attr-defined]
                    time.sleep(0.01)
            next(iter(odd_checkers._busy)).kill()
            assert patient.result(PATIENCE_S) == Document("pdf", 2)
        finally:
            odd_checkers.close()
    assert all(one.done() for one in hung)


def test_a_close_ends_them_all_and_blames_no_document(odd_checkers: Checkers, check: Check) -> None:
    odd_checkers.look()
    with ThreadPoolExecutor(1) as threads:
        hung = threads.submit(check, odd_checkers, odd("signal SIGSTOP"))
        while not odd_checkers._busy:
            assert not hung.done()
            time.sleep(0.001)
        (busy,) = odd_checkers._busy
        odd_checkers.close()
        with pytest.raises(StorageUnusable, match="stopping"):
            hung.result(PATIENCE_S)
    assert busy.ended
    with pytest.raises(StorageUnusable, match="stopping"):
        check(odd_checkers, whole(1))


def test_two_hundred_checks_leave_no_descriptor_open(odd_checkers: Checkers, check: Check) -> None:
    odd_checkers.look()
    before = len(os.listdir("/proc/self/fd"))
    for n in range(200):
        assert check(odd_checkers, whole(n)).pages == n
        if not n % 50:
            check(odd_checkers, odd("signal SIGSEGV"))
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(odd_checkers._idle) == 1


# Its service has ended


@pytest.mark.parametrize("act", ["idle", "spin", "signal SIGSTOP"])
async def test_it_ends_with_the_process_that_started_it(tmp_path: Path, act: str) -> None:
    document = tmp_path / "document"
    document.write_bytes(odd(act))
    program = (
        "import os, sys, threading; from poller.documents import checker;"
        "from poller.documents.checkers import Checkers;"
        f"checker._PROGRAM = {PROGRAM!r};"
        "c = Checkers(); c.look(); print(c._idle[0].pid, flush=True);"
        + ("" if act == "idle" else f"c.inspect(os.open({str(document)!r}, os.O_RDONLY));")
        + "threading.Event().wait()"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    wanted = {"idle": "S", "spin": "R", "signal SIGSTOP": "T"}[act]
    async with asyncio.timeout(PATIENCE_S):
        while state(pid) != wanted:
            await asyncio.sleep(0.01)
        parent.kill()
        await parent.wait()
        while state(pid) not in ("", "Z"):
            await asyncio.sleep(0.01)


def state(pid: int) -> str:
    """Return its state in one letter, as ps shows it; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
