"""evidence: kept for the operator, bounded, and never in the way."""

import base64
import io
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poller import evidence as evidence_module
from poller.errors import Evidence
from poller.evidence import KEPT_PER_FAX, EvidenceStore

AT = datetime(2024, 5, 21, 4, 27, 56, 1, UTC)
SENT = Evidence(status=200, headers={"Content-Type": "application/json"}, body=b'{"image": "x"}')


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def _keep(store: EvidenceStore, fax_id: str = "f1", **changes: Any) -> bool:
    how: dict[str, Any] = {
        "at": AT,
        "error": "no document",
        "evidence": SENT,
        "image": lambda: io.BytesIO(b"%PDF-"),
    } | changes
    return await store.keep(("app", "user", fax_id), **how)


def _a_thousand() -> io.BytesIO:
    return io.BytesIO(b"x" * 1000)


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in _files(directory))


async def test_answer_and_image_are_kept_for_the_service_alone(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    assert await _keep(store)
    image, answer = await store.find("app", "user", "f1")
    assert (image.suffix, answer.suffix) == (".image", ".json")
    assert image.read_bytes() == b"%PDF-"
    assert json.loads(answer.read_bytes()) == {
        "app_id": "app",
        "user_id": "user",
        "fax_id": "f1",
        "at": "2024-05-21T04:27:56.000001Z",
        "error": "no document",
        "status": 200,
        "headers": {"Content-Type": "application/json"},
        "body": '{"image": "x"}',
        "image": {"bytes": 5, "kept": 5},
    }
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert image.is_relative_to(tmp_path / "evidence")


async def test_image_may_be_a_file_or_missing(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    (tmp_path / "part").write_bytes(b"half an image")
    for number, image in enumerate([tmp_path / "part", tmp_path / "gone", None]):
        opened = image and partial(image.open, "rb")
        assert await _keep(store, f"f{number}", image=opened)
    found = [[file.suffix for file in await store.find("app", "user", f"f{n}")] for n in range(3)]
    assert found == [[".image", ".json"], [".json"], [".json"]]


async def test_large_image_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "IMAGE_BYTES_MAX", 1000)
    monkeypatch.setattr(evidence_module, "_CHUNK", 300)
    (tmp_path / "part").write_bytes(b"x" * 5000)
    store = EvidenceStore(tmp_path, 1 << 20)
    assert await _keep(store, image=partial((tmp_path / "part").open, "rb"))
    image, answer = await store.find("app", "user", "f1")
    assert image.read_bytes() == b"x" * 1000
    assert json.loads(answer.read_bytes())["image"] == {"bytes": 5000, "kept": 1000}


async def test_body_that_is_no_text_is_kept_as_base64(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    assert await _keep(store, evidence=Evidence(body=b"\xff\x00"), image=None)
    [answer] = await store.find("app", "user", "f1")
    assert base64.b64decode(json.loads(answer.read_bytes())["body_base64"]) == b"\xff\x00"


@pytest.mark.parametrize("fax_id", ["../../x", ".", "a/b", "\0", "\ud800", "x" * 500, ""])
async def test_odd_fax_id_stays_inside(tmp_path: Path, fax_id: str) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    assert await _keep(store, fax_id)
    assert len(await store.find("app", "user", fax_id)) == 2
    assert {file.parent.parent for file in _files(tmp_path)} == {tmp_path / "evidence"}


async def test_faxes_of_two_users_are_told_apart(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    await _keep(store)
    assert await store.find("app", "other", "f1") == []


async def test_oldest_goes_first_when_the_space_is_used_up(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 10_000)
    for number in range(20):
        kept = await _keep(
            store, f"f{number}", at=AT + timedelta(seconds=number), image=_a_thousand
        )
        assert kept
        assert _size(tmp_path) <= 10_000
    held = [n for n in range(20) if await store.find("app", "user", f"f{n}")]
    assert held == list(range(20 - len(held), 20))
    assert len(held) >= 5
    assert len(list((tmp_path / "evidence").iterdir())) == len(held)


async def test_what_earlier_runs_kept_counts_too(tmp_path: Path) -> None:
    for number in range(20):
        store = EvidenceStore(tmp_path, 10_000)
        await _keep(store, f"f{number}", at=AT + timedelta(seconds=number), image=_a_thousand)
    assert _size(tmp_path) <= 10_000
    assert await store.find("app", "user", "f19")
    assert not await store.find("app", "user", "f0")


async def test_one_fax_keeps_only_its_last_failures(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    await _keep(store, "other")
    for number in range(KEPT_PER_FAX + 3):
        await _keep(store, error=str(number))
    answers = [path for path in await store.find("app", "user", "f1") if path.suffix == ".json"]
    errors = [json.loads(path.read_bytes())["error"] for path in answers]
    assert errors == [str(number) for number in range(3, KEPT_PER_FAX + 3)]
    assert await store.find("app", "user", "other")


async def test_nothing_is_kept_where_nothing_may_be(tmp_path: Path) -> None:
    assert not await _keep(EvidenceStore(tmp_path, 0))
    assert _files(tmp_path) == []


async def test_directory_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "evidence").touch()
    store = EvidenceStore(tmp_path, 1 << 20)
    assert not await _keep(store)
    assert await store.find("app", "user", "f1") == []


async def test_full_disk_is_no_error_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EvidenceStore(tmp_path, 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", _failing_dumps(json.dumps))
        assert not await _keep(store)
    assert _files(tmp_path) == []
    assert await _keep(store)


def _failing_dumps(dumps: Any) -> Any:
    """Fails after the image was written, like a disk that is full by then."""

    def full(content: Any, **how: Any) -> Any:
        if isinstance(content, dict):
            raise OSError(28, "No space left on device")
        return dumps(content, **how)

    return full


async def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "poller.db").write_bytes(b"x" * 50_000)
    (tmp_path / "evidence" / "notes").mkdir(parents=True)
    (tmp_path / "evidence" / "notes" / "note.txt").write_bytes(b"x" * 50_000)
    (tmp_path / "evidence" / "note.txt").write_bytes(b"x")
    store = EvidenceStore(tmp_path, 10_000)
    assert await _keep(store)
    assert (tmp_path / "poller.db").exists()
    assert (tmp_path / "evidence" / "notes" / "note.txt").exists()
