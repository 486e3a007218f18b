"""What keeps faxes: the verbs that every kind of store has. They block, and run in threads.

A fax is placed, staged, published: its image has its name, its sidecar waits under a ticket that the
ledger keeps, its sidecar has its name. What a killed run has left is told by `revoke` and `look`.
A fax without an image is a sidecar alone, which plays the image's part until it is published.
tests/integration/test_store_contract.py says it of every implementation.
"""

from collections.abc import Generator, Iterable
from typing import Protocol

from poller.documents import Staged, StoredFile, StoredFormat
from poller.store.inspection import Finding
from poller.store.sidecars import Identity
from poller.store.spool import Spool
from poller.store.survey import FoundSidecar, Unreadable


class Store(Protocol):  # more than 20 methods: the whole, a fax on its way, what is there
    """Paths are those of faxes, without extension, relative to the store; files have one.

    Each verb may raise StorageUnusable, StorageConflict and OSError.
    """

    def where(self, file: str = "") -> str:
        """Say for people where a file is, or the store itself; asks nothing."""

    def know(self, store_id: str | None) -> None:
        """Tell which store the ledger knows; the others are unusable from now on."""

    def prepare(self) -> str:
        """Pair a ledger that knows no store yet with this one: its id. Raises CannotStart."""

    def check(self, *, doubts: int, shortly: bool) -> None:
        """Raise unless it can take a fax now; all is tried where `doubts` is another number."""

    def prove(self) -> None:
        """Try what a delivery needs, marked or not; raises what is lacking."""

    def marked(self) -> tuple[str | None, bool]:
        """Read the id that it is marked with, and whether anything visible lies beside it."""

    def room(self) -> int:
        """Count the bytes that are free for us."""

    def tidy(self, paths: Iterable[str]) -> int:
        """Remove what runs that have ended left hidden beside these paths; how many files."""

    def admit(self, path: str, *, although_taken: bool = False) -> bool:
        """Tell whether none of the fax's names is taken; or else it is for a look to say more.

        Raises PermissionError where it is free, or `although_taken`, and nothing could be placed.
        """

    def spool(self, path: str) -> Spool:
        """Begin a fax; its owner closes it."""

    def read_back(self, path: str, form: StoredFormat | None = None) -> Spool | None:
        """Take up the image that an earlier run has placed and not published, counted and hashed."""

    def place(self, spool: Spool, stored: StoredFile, identity: Identity) -> None:
        """Give a sealed spool its name, or let the same image that has it count; never overwrites.

        A sidecar that comes alone gets a hidden name, which it keeps until it is published.

        Raises StorageConflict where another file has this name, or the sidecar's.
        """

    def stage(self, spool: Spool, stored: StoredFile, sidecar: bytes | None) -> str:
        """Keep the sidecar hidden and all so far durable; the ticket. What fails takes the image back.

        None where the sidecar comes alone: it is what was placed.
        """

    def publish(self, spool: Spool, staged: Staged, identity: Identity) -> bool:
        """Consume the ticket: the sidecar has its name, durably. False: the ticket was revoked.

        Raises MovedAway when nothing is published and the image is out of reach: the ledger has to
        forget the ticket, and then `take_back` is due.
        """

    def take_back(self, spool: Spool, stored: StoredFile) -> None:
        """Hide the image of a fax that has no ticket."""

    def revoke(self, path: str, ticket: str) -> bool:
        """Make sure that the ticket can never be consumed, however often this is called.

        A sidecar that comes alone stays: it is what the next ticket is for, and can be published once.
        False: where it was staged is not there any more, and what is missing there says nothing.
        """

    def look(self, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
        """Compare what is there with what was stored; `thorough` reads the image. Changes nothing."""

    def secure(self, stored: StoredFile) -> None:
        """Make durable what a look has found, for its run may have been killed before it did."""

    def read(self, file: str) -> bytes | None:
        """Read a small file; None when it is missing."""

    def put_aside(self, path: str, stored: StoredFile | None, identity: Identity) -> None:
        """Move what has the fax's names and is not this image to `.damaged-<name>`.

        With None, only what is no file that could be read.
        """

    def visible_files(self, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
        """List one directory, "" the topmost: its visible files, and the directories in it.

        Each file comes with the path of the fax that it can belong to.
        """

    def walk(self) -> Generator[FoundSidecar | Unreadable, None, None]:
        """Give every sidecar, visible or staged."""
