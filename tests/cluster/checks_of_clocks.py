"""Check 7: the nodes' clocks are five minutes apart, and one is set again and again."""

import asyncio
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

from tests.cluster.checks import Trial
from tests.cluster.checks_of_kills import killed_under_load
from tests.cluster.judge import Verdict
from tests.cluster.lab import Node, opened_lab

_WRONG_S = 300
_SET_EVERY_S = 5.0
_CLOCK = Path(__file__).with_name("wrong_clock.c")


async def clocks_wrong(trial: Trial) -> Verdict:
    """Do as check 1 does, with a node ahead, one behind, and one whose clock is set."""
    async with opened_lab(store=trial.store) as lab:
        clocks = {name: lab.root / f"clock of {name}" for name in "abc"}
        for (name, clock), error in zip(clocks.items(), (_WRONG_S, -_WRONG_S, 0), strict=True):
            clock.write_text(str(error))
            node = await lab.node(name, start=False, environ={"WRONG_CLOCK": str(clock)})
            node.installation.preload = _CLOCK
            await node.start()
            is_wrong = abs(_error_s(node) - error) < _WRONG_S / 2
            lab.verdict.demand(is_wrong, f"the clock of {name} is not {error} s wrong")
        setting = asyncio.create_task(_keep_setting(clocks["c"]))
        try:
            return await killed_under_load(lab, trial)
        finally:
            setting.cancel()


async def _keep_setting(clock: Path) -> None:
    for error in cycle((_WRONG_S, -_WRONG_S, 0)):
        await asyncio.sleep(_SET_EVERY_S)
        clock.write_text(str(error))


def _error_s(node: Node) -> float:
    """Return how wrong the times in its log are."""
    (ready,) = node.running.said("service-ready")
    return (datetime.fromisoformat(ready["@timestamp"]) - datetime.now(UTC)).total_seconds()
