"""Report the service's state to systemd, like sd_notify; do nothing without systemd."""

import contextlib
import os
import socket
import time


def notify(**fields: str | int) -> None:
    """Send fields of sd_notify(3) in one datagram; ignore errors, and do nothing without systemd.

    `systemctl status` shows the sentence in `STATUS`. Send `WATCHDOG=1` only while the service
    really works.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    lines = (f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
    message = "\n".join(lines).encode("utf-8", "replace")
    with (
        contextlib.suppress(OSError, ValueError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        # A full queue must not block the event loop; the next notice follows soon.
        sender.settimeout(0)
        sender.connect(address)
        sender.send(message)


def reloading() -> None:
    """Report that the service reads its configuration again; `READY=1` ends this."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def watchdog_interval() -> float | None:
    """Return how many seconds systemd waits for a `WATCHDOG=1`; send at least two in that time.

    Return None if systemd does not watch this process.
    """
    try:
        waits_us = int(os.environ.get("WATCHDOG_USEC", ""))
        watched = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    if waits_us <= 0 or watched != os.getpid():
        return None
    return waits_us / 1_000_000
