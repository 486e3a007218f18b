"""The manual: its topics, and how `poller help` finds and shows them."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from poller import manual
from poller.cli import main
from poller.topic import Topic, see

ROOT = Path(__file__).parents[1]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["help", *words])
    return code, *capsys.readouterr()


def test_help_lists_every_page_and_every_heading_of_the_runbook(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = said([], capsys)
    listed = [line.split()[0] for line in out.splitlines() if re.match(r"[a-z-]+ ", line)]
    headings = re.findall("^## (.*)$", (ROOT / "config/RUNBOOK.md").read_text(), re.MULTILINE)
    assert (code, err) == (0, "")
    assert listed[1:] == [*manual.PAGES, *map(manual.topic_of, headings)]
    assert "account-suspended" in listed


def test_a_topic_of_the_runbook_is_its_section_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(["disk-full"], capsys)
    assert code == 0
    assert re.findall("^#.*", out, re.MULTILINE) == ["## Disk full"]


def test_a_heading_is_a_topic_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["Disk full"], capsys) == said(["disk-full"], capsys)


@pytest.mark.parametrize("topic", ["config", "monitoring"])
def test_a_narrow_terminal_cuts_nothing_off(
    topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = said([topic], capsys)
    assert code == 0
    assert "\x1b[" in out
    assert out.count("…") == manual.text(topic).count("…")


def test_a_table_too_wide_for_the_terminal_is_shown_as_a_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = said(["monitoring"], capsys)
    lines = [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", out).splitlines()]
    at = lines.index("disk-low")
    assert lines[at + 1] == "  level: warning"
    assert lines[at + 2] == "  fields: free_bytes min_free_bytes"


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("acount-suspended", "similar topics: account-suspended"),
        ("disk", "similar topics: disk-full, disk-not-mounted, disk-hangs"),
        ("xyzzy", "`poller help` lists all topics"),
        ("", "`poller help` lists all topics"),
    ],
)
def test_an_unknown_topic_is_one_sentence_with_the_nearest_names(
    topic: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said([topic], capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"the manual has no topic '{topic}'; {sentence}" in err


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[the gap](RUNBOOK.md#gap)", "the gap (`poller help gap`)"),
        ("[the gap](#gap)", "the gap (`poller help gap`)"),
        ("[`poller help gap`](#gap)", "`poller help gap`"),
        ("[install](../systemd/README.md)", "install (`poller help install`)"),
        ("[steps](../systemd/README.md#upgrade)", "steps (`poller help install`)"),
        ("[an example](poller.example.yaml)", "an example"),
        ("[docs](https://example.org/x)", "docs (https://example.org/x)"),
        ("![a picture](page.png)\n\nWords", "Words"),
    ],
)
def test_a_link_becomes_the_command_that_shows_its_page(
    link: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "config/RUNBOOK.md"
    page.parent.mkdir()
    page.write_text(f"# Runbook\n\n## Gap\n\n{link}\n")
    monkeypatch.setattr(manual, "_PLACES", (tmp_path,))
    assert manual.text("gap") == f"## Gap\n\n{shown}\n"


def test_a_page_that_is_missing_from_the_installation_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manual, "_PLACES", (tmp_path,))
    code, out, err = said(["readme"], capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "README.md is missing here" in err


# -- the topics that sentences name ------------------------------------------------------------------

RUNBOOK = [*manual.topics()][len(manual.PAGES) :]
NAMED = re.compile(r"poller help ([a-z]+(?:-[a-z]+)*)")


def named_in_files() -> Iterator[str]:
    """Every topic that the program or a file for operators names, as `see` or in its words."""
    for file in (ROOT / "poller").rglob("*.py"):
        text = file.read_text()
        yield from NAMED.findall(text)
        if file.name != "topic.py":
            yield from (word for word in TOPICS if f'"{word}"' in text)
    for pattern in ("config/**/*.yml", "config/**/*.md", "systemd/**/*", "README.md"):
        for file in ROOT.glob(pattern):
            yield from NAMED.findall(file.read_text())


TOPICS = set(get_args(Topic))


def test_every_topic_that_is_named_exists() -> None:
    assert set(manual.topics()) >= TOPICS
    assert set(named_in_files()) <= set(manual.topics())


def test_every_section_of_the_runbook_is_named_by_a_sentence_or_an_alert() -> None:
    assert set(RUNBOOK) <= set(named_in_files())
    assert set(RUNBOOK) <= TOPICS


@pytest.mark.parametrize("topic", RUNBOOK)
def test_a_section_of_the_runbook_says_symptom_cause_what_to_do_and_when_to_call(
    topic: str,
) -> None:
    parts = re.findall(r"^\*\*(.+?)\*\*", manual.text(topic), re.MULTILINE)
    parts = [part for part in parts if part[0].isupper() or part.startswith("eFax")]
    assert parts == ["Symptom.", "Cause.", "Do.", "Call eFax when"]


def test_the_runbook_writes_the_name_of_every_alert_that_it_helps_with() -> None:
    rules = (ROOT / "config/prometheus/poller.rules.yml").read_text()
    assert set(re.findall(r"`(Poller\w+)`", manual.text("runbook"))) == set(
        re.findall(r"alert: (\w+)", rules)
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("No space", "No space. See `poller help disk-full`."),
        ("Is it mounted?", "Is it mounted? See `poller help disk-full`."),
        ("Slow. See `poller help efax-slow`.", "Slow. See `poller help efax-slow`."),
        ("x: slow. See `poller help efax-slow`", "x: slow. See `poller help efax-slow`."),
    ],
)
def test_a_sentence_ends_with_one_topic_and_the_more_special_one_stays(
    words: str, told: str
) -> None:
    assert see(words, "disk-full") == told


# -- the pages as they are read on the web -------------------------------------------------------


PAGES = sorted(page.path for page in manual.PAGES.values())
PAGES_OF_WORDS = [path for path in PAGES if path.endswith(".md")]


def words_of(path: str) -> str:
    """A page without its blocks of code."""
    return re.sub(
        r"^ *```.*?^ *```$", "", (ROOT / path).read_text(), flags=re.MULTILINE | re.DOTALL
    )


def anchors_of(path: str) -> set[str]:
    return {manual.topic_of(heading) for heading in re.findall("^#+ (.*)$", words_of(path), re.M)}


@pytest.mark.parametrize("path", PAGES)
def test_every_page_of_the_manual_exists(path: str) -> None:
    assert (ROOT / path).read_text().strip()


@pytest.mark.parametrize("path", PAGES_OF_WORDS)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(path: str) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", words_of(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
        if not (ROOT / there).exists() or (anchor and anchor not in anchors_of(there)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("path", PAGES_OF_WORDS)
def test_no_line_of_prose_is_longer_than_160_characters(path: str) -> None:
    lines = words_of(path).splitlines()
    assert [line for line in lines if len(line) > 160 and not line.lstrip().startswith("|")] == []


def test_the_readme_has_at_most_150_lines_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    others = [path for path in PAGES if path != "README.md"]
    assert [path for path in others if f"]({path})" not in readme] == []
