"""Find out how far an earlier run, or an attempt without an answer, came with a fax."""

from collections.abc import Callable
from enum import Enum, auto

from poller.documents import Document, NotADocument, Staged, StoredFile
from poller.errors import ALONE, StorageConflict
from poller.store import sidecars
from poller.store.sidecars import Identity, path_of
from poller.store.spool import Inspect, Spool
from poller.store.store import Store

Accept = Callable[[Document], bool]


class Fate(Enum):
    """What became of a fax with a ticket in its row; *void* means that the ticket proves nothing."""

    PUBLISHED = auto()
    PLACED = auto()
    VOID = auto()


def settle(store: Store, staged: Staged, identity: Identity) -> Fate:
    """Revoke the ticket, then look.

    Consumers take the image first and the sidecar last. If both are gone, the fax was published and
    taken, as its image was there before. After the revocation, no sidecar can follow an image that
    is alone. A sidecar without an image is still hidden, or was published.
    """
    is_where_it_was = store.revoke(path_of(staged.file), staged.ticket)
    seen = store.look(staged.file, identity, thorough=True)
    if (
        seen.is_unreadable
    ):  # it may have been published: to say that it was not would deliver it twice
        raise StorageConflict(f"what an earlier attempt left {ALONE}: {seen.why}")
    if seen.is_published:
        store.secure(staged.file)
        return Fate.PUBLISHED
    if seen.is_placed:
        return Fate.PLACED
    return Fate.PUBLISHED if seen.is_gone and is_where_it_was else Fate.VOID


def taken_up(store: Store, stored: StoredFile) -> Spool | None:
    """Take up a placed image again; return None if it has just gone or is another."""
    spool = store.read_back(path_of(stored), stored.format)
    if spool is None:
        return None
    if spool.seal(stored.format, stored.pages, damaged=stored.damaged) == stored:
        return spool
    spool.close()
    return None


def adopted(store: Store, path: str, identity: Identity) -> StoredFile | None:
    """Return the visible fax that only lacks its row, as after the loss of a ledger."""
    found = sidecars.decode(store.read(f"{path}.json") or b"", path)
    if found is None or not found[0].is_same(identity):
        return None
    stored = found[1]
    if not store.look(stored, identity, thorough=True).is_well:
        return None
    store.secure(stored)
    return stored


def placed(
    store: Store, path: str, inspect: Inspect, accept: Accept
) -> tuple[Spool, StoredFile] | None:
    """Take up a whole image that an earlier run placed and did not stage.

    Only such a run, or a consumer of a fax from a lost ledger, leaves an image without a sidecar.
    The next download deals with an image that is not whole or has a sidecar.
    """
    if store.read(f"{path}.json") is not None or (spool := store.read_back(path)) is None:
        return None
    try:
        document = spool.inspect(inspect)
        if spool.form == document.format and accept(document):
            return spool, spool.seal(document.format, document.pages, damaged=False)
    except NotADocument:
        pass
    except BaseException:
        spool.close()
        raise
    spool.close()
    return None


def intact(
    store: Store, path: str, identity: Identity, held: StoredFile | None
) -> StoredFile | tuple[Spool, StoredFile] | None:
    """Tell whether a fax that should be fetched again is well after all, or only lacks its sidecar.

    `held` is what was stored; poller can write a new sidecar for a good image. None means that the
    fax must be fetched, and replaces what is there. Puts things aside that are not files.
    """
    store.put_aside(path, None, identity)
    seen = None if held is None else store.look(held, identity, thorough=True)
    if held is None or seen is None or seen.image is not None:
        return None
    if seen.is_well:
        store.secure(held)
        return held
    store.put_aside(path, held, identity)
    spool = taken_up(store, held)
    return None if spool is None else (spool, held)
