"""poller gets every received fax from the eFax Enterprise API onto the disk."""

from importlib.metadata import version

VERSION = version("poller")
