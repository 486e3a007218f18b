"""What the kernel says about directories of another user, to a process that is not root."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, sys
from poller.store.folder import require_takes_names
os.setgroups([]), os.setgid(65534), os.setuid(65534)
root = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
for path in sys.argv[2:]:
    try:
        require_takes_names(root, path)
    except PermissionError as error:
        print(path, "no", error.filename)
    else:
        print(path, "yes")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_nearest_directory_that_there_is_decides_whether_a_fax_has_a_place(tmp_path: Path) -> None:
    for ours in ("", "ours", "ours/theirs", "ours/day"):
        (tmp_path / ours).mkdir(exist_ok=True)
        if not ours.endswith("theirs"):
            os.chown(tmp_path / ours, 65534, 65534)
    (tmp_path / "closed" / "day").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    paths = ["x", "new/day/x", "ours/day/x", "ours/new/x", "ours/theirs/x", "ours/theirs/new/x"]
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, f"/proc/self/fd/{root}", *paths, "closed/day/x"],
        pass_fds=[root], check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    os.close(root)
    assert done.stdout.splitlines() == [
        *(f"{path} yes" for path in paths[:4]),
        *(f"{path} no ours/theirs" for path in paths[4:]),
        "closed/day/x no closed/day",
    ]
