"""The state directory is created, and its name made durable, even if a killed run has created it."""

import os
import stat
from pathlib import Path

import pytest

from poller.state_directory import make


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the directories that were synced, in order."""
    seen: list[str] = []
    sync = os.fsync

    def fsync(fd: int) -> None:
        seen.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_every_name_on_the_way_is_synced_in_its_parent(tmp_path: Path, synced: list[str]) -> None:
    make(tmp_path / "var" / "state")
    assert synced == [str(tmp_path.parent), str(tmp_path), str(tmp_path / "var")]
    assert stat.S_IMODE((tmp_path / "var" / "state").stat().st_mode) == 0o700


def test_name_of_a_directory_that_is_there_is_synced_too(tmp_path: Path, synced: list[str]) -> None:
    make(tmp_path)
    assert synced == [str(tmp_path.parent)]


def test_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(FileExistsError):
        make(tmp_path / "state")
