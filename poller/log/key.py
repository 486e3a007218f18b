"""The key of the codes that stand for fax numbers; kept with the state, so they stay the same."""

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
    """Return the key in `redaction.key`, made (0600, synced) when there is none.

    Raises CannotStart when it can be neither read nor made, or is not as it was made: with
    another key every sender would silently get another code.
    """
    path = state_directory / KEY_FILE
    try:
        make(state_directory)
        if not path.exists():
            _create(path)
        _clear_drafts(path)
        sync(state_directory)  # a run that made the key may have been killed just before this
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
    # Written under another name and linked: a crash never leaves a key that is half there, and of
    # two processes that create it both use the one that came first.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Not found: another process has made the key, and cleared this draft away.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _clear_drafts(path: Path) -> None:
    """Remove what a process that was killed while it made the key has left."""
    for draft in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            draft.unlink()
