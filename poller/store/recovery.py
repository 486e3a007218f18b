"""What an earlier run, or an attempt without an answer, has left of a fax: how far it came."""

from collections.abc import Callable
from enum import Enum, auto

from poller.documents import Document, NotADocument, Staged, StoredFile
from poller.store import sidecars
from poller.store.sidecars import EXTENSIONS, Identity, path_of
from poller.store.spool import Inspect, Spool
from poller.store.store import Store

Accept = Callable[[Document], bool]


class Fate(Enum):
    """What became of a fax that has a ticket in its row; *void*: the ticket says nothing of it."""

    PUBLISHED = auto()
    PLACED = auto()
    VOID = auto()


def settle(store: Store, staged: Staged, identity: Identity) -> Fate:
    """Revoke the ticket, then look.

    Consumers take the image first and the sidecar last. So with both gone it was published and
    taken: before that the image was there. And the ticket being revoked, an image alone will never
    be followed by that sidecar. A sidecar that comes alone is still hidden, or was published.
    """
    is_where_it_was = store.revoke(path_of(staged.file), staged.ticket)
    seen = store.look(staged.file, identity, thorough=True)
    if seen.is_published:
        store.secure(staged.file)
        return Fate.PUBLISHED
    if seen.is_placed:
        return Fate.PLACED
    return Fate.PUBLISHED if seen.is_gone and is_where_it_was else Fate.VOID


def taken_up(store: Store, stored: StoredFile) -> Spool | None:
    """Take up a placed image again; None when it has gone, or is another, just now."""
    spool = store.read_back(path_of(stored), stored.format)
    if spool is None:
        return None
    if spool.seal(stored.format, stored.pages, damaged=stored.damaged) == stored:
        return spool
    spool.close()
    return None


def adopted(store: Store, path: str, identity: Identity) -> StoredFile | None:
    """Take the pair of a fax that only lacks its row, as after a ledger was lost."""
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
    """Take up an image that an earlier run placed and did not stage, if it is whole.

    Only such a run gives an image this name, or whoever had the sidecar of a ledger that was lost.
    What is not whole, or has a sidecar beside it, is for the next download to meet.
    """
    if store.read(f"{path}.json") is not None or (spool := store.read_back(path)) is None:
        return None
    try:
        document = spool.inspect(inspect)
        if spool.name.endswith(EXTENSIONS[document.format]) and accept(document):
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
    """Look whether a fax that is to be fetched again is well after all, or its sidecar alone is not.

    `held` is what was stored; beside its image, a sidecar can be written again. None: it has to be
    fetched, and replaces what is there. What is no file at all is put aside.
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
