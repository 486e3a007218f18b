"""The commands on an installation whose faxes go to a bucket."""

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from poller.config.model import StorageConfig
from poller.simulator import Simulator
from tests import s3
from tests.acceptance.installation import APP, USERS, Installation, populated
from tests.s3 import bucket, s3_url

__all__ = ["bucket", "s3_url"]


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated eFax with two users, a fax of the last day each."""
    async with populated(Simulator(seed=11)) as running:
        for user_id in USERS.values():
            completed = running.now() - timedelta(hours=1)
            running.receive(APP, user_id, completed=completed, distinct=False)
        yield running


@pytest.fixture
def installation(simulator: Simulator, bucket: StorageConfig, tmp_path: Path) -> Installation:
    made = Installation(tmp_path, simulator.base_url)
    made.settings["storage"] = s3.written(bucket)
    made.environ |= s3.ENVIRON
    made.write({})
    return made


async def test_fax_in_a_bucket_is_shown_verified_and_found_again_without_a_ledger(
    installation: Installation, bucket: StorageConfig
) -> None:
    checked = await installation.poller("check")
    assert (checked.code, "nothing can be stored" in checked.out) == (0, False)
    summary = await installation.once()
    assert (summary["stored"], summary["pending"]) == (2, 0)
    files = s3.visible(bucket)
    assert sorted(Path(name).suffix for name in files) == [".json", ".json", ".pdf", ".pdf"]

    storage = (await installation.status())["storage"]
    assert (storage["directory"], storage["usable"]) == (bucket.url, True)
    fax_id = Path(next(iter(files))).stem
    explained = await installation.poller("explain", fax_id, "--json")
    assert explained.json["file"].startswith(f"{bucket.url}/main/")

    os.rename(installation.ledger, installation.ledger.with_suffix(".gone"))
    for snapshot in installation.ledger.parent.glob("poller.db.*"):
        snapshot.unlink()
    rebuilt = await installation.poller("rebuild")
    assert rebuilt.code == 0, rebuilt
    assert (await installation.once())["discovered"] == 0
    assert (await installation.poller("verify", "--json")).json["ok"] == 2
    assert s3.visible(bucket) == files


async def test_verify_reads_images_only_if_it_is_thorough_and_says_that_this_may_cost(
    installation: Installation, bucket: StorageConfig
) -> None:
    await installation.once()
    images = [name for name in s3.visible(bucket) if name.endswith(".pdf")]
    before = s3.objects(bucket)
    metadata = s3.client(bucket).head_object(**s3.where(bucket, images[0]))["Metadata"]
    rotten = before[images[0]][:-1] + b"?"
    s3.client(bucket).put_object(**s3.where(bucket, images[0]), Body=rotten, Metadata=metadata)
    s3.take(bucket, images[1], images[1].replace(".pdf", ".json"))

    quick = await installation.poller("verify", "--json")
    assert (quick.code, quick.json["ok"], quick.json["taken"]) == (0, 1, 1)
    thorough = await installation.poller("verify", "--thorough", "--json")
    assert (thorough.code, len(thorough.json["damaged"])) == (1, 1)
    assert "may charge" in thorough.err

    repaired = await installation.poller("verify", "--thorough", "--repair", "--json")
    assert (repaired.code, len(repaired.json["repaired"])) == (0, 1)
    after = s3.objects(bucket)
    assert after[images[0]] == before[images[0]]
    assert [data for name, data in after.items() if "/.damaged-" in name] == [rotten]


async def test_commands_without_the_key_of_the_bucket_say_so_or_leave_it_out(
    installation: Installation,
) -> None:
    await installation.once()
    del installation.environ["TEST_S3_KEY"]
    assert (await installation.status())["storage"]["reason"] is None
    assert (await installation.poller("check")).code == 0
    refused = await installation.poller("verify")
    assert refused.code == 78
    assert "storage.secret_access_key: environment variable TEST_S3_KEY is not set" in refused.err
    assert (await installation.poller("once")).code == 78


async def test_bucket_that_does_not_exist_is_a_start_refused(
    installation: Installation,
) -> None:
    installation.write({"storage": {"url": "s3://no-such-bucket/poller"}})
    done = await installation.poller("once")
    assert done.code == 73
    assert "s3://no-such-bucket/poller does not exist" in done.err
