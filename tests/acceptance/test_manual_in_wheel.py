"""The manual of an installed package, which has no checkout beside it."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from poller import manual

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel of this checkout."""
    base = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", base, REPOSITORY)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    (wheel,) = base.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(base / "unpacked")
    return base / "unpacked"


def run(unpacked: Path, *words: str) -> str:
    """What Python prints, for which the wheel alone is installed."""
    environ = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        (sys.executable, *words),
        cwd=unpacked.parent,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_topic_is_shown_from_a_wheel_as_from_the_checkout(unpacked: Path) -> None:
    program = (
        "import json; from poller import manual; "
        "print(json.dumps([manual.__file__, {t: manual.text(t) for t in manual.topics()}]))"
    )
    place, pages = json.loads(run(unpacked, "-c", program))
    assert Path(place).is_relative_to(unpacked)
    assert pages == {topic: manual.text(topic) for topic in manual.topics()}


def test_help_works_from_a_wheel(unpacked: Path) -> None:
    shown = run(unpacked, "-m", "poller", "help", "account-suspended")
    assert shown.startswith("## Account suspended\n")
    assert re.search("^config +every key", run(unpacked, "-m", "poller", "help"), re.MULTILINE)


def test_each_page_of_the_manual_is_named_for_the_wheel() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    pages = {page.path for page in manual.PAGES.values() if not page.path.startswith("poller/")}
    assert included == {path: f"poller/manual/{path}" for path in pages}
