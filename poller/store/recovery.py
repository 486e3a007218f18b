"""What an earlier run left: carry on from it, or clear it away."""

import errno
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from poller.documents import StoredFile
from poller.store import handover, marker, place, sidecars, syscalls
from poller.store.place import Names, Place
from poller.store.sidecars import Identity


def resume(at: Place, identity: Identity) -> StoredFile | None:
    """Bring a pending fax to its end without a download, where that can be; else remove its rests.

    Either its visible pair is there (only the row was missing), or a complete sidecar and the image
    that has its hash, each under its dot or its final name. Dot-files that are left stay until
    `finish`.
    """
    stored = _adopted(at, identity) or _carried_on(at, identity)
    if stored is None:
        handover.unlink_dot_files(at)
    return stored


def resume_again(
    at: Place, identity: Identity, held: StoredFile | None, content: dict[str, Any] | None
) -> StoredFile | None:
    """Bring a fax that is fetched again to its end without a download, where that can be.

    What is visible counts only when it is what was stored (`held`): it is well after all. Else what
    an interrupted run has fetched since is carried on from: a complete pair of dot-files, or one
    whose sidecar is visible and says that it was stored later than `content` does. When only the
    sidecar is missing or wrong beside the image that was stored, it is written again from `content`.
    """
    handover.put_foreign_aside(at)
    intact = held is not None and _is_intact(at, held)
    stored = None
    if held is not None and intact:
        described = _described(at, at.names.sidecar, identity)
        if described is not None and described.sha256 == held.sha256:
            stored = _adopted(at, identity)
    names = [at.names.dot_sidecar]
    if content is not None and _is_newer(at, content):
        names.append(at.names.sidecar)
    stored = stored or _replaced(at, names, identity)
    if stored is None:
        handover.unlink_dot_files(at)
        if intact and content is not None:
            handover.write_sidecar(at, sidecars.encode(content))
            stored = _replaced(at, [at.names.dot_sidecar], identity)
    return stored


def _is_newer(at: Place, content: dict[str, Any]) -> bool:
    """Tell whether the visible sidecar says that its fax was stored later than `content` does."""
    try:
        data = _content(at, at.names.sidecar) or b""
        known = sidecars.describe(sidecars.encode(content), at.path)
        return sidecars.describe(data, at.path)[2] > known[2]
    except (OSError, ValueError):
        return False


def _is_intact(at: Place, held: StoredFile) -> bool:
    """Tell whether the image is what was stored; one on a bad sector is not."""
    try:
        return holds(at, at.names.image(held.format), held)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _replaced(at: Place, names: Sequence[str], identity: Identity) -> StoredFile | None:
    if (pair := _complete(at, names, identity)) is None:
        return None
    _sync(at, pair.sidecar)
    handover.put_aside(at, pair.stored, identity)
    return _carried_on(at, identity)


def _adopted(at: Place, identity: Identity) -> StoredFile | None:
    stored = _described(at, at.names.sidecar, identity)
    if stored is None or not holds(at, at.names.image(stored.format), stored):
        return None
    _sync(at, at.names.image(stored.format))
    _sync(at, at.names.sidecar)
    syscalls.sync_directory(at.fd)
    at.sync_parents()
    return stored


def _carried_on(at: Place, identity: Identity) -> StoredFile | None:
    """Of two renames that were not synced a power loss may take either, the image's alone as well."""
    pair = _complete(at, [at.names.dot_sidecar, at.names.sidecar], identity)
    if pair is None:
        return None
    try:
        _sync(at, pair.image)
        _sync(at, pair.sidecar)
        handover.publish(at, pair.stored, identity)
    except syscalls.SyncError:
        handover.unlink_dot_files(at)
        raise
    return pair.stored


@dataclass(frozen=True)
class _Pair:
    """Two files that belong together, by the names that they have now."""

    sidecar: str
    image: str
    stored: StoredFile


