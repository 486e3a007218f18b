"""A simulated eFax: a real HTTP server on loopback, for tests and first looks.

A switch (`Switches`) decides each point of the API that eFax does not document; a fault (`Faults`)
causes each kind of trouble.
"""

from .fake_efax import Seen
from .faults import Fault, Faults
from .server import Simulator
from .state import Fax, SentFax
from .switches import Switches

__all__ = ["Fault", "Faults", "Fax", "Seen", "SentFax", "Simulator", "Switches"]
