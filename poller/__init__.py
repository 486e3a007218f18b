"""poller stores every fax received through the eFax Enterprise API on disk."""

from importlib.metadata import version

VERSION = version("poller")