def _complete(at: Place, names: Sequence[str], identity: Identity) -> _Pair | None:
    """Find a sidecar of the fax, under one of these names, whose image is there."""
    for name in names:
        stored = _described(at, name, identity)
        image = None if stored is None else _dot_or_final_image(at, stored)
        if stored is not None and image is not None:
            return _Pair(name, image, stored)
    return None


def _dot_or_final_image(at: Place, stored: StoredFile) -> str | None:
    names = (at.names.dot_image, at.names.image(stored.format))
    return next((name for name in names if holds(at, name, stored)), None)


def _described(at: Place, name: str, identity: Identity) -> StoredFile | None:
    """Read what a sidecar says about its image, if it is one of this fax."""
    data = _content(at, name)
    found = None if data is None else sidecars.decode(data, at.path)
    return found[1] if found is not None and found[0].is_same(identity) else None


def _content(at: Place, name: str) -> bytes | None:
    try:
        fd = syscalls.open_file(name, at.fd)
    except FileNotFoundError:
        return None
    try:
        return syscalls.read_all(fd)
    finally:
        syscalls.close(fd)


def holds(at: Place, name: str, stored: StoredFile) -> bool:
    """Tell whether the file of this name is the image, by size and hash."""
    try:
        fd = syscalls.open_file(name, at.fd)
    except FileNotFoundError:
        return False
    try:
        return handover.holds(stored)(fd)
    finally:
        syscalls.close(fd)


def _sync(at: Place, name: str) -> None:
    # The run that wrote it was killed, perhaps before its fsync. An fsync that had failed is not
    # repeated here: that run threw the file away.
    fd = syscalls.open_file(name, at.fd)
    try:
        syscalls.sync_file(fd)
    finally:
        syscalls.close(fd)


def tidy(
    root: int, directories: Iterable[str], *, pending: Collection[str], active: Collection[str]
) -> int:
    """Remove the dot-files of ours in these directories and in those of `pending`; how many.

    Those of `active` paths stay, and those of `pending` ones that `resume` can carry on from. A
    directory that cannot be entered is left alone: whatever fax goes there says so.
    """
    removed = marker.clear_probes(root)
    kept = _by_directory([*pending, *active])
    with closing(place.open_directories(root, {"", *directories, *kept})) as opened:
        for directory, fd in opened:
            with suppress(PermissionError):
                removed += _tidy(fd, kept.get(directory, {}), frozenset(active))
    return removed


def _by_directory(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Map directory → base name → path."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        directory, _, base = path.rpartition("/")
        found.setdefault(directory, {})[base] = path
    return found


def _tidy(fd: int, paths: dict[str, str], active: frozenset[str]) -> int:
    found = {name for name in syscalls.names(fd) if place.is_own_dot_file(name)}
    for base, path in paths.items() if found else ():
        names = Names(base)
        ours = found & {names.dot_image, names.dot_sidecar}
        if ours and (path in active or _is_complete(fd, path, names)):
            found -= ours
    return sum(syscalls.unlink(name, fd) for name in found)


def _is_complete(fd: int, path: str, names: Names) -> bool:
    """Tell whether a sidecar and its image are there and fit; `resume` looks at the hash."""
    at = Place(path, names, fd, place.Durable())
    return any(_has_its_image(at, name) for name in (names.dot_sidecar, names.sidecar))


def _has_its_image(at: Place, sidecar: str) -> bool:
    try:
        described = sidecars.decode(_content(at, sidecar) or b"", at.path)
    except OSError:  # a stranger's file has the name, or this one cannot be read
        return False
    return described is not None and any(
        _size(at, name) == described[1].bytes
        for name in (at.names.dot_image, at.names.image(described[1].format))
    )


def _size(at: Place, name: str) -> int | None:
    try:
        return syscalls.status_of(name, at.fd).st_size
    except FileNotFoundError:
        return None
