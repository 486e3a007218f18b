"""A store in a bucket of an S3-compatible service.

put the image if its key is free, with its MD5 and its signed SHA-256      place
begin an upload of the sidecar, and send its only part                     stage
record the ticket, the part and the upload, in the row                     the caller
complete the upload if the sidecar's key is free                           publish
record the row as stored, without a ticket                                 the caller

An upload is completed or aborted once. So of two runs with one ticket only one can publish, and none
after a takeover has aborted it. A call without an answer is never repeated: `recovery.settle` aborts
the upload and looks. Some stores ignore the condition of the last call, such as Ceph 16; there,
`publish` looks at the sidecar's key first.

A sidecar without an image has a hidden object, which proves that it is not published yet. Publishing
it takes two calls: complete the upload, then remove the hidden object. After a crash between the two,
and if a consumer has taken the sidecar meanwhile, it is delivered again.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from poller import state_directory
from poller.config.model import StorageConfig
from poller.documents import DocumentFormat, Staged, StoredFile, StoredFormat
from poller.errors import CannotStart, NotMounted, StorageConflict, StorageUnusable
from poller.naming import safe_id
from poller.store import bucket_probes, folder, inspection, marker, sidecars, survey, syscalls
from poller.store.bucket_calls import Completion, Objects
from poller.store.bucket_errors import ObjectDenied
from poller.store.folder import Durable, Folder, Names
from poller.store.inspection import MISSING, CannotRead, Finding
from poller.store.marker import MARKER
from poller.store.sidecars import EXTENSIONS, Identity, path_of
from poller.store.spool import Spool
from poller.store.survey import FoundSidecar, Unreadable

_KINDS: dict[StoredFormat, str] = {
    "pdf": "application/pdf",
    "tiff": "image/tiff",
    "json": "application/json",
}
_PROVED_FOR_S = 10.0
_READERS = 8
_ID_BYTES_MAX = 200
_NUMBERS = range(1, 1000)


class BucketStore:  # more than 20 methods: the verbs of a store
    """The verbs of a store, for a bucket. Faxes arrive in `spool`, a local directory."""

    reading_is_free = False

    def __init__(
        self,
        config: StorageConfig,
        spool: Path,
        environ: Mapping[str, str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._spools = spool
        self._objects = Objects(config, environ)
        self._monotonic = monotonic
        self._id: str | None = None
        self._run = uuid.uuid4().hex[:8]
        self._tested: int | None = None  # the number of doubts when everything was tested
        self._proved_at: float | None = None
        self._never_replaces = False  # whether that is certain when an upload is completed
        self.writes_to = str(spool)

    def where(self, file: str = "") -> str:
        return f"{self._objects.where}/{file}" if file else self._objects.where

    # -- the store as a whole --------------------------------------------------------------------

    def know(self, store_id: str | None) -> None:
        self._id = store_id

    def prepare(self) -> str:
        try:
            self.prove()
            return self._marker() or self._mark()
        except StorageUnusable as error:
            raise CannotStart(error.told) from error

    def _mark(self) -> str:
        """Mark an empty bucket, or use the marker of another node that was faster."""
        if strangers := sorted(self._visible(hidden_too=True)):
            raise CannotStart(
                f"the bucket {self.where()} is not empty (it contains {strangers[0]!r}) and has no marker "
                f"{MARKER}: start a new storage under another prefix"
            )
        new = str(uuid.uuid4())
        if self._objects.put(MARKER, BytesIO(f"{new}\n".encode()), kind="text/plain"):
            return new
        return self._marker() or self._mark()

    def check(self, *, doubts: int, shortly: bool) -> None:
        with self._near_spools() as at:
            marker.require_room(self._config, self._spools, at)
        if shortly:
            return
        known, self._tested = self._tested, None
        self._require_ours()
        if known != doubts:
            self.prove()
        self._tested = doubts

    def prove(self) -> None:
        self._never_replaces = bucket_probes.prove(self._objects)

    def marked(self) -> tuple[str | None, bool]:
        return self._marker(), bool(self._visible())

    def room(self) -> int:
        with self._near_spools() as at:
            space = syscalls.space(at)
            return space.f_bavail * space.f_frsize

    def tidy(self, paths: Iterable[str]) -> int:  # noqa: ARG002 - all spools are in one directory
        with syscalls.held(self._open_spools()) as at:
            return sum(
                syscalls.unlink(name, at)
                for name in syscalls.names(at)
                if folder.run_of(name) not in (None, self._run)
            )

    # -- one fax on its way ----------------------------------------------------------------------

    def admit(self, path: str, *, although_taken: bool = False) -> bool:  # noqa: ARG002 - no rights
        folder.split(path)
        self._require_ours(recently=True)
        listed = next(self._objects.pages(f"{path}."))[0]
        return not set(listed) & {f"{path}{end}" for end in (".json", *EXTENSIONS.values())}

    def spool(self, path: str) -> Spool:
        return self._new_spool(path)

    def _new_spool(self, path: str, form: StoredFormat | None = None) -> Spool:
        names = Names(hashlib.sha256(path.encode()).hexdigest()[:32], self._run)
        return Spool(Folder(path, names, self._open_spools(), Durable()), form)

    def read_back(self, path: str, form: StoredFormat | None = None) -> Spool | None:
        for one in EXTENSIONS if form is None else [form]:
            if (chunks := self._objects.chunks(_image(path, one))) is not None:
                spool = self._new_spool(path, one)
                try:
                    spool.restart()
                    for chunk in chunks:
                        spool.write(chunk)
                except BaseException:
                    spool.close()
                    raise
                return spool
        return None

    def place(self, spool: Spool, stored: StoredFile, identity: Identity) -> None:
        path = path_of(stored)
        if stored.format == "json":
            self._require_no_image(path)
        self._require_no_other(stored, identity)
        given = {
            "fax-id": safe_id(identity.fax_id),
            "sha256": stored.sha256,
            "pages": str(stored.pages or ""),
            "damaged": str(stored.damaged).lower(),
        }
        with spool.reader() as body:
            spool.is_ours = self._objects.put(
                _image(path, stored.format),
                body,
                kind=_KINDS[stored.format],
                metadata=given,
                replacing=stored.format == "json",
            )
        if not spool.is_ours and self._image_trouble(stored, thorough=False) is not None:
            raise StorageConflict(f"another file already has the name {stored.file}")
        spool.is_placed = True

    def _require_no_other(self, stored: StoredFile, identity: Identity) -> None:
        if self._sidecar_trouble(stored, identity) not in (None, MISSING):
            raise StorageConflict(f"another file already has the name {path_of(stored)}.json")

    def _require_no_image(self, path: str) -> None:
        for form in EXTENSIONS:
            if self._objects.head(name := _image(path, form)) is not None:
                raise StorageConflict(f"{name} exists, but the fax has no image")

    def stage(self, spool: Spool, stored: StoredFile, sidecar: bytes | None) -> str:
        key = f"{path_of(stored)}.json"
        if sidecar is None:
            with spool.reader() as body:
                sidecar = body.read()
        upload = self._objects.begin(key, _KINDS["json"])
        try:
            etag = self._objects.send_part(key, upload, sidecar)
        except Exception:
            with suppress(StorageUnusable):
                self._objects.abort(key, upload)
            raise
        return f"{etag} {upload}"

    def publish(self, spool: Spool, staged: Staged, identity: Identity) -> bool:
        if spool.is_ticket_used:
            return False  # a second answer could be about the first call
        path = path_of(staged.file)
        if not self._never_replaces:
            self._require_no_other(staged.file, identity)
        spool.is_ticket_used = True
        etag, _, upload = staged.ticket.partition(" ")
        ended = self._objects.complete(f"{path}.json", upload, etag)
        if ended is Completion.GONE:
            return False
        if ended is Completion.NAME_TAKEN:
            self._objects.abort(f"{path}.json", upload)
            self._require_no_other(staged.file, identity)
        self.secure(staged.file)
        return True

    def take_back(self, spool: Spool, stored: StoredFile) -> None:
        """Leave the image: without a sidecar it is no fax, and another node may continue with it."""

    def discard(self, stored: StoredFile) -> None:
        self._objects.delete(_image(path_of(stored), stored.format))

    def revoke(self, path: str, ticket: str) -> bool:
        self._objects.abort(f"{path}.json", ticket.partition(" ")[2])
        self._require_ours()
        return True

    # -- what is there -----------------------------------------------------------------------------

    def look(self, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
        self._require_ours(recently=True)
        sidecar = self._told("sidecar", lambda: self._sidecar_trouble(stored, identity))
        if stored.format == "json" and sidecar != MISSING:
            return Finding(sidecar, sidecar)
        image = self._told("image", lambda: self._image_trouble(stored, thorough=thorough))
        return Finding(image, sidecar)

    def _told(self, what: str, trouble: Callable[[], str | None]) -> str | None:
        try:
            return trouble()
        except ObjectDenied as error:
            self._require_ours()  # or the store denies everything
            return CannotRead(f"the {what} cannot be read: {error.fault}")

    def _sidecar_trouble(self, stored: StoredFile, identity: Identity) -> str | None:
        path = path_of(stored)
        data = self._objects.read(f"{path}.json", syscalls.SMALL_FILE_MAX)
        if data is None:
            return MISSING
        return sidecars.mismatch(sidecars.decode(data, path), stored, identity)

    def _image_trouble(self, stored: StoredFile, *, thorough: bool) -> str | None:
        """Believe the hash that poller put beside the bytes, in one request, unless `thorough`."""
        key = _image(path_of(stored), stored.format)
        seen = self._objects.head(key)
        if seen is None:
            return MISSING
        if seen.bytes != stored.bytes:
            return inspection.another_size(seen.bytes, stored)
        sha256 = None if thorough else seen.sha256
        if sha256 is None and (chunks := self._objects.chunks(key)) is not None:
            digest = hashlib.sha256()
            for chunk in chunks:
                digest.update(chunk)
            sha256 = digest.hexdigest()
        if sha256 is None:
            return MISSING
        return None if sha256 == stored.sha256 else inspection.CHANGED

    def secure(self, stored: StoredFile) -> None:
        """Remove what publishing a sidecar without an image may have left; all else is durable."""
        if stored.format == "json":
            self._objects.delete(_image(path_of(stored), "json"))

    def read(self, file: str) -> bytes | None:
        self._require_ours(recently=True)
        return self._objects.read(file, syscalls.SMALL_FILE_MAX)

    def put_aside(self, path: str, stored: StoredFile | None, identity: Identity) -> None:
        if stored is None:
            return  # every object is a file
        self._require_ours(recently=True)
        if self._sidecar_trouble(stored, identity) is not None:
            self._move_aside(f"{path}.json")
        for form in EXTENSIONS:
            is_its_own = form == stored.format
            if not is_its_own or self._image_trouble(stored, thorough=True) is not None:
                self._move_aside(_image(path, form))

    def _move_aside(self, key: str) -> None:
        """Copy an object to `.damaged-<name>`, then remove it."""
        if (seen := self._objects.head(key)) is None:
            return None
        directory, _, name = key.rpartition("/")
        for number in _NUMBERS:
            kept = _beside(directory, Names("").damaged(name, number))
            there = self._objects.head(kept)
            if there is None or there.etag == seen.etag:  # an earlier run was killed in between
                if there is None:
                    self._objects.copy(key, kept)
                return self._objects.delete(key)
        raise StorageConflict(f"poller has put {key} aside too often")

    def visible_files(self, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
        self._require_ours(recently=True)
        prefix = f"{directory}/" if directory else ""
        names: list[str] = []
        below: list[str] = []
        for keys, prefixes in self._objects.pages(prefix, deep=False):
            names += _visible_names(key.removeprefix(prefix) for key in keys)
            below += _visible_names(one.removeprefix(prefix).rstrip("/") for one in prefixes)
        return inspection.with_paths(directory, names), sorted(below)

    def walk(self) -> Generator[FoundSidecar | Unreadable, None, None]:
        self._require_ours()
        with ThreadPoolExecutor(_READERS, thread_name_prefix="sidecars") as readers:
            for keys, _ in self._objects.pages():
                for found in readers.map(self._described, filter(_is_sidecar, keys)):
                    yield from found

    def _described(self, key: str) -> list[FoundSidecar | Unreadable]:
        directory, _, name = key.rpartition("/")
        visible = not name.startswith(".")
        base = name.removesuffix(".json") if visible else folder.staged_base(name)

        def read() -> bytes:
            try:
                data = self._objects.read(key, syscalls.SMALL_FILE_MAX)
            except ObjectDenied as error:
                raise PermissionError(0, error.fault) from error
            if data is None:
                raise FileNotFoundError
            return data

        return list(survey.described(_beside(directory, base), read, visible=visible))

    # -- the marker, and the directory of spools ---------------------------------------------------

    def _require_ours(self, *, recently: bool = False) -> None:
        """Require the ledger's marker: somebody may have emptied the bucket, or made a new one."""
        now = self._monotonic()
        is_recent = self._proved_at is not None and now - self._proved_at < _PROVED_FOR_S
        if recently and is_recent:
            return
        self._proved_at = None
        found = self._marker()
        if found is None:
            raise NotMounted(f"the bucket {self.where()} has no marker {MARKER}")
        if found != self._id:
            raise NotMounted(
                f"the marker {MARKER} in {self.where()} belongs to another storage than this ledger's"
            )
        self._proved_at = now

    def _marker(self) -> str | None:
        data = self._objects.read(MARKER, _ID_BYTES_MAX)
        return None if data is None else data.decode(errors="replace").strip()

    def _visible(self, *, hidden_too: bool = False) -> list[str]:
        """Return the first names in the bucket, other than the marker and probes."""
        for keys, prefixes in self._objects.pages(deep=False):
            names = [name for name in [*keys, *prefixes] if hidden_too or not name.startswith(".")]
            if found := [one for one in names if not one.startswith((MARKER, bucket_probes.PROBE))]:
                return found
        return []

    def _open_spools(self) -> int:
        try:
            return syscalls.open_root(self.writes_to)
        except FileNotFoundError:
            state_directory.make(self._spools)
            return syscalls.open_root(self.writes_to)

    @contextmanager
    def _near_spools(self) -> Iterator[int]:
        """Hold the directory of spools open, or before the first fax the nearest one above."""
        ways = (self._spools, *self._spools.parents)
        nearest = next(one for one in ways if one.is_dir())
        with syscalls.held(syscalls.open_root(str(nearest))) as at:
            yield at


def _image(path: str, form: StoredFormat | DocumentFormat) -> str:
    """Return the key of an image, or of the hidden object that stands for it."""
    directory, _, base = path.rpartition("/")
    return _beside(directory, Names(base).image(form))


def _beside(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _visible_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if name and not name.startswith(".")]


def _is_sidecar(key: str) -> bool:
    name = key.rpartition("/")[2]
    if name.startswith("."):
        return name.endswith(f".{folder.COMES_ALONE}{folder.SIDECAR_PART}")
    return name.endswith(".json")
