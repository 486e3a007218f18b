"""A bucket: the order of its calls, kills and lost answers at each of them, what a store must do."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from poller.config.model import StorageConfig
from poller.documents import Staged, StoredFile
from poller.errors import CannotStart, NotMounted, StorageConflict, StorageFull, StorageUnusable
from poller.store import Condition, FoundSidecar, Storage
from poller.store.bucket import BucketStore
from poller.store.bucket_calls import Objects
from poller.store.bucket_errors import ObjectDenied, refused, unanswered
from tests import s3
from tests.exhaustive import EXHAUSTIVE
from tests.integration import test_sidecar_alone as alone
from tests.integration.storage_seam import IDENTITY, PATH, Killed, resume, store, tiff
from tests.s3 import bucket, s3_url

__all__ = ["bucket", "s3_url"]
PUBLISHED = f"complete_multipart_upload {PATH}.json"
FIRST, SECOND = tiff(b"first download"), tiff(b"second download")
IMAGE, SIDECAR, HIDDEN = f"{PATH}.tif", f"{PATH}.json", "main/desk/.f1.alone.json.part"


class RecordedClient:
    """Records calls; can be killed before one, or lose the answer to one that the store carried out."""

    def __init__(self, client: Any, stop_at: int | None, unanswered_at: int | None) -> None:
        self.calls: list[str] = []
        self._client, self._stop_at, self._unanswered_at = client, stop_at, unanswered_at

    def step(self, call: str) -> None:
        if self._stop_at is not None and len(self.calls) >= self._stop_at:
            raise Killed
        self.calls.append(call)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**given: Any) -> Any:
            number = len(self.calls)
            key = re.sub("^poller/[0-9]+/", "", str(given.get("Key", given.get("Prefix"))))
            self.step(f"{operation.removesuffix('_object')} {key}")
            answer = getattr(self._client, operation)(**given)
            if number == self._unanswered_at:
                raise ReadTimeoutError(endpoint_url="http://127.0.0.1")
            return answer

        return call


class World:
    """One fax, its row, its consumer, and a storage that can be killed and started again."""

    def __init__(self, settings: StorageConfig, spools: Path, *, is_alone: bool) -> None:
        self.settings, self.spools, self.is_alone = settings, spools, is_alone
        self.row: StoredFile | None = None
        self.ticket: Staged | None = None
        self.taken = 0
        s3.write(settings, ".poller-storage", b"the marker")  # quicker than `prepare`

    @asynccontextmanager
    async def started(self, **how: int) -> AsyncIterator[Storage]:
        one = BucketStore(self.settings, self.spools, s3.ENVIRON)
        self.client = RecordedClient(
            s3.client(self.settings), how.get("stop_at"), how.get("unanswered_at")
        )
        one._objects._made = self.client
        one._never_replaces = True  # as `check` finds
        storage = Storage(one)
        await storage.prepare("the marker")
        try:
            yield storage
        except (Killed, StorageUnusable, StorageConflict):
            assert how
        finally:
            storage.close()

    def note(self, staged: Staged | None) -> None:
        self.client.step("ticket")
        self.ticket = staged

    def record(self, stored: StoredFile) -> None:
        self.client.step("row")
        self.row, self.ticket = stored, None

    async def deliver(self, **how: int) -> None:
        rows: dict[str, Any] = {"ticketed": self.note, "recorded": self.record}
        async with self.started(**how) as storage:
            if self.is_alone:
                await alone.archive(storage, **rows)
            else:
                await store(storage, FIRST, **rows)

    async def recover(self, **how: int) -> None:
        """Do what a start does, and then a worker: tidy, settle or resume, otherwise fetch again."""
        if self.row is not None:
            return
        rows: dict[str, Any] = {"ticketed": self.note, "recorded": self.record}
        async with self.started(**how) as storage:
            await storage.tidy([PATH])
            if self.is_alone:
                if await alone.resume(storage, ticket=self.ticket, **rows) is None:
                    await alone.archive(storage, alone.SECOND, **rows)
            elif await resume(storage, ticket=self.ticket, **rows) is None:
                await store(storage, SECOND, **rows)

    def take(self) -> None:
        """Act on the sidecar, as a consumer does: take the image first and the sidecar last."""
        self.check_visible()
        if SIDECAR in s3.visible(self.settings):
            s3.take(self.settings, IMAGE, SIDECAR)
            self.taken += 1

    def check_visible(self) -> None:
        """Nothing partial is visible, and what is recorded is there, or was taken."""
        seen = s3.visible(self.settings)
        assert seen.get(IMAGE) in {None, FIRST, SECOND}
        if SIDECAR in seen:
            image = json.loads(seen[SIDECAR])["image"]
            if self.is_alone:
                assert image is None
            else:
                assert image["sha256"] == hashlib.sha256(seen[IMAGE]).hexdigest()
        if self.row is not None and not self.taken:
            assert SIDECAR in seen

    def check_end(self) -> None:
        self.check_visible()
        assert self.row is not None
        pair = {SIDECAR} if self.is_alone else {IMAGE, SIDECAR}
        assert set(s3.objects(self.settings)) == (set() if self.taken else pair)
        assert list(self.spools.iterdir()) == []


Go = Callable[[World, int], Coroutine[Any, Any, None]]
Make = Callable[[bool], World]


@pytest.fixture
def make(bucket: StorageConfig, tmp_path: Path) -> Make:
    """Make a world under a prefix of its own."""
    prefixes = iter(range(1000))

    def made(is_alone: bool) -> World:
        spools = tmp_path / f"spools-{(number := next(prefixes))}"
        return World(replace(bucket, url=f"{bucket.url}/{number}"), spools, is_alone=is_alone)

    return made


both = pytest.mark.parametrize("is_alone", [False, True], ids=["image", "sidecar alone"])


async def killed(world: World, at: int) -> None:
    await world.deliver(stop_at=at)


async def not_answered(world: World, at: int) -> None:
    await world.deliver(unanswered_at=at)


async def steps(make: Make, *, is_alone: bool) -> list[str]:
    world = make(is_alone)
    await world.deliver()
    return world.client.calls


async def everywhere(make: Make, go: Go, *, is_alone: bool, taking: bool) -> list[int]:
    """Count what a consumer took, for a fault at each call; it takes all that it sees."""
    taken = []
    for at in range(len(await steps(make, is_alone=is_alone)) + 1):
        world = make(is_alone)
        await go(world, at)
        world.check_visible()
        if taking:
            world.take()
        await world.recover()
        if taking:
            world.take()
        world.check_end()
        before = s3.objects(world.settings)
        await world.recover()
        assert s3.objects(world.settings) == before
        taken.append(world.taken)
    return taken


# -- the durable order -------------------------------------------------------------------------


async def test_calls_come_in_the_durable_order(make: Make) -> None:
    assert await steps(make, is_alone=False) == [
        f"get {SIDECAR}",
        f"put {IMAGE}",
        f"create_multipart_upload {SIDECAR}",
        f"upload_part {SIDECAR}",
        "ticket",
        f"complete_multipart_upload {SIDECAR}",
        "row",
    ]


async def test_calls_for_a_sidecar_alone_come_in_the_durable_order(make: Make) -> None:
    assert await steps(make, is_alone=True) == [
        f"head {PATH}.pdf",
        f"head {IMAGE}",
        f"get {SIDECAR}",
        f"put {HIDDEN}",
        f"create_multipart_upload {SIDECAR}",
        f"upload_part {SIDECAR}",
        "ticket",
        f"complete_multipart_upload {SIDECAR}",
        f"delete {HIDDEN}",
        "row",
    ]


@both
@pytest.mark.parametrize("go", [killed, not_answered])
async def test_fault_at_any_call_ends_with_one_whole_fax(
    make: Make, go: Go, is_alone: bool
) -> None:
    await everywhere(make, go, is_alone=is_alone, taking=False)


@pytest.mark.parametrize("go", [killed, not_answered])
async def test_fax_that_is_taken_after_a_fault_at_any_call_is_not_delivered_again(
    make: Make, go: Go
) -> None:
    taken = await everywhere(make, go, is_alone=False, taking=True)
    assert taken == [1] * len(taken)


async def test_sidecar_alone_comes_again_only_after_a_crash_before_its_hidden_object_is_removed(
    make: Make,
) -> None:
    taken = await everywhere(make, killed, is_alone=True, taking=True)
    calls = await steps(make, is_alone=True)
    twice = calls.index(f"delete {HIDDEN}")  # config/FILES.md says so
    assert taken == [2 if at == twice else 1 for at in range(len(taken))]


@both
async def test_kill_at_any_call_of_the_recovery_changes_nothing_about_that(
    make: Make, is_alone: bool
) -> None:
    for at in range(len(await steps(make, is_alone=is_alone)) + 1):
        for again_at in range(0 if EXHAUSTIVE else at % 7, 30, 1 if EXHAUSTIVE else 7):
            world = make(is_alone)
            await world.deliver(stop_at=at)
            await world.recover(stop_at=again_at)
            ended = len(world.client.calls) < again_at
            world.check_visible()
            await world.recover()
            world.check_end()
            if ended:
                break


async def test_row_before_the_sidecar_is_found_by_a_kill(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = BucketStore.publish

    def hasty(self: BucketStore, spool: Any, staged: Staged, identity: Any) -> bool:
        world.record(staged.file)
        return publish(self, spool, staged, identity)

    publishes_at = (await steps(make, is_alone=False)).index(PUBLISHED)
    world = make(False)
    monkeypatch.setattr(BucketStore, "publish", hasty)
    await world.deliver(stop_at=publishes_at + 1)  # the row is a step before it
    with pytest.raises(AssertionError):
        world.check_visible()


async def test_ticket_after_the_sidecar_is_found_by_a_consumer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_ticket(world: World, at: int) -> None:
        await world.deliver(stop_at=at)
        world.ticket = None  # as if it were only recorded with the row

    taken = await everywhere(make, no_ticket, is_alone=False, taking=True)
    assert 2 in taken


# -- what a store must do --------------------------------------------------------------------------


@pytest.fixture
def front(s3_url: str) -> Iterator[s3.Front]:
    with s3.lacking("", s3_url) as front:
        yield front


@pytest.fixture
def through(bucket: StorageConfig, front: s3.Front) -> StorageConfig:
    return replace(bucket, endpoint=front.url)


@pytest.mark.parametrize(
    ("lacks", "sentence"),
    [
        ("conditions", "ignores If-None-Match"),
        ("sums", "ignores Content-MD5"),
        ("lists", "does not list an object as soon as it is written"),
        ("aborts", "completes an upload that poller has aborted"),
        ("403", "denies poller s3:GetObject or s3:ListBucket"),
        ("503", "answers 503"),
        ("507", "is full, or its quota is used up"),
    ],
)
def test_store_that_lacks_what_a_delivery_needs_is_refused_at_the_first_start(
    through: StorageConfig, front: s3.Front, tmp_path: Path, lacks: str, sentence: str
) -> None:
    if "POLLER_TEST_S3" in os.environ and lacks in {"conditions", "sums"}:
        pytest.skip("this store checks the signature of what the front changes")
    front.lacks = lacks
    with pytest.raises(CannotStart, match=sentence) as caught:
        BucketStore(through, tmp_path, s3.ENVIRON).prepare()
    assert caught.value.exit_code == 73
    front.lacks = ""
    BucketStore(through, tmp_path, s3.ENVIRON).prepare()


async def test_store_that_ignores_the_condition_of_a_completed_upload_is_looked_at_first(
    through: StorageConfig, front: s3.Front, bucket: StorageConfig, tmp_path: Path
) -> None:
    front.lacks = "conditions of uploads"
    storage = Storage(BucketStore(through, tmp_path / "spools", s3.ENVIRON))
    await storage.prepare(None)
    with pytest.raises(StorageConflict, match="another file already has the name"):
        await store(
            storage, FIRST, ticketed=lambda _: s3.write(bucket, SIDECAR, b"of somebody else")
        )
    assert s3.visible(bucket) == {IMAGE: FIRST, SIDECAR: b"of somebody else"}
    storage.close()


def test_probes_leave_nothing(bucket: StorageConfig, tmp_path: Path) -> None:
    BucketStore(bucket, tmp_path, s3.ENVIRON).prepare()
    assert s3.objects(bucket) == {}


def test_nobody_listens_there(bucket: StorageConfig, tmp_path: Path, s3_url: str) -> None:
    with s3.lacking("", s3_url) as front:
        gone = replace(bucket, endpoint=front.url)
    with pytest.raises(CannotStart, match=r"cannot be reached: check storage\.endpoint"):
        BucketStore(gone, tmp_path, s3.ENVIRON).prepare()


def answer(status: int, code: str) -> ClientError:
    error = {"Code": code, "Message": "AKIASECRET"}
    metadata = {"HTTPStatusCode": status}
    return ClientError({"Error": error, "ResponseMetadata": metadata}, "PutObject")


@pytest.mark.parametrize(
    ("status", "code", "kind", "sentence"),
    [
        (503, "SlowDown", StorageUnusable, "answers 503 (SlowDown); poller tries again"),
        (404, "NoSuchBucket", StorageUnusable, "does not exist: create it"),
        (403, "AccessDenied", ObjectDenied, "denies this access key or role something"),
        (403, "SignatureDoesNotMatch", StorageUnusable, "refuses the access key"),
        (403, "RequestTimeTooSkewed", StorageUnusable, "set this machine's clock"),
        (301, "PermanentRedirect", StorageUnusable, "correct storage.region"),
        (507, "InsufficientStorage", StorageFull, "is full, or its quota is used up"),
        (403, "QuotaExceeded", StorageFull, "is full, or its quota is used up"),
    ],
)
def test_refusal_has_its_kind_and_a_sentence_without_what_the_store_said(
    status: int, code: str, kind: type[StorageUnusable], sentence: str
) -> None:
    error = refused("s3://faxes", answer(status, code))
    assert type(error) is kind
    assert sentence in str(error)
    assert "AKIA" not in str(error)


def test_lost_answer_has_a_sentence_without_what_the_library_said() -> None:
    error = unanswered("s3://faxes", ReadTimeoutError(endpoint_url="http://key:s3cr3t@x"))
    assert str(error) == (
        "the bucket s3://faxes does not answer (ReadTimeoutError); poller tries again"
    )


@pytest.mark.parametrize(("conflicts", "ends"), [(2, True), (3, False)])
def test_put_that_meets_another_at_the_same_time_is_tried_a_few_times(
    bucket: StorageConfig, monkeypatch: pytest.MonkeyPatch, conflicts: int, ends: bool
) -> None:
    found = Objects(bucket, s3.ENVIRON)
    real, left = s3.client(bucket), iter([answer(409, "ConditionalRequestConflict")] * conflicts)

    class Busy:
        def put_object(self, **given: Any) -> None:
            if (error := next(left, None)) is not None:
                raise error
            real.put_object(**given)

    found._made = Busy()
    if ends:
        assert found.put("x", BytesIO(b"x"), kind="text/plain")
    else:
        with pytest.raises(StorageUnusable, match="answers 409"):
            found.put("x", BytesIO(b"x"), kind="text/plain")


# -- whose bucket it is ----------------------------------------------------------------------------


def test_two_nodes_that_start_together_mark_one_storage(
    bucket: StorageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (BucketStore(bucket, tmp_path, s3.ENVIRON) for _ in range(2))
    put, ids = Objects.put, list[str]()

    def slow(self: Objects, key: str, *given: Any, **more: Any) -> bool:
        if key == ".poller-storage" and not ids:
            ids.append("")
            ids[0] = first.prepare()
        return put(self, key, *given, **more)

    monkeypatch.setattr(Objects, "put", slow)
    assert second.prepare() == ids[0]


@pytest.mark.parametrize("name", ["main/x.pdf", "notes.txt", ".hidden"])
def test_bucket_with_other_objects_and_no_marker_is_refused(
    bucket: StorageConfig, tmp_path: Path, name: str
) -> None:
    s3.write(bucket, name, b"of somebody else")
    with pytest.raises(CannotStart, match="is not empty"):
        BucketStore(bucket, tmp_path, s3.ENVIRON).prepare()


def test_bucket_that_was_emptied_or_belongs_to_another_ledger_is_never_written_or_believed(
    bucket: StorageConfig, tmp_path: Path
) -> None:
    now = 0.0
    found = BucketStore(bucket, tmp_path, s3.ENVIRON, monotonic=lambda: now)
    found.know(found.prepare())
    found.check(doubts=0, shortly=False)
    stored = StoredFile(IMAGE, "tiff", 9, "0" * 64, 1, damaged=False)
    assert found.look(stored, IDENTITY, thorough=False).is_gone
    s3.take(bucket, ".poller-storage")
    now = 10.0  # a proof counts for less than that
    for verb in (
        lambda: found.look(stored, IDENTITY, thorough=False),
        lambda: found.revoke(PATH, '"etag" upload'),
        lambda: found.admit(PATH),
        lambda: found.read(SIDECAR),
        lambda: list(found.walk()),
        lambda: found.visible_files(""),
        lambda: found.check(doubts=0, shortly=False),
    ):
        with pytest.raises(NotMounted, match="has no marker"):
            verb()
    s3.write(bucket, ".poller-storage", b"another\n")
    with pytest.raises(NotMounted, match="belongs to another storage"):
        found.check(doubts=0, shortly=False)


# -- what is there ---------------------------------------------------------------------------------


@pytest.fixture
async def storage(bucket: StorageConfig, tmp_path: Path) -> AsyncIterator[Storage]:
    storage = Storage(BucketStore(bucket, tmp_path / "spools", s3.ENVIRON))
    await storage.prepare(None)
    yield storage
    storage.close()


async def test_objects_have_their_types_and_only_harmless_metadata(
    storage: Storage, bucket: StorageConfig
) -> None:
    stored = await store(storage, FIRST)
    image = s3.client(bucket).head_object(**s3.where(bucket, IMAGE))
    sidecar = s3.client(bucket).head_object(**s3.where(bucket, SIDECAR))
    assert (image["ContentType"], sidecar["ContentType"]) == ("image/tiff", "application/json")
    assert image["Metadata"] == {
        "fax-id": "f1",
        "sha256": stored.sha256,
        "pages": "1",
        "damaged": "false",
    }
    assert sidecar["Metadata"] == {}


async def look(storage: Storage, stored: StoredFile, *, thorough: bool) -> Condition:
    ((found),) = await storage.look([(stored, IDENTITY)], thorough=thorough)
    return found.condition


async def test_look_believes_the_hash_beside_the_bytes_and_a_thorough_one_reads_them(
    storage: Storage, bucket: StorageConfig
) -> None:
    stored = await store(storage, FIRST)
    rotten = FIRST[:-1] + b"?"
    metadata = s3.client(bucket).head_object(**s3.where(bucket, IMAGE))["Metadata"]
    s3.client(bucket).put_object(**s3.where(bucket, IMAGE), Body=rotten, Metadata=metadata)
    assert await look(storage, stored, thorough=False) is Condition.OK
    assert await look(storage, stored, thorough=True) is Condition.DAMAGED


async def test_image_that_somebody_put_back_without_the_hash_is_read(
    storage: Storage, bucket: StorageConfig
) -> None:
    stored = await store(storage, FIRST)
    s3.write(bucket, IMAGE, FIRST)
    assert await look(storage, stored, thorough=False) is Condition.OK
    s3.write(bucket, IMAGE, FIRST[:-1] + b"?")
    assert await look(storage, stored, thorough=False) is Condition.DAMAGED


async def test_denied_object_is_unreadable_and_a_store_that_denies_all_is_unusable(
    through: StorageConfig, front: s3.Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(BucketStore(through, tmp_path / "spools", s3.ENVIRON))
    await storage.prepare(None)
    stored = await store(storage, FIRST)
    head = Objects.head

    def denied(self: Objects, key: str) -> Any:
        if key == IMAGE:
            raise ObjectDenied("no", fault="the store denies it (InvalidObjectState)")
        return head(self, key)

    monkeypatch.setattr(Objects, "head", denied)
    (found,) = await storage.look([(stored, IDENTITY)], thorough=False)
    assert found.condition is Condition.UNREADABLE
    assert found.why == "the image cannot be read: the store denies it (InvalidObjectState)"
    front.lacks = "403"
    with pytest.raises(StorageUnusable, match="denies"):
        await storage.look([(stored, IDENTITY)], thorough=False)
    storage.close()


async def test_damaged_names_are_numbered_and_a_move_that_was_interrupted_is_finished(
    storage: Storage, bucket: StorageConfig
) -> None:
    stored = await store(storage, FIRST)
    aside = "main/desk/.damaged-f1.tif"
    s3.write(bucket, aside, SECOND)
    s3.write(bucket, IMAGE, b"II*\0 broken")
    for _ in range(2):
        storage.store.put_aside(PATH, stored, IDENTITY)
        s3.write(bucket, IMAGE, b"II*\0 broken")  # as if the removal had not come
    kept = {name: data for name, data in s3.objects(bucket).items() if ".damaged" in name}
    assert kept == {aside: SECOND, "main/desk/.damaged-2-f1.tif": b"II*\0 broken"}


async def test_walk_and_lists_go_beyond_one_page(
    storage: Storage, bucket: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await store(storage, FIRST, path=f"main/desk/f{number}")
    storage.store._objects._made = _SmallPages(s3.client(bucket))  # type: ignore[attr-defined]
    found = [one async for batch in storage.sidecars() for one in batch]
    paths = sorted(one.path for one in found if isinstance(one, FoundSidecar))
    assert paths == [f"main/desk/f{number}" for number in range(5)]
    files, below = storage.store.visible_files("main/desk")
    assert (len(files), below) == (10, [])


class _SmallPages:
    """A store that lists three objects at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def list_objects_v2(self, **given: Any) -> Any:
        return self._client.list_objects_v2(**given, MaxKeys=3)


