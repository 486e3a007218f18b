"""Try, inside the unit's sandbox, what it must forbid; print one JSON object.

The service's own Python in the guest runs this, so it uses nothing of the tests.
"""

import ctypes
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

_NEW_USER_NAMESPACE = 0x10000000
_LEVELS = 4


def possible(deed: Callable[[], Any]) -> bool:
    try:
        deed()
    except OSError:
        return False
    return True


def call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def writable_directories() -> Iterator[str]:
    """Return where a file can really be made, some levels down; /proc and /sys hold no files of ours."""
    for top, folders, _ in os.walk("/"):
        if top in ("/proc", "/sys") or top.count("/") >= _LEVELS:
            folders.clear()
        if possible(lambda: tempfile.TemporaryFile(dir=top).close()):  # noqa: B023
            yield top


credentials = os.environ["CREDENTIALS_DIRECTORY"]
print(
    json.dumps(
        {
            "writable": sorted(writable_directories()),
            "credential": read(f"{credentials}/efax-api-key").decode().strip(),
            "possible": [
                name
                for name, deed in {
                    "read the key's file": lambda: read("/etc/poller/efax-api-key"),
                    "read passwords": lambda: read("/etc/shadow"),
                    "see other processes": lambda: os.stat("/proc/1"),
                    "change the kernel": lambda: os.stat("/proc/sys/vm"),
                    "look into root's home": lambda: os.listdir("/root"),
                    "become root": lambda: os.setuid(0),
                    "make a namespace": lambda: call("unshare", _NEW_USER_NAMESPACE),
                    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
                    "send raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
                }.items()
                if possible(deed)
            ],
        }
    ),
    flush=True,
)
