"""A command run as root on another user's state becomes that user, or refuses."""

import os
import pwd
import shlex
import sys
from pathlib import Path

from poller.errors import CannotStart


def become_owner(state_directory: Path) -> None:
    """Take on the user that owns the state, so that no file of root stops the daemon later.

    Does nothing unless run as root on a state directory that belongs to somebody else. Raises
    CannotStart with the `sudo -u` line when that user cannot be become.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = state_directory.stat()
    except OSError:
        return
    if owner.st_uid == 0:
        return
    try:
        name = pwd.getpwuid(owner.st_uid).pw_name
        os.initgroups(name, owner.st_gid)
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except (KeyError, OSError) as error:
        command = shlex.join(["sudo", "-u", f"#{owner.st_uid}", *sys.argv])
        raise CannotStart(
            f"{state_directory} belongs to user {owner.st_uid}; run it as that user: {command}"
        ) from error
