"""Tests that failed in one whole run of all and pass alone: to be understood, not to be forgotten."""

import os

import pytest

UNSTEADY = pytest.mark.skipif(
    os.environ.get("POLLER_EXHAUSTIVE") != "1",
    reason="not steady beside other tests, and not yet understood; POLLER_EXHAUSTIVE=1 runs it",
)
