"""YAML text to frozen configuration."""

from poller.config.load import load
from poller.config.secrets import blanks_problem, hook_secrets, read_log_key, read_secret

__all__ = ["blanks_problem", "hook_secrets", "load", "read_log_key", "read_secret"]
