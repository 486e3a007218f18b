"""config/requirements.txt, for people who install only packages with a proven hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "config/requirements.txt").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
_PIN = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", re.M
)

PINNED = {canonicalize_name(name): version for name, version, _ in _PIN.findall(TEXT)}


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_each_dependency_is_pinned_within_its_bounds(dependency: str) -> None:
    wanted = Requirement(dependency)
    assert wanted.specifier.contains(PINNED[canonicalize_name(wanted.name)])


def test_the_simulator_is_an_extra_that_is_not_pinned_for_servers() -> None:
    extra = PROJECT["optional-dependencies"]["simulator"]
    assert any(one.startswith("img2pdf") for one in extra)
    assert "img2pdf" not in PINNED


def test_every_line_is_a_pin_with_hashes_or_a_comment() -> None:
    rest = [line for line in _PIN.sub("", TEXT).splitlines() if not re.match(r"\s*#", line)]
    assert rest == []


def test_it_names_no_registry_and_no_path() -> None:
    assert re.findall(r"https?:|file:|--(?:extra-)?index|--find-links|/\w+/", TEXT) == []
