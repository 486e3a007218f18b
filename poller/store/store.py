"""The interface of a store: verbs that every kind of store has. They block, so run them in threads.

A fax is placed (its image gets its name), staged (its sidecar is hidden and has a ticket, which the
ledger keeps) and published (its sidecar gets its name). After a killed run, `revoke` and `look`
tell how far it came. A fax without an image has only a sidecar, which counts as its image until it
is published. tests/integration/test_store_contract.py tests each implementation.
"""

from collections.abc import Generator, Iterable
from typing import Protocol

from poller.documents import Staged, StoredFile, StoredFormat
from poller.store.inspection import Finding
from poller.store.sidecars import Identity
from poller.store.spool import Spool
from poller.store.survey import FoundSidecar, Unreadable


class Store(Protocol):  # more than 20 methods: the whole, a fax on its way, what is there
    """Paths name faxes, without extension, relative to the store; files have an extension.

    Every verb may raise StorageUnusable, StorageConflict and OSError.
    """

    writes_to: str  # the local directory in which faxes arrive; OSErrors are about it
    reading_is_free: bool  # or its owner may charge for each image that is read

    def where(self, file: str = "") -> str:
        """Return the full path of a file, or of the store, for people; asks the store nothing."""

    def know(self, store_id: str | None) -> None:
        """Set which store the ledger knows; others are unusable from now on."""

    def prepare(self) -> str:
        """Pair a ledger that has no store yet with this one; return its id. Raises CannotStart."""

    def check(self, *, doubts: int, shortly: bool) -> None:
        """Raise unless the store can take a fax now; test everything if `doubts` has changed."""

    def prove(self) -> None:
        """Test all that a delivery needs, marked or not; raises what is missing."""

    def marked(self) -> tuple[str | None, bool]:
        """Return the id in its marker, and whether it holds anything visible."""

    def room(self) -> int:
        """Return the number of bytes that are free for us."""

    def tidy(self, paths: Iterable[str]) -> int:
        """Remove what ended runs left hidden beside these paths; return how many files."""

    def admit(self, path: str, *, although_taken: bool = False) -> bool:
        """Tell whether all names of the fax are free; if not, `look` says more.

        Raises PermissionError if the fax, free or `although_taken`, could not be placed.
        """

    def spool(self, path: str) -> Spool:
        """Start a fax; the caller closes it."""

    def read_back(self, path: str, form: StoredFormat | None = None) -> Spool | None:
        """Take up the image that an earlier run placed and did not publish; count and hash it."""

    def place(self, spool: Spool, stored: StoredFile, identity: Identity) -> None:
        """Give a sealed spool its name, or accept the same image under that name; never overwrites.

        A sidecar without an image gets a hidden name, which it keeps until it is published.

        Raises StorageConflict if another file has this name or the sidecar's.
        """

    def stage(self, spool: Spool, stored: StoredFile, sidecar: bytes | None) -> str:
        """Keep the sidecar hidden and make everything durable; return the ticket.

        If this fails, a directory takes the image back; a bucket leaves it to the next attempt.
        `sidecar` is None if the placed file is the sidecar.
        """

    def publish(self, spool: Spool, staged: Staged, identity: Identity) -> bool:
        """Use the ticket: give the sidecar its name, durably. Return False if the ticket was revoked.

        Raises MovedAway if nothing is published and the image is out of reach: then the ledger must
        forget the ticket before `take_back`.
        """

    def take_back(self, spool: Spool, stored: StoredFile) -> None:
        """Hide the image of a fax that has no ticket."""

    def discard(self, stored: StoredFile) -> None:
        """Remove the image of a fax that was delivered and taken before this image came."""

    def revoke(self, path: str, ticket: str) -> bool:
        """Make sure that nobody can ever use the ticket; you may call this repeatedly.

        A sidecar without an image stays: the next ticket is for it, and it can be published once.
        Returns False if the place where it was staged is gone; then missing files prove nothing.
        """

    def look(self, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
        """Compare what is there with what was stored; `thorough` reads the image. Changes nothing."""

    def secure(self, stored: StoredFile) -> None:
        """Make durable what a look found: the run that wrote it may have been killed before."""

    def read(self, file: str) -> bytes | None:
        """Read a small file; return None if it is missing."""

    def put_aside(self, path: str, stored: StoredFile | None, identity: Identity) -> None:
        """Move what has the fax's names and is not this image to `.damaged-<name>`.

        With None, move only what is not a readable file.
        """

    def visible_files(self, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
        """List the visible files and the subdirectories of one directory; "" is the topmost.

        Each file comes with the path of the fax to which it can belong.
        """

    def walk(self) -> Generator[FoundSidecar | Unreadable, None, None]:
        """Yield every sidecar, visible or staged."""
