"""`poller simulate`: the eFax API on loopback; its options are the simulator's own."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poller.simulator import simulate as simulator


def simulate(_paths: Sequence[Path], **options: Any) -> int:
    """Run the simulator until it is told to end; raises CannotStart when the port is taken."""
    return asyncio.run(simulator.run(argparse.Namespace(**options)))
