"""A simulated eFax: a real HTTP server on loopback, for tests and first looks.

Every point of the API that nobody has published is a switch (`Switches`), every trouble on the
way a fault (`Faults`).
"""

from .fake_efax import Seen
from .faults import Fault, Faults
from .server import Simulator
from .state import Fax, SentFax
from .switches import Switches

__all__ = ["Fault", "Faults", "Fax", "Seen", "SentFax", "Simulator", "Switches"]
