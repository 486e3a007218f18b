"""The daemon: when each user is polled, and what keeps the process honest."""
