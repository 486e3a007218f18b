"""YAML text to frozen configuration."""

from poller.config.load import load
from poller.config.model import (
    UTC_ZONE,
    Account,
    Config,
    During,
    Expect,
    Heartbeat,
    HttpConfig,
    ImageFormat,
    Limits,
    LogConfig,
    Poll,
    RetryConfig,
    SecretRef,
    StorageConfig,
    Sweep,
    User,
)
from poller.config.secrets import blanks_problem, read_secret

__all__ = [
    "UTC_ZONE",
    "Account",
    "Config",
    "During",
    "Expect",
    "Heartbeat",
    "HttpConfig",
    "ImageFormat",
    "Limits",
    "LogConfig",
    "Poll",
    "RetryConfig",
    "SecretRef",
    "StorageConfig",
    "Sweep",
    "User",
    "blanks_problem",
    "load",
    "read_secret",
]
