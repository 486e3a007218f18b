"""Benchmarks run, tiny, to their end: two in every run, all of them with POLLER_EXHAUSTIVE=1.

To learn how fast poller is, run them by hand.
"""

import importlib
import subprocess
import sys

import pytest

from tests.exhaustive import EXHAUSTIVE

TINY = {
    "fairness": "--rounds 1 --waiting 500 --kilobytes 20",
    "growth": "--polls 20 --polls-per-fax 2 --users 2 --kilobytes 20",
    "hook_day": "--users 3 --every 1 --minutes 0.05 --faxes-per-hour 7200",
    "hook_flood": "--rounds 1 --users 3 --every 1 --seconds 1.5 --rate 100",
    "idle": "--rounds 1 --users 3 --every 1 --seconds 1.5",
    "large": "--rounds 1 --faxes 2 --megabytes 0.5",
    "ledger_size": "--rounds 1 --users 3 --small 10 --large 50",
    "limit": "--rounds 1 --faxes 24 --kilobytes 20 --users 2",
    "many_users": "--rounds 1 --users 3 --every 1 --seconds 1.5",
    "restart": "--rounds 1 --users 3 --pending 20",
    "throughput": "--rounds 1 --faxes 8 --kilobytes 20",
}
# Between them, these import nearly everything that the others use.
SAMPLE = ("hook_flood", "ledger_size")


def test_every_benchmark_can_be_imported() -> None:
    for name in TINY:
        assert importlib.import_module(f"tests.benchmarks.{name}").main


@pytest.mark.parametrize("name", TINY if EXHAUSTIVE else SAMPLE)
def test_benchmark_ends_and_says_what_it_found(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *TINY[name].split()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "wanted:" in done.stdout
