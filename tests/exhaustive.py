"""The only switch of the tests: with `POLLER_EXHAUSTIVE=1` they try every case, otherwise a sample.

`CI_NIGHTLY=1 .ci/run` sets it.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

EXHAUSTIVE = os.environ.get("POLLER_EXHAUSTIVE") == "1"
T = TypeVar("T")


def sample(values: Sequence[T], count: int) -> list[T]:
    """Return `count` values, evenly spread; return all of them if EXHAUSTIVE."""
    if EXHAUSTIVE or len(values) <= count:
        return [*values]
    return [values[len(values) * (2 * at + 1) // (2 * count)] for at in range(count)]


def often(count: int) -> int:
    """Return how many random examples to try: `count`, or 40 times as many if EXHAUSTIVE."""
    return 40 * count if EXHAUSTIVE else count
