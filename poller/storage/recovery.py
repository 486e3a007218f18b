"""What an earlier run left: carry on from it, or clear it away."""

import errno
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from typing import Any

from poller.storage import handover, marker, place, sidecars, steps
from poller.storage.place import Names, Place
from poller.storage.sidecars import Identity, StoredFile


def resume(at: Place, identity: Identity) -> StoredFile | None:
    """Bring a pending fax to its end without a download, where that can be; else remove its rests.

    Either its visible pair is there (only the row was missing), or a complete dot-sidecar whose
    image, under its dot or its final name, has the hash. The dot-files stay until `finish`.
    """
    stored = _adopted(at, identity) or _carried_on(at, identity)
    if stored is None:
        handover.unlink_dot_files(at)
    return stored


def resume_again(
    at: Place, identity: Identity, held: StoredFile | None, content: dict[str, Any] | None
) -> StoredFile | None:
    """Bring a fax that is fetched again to its end without a download, where that can be.

    What is visible counts only when it is what was stored (`held`): it is well after all. Else a
    complete pair of dot-files is carried on from, and when only the sidecar is missing or wrong
    beside the image that was stored, it is written anew from `content`.
    """
    handover.put_foreign_aside(at)
    intact = held is not None and _is_intact(at, held)
    stored = None
    if held is not None and intact:
        described = _described(at, at.names.sidecar, identity)
        if described is not None and described.sha256 == held.sha256:
            stored = _adopted(at, identity)
    stored = stored or _replaced(at, identity)
    if stored is None:
        handover.unlink_dot_files(at)
        if intact and content is not None:
            handover.write_sidecar(at, sidecars.encode(content))
            stored = _replaced(at, identity)
    return stored


def _is_intact(at: Place, held: StoredFile) -> bool:
    """Tell whether the image is what was stored; one on a bad sector is not."""
    try:
        return holds(at, at.names.image(held.format), held)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _replaced(at: Place, identity: Identity) -> StoredFile | None:
    stored = _described(at, at.names.dot_sidecar, identity)
    if stored is None or not _dot_or_final_image(at, stored):
        return None
    _sync(at, at.names.dot_sidecar)
    handover.put_aside(at, stored, identity)
    return _carried_on(at, identity)


def _adopted(at: Place, identity: Identity) -> StoredFile | None:
    stored = _described(at, at.names.sidecar, identity)
    if stored is None or not holds(at, at.names.image(stored.format), stored):
        return None
    _sync(at, at.names.image(stored.format))
    _sync(at, at.names.sidecar)
    steps.sync_directory(at.fd)
    at.sync_parents()
    return stored


def _carried_on(at: Place, identity: Identity) -> StoredFile | None:
    stored = _described(at, at.names.dot_sidecar, identity)
    if stored is None:
        return None
    image = _dot_or_final_image(at, stored)
    if image is None:
        return None
    try:
        _sync(at, image)
        _sync(at, at.names.dot_sidecar)
        handover.publish(at, stored, identity)
    except steps.SyncError:
        handover.unlink_dot_files(at)
        raise
    return stored


def _dot_or_final_image(at: Place, stored: StoredFile) -> str | None:
    names = (at.names.dot_image, at.names.image(stored.format))
    return next((name for name in names if holds(at, name, stored)), None)


def _described(at: Place, name: str, identity: Identity) -> StoredFile | None:
    """Read what a sidecar says about its image, if it is one of this fax."""
    data = _content(at, name)
    found = None if data is None else sidecars.decode(data, at.path)
    return found[1] if found is not None and found[0] == identity else None


def _content(at: Place, name: str) -> bytes | None:
    try:
        fd = steps.open_file(name, at.fd)
    except FileNotFoundError:
        return None
    try:
        return steps.read_all(fd)
    finally:
        steps.close(fd)


def holds(at: Place, name: str, stored: StoredFile) -> bool:
    """Tell whether the file of this name is the image, by size and hash."""
    try:
        fd = steps.open_file(name, at.fd)
    except FileNotFoundError:
        return False
    try:
        return handover.holds(stored)(fd)
    finally:
        steps.close(fd)


def _sync(at: Place, name: str) -> None:
    # The run that wrote it was killed, perhaps before its fsync. An fsync that had failed is not
    # repeated here: that run threw the file away.
    fd = steps.open_file(name, at.fd)
    try:
        steps.sync_file(fd)
    finally:
        steps.close(fd)


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
    found = {name for name in steps.names(fd) if place.is_own_dot_file(name)}
    for base, path in paths.items() if found else ():
        names = Names(base)
        if path in active or _is_complete(fd, path, names, found):
            found -= {names.dot_image, names.dot_sidecar}
    return sum(steps.unlink(name, fd) for name in found)


def _is_complete(fd: int, path: str, names: Names, found: set[str]) -> bool:
    """Tell whether both are there and fit; `resume` looks at the hash."""
    if names.dot_sidecar not in found:
        return False
    at = Place(path, names, fd, place.Durable())
    data = _content(at, names.dot_sidecar)
    described = None if data is None else sidecars.decode(data, path)
    if described is None:
        return False
    stored = described[1]
    for name in (names.dot_image, names.image(stored.format)):
        try:
            if steps.status_of(name, fd).st_size == stored.bytes:
                return True
        except FileNotFoundError:
            continue
    return False
