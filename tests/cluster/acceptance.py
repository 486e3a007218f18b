"""The acceptance checks of several nodes: real processes, on loopback alone.

python -m tests.cluster.acceptance [CHECK …] [--store directory|bucket] [--seconds S]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

import pytest

from tests.cluster import (
    checks_of_clocks,
    checks_of_cuts,
    checks_of_databases,
    checks_of_failovers,
    checks_of_kills,
    checks_of_stops,
    checks_of_stores,
)
from tests.cluster.checks import Check, Trial

CHECKS = [
    Check("1", "a node is killed under load", checks_of_kills.node_killed),
    Check("2", "a node is stopped at each step of a fax", checks_of_stops.node_stopped),
    Check("2p", "planted faults are found by 2", checks_of_stops.plants_found),
    Check("3", "a node is cut off", checks_of_cuts.node_cut_off),
    *checks_of_databases.CHECKS,
    *checks_of_failovers.CHECKS,
    Check("6", "a bucket lacks something", checks_of_stores.store_ignores, ("bucket",)),
    Check("7", "clocks are wrong", checks_of_clocks.clocks_wrong),
]


def main() -> int:
    """Run the checks that are named, or all; return 1 if one failed."""
    names = list(dict.fromkeys(check.name for check in CHECKS))
    told = _read_arguments(names)
    outcomes = [
        _outcome(check, Trial(store, told.seconds))
        for check in CHECKS
        if check.name in (told.checks or names)
        for store in check.stores
        if told.store in (None, store)
    ]
    return int("failed" in outcomes)


def _read_arguments(names: Sequence[str]) -> argparse.Namespace:
    about = [f"{check.name} {check.title}" for check in CHECKS]
    parser = argparse.ArgumentParser(
        description="\n  ".join([str(__doc__), "The checks:", *about]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checks", nargs="*", metavar="CHECK", choices=[*names, []], help="all if none is named")
    add("--store", choices=("directory", "bucket"), help="with this kind of store alone")
    add("--seconds", type=float, metavar="S", help="how long the trouble lasts, for a short look")
    return parser.parse_args()


def _outcome(check: Check, trial: Trial) -> str:
    """Run a check and print its line."""
    began = time.monotonic()
    try:
        verdict = asyncio.run(check.run(trial))
    except pytest.skip.Exception as why:
        outcome, said = "skipped", [str(why)]
    except Exception as error:
        outcome, said = "failed", [f"{type(error).__name__}: {error}"]
    else:
        outcome = "failed" if verdict.faults else "passed"
        figures = [f"{name} {figure}" for name, figure in verdict.figures.items()]
        said = [*verdict.faults, *figures]
    took = f"{time.monotonic() - began:.0f} s"
    print(
        f"{check.name} {check.title} ({trial.store}): {outcome}", took, *said, sep=", ", flush=True
    )
    return outcome


if __name__ == "__main__":
    sys.exit(main())
