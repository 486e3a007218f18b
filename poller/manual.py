"""The manual: its pages and topics, from the installed package or from a checkout."""

import difflib
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from poller.errors import PollerError

_HERE: Final = Path(__file__).parent
_PLACES: Final = (_HERE / "manual", _HERE.parent)  # of an installed package, of a checkout
RUNBOOK: Final = "runbook"


class ManualPage(NamedTuple):
    """A page by its path in the repository, and one line that says what it holds."""

    path: str
    summary: str


PAGES: Final = {
    "readme": ManualPage("README.md", "what poller does and promises, and how to try it"),
    "install": ManualPage("systemd/README.md", "install, change, upgrade, roll back, uninstall"),
    "nodes": ManualPage("systemd/NODES.md", "run poller on several machines"),
    "config": ManualPage("config/REFERENCE.md", "every key of the configuration"),
    "commands": ManualPage("config/COMMANDS.md", "every command, its exit codes and its JSON"),
    "files": ManualPage(
        "config/FILES.md", "where faxes are, and the rules for programs that use them"
    ),
    "monitoring": ManualPage("config/MONITORING.md", "log events, metrics, endpoints and alerts"),
    RUNBOOK: ManualPage("config/RUNBOOK.md", "what to do when something is wrong"),
    "sending": ManualPage("config/SENDING.md", "archive sent faxes, send faxes, test a line"),
    "deleting": ManualPage("config/DELETING.md", "delete at eFax what is safely stored here"),
    "webhook": ManualPage("config/WEBHOOK.md", "let eFax's notices wake poller"),
    "architecture": ManualPage("poller/ARCHITECTURE.md", "how poller is built"),
    "tests": ManualPage("tests/README.md", "the tests and how to run them"),
    "changelog": ManualPage(".github/CHANGELOG.md", "what changed, version by version"),
    "contributing": ManualPage(".github/CONTRIBUTING.md", "how to propose a change"),
    "license": ManualPage(".github/LICENSE", "the licence"),
}


class UnknownTopic(PollerError):
    """The manual has no such topic; the sentence names the nearest ones."""


def topics() -> dict[str, str]:
    """Return every topic with its line: the pages, then the headings of the runbook."""
    pages = {topic: page.summary for topic, page in PAGES.items()}
    return pages | {topic_of(heading): symptom for heading, symptom in _troubles()}


def text(topic: str) -> str:
    """Return the Markdown of a topic: a page, or a section of the runbook. Raises UnknownTopic.

    Replace a link to another page by the command that shows it.
    """
    wanted = topic_of(topic)
    if wanted in PAGES:
        return _readable(_page(wanted), PAGES[wanted].path)
    for heading, section in _sections(_page(RUNBOOK)):
        if topic_of(heading) == wanted:
            return _readable(f"## {heading}\n{section}", PAGES[RUNBOOK].path)
    raise UnknownTopic(_not_there(topic, wanted))


def topic_of(heading: str) -> str:
    """Return the topic of a heading, formed like GitHub's anchors: `Disk full` is `disk-full`."""
    return re.sub("[^a-z0-9 -]", "", heading.strip().lower()).replace(" ", "-")


def _page(topic: str) -> str:
    found = (place / PAGES[topic].path for place in _PLACES)
    for file in found:
        if file.is_file():
            return file.read_text("utf-8")
    raise UnknownTopic(f"the page {PAGES[topic].path} is missing here; install poller again")


def _sections(page: str) -> Iterator[tuple[str, str]]:
    """Split a page at its second-level headings; leave out the text before the first."""
    for section in re.split("^## ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        yield heading, body


def _troubles() -> Iterator[tuple[str, str]]:
    """Yield the runbook's headings, each with the first sentence of its symptom as plain text."""
    for heading, section in _sections(_page(RUNBOOK)):
        symptom = re.search(r"\*\*Symptom\.\*\* (.+?)\.(?:\s|$)", section, re.DOTALL)
        line = symptom[1] if symptom else heading
        yield heading, " ".join(line.replace("`", "").split())


def _readable(page: str, path: str) -> str:
    without_images = re.sub(r"!\[[^]]*\]\([^)]*\)\n*", "", page)
    return re.sub(r"\[([^]]+)\]\(([^)\s]+)\)", lambda link: _link(link, path), without_images)


def _link(link: re.Match[str], path: str) -> str:
    words, target = link.groups()
    file, _, anchor = target.partition("#")
    if "://" in file:
        return target if words == target else f"{words} ({target})"
    at = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
    topic = next((name for name, page in PAGES.items() if page.path == at), None)
    if topic == RUNBOOK and anchor:
        topic = anchor
    elif topic is None or not file:
        return words
    command = f"`poller help {topic}`"
    return words if words == command else f"{words} ({command})"


def _not_there(topic: str, wanted: str) -> str:
    known = list(topics())
    near = [name for name in known if wanted and wanted in name]
    near += difflib.get_close_matches(wanted, known, cutoff=0.5)
    hint = ", ".join(dict.fromkeys(near)) or "`poller help` lists all topics"
    return f"the manual has no topic '{topic}'; " + (f"similar topics: {hint}" if near else hint)
