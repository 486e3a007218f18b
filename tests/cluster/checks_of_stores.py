"""Check 6: a bucket that ignores conditions or sums. No node starts with it."""

from tests import s3
from tests.cluster.checks import Trial
from tests.cluster.judge import Verdict
from tests.cluster.lab import opened_lab

_REFUSED = 73
_SENTENCES = {"conditions": "ignores If-None-Match", "sums": "ignores Content-MD5"}


async def store_ignores(_trial: Trial) -> Verdict:
    return await refused()


async def refused(url: str | None = None) -> Verdict:
    """`url`: an empty database."""
    async with opened_lab(store="bucket", accounts=1, users=1, hostile=False, url=url) as lab:
        real = lab.shelf.configured["endpoint"]
        with s3.lacking("", real) as front:
            lab.shelf.configured["endpoint"] = front.url
            node = await lab.node("a", start=False)
            for lacks, sentence in _SENTENCES.items():
                front.lacks = lacks
                ended = await node.installation.poller("run")
                lab.verdict.figures[lacks] = f"exit {ended.code}"
                lab.verdict.demand(
                    ended.code == _REFUSED and sentence in ended.err,
                    f"without {lacks}: exit {ended.code}, {ended.err.strip()}",
                )
            front.lacks = ""
            await node.start()  # else it was something else that was refused
            lab.receive()
            await lab.all_delivered()
            return lab.judged()
