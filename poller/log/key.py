"""The key of the codes that replace fax numbers; it is part of the state, so codes stay the same."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from poller.errors import CannotStart
from poller.state_directory import make, sync

KEY_FILE: Final = "redaction.key"
_KEY_BYTES: Final = 32


def load_or_create_key(state_directory: Path) -> bytes:
    """Return the key in `redaction.key`; create it (0600, synced) if there is none.

    Raises CannotStart if it can be neither read nor created, or is damaged: with another key every
    sender would silently get another code.
    """
    path = state_directory / KEY_FILE
    try:
        make(state_directory)
        if not path.exists():
            _create(path)
        _clear_drafts(path)
        sync(state_directory)  # the run that created the key may have died just before this
        key = path.read_bytes()
    except OSError as error:
        raise CannotStart(f"cannot read or create {path}: {error.strerror or error}") from error
    if len(key) != _KEY_BYTES:
        raise CannotStart(
            f"{path} is damaged: {len(key)} bytes instead of {_KEY_BYTES}; "
            "remove it to start with new codes for fax numbers"
        )
    return key


def _create(path: Path) -> None:
    # Write it under another name and link it: a crash never leaves half a key, and if two processes
    # create it, both use the first one.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Not found: another process has created the key and removed this draft.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _clear_drafts(path: Path) -> None:
    """Remove the drafts of processes that died while they created the key."""
    for draft in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            draft.unlink()
