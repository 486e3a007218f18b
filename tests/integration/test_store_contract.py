"""What every kind of store guarantees, whichever process is killed between two steps or takes over."""

import errno
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from poller.config.model import StorageConfig
from poller.documents import Document, Staged, StoredFile
from poller.errors import StorageConflict, StorageUnusable
from poller.store import (
    Condition,
    FoundSidecar,
    Identity,
    Store,
    folder,
    recovery,
    syscalls,
)
from poller.store.bucket import BucketStore
from poller.store.directory import Directory
from poller.store.recovery import Fate
from poller.store.sidecars import decode, encode
from poller.store.sidecars import describe as described
from poller.store.spool import Spool
from tests import s3
from tests.integration.storage_seam import IDENTITY, PATH, config, describe, tiff, tree
from tests.s3 import bucket, s3_url

__all__ = ["bucket", "s3_url"]  # fixtures

FAX, OTHER = tiff(b"one fax"), tiff(b"another fax")
ALONE, LATER = (
    encode(describe(None)),
    encode(describe(None) | {"stored_at": "2026-01-01T00:00:00Z"}),
)
DOCUMENT = Document("tiff", 1)
Open = Callable[[], Store]


class Shelf(Protocol):
    """A store as other programs see it."""

    def take(self, *names: str) -> None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def all(self) -> dict[str, bytes]: ...
    def opened(self) -> Store: ...


class OnDisk:
    def __init__(self, root: Path) -> None:
        self.root = root

    def take(self, *names: str) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def all(self) -> dict[str, bytes]:
        return tree(self.root)

    def opened(self) -> Store:
        return Directory(config(self.root))


class InBucket:
    """Each of its processes has spools of its own, as each machine has."""

    def __init__(self, settings: StorageConfig, spools: Path) -> None:
        self.settings, self.spools, self.count = settings, spools, 0

    def take(self, *names: str) -> None:
        s3.take(self.settings, *names)

    def write(self, name: str, data: bytes) -> None:
        s3.write(self.settings, name, data)

    def all(self) -> dict[str, bytes]:
        return s3.objects(self.settings)

    def opened(self) -> Store:
        self.count += 1
        return BucketStore(self.settings, self.spools / str(self.count), s3.ENVIRON)


