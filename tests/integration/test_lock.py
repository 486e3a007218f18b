"""One poller per state directory, and per storage directory."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from poller.errors import CannotStart, LockHeld
from poller.ingest.runtime import open_runtime
from poller.lock import DAEMON, StateLock, StorageLock, holder, is_held
from poller.metrics import Metrics
from poller.store import Storage
from poller.store.marker import MARKER
from tests.conftest import KEY, MakeConfig, QuickClock, opened_runtime

_HOLDER = """
import sys, time
from pathlib import Path
from poller.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_poller_on_one_state_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with StateLock(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(LockHeld, match="another poller holds") as refused, StateLock(tmp_path):
            pass
        assert refused.value.exit_code == 75
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with StateLock(tmp_path):
        assert is_held(tmp_path)


def test_asking_whether_it_is_held_does_not_stop_who_wants_it(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        pass
    for _ in range(3):
        assert not is_held(tmp_path)
        with StateLock(tmp_path):
            assert is_held(tmp_path)


def test_lock_waits_for_a_process_that_only_looks_whether_it_is_held(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        pass
    slept: list[float] = []
    with (tmp_path / "poller.lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            fcntl.flock(asking, fcntl.LOCK_UN)

        with StateLock(tmp_path, sleep=sleep):
            assert is_held(tmp_path)
    assert len(slept) == 1


def test_lock_that_is_free_is_taken_and_one_that_stays_held_refused_soon(tmp_path: Path) -> None:
    slept: list[float] = []
    with StateLock(tmp_path, sleep=slept.append):
        assert slept == []
        with pytest.raises(LockHeld), StateLock(tmp_path, sleep=slept.append):
            pass
    assert 0.25 <= sum(slept) <= 0.35


def test_lock_ends_with_a_process_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_held(tmp_path)
        with pytest.raises(LockHeld), StateLock(tmp_path):
            pass
        holder.kill()
    assert not is_held(tmp_path)


def test_lock_file_that_was_removed_by_hand_lets_no_second_poller_in(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        (tmp_path / "poller.lock").unlink()
        assert is_held(tmp_path)
        with pytest.raises(LockHeld), StateLock(tmp_path):
            pass
    assert not is_held(tmp_path)
    with StateLock(tmp_path):
        assert (tmp_path / "poller.lock").exists()


def test_who_holds_the_state_is_known_by_its_command(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    for command in ("rebuild", DAEMON, "once"):
        with StateLock(tmp_path, command):
            assert holder(tmp_path) == command
            with pytest.raises(LockHeld, match=f"`poller {command}`"):
                StateLock(tmp_path, "backfill").__enter__()
            assert holder(tmp_path) == command
        assert holder(tmp_path) is None


def test_an_unknown_holder_counts_as_the_daemon(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        (tmp_path / "poller.lock").unlink()
        assert holder(tmp_path) == DAEMON
        with pytest.raises(LockHeld):
            StateLock(tmp_path, "once").__enter__()
        assert holder(tmp_path) == DAEMON


def test_disk_that_takes_no_word_keeps_nobody_from_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with StateLock(tmp_path):
        assert holder(tmp_path) == DAEMON


def test_state_directory_and_lock_file_are_for_their_owner_alone(tmp_path: Path) -> None:
    state = tmp_path / "made" / "state"
    with StateLock(state):
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "poller.lock").stat().st_mode & 0o777 == 0o600


def test_state_directory_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CannotStart, match="make this user the owner of the state directory"
    ) as refused:
        StateLock(tmp_path / "file" / "state").__enter__()
    assert refused.value.exit_code == 73


def test_lock_that_was_never_taken_is_let_go_without_harm(tmp_path: Path) -> None:
    StateLock(tmp_path).__exit__(None, None, None)
    assert not is_held(tmp_path / "nowhere")


_STORAGE_HOLDER = """
import sys, time
from poller.lock import StorageLock
with StorageLock() as lock:
    lock.take(sys.argv[1])
    print("held", flush=True)
    time.sleep(60)
"""


def test_storage_is_held_by_one_process_and_let_go_however_that_ends(tmp_path: Path) -> None:
    storage_id = f"id-of-{tmp_path}"
    held = subprocess.Popen(
        [sys.executable, "-c", _STORAGE_HOLDER, storage_id], stdout=subprocess.PIPE
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        with StorageLock() as other:
            other.take("another storage")
        with (
            pytest.raises(LockHeld, match="its own directory") as refused,
            StorageLock() as lock,
        ):
            lock.take(storage_id)
        assert refused.value.exit_code == 75
    finally:
        held.kill()
        held.communicate()
    for _ in range(2):
        with StorageLock() as lock:
            lock.take(storage_id)


async def test_poller_that_is_refused_the_storage_lets_its_threads_go(
    make_config: MakeConfig, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_config("http://127.0.0.1:9")
    async with opened_runtime(settings, clock):
        pass
    closed = []
    monkeypatch.setattr(Storage, "close", lambda _: closed.append("storage"))
    with StorageLock() as held, StorageLock() as wanted:
        held.take((settings.storage.directory / MARKER).read_text().strip())
        with pytest.raises(LockHeld):
            async with open_runtime(
                settings, {"KEY": KEY}, metrics=Metrics("test"), clock=clock, storage_lock=wanted
            ):
                pass
    assert closed == ["storage"]


def test_a_disk_that_fails_at_the_very_end_does_not_spoil_the_run(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        os.close(open_at(tmp_path))  # closing it again fails


def open_at(path: Path) -> int:
    """Return the one descriptor that this process has open there."""
    found = [fd for fd in range(3, 200) if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]
    assert len(found) == 1
    return found[0]
