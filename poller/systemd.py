"""Tell systemd how the service is doing, as sd_notify does; without systemd nothing happens."""

import contextlib
import os
import socket
import time


def notify(**fields: str | int) -> None:
    """Send `fields` in one datagram to NOTIFY_SOCKET; without one, or when it fails, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # the abstract namespace of Linux
        address = "\0" + address[1:]
    lines = (f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
    message = "\n".join(lines).encode("utf-8", "replace")
    with contextlib.suppress(OSError, ValueError):
        _send(address, message)


def _send(address: str, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A full queue must not hold up the event loop; the next notice comes soon.
        sender.settimeout(0)
        sender.connect(address)
        sender.send(message)


def ready(status: str | None = None) -> None:
    """Say that the service is up (also after `reloading`), and how it is doing."""
    notify(READY=1, **({} if status is None else {"STATUS": status}))


def status(text: str) -> None:
    """Set the sentence that `systemctl status` shows."""
    notify(STATUS=text)


def reloading() -> None:
    """Say that the configuration is being read again; `ready` ends it."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def stopping(status: str | None = None) -> None:
    """Say that the service is draining."""
    notify(STOPPING=1, **({} if status is None else {"STATUS": status}))


def watchdog() -> None:
    """Say that the service is alive; to be sent only while it really works."""
    notify(WATCHDOG=1)


def watchdog_interval() -> float | None:
    """Return how long systemd waits for a `watchdog`, in seconds; send at least two in that time.

    None when systemd does not watch this process.
    """
    try:
        waits_us = int(os.environ.get("WATCHDOG_USEC", ""))
        watched = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    if waits_us <= 0 or watched != os.getpid():
        return None
    return waits_us / 1_000_000