@pytest.fixture(params=["directory", "directory without renameat2", "bucket"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation, and each way in which one works. A new one needs a line here."""
    if request.param == "directory without renameat2":
        monkeypatch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)
    return str(request.param)


@pytest.fixture
def shelf(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if kind == "bucket":
        return InBucket(request.getfixturevalue("bucket"), tmp_path / "spools")
    return OnDisk(tmp_path / "faxes")


@pytest.fixture
def run(shelf: Shelf) -> Open:
    """Give the same store to one process after the other, or to two at once."""
    store_id = shelf.opened().prepare()

    def opened() -> Store:
        store = shelf.opened()
        store.know(store_id)
        return store

    return opened


@pytest.fixture
def store(run: Open) -> Store:
    return run()


def arrived(store: Store, data: bytes = FAX, *, path: str = PATH) -> tuple[Spool, StoredFile]:
    spool = store.spool(path)
    spool.restart()
    spool.write(data)
    if data.startswith(b"{"):  # a sidecar without an image
        return spool, spool.seal("json", None, damaged=False)
    return spool, spool.seal("tiff", 1, damaged=False)


def placed(store: Store, data: bytes = FAX) -> tuple[Spool, StoredFile]:
    spool, stored = arrived(store, data)
    store.place(spool, stored, IDENTITY)
    return spool, stored


def staged(store: Store, data: bytes = FAX) -> tuple[Spool, Staged]:
    spool, stored = placed(store, data)
    return spool, ticketed(store, spool, stored)


def ticketed(store: Store, spool: Spool, stored: StoredFile) -> Staged:
    content = None if stored.format == "json" else encode(describe(stored))
    return Staged(stored, store.stage(spool, stored, content))


def published(store: Store, data: bytes = FAX) -> Staged:
    spool, ticket = staged(store, data)
    assert store.publish(spool, ticket, IDENTITY)
    spool.close()
    return ticket


def refuses(store: Store, spool: Spool, ticket: Staged) -> None:
    """Require that the ticket cannot be used; Ceph answers 500."""
    with suppress(StorageUnusable):
        assert not store.publish(spool, ticket, IDENTITY)


def visible(store: Store) -> dict[str, bytes]:
    """Return what a consumer sees."""
    found: dict[str, bytes] = {}
    waiting = [""]
    while waiting:
        here = waiting.pop()
        files, below = store.visible_files(here)
        waiting += [f"{here}/{name}" if here else name for name in below]
        found |= {file: store.read(file) or b"" for file, _ in files}
    return found


def take(shelf: Shelf) -> None:
    """Take the fax like a consumer: first the image, last the sidecar."""
    shelf.take(f"{PATH}.tif", f"{PATH}.json")


# -- the path of a fax -----------------------------------------------------------------------------


def test_nothing_is_visible_until_it_is_placed_and_no_sidecar_until_it_is_published(
    store: Store,
) -> None:
    spool, stored = arrived(store)
    assert visible(store) == {}
    store.place(spool, stored, IDENTITY)
    assert visible(store) == {stored.file: FAX}
    ticket = ticketed(store, spool, stored)
    assert visible(store) == {stored.file: FAX}
    assert store.publish(spool, ticket, IDENTITY)
    spool.close()
    assert set(visible(store)) == {stored.file, f"{PATH}.json"}
    assert decode(visible(store)[f"{PATH}.json"], PATH) == (IDENTITY, stored)


def test_spool_that_is_closed_early_leaves_nothing(store: Store) -> None:
    spool, _ = arrived(store)
    spool.close()
    assert visible(store) == {}
    assert store.read_back(PATH) is None


def test_same_image_under_the_name_counts_and_another_is_never_overwritten(store: Store) -> None:
    placed(store)[0].close()
    again, stored = arrived(store)
    store.place(again, stored, IDENTITY)
    again.close()
    other, another = arrived(store, OTHER)
    with pytest.raises(StorageConflict):
        store.place(other, another, IDENTITY)
    other.close()
    assert visible(store) == {stored.file: FAX}


def test_image_that_came_too_late_is_removed_by_the_run_that_placed_it(run: Open) -> None:
    first, second = run(), run()
    spool, stored = placed(first)
    again, same = placed(second)
    assert (spool.is_ours, again.is_ours) == (True, False)
    first.discard(stored)
    assert visible(second) == {}
    second.discard(same)  # it is gone already
    for one in (spool, again):
        one.close()


def test_sidecar_of_another_fax_is_never_overwritten(store: Store) -> None:
    published(store)
    spool, stored = arrived(store)
    with pytest.raises(StorageConflict):
        store.place(spool, stored, Identity("app", "user", "f2"))
    spool.close()


def test_ticket_is_consumed_once(store: Store) -> None:
    spool, ticket = staged(store)
    assert store.publish(spool, ticket, IDENTITY)
    assert not store.publish(spool, ticket, IDENTITY)
    spool.close()


# -- revoking --------------------------------------------------------------------------------------


def test_ticket_that_was_revoked_is_not_published_however_often_it_was_revoked(
    run: Open, store: Store
) -> None:
    spool, ticket = staged(store)
    for one in (run(), store, run()):
        assert one.revoke(PATH, ticket.ticket)
        assert one.revoke(PATH, ticket.ticket)
    refuses(store, spool, ticket)
    spool.close()
    assert visible(store) == {ticket.file.file: FAX}


def test_revoking_hides_nothing_that_was_published(run: Open, store: Store) -> None:
    ticket = published(store)
    before = visible(store)
    assert run().revoke(PATH, ticket.ticket)
    assert visible(store) == before


def test_missing_files_prove_nothing_if_their_directory_is_gone(
    kind: str, run: Open, store: Store, tmp_path: Path
) -> None:
    if kind == "bucket":
        pytest.skip("a bucket has no directories")
    spool, ticket = staged(store)
    (tmp_path / "faxes/main").rename(tmp_path / "away")
    assert not run().revoke(PATH, ticket.ticket)
    (tmp_path / "faxes/main/desk").mkdir(parents=True)
    assert not run().revoke(PATH, ticket.ticket)
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.VOID
    spool.folder.close()


# -- the table of recovery -------------------------------------------------------------------------


def test_sidecar_there_means_published_whatever_became_of_the_image(
    run: Open, store: Store, shelf: Shelf
) -> None:
    ticket = published(store)
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.PUBLISHED
    shelf.take(f"{PATH}.tif")
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.PUBLISHED


def test_image_alone_means_not_published_and_it_never_will_be(run: Open, store: Store) -> None:
    spool, ticket = staged(store)
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.PLACED
    refuses(store, spool, ticket)
    spool.close()
    taken_up = recovery.taken_up(store, ticket.file)
    assert taken_up is not None
    anew = ticketed(store, taken_up, ticket.file)
    assert store.publish(taken_up, anew, IDENTITY)
    taken_up.close()


def test_both_gone_means_published_and_taken(run: Open, store: Store, shelf: Shelf) -> None:
    ticket = published(store)
    take(shelf)
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.PUBLISHED


@pytest.mark.parametrize("name", [f"{PATH}.tif", f"{PATH}.json"])
def test_another_file_in_its_place_says_nothing(
    run: Open, store: Store, shelf: Shelf, name: str
) -> None:
    ticket = published(store)
    take(shelf)
    shelf.write(name, OTHER)
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.VOID


# -- two at once -----------------------------------------------------------------------------------


def test_two_spools_at_one_name_never_show_each_others_bytes(run: Open) -> None:
    first, second = run(), run()
    one, other = first.spool(PATH), second.spool(PATH)
    one.restart()
    other.restart()
    one.write(FAX)
    other.write(OTHER[:10])
    stored = one.seal("tiff", 1, damaged=False)
    first.place(one, stored, IDENTITY)
    assert visible(first) == {stored.file: FAX}
    other.write(OTHER[10:])
    with pytest.raises(StorageConflict):
        second.place(other, other.seal("tiff", 1, damaged=False), IDENTITY)
    one.close()
    other.close()
    assert visible(first) == {stored.file: FAX}


both_kinds = pytest.mark.parametrize(
    ("data", "anew"), [(FAX, OTHER), (ALONE, LATER)], ids=["image", "sidecar alone"]
)


class Lab:
    """A run that is stopped after each of its steps, and one that takes over and finishes the fax.

    A consumer takes what is published at once. Then the first one is woken.
    """

    def __init__(self, run: Open, shelf: Shelf, data: bytes, anew: bytes) -> None:
        self.run, self.shelf = run, shelf
        self.data, self.anew = data, anew
        self.ticket: Staged | None = None
        self.stored = False
        self.deliveries = 0

    def consume(self, store: Store) -> None:
        if f"{PATH}.json" in visible(store):
            take(self.shelf)
            self.deliveries += 1

    def steps(self, store: Store) -> Iterator[None]:
        spool, stored = arrived(store, self.data)
        yield
        store.place(spool, stored, IDENTITY)
        yield
        ticket = ticketed(store, spool, stored)
        yield
        if self.stored or self.ticket is not None:
            return  # another has its ticket in the row
        self.ticket = ticket
        yield
        shown = store.publish(spool, ticket, IDENTITY)
        self.consume(store)
        yield
        self.stored = self.stored or shown
        spool.close()

    def take_over(self, store: Store) -> None:
        found: tuple[Spool, StoredFile] | None = None
        if (ticket := self.ticket) is not None:
            self.ticket = None
            if (fate := recovery.settle(store, ticket, IDENTITY)) is Fate.PUBLISHED:
                self.stored = True
                return
            if fate is Fate.PLACED and (spool := recovery.taken_up(store, ticket.file)):
                found = spool, ticket.file
        found = found or recovery.placed(store, PATH, lambda _: DOCUMENT, lambda _: True)
        if found is None:
            found = arrived(store, self.anew)
            store.place(*found, IDENTITY)
        spool, stored = found
        self.ticket = ticketed(store, spool, stored)
        assert store.publish(spool, self.ticket, IDENTITY)
        self.consume(store)
        self.stored = True
        spool.close()


def _in_the_lab(run: Open, shelf: Shelf, data: bytes, anew: bytes) -> Iterator[Lab]:
    """Stop the first run after each of its steps."""
    for stopped_after in itertools.count(1):
        lab = Lab(run, shelf, data, anew)
        steps = lab.steps(run())
        done = sum(1 for _ in itertools.islice(steps, stopped_after))
        if done < stopped_after:
            return
        lab.take_over(run())
        try:
            for _ in steps:
                lab.consume(run())
        except (StorageConflict, StorageUnusable, OSError):
            pass  # it is too late
        lab.consume(run())
        yield lab


@both_kinds
def test_run_that_is_stopped_anywhere_and_woken_after_a_takeover_delivers_nothing_twice(
    run: Open, shelf: Shelf, data: bytes, anew: bytes
) -> None:
    deliveries = [lab.deliveries for lab in _in_the_lab(run, shelf, data, anew)]
    assert deliveries == [1] * 5


def _plant_a_tidy_that_removes_hidden_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    revoke = BucketStore.revoke

    def revoked(store: BucketStore, path: str, ticket: str) -> bool:
        store.secure(StoredFile(f"{path}.json", "json", 0, "", None, damaged=False))
        return revoke(store, path, ticket)

    monkeypatch.setattr(BucketStore, "revoke", revoked)


@pytest.mark.parametrize(
    ("bug", "data", "anew"),
    [
        # a sidecar without an image is its own ticket: there is nothing to revoke
        ("no revoke", FAX, OTHER),
        ("ticket believed", FAX, OTHER),
        ("removed with other dot-files", ALONE, LATER),
        ("both gone is not taken", FAX, OTHER),
        ("both gone is not taken", ALONE, LATER),
    ],
)
def test_lab_finds_a_planted_bug(
    run: Open,
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    bug: str,
    data: bytes,
    anew: bytes,
) -> None:
    real = recovery.settle
    if bug == "removed with other dot-files":
        monkeypatch.setattr(folder, "is_dot_file", lambda name: name.endswith(".part"))
        _plant_a_tidy_that_removes_hidden_objects(monkeypatch)

    def settle(store: Store, ticket: Staged, identity: Identity) -> Fate:
        if bug == "no revoke":
            monkeypatch.setattr(store, "revoke", lambda *_: True)
            # a directory's revokes everything of other runs
            monkeypatch.setattr(store, "_tidy", lambda *_: 0, raising=False)
            monkeypatch.setattr(recovery, "settle", real)
            return recovery.settle(store, ticket, identity)
        if bug == "removed with other dot-files":
            return real(store, ticket, identity)
        store.revoke(PATH, ticket.ticket)
        if bug == "ticket believed":
            return Fate.PUBLISHED
        gone = store.look(ticket.file, identity, thorough=True).is_gone
        return Fate.VOID if gone else real(store, ticket, identity)

    monkeypatch.setattr(recovery, "settle", settle)
    assert [lab.deliveries for lab in _in_the_lab(run, shelf, data, anew)] != [1] * 5


# -- faxes that were fetched again ------------------------------------------------------------------


def test_damaged_files_are_put_aside_and_files_of_the_fax_stay(store: Store, shelf: Shelf) -> None:
    ticket = published(store)
    store.put_aside(PATH, ticket.file, IDENTITY)
    assert visible(store)[ticket.file.file] == FAX
    shelf.write(ticket.file.file, OTHER)
    store.put_aside(PATH, ticket.file, IDENTITY)
    assert set(visible(store)) == {f"{PATH}.json"}
    kept = [data for name, data in shelf.all().items() if "/.damaged-" in name]
    assert kept == [OTHER]


def test_looks_change_nothing_and_find_what_is_there(store: Store) -> None:
    ticket = published(store)
    before = visible(store)
    assert store.look(ticket.file, IDENTITY, thorough=True).is_well
    assert [found.stored for found in store.walk() if hasattr(found, "stored")] == [ticket.file]
    assert store.read(f"{PATH}.none") is None
    assert json.loads(store.read(f"{PATH}.json") or b"")["fax_id"] == "f1"
    assert store.room() > 0
    assert store.marked()[1]
    assert store.where(ticket.file.file).endswith(ticket.file.file)
    assert visible(store) == before


# -- a sidecar without an image ---------------------------------------------------------------------


def test_sidecar_alone_is_hidden_until_it_is_published_and_leaves_nothing_else(
    store: Store, shelf: Shelf
) -> None:
    spool, ticket = staged(store, ALONE)
    assert visible(store) == {}
    assert store.publish(spool, ticket, IDENTITY)
    assert not store.publish(spool, ticket, IDENTITY)
    spool.close()
    assert visible(store) == {f"{PATH}.json": ALONE}
    assert decode(ALONE, PATH) == (IDENTITY, ticket.file)
    assert set(shelf.all()) == {f"{PATH}.json"}


def test_sidecar_alone_that_was_staged_stays_for_the_next_run(run: Open, store: Store) -> None:
    spool, ticket = staged(store, ALONE)
    spool.close()
    later = run()
    later.tidy([PATH])
    assert recovery.settle(later, ticket, IDENTITY) is Fate.PLACED
    assert recovery.settle(run(), ticket, IDENTITY) is Fate.PLACED
    taken_up = recovery.taken_up(later, ticket.file)
    assert taken_up is not None
    assert later.publish(taken_up, ticketed(later, taken_up, ticket.file), IDENTITY)
    taken_up.close()
    assert visible(store) == {f"{PATH}.json": ALONE}


def test_sidecar_alone_takes_the_place_of_one_that_no_row_knows(store: Store) -> None:
    staged(store, ALONE)[0].close()
    spool, ticket = staged(store, LATER)
    assert store.publish(spool, ticket, IDENTITY)
    spool.close()
    assert visible(store) == {f"{PATH}.json": LATER}


@pytest.mark.parametrize("name", [f"{PATH}.json", f"{PATH}.pdf", f"{PATH}.tif"])
def test_sidecar_alone_overwrites_nothing_and_is_never_placed_beside_an_image(
    store: Store, shelf: Shelf, name: str
) -> None:
    spool, stored = arrived(store, ALONE)
    shelf.write(name, b"of somebody else")
    with pytest.raises(StorageConflict):
        store.place(spool, stored, IDENTITY)
    spool.close()
    assert visible(store) == {name: b"of somebody else"}


def test_sidecar_alone_that_somebody_has_the_name_of_by_then_is_not_published(
    store: Store, shelf: Shelf
) -> None:
    spool, ticket = staged(store, ALONE)
    shelf.write(f"{PATH}.json", b"of somebody else")
    with pytest.raises(StorageConflict):
        store.publish(spool, ticket, IDENTITY)
    spool.close()
    assert visible(store) == {f"{PATH}.json": b"of somebody else"}


@pytest.mark.parametrize(
    ("content", "condition", "why"),
    [
        (ALONE, Condition.OK, None),
        (None, Condition.TAKEN, None),
        (LATER, Condition.DAMAGED, "the content of the sidecar has changed"),
        (ALONE[:-9], Condition.DAMAGED, "the sidecar is not one that poller writes"),
        (ALONE.replace(b'"f1"', b'"f2"'), Condition.DAMAGED, "the sidecar belongs to another fax"),
    ],
    ids=["as it was", "taken", "changed", "cut", "of another fax"],
)
@pytest.mark.parametrize("thorough", [True, False])
def test_sidecar_alone_is_well_taken_or_damaged(
    store: Store,
    shelf: Shelf,
    thorough: bool,
    content: bytes | None,
    condition: Condition,
    why: str | None,
) -> None:
    ticket = published(store, ALONE)
    take(shelf)
    if content is not None:
        shelf.write(f"{PATH}.json", content)
    found = store.look(ticket.file, IDENTITY, thorough=thorough)
    assert (found.condition, found.why) == (condition, why)
    assert not found.in_transit


def test_walk_gives_a_sidecar_alone_published_and_staged(store: Store) -> None:
    published(store, ALONE)
    spool, other = arrived(store, LATER, path="main/desk/f2")
    store.place(spool, other, IDENTITY)
    ticketed(store, spool, other)
    spool.close()
    found = sorted(store.walk(), key=str)
    assert [(one.path, one.visible) for one in found if isinstance(one, FoundSidecar)] == [
        (PATH, True),
        ("main/desk/f2", False),
    ]
    assert [one.stored for one in found if isinstance(one, FoundSidecar)] == [
        described(ALONE, PATH)[1],
        other,
    ]
