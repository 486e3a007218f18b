"""Become the user that owns the state when run as root, or refuse."""

import grp
import os
import pwd
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from poller.errors import CannotStart, ConfigError, Problem


def become_owner(state_directory: Path) -> str | None:
    """Become the user that owns the state, so that no root-owned file stops the daemon; return the name.

    Do nothing unless root runs the command and the state directory belongs to another user. If the
    directory does not exist yet, the owner of the nearest one above it counts. Raises CannotStart
    with the `sudo -u` line if the process cannot become that user.
    """
    if os.geteuid() != 0:
        return None
    found = _nearest(state_directory.absolute())
    if found is None or found[1].st_uid == 0:
        return None
    directory, owner = found
    name = None
    try:
        name = pwd.getpwuid(owner.st_uid).pw_name
        os.initgroups(name, owner.st_gid)
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except (KeyError, OSError) as error:
        raise CannotStart(
            f"{directory} belongs to user {name or owner.st_uid}; run the command as that user: "
            + _as_user(name, owner)
        ) from error
    return name


def _as_user(name: str | None, owner: os.stat_result) -> str:
    """Return the command line; in a container the user may have no name, which sudo needs."""
    if name is not None:
        return shlex.join(["sudo", "-u", name, *sys.argv])
    ids = ["--reuid", str(owner.st_uid), "--regid", str(owner.st_gid), "--clear-groups"]
    command = shlex.join(["setpriv", *ids, *sys.argv])
    return f"{command} (from outside: docker exec -u {owner.st_uid}:{owner.st_gid} …)"


def _nearest(directory: Path) -> tuple[Path, os.stat_result] | None:
    """Return the directory or the nearest existing one above it; None if it cannot be read."""
    for path in (directory, *directory.parents):
        try:
            return path, path.stat()
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def require_readable(paths: Iterable[Path], user: str) -> None:
    """Raise ConfigError if `user`, who this process has become, cannot read a file that root could."""
    found = {problem for path in paths if (problem := _unreadable(path, user)) is not None}
    if found:
        raise ConfigError(list(found))


def _unreadable(path: Path, user: str) -> Problem | None:
    """Return a problem for the first directory on the path, or the file, that the user cannot read."""
    real = Path(os.path.realpath(path))
    closed = [above for above in reversed(real.parents) if not os.access(above, os.X_OK)]
    if not closed and os.access(real, os.R_OK):
        return None
    at = (closed or [real])[0]
    group = _group()
    name = shlex.quote(str(at))
    mode = "750" if closed or os.path.isdir(at) else "640"  # noqa: PTH112 - it may be closed
    return Problem(
        str(at),
        0,
        "",
        f"the service's user {user} cannot read it: "
        f"run `chgrp {group} {name} && chmod {mode} {name}`",
    )


def _group() -> str:
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())
