"""storage: the file events that a consumer sees when it watches a directory with inotify."""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller.store import syscalls
from tests.integration.storage_seam import opened, store, tiff

_EVENTS = {
    0x4: "ATTRIB",
    0x8: "CLOSE_WRITE",
    0x40: "MOVED_FROM",
    0x80: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
}
_HEAD = struct.Struct("iIII")


class Watch:
    """One directory, watched from now on."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), sum(_EVENTS)) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def seen(self) -> list[str]:
        """Return the new events; the kernel queues an event before its call returns."""
        found, data = [], os.read(self._fd, 1 << 16)
        while data:
            _, mask, _, size = _HEAD.unpack_from(data)
            name = data[_HEAD.size : _HEAD.size + size].rstrip(b"\0").decode()
            name = re.sub(r"^(\.f1)\.[0-9a-f]{8}\.", r"\1.", name)  # without the id of the run
            data = data[_HEAD.size + size :]
            found += [f"{word} {name}" for bit, word in _EVENTS.items() if mask & bit]
        return found

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watch]:
    directory = tmp_path / "faxes/main/desk"
    directory.mkdir(parents=True, mode=0o750)
    directory.chmod(0o750)
    watch = Watch(directory)
    yield watch
    watch.close()


async def _stored(root: Path, watched: Watch) -> list[str]:
    (root / ".poller-storage").write_text("known\n")
    storage = await opened(root, "known")
    await store(storage, tiff())
    storage.close()
    return watched.seen()


async def test_visible_names_come_by_a_move_image_first_and_nothing_comes_after(
    tmp_path: Path, watched: Watch
) -> None:
    events = await _stored(tmp_path / "faxes", watched)
    assert [event for event in events if not event.startswith("ATTRIB")] == [
        "CREATE .f1.image.part",
        "CLOSE_WRITE .f1.image.part",
        "MOVED_FROM .f1.image.part",
        "MOVED_TO f1.tif",
        "CREATE .f1.json.part",
        "CLOSE_WRITE .f1.json.part",
        "MOVED_FROM .f1.json.part",
        "MOVED_TO f1.json",
    ]


async def test_visible_names_are_created_where_they_have_to_be_linked(
    tmp_path: Path, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)
    events = await _stored(tmp_path / "faxes", watched)
    assert [event for event in events if " f1." in event] == ["CREATE f1.tif", "CREATE f1.json"]
