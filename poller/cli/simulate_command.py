"""`poller simulate`: a simulated eFax API on loopback; the simulator defines the options."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poller.simulator import simulate as simulator


def simulate(_paths: Sequence[Path], **options: Any) -> int:
    """Run the simulator until a signal ends it. Raises CannotStart if the port is taken."""
    return asyncio.run(simulator.run(argparse.Namespace(**options)))
