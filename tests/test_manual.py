"""The manual: its topics, and how `poller help` finds and shows them."""

import re
from pathlib import Path

import pytest

from poller import manual
from poller.cli import main

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


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("acount-suspended", "near it: account-suspended"),
        ("disk", "near it: disk-full, disk-not-mounted, disk-hangs"),
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
