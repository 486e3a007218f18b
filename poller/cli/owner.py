"""A command run as root on another user's state becomes that user, or refuses."""

import grp
import os
import pwd
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from poller.errors import CannotStart, ConfigError, Problem


def become_owner(state_directory: Path) -> str | None:
    """Take on the user that owns the state, so that no file of root stops the daemon later; its name.

    Does nothing unless run as root on a state directory that belongs to somebody else; before it is
    made, that is the owner of the directory in which it will be. Raises CannotStart with the
    `sudo -u` line when that user cannot be become.
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
            f"{directory} belongs to user {name or owner.st_uid}; run it as that user: "
            + _as_user(name, owner)
        ) from error
    return name


def _as_user(name: str | None, owner: os.stat_result) -> str:
    """The command line; sudo and runuser know no user without a name, as in a container."""
    if name is not None:
        return shlex.join(["sudo", "-u", name, *sys.argv])
    ids = ["--reuid", str(owner.st_uid), "--regid", str(owner.st_gid), "--clear-groups"]
    command = shlex.join(["setpriv", *ids, *sys.argv])
    return f"{command} (from outside: docker exec -u {owner.st_uid}:{owner.st_gid} …)"


def _nearest(directory: Path) -> tuple[Path, os.stat_result] | None:
    """Find the directory, or the nearest one above it that exists; none where it cannot be looked at."""
    for path in (directory, *directory.parents):
        try:
            return path, path.stat()
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def require_readable(paths: Iterable[Path], user: str) -> None:
    """Raise ConfigError where `user`, who this process has become, cannot read what root could."""
    found = {problem for path in paths if (problem := _unreadable(path, user)) is not None}
    if found:
        raise ConfigError(list(found))


def _unreadable(path: Path, user: str) -> Problem | None:
    """The first directory on the way that is closed to the user, or what is at its end."""
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
        f"user {user}, as which the service runs, cannot read it: "
        f"`chgrp {group} {name} && chmod {mode} {name}` lets it",
    )


def _group() -> str:
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())