# -- the spools ------------------------------------------------------------------------------------


async def test_spools_of_ended_runs_are_removed_and_commands_that_only_look_make_none(
    bucket: StorageConfig, tmp_path: Path
) -> None:
    spools = tmp_path / "state/spool"
    looking = BucketStore(bucket, spools, s3.ENVIRON)
    looking.know(looking.prepare())
    looking.check(doubts=0, shortly=False)
    assert looking.room() > 0
    assert not spools.exists()
    ended = BucketStore(bucket, spools, s3.ENVIRON)
    left = ended.spool(PATH)
    left.restart()
    left.write(b"half")
    left.folder.close()
    mine = looking.spool("main/desk/f2")
    mine.restart()
    assert looking.tidy([]) == 1
    assert len(list(spools.iterdir())) == 1
    mine.close()
    assert spools.stat().st_mode & 0o777 == 0o700


def test_full_disk_of_the_spools_is_a_full_storage(bucket: StorageConfig, tmp_path: Path) -> None:
    found = BucketStore(replace(bucket, min_free=1 << 60), tmp_path / "spools", s3.ENVIRON)
    with pytest.raises(StorageFull, match="less than"):
        found.check(doubts=0, shortly=True)


def test_directory_needs_no_boto3() -> None:
    program = (
        "import sys, poller.cli, poller.ingest.runtime, poller.cli.verify_command\n"
        "assert not {'boto3', 'botocore'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
