"""What an acceptance check is: a coroutine that returns a verdict, or skips with a reason."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from tests.cluster.judge import Verdict

Kind = Literal["directory", "bucket"]


@dataclass(frozen=True)
class Trial:
    """What a check is given. `seconds` is how long its trouble lasts; None: as in the full run."""

    store: Kind
    seconds: float | None = None

    async def lasts(self, seconds: float) -> None:
        await asyncio.sleep(self.seconds or seconds)


@dataclass(frozen=True)
class Check:
    """One of the twelve checks, or a part of it; it runs once for each kind of store that it names."""

    name: str
    title: str
    run: Callable[[Trial], Coroutine[Any, Any, Verdict]]
    stores: tuple[Kind, ...] = ("directory", "bucket")
