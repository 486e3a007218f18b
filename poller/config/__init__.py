"""YAML text to frozen configuration."""

from poller.config.load import load
from poller.config.secrets import blanks_problem, read_secret

__all__ = ["blanks_problem", "load", "read_secret"]
