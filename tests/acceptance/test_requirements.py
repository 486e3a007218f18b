"""The pinned packages, for people who install only packages with a proven hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
ONE_NODE, CLUSTER = (
    (REPOSITORY / "config" / name).read_text()
    for name in ("requirements.txt", "requirements-cluster.txt")
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
_PIN = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", re.M
)

BASE, EXTRA = PROJECT["dependencies"], PROJECT["optional-dependencies"]["cluster"]
both = pytest.mark.parametrize("text", [ONE_NODE, CLUSTER], ids=["one-node", "cluster"])


def pinned(text: str) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version, _ in _PIN.findall(text)}


@pytest.mark.parametrize(
    ("text", "dependency"),
    [*((ONE_NODE, one) for one in BASE), *((CLUSTER, one) for one in [*BASE, *EXTRA])],
)
def test_each_dependency_is_pinned_within_its_bounds(text: str, dependency: str) -> None:
    wanted = Requirement(dependency)
    assert wanted.specifier.contains(pinned(text)[canonicalize_name(wanted.name)])
    assert all(f"{wanted.name}-{extra}" in pinned(text) for extra in wanted.extras)


def test_the_extra_adds_packages_and_changes_none() -> None:
    assert pinned(ONE_NODE).items() < pinned(CLUSTER).items()


def test_the_simulator_is_an_extra_that_is_not_pinned_for_servers() -> None:
    extra = PROJECT["optional-dependencies"]["simulator"]
    assert any(one.startswith("img2pdf") for one in extra)
    assert "img2pdf" not in pinned(CLUSTER)


@both
def test_every_line_is_a_pin_with_hashes_or_a_comment(text: str) -> None:
    rest = [line for line in _PIN.sub("", text).splitlines() if not re.match(r"\s*#", line)]
    assert rest == []


@both
def test_it_names_no_registry_and_no_path(text: str) -> None:
    assert re.findall(r"https?:|file:|--(?:extra-)?index|--find-links|/\w+/", text) == []
