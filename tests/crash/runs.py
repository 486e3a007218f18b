"""Runs of poller's commands with the shim in them, to be broken."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.forks import Forks, forks
from tests.ready_checker import KEEP_ONE_READY

_SHIM = Path(__file__).with_name("shim.c")
PATIENCE_S = 300


@dataclass(frozen=True)
class After:
    """The call that comes `more` after the `nth` one of this name with `part` in its path."""

    call: str
    part: str
    nth: int = 1
    more: int = 0


@dataclass(frozen=True)
class Order:
    """One run of `words` in `directory`; shim.c describes what the shim does below `prefix`.

    `planted` are functions, each `module:name`, called in the run before it begins. `later_s` moves
    its clock. `after` chooses the call in place of `at`.
    """

    words: Sequence[str]
    directory: str
    prefix: str
    environ: Mapping[str, str] = field(default_factory=dict)
    at: int = 0
    act: str = ""
    after: After | None = None
    planted: str = ""
    names: str = ""
    later_s: float = 0
    hang_timeout_s: int = PATIENCE_S


async def carry_out(order: Order) -> tuple[int, str, str]:
    """Run it; its exit code, negative for a signal, its stdout, and its stderr."""
    server = shimmed()
    fork = await server.start(
        order.words,
        Path(order.directory),
        {**server.environ, **order.environ},
        {**KEEP_ONE_READY, "tests.crash.armed:arm": asdict(order)},
    )
    out, err = await fork.communicate()
    return await fork.wait(), out.decode(), err.decode()


def shimmed() -> Forks:
    """Give the fork server with the shim."""
    return forks(_SHIM)
