"""The bytes of a fax as they arrive, in a file with a dot-name, until it gets its own name."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from poller.documents import Document, StoredFile, StoredFormat
from poller.errors import StorageConflict
from poller.store import syscalls
from poller.store.folder import Folder
from poller.store.sidecars import file_of

Inspect = Callable[[int], Document]


class Spool:
    """The bytes of one fax; blocks. Use it from one thread at a time.

    The bytes arrive in the directory where they will stay, so that placing them needs no copy.
    """

    def __init__(
        self, folder: Folder, form: StoredFormat | None = None, *, is_placed: bool = False
    ) -> None:
        """With `form`, an earlier run has placed the image under the name of this format.

        If it also `is_placed`, that file holds the bytes.
        """
        self.folder = folder
        self.form = form
        self.is_placed = is_placed
        self.name = folder.names.image(form) if form and is_placed else folder.names.dot_image
        self.is_ours = False  # whether this run gave it its name
        self.is_ticket_used = False  # in a bucket: a call without an answer may still be under way
        self._fd: int | None = None
        self._hash = hashlib.sha256()
        self._bytes = 0

    def restart(self) -> None:
        """Start with an empty file."""
        self.discard()
        self._fd = syscalls.create(self.name, self.folder.fd)
        self._hash, self._bytes = hashlib.sha256(), 0

    def write(self, data: bytes | bytearray) -> None:
        syscalls.write(self._open_fd(), data)
        self._count(data)

    def inspect(self, inspect: Inspect) -> Document:
        """Check the document; raises NotADocument, or StorageUnusable if nothing can check it."""
        with syscalls.reading(self.name, self.folder.fd) as fd:
            return inspect(fd)

    def reader(self) -> BinaryIO:
        """Open what has arrived so far for reading; raises OSError."""
        return syscalls.reader(syscalls.open_file(self.name, self.folder.fd))

    def read_back(self) -> None:
        """Count and hash what is there and make it durable: the run that wrote it may not have done so."""
        with syscalls.reading(self.name, self.folder.fd) as fd:
            for chunk in syscalls.read(fd):
                self._count(chunk)
            syscalls.sync_file(fd)

    def seal(self, form: StoredFormat, pages: int | None, *, damaged: bool) -> StoredFile:
        """Make all bytes durable; if that fails, never sync them again."""
        if not self.is_placed:
            fd = self._open_fd()
            if syscalls.status(fd).st_size != self._bytes:
                raise StorageConflict("the fax's dot-file has another length than poller wrote")
            syscalls.sync_file(fd)
            self._fd = None
            syscalls.close_written(fd)
        return StoredFile(
            file=file_of(self.folder.path, form),
            format=form,
            bytes=self._bytes,
            sha256=self._hash.hexdigest(),
            pages=pages,
            damaged=damaged,
        )

    def _count(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self._bytes += len(data)

    def discard(self) -> None:
        """Remove the dot-file; keep a placed image."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with suppress(OSError):
                syscalls.close(fd)
        syscalls.unlink(self.folder.names.dot_image, self.folder.fd)

    def close(self) -> None:
        """Leave only what was placed."""
        with suppress(OSError):  # the next run removes it
            self.discard()
        self.folder.close()

    def _open_fd(self) -> int:
        if self._fd is None:
            raise ValueError("restart a spool before you use it")
        return self._fd
