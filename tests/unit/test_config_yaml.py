"""Hostile YAML: whatever the bytes are, the answer is a tree or problems, in bounded time."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.config.document import exactly, parse, quickly
from poller.config.position import Node, Problems, Source, masked, quoted
from tests.exhaustive import often

SOURCE = Source("poller.yaml", Path("/etc/poller"))
PIECES = [
    *(
        "\t",
        "  ",
        "\n",
        "- ",
        "? ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!x ",
        "!!str ",
        "'",
        '"',
    ),
    *("|", "|2-\n", ">", "%YAML 1.1\n", "%TAG ! x\n", "---\n", "...\n", "#", "@", "`", "\\", ","),
    *(
        '"\\UFFFFFFFF"',
        '"\\ud800"',
        "<<: *a\n",
        "\ufeff",
        "\x85",
        "\u2028",
        "\0",
        "é",
        "0x1",
        "1e999",
    ),
    *("~", "key: value\n", "!<x>", "!%41 ", "\r", "!e!x ", "a: b\n", "null", "accounts:\n"),
]


def scalar(text: str) -> object:
    problems = Problems()
    root = parse(f"key: {text}\n".encode(), SOURCE, problems)
    assert root is not None
    assert isinstance(root.value, dict)
    assert not problems.found
    return root.value["key"].value


@settings(max_examples=often(75))
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join))
def test_any_text_gives_a_tree_or_problems(text: str) -> None:
    problems = Problems()
    root = parse(text.encode("utf-8", "surrogatepass"), SOURCE, problems)
    assert isinstance(root, Node) or problems.found
    if root is None:
        assert problems.incomplete


@settings(max_examples=often(25))
@given(st.binary(max_size=40))
def test_any_bytes_give_a_tree_or_problems(data: bytes) -> None:
    problems = Problems()
    assert parse(data, SOURCE, problems) is not None or problems.found


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: " + "[" * 500, id="lists"),
        pytest.param("{a: " * 500, id="maps"),
        pytest.param("- " * 500, id="block lists"),
        pytest.param("\n".join(" " * i + "a:" for i in range(100)), id="block maps"),
    ],
)
def test_deep_nesting_is_refused_and_not_followed(text: str) -> None:
    problems = Problems()
    assert parse(text.encode(), SOURCE, problems) is None
    (problem,) = problems.found
    assert problem.message == "maps and lists are nested more than 32 deep"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("0123", 123, id="no octal of YAML 1.1"),
        pytest.param("0o17", 15, id="octal"),
        pytest.param("0xFf", 255, id="hexadecimal"),
        pytest.param("-7", -7, id="negative"),
        pytest.param("+1.5e3", 1500.0, id="exponent"),
        pytest.param(".5", 0.5, id="no digit before the point"),
        pytest.param("9" * 5000, float("inf"), id="thousands of digits"),
        pytest.param("-.INF", float("-inf"), id="minus infinity"),
        pytest.param("TRUE", True, id="true"),
        pytest.param("False", False, id="false"),
        pytest.param("", None, id="nothing"),
        pytest.param("~", None, id="tilde"),
        pytest.param("NULL", None, id="null"),
        pytest.param("nUll", "nUll", id="no null"),
        pytest.param("off", "off", id="no boolean of YAML 1.1"),
        pytest.param("190:20:30", "190:20:30", id="no sexagesimal of YAML 1.1"),
        pytest.param("0b11", "0b11", id="no binary of YAML 1.1"),
        pytest.param("2024-05-21", "2024-05-21", id="no date"),
        pytest.param("'123'", "123", id="single quotes"),
        pytest.param('"true"', "true", id="double quotes"),
        pytest.param("|\n  12", "12\n", id="block text"),
    ],
)
def test_scalars_mean_what_the_core_schema_says(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_float() -> None:
    assert str(scalar(".NaN")) == "nan"


def test_value_of_a_key_has_the_line_of_the_key() -> None:
    root = parse(b"poll:\n  every:\n\n    30s\n", SOURCE, Problems())
    assert root is not None
    assert isinstance(root.value, dict)
    poll = root.value["poll"]
    assert isinstance(poll.value, dict)
    every = poll.value["every"]
    assert (poll.line, every.line, every.key, every.value) == (1, 2, "poll.every", "30s")


def test_shown_values_are_short_printable_and_contain_no_fax_number() -> None:
    assert quoted("+13235551212") == "'+…1212'"
    assert quoted("a\nb\ud800") == "'a\\nb\\ud800'"
    assert len(quoted("x" * 500)) < 70
    assert masked("123456 12345") == "123456 12345"


FLOW_AND_BLOCK = [
    *("a", "b: ", "c:", " ", "\n", "\n  ", "- ", "? ", ":", ",", "[", "]", "{", "}", "#", " #c"),
    *("'y'", '"x"', '"', "&n ", "*n", "!t ", "---\n", "\\\n", "0o7", "null", "<<", "a:b", "é", "-"),
]


@settings(max_examples=often(150))
@given(
    st.lists(st.sampled_from(FLOW_AND_BLOCK + PIECES), max_size=9).map("".join),
    st.sampled_from(["{}", "key: {}", "{{{}}}", "key:\n  {}\n"]),
)
def test_the_fast_reader_agrees_with_the_exact_one(text: str, around: str) -> None:
    data = around.format(text).encode()
    root = quickly(data, SOURCE)
    if root is not None:
        problems = Problems()
        assert exactly(data, SOURCE, problems) == root
        assert not problems.found


@pytest.mark.parametrize(
    "text",
    [
        "key: \t",
        "key: a\x85b: c",
        "key: a\u2028b: c",
        "key: a\n...\n...\n",
        "key: |\n \n   ",
        "%YAML 1.1\n---\nkey: a",
        "key: &a:b c",
        "{key: \n\n\ufeff}",
        '["key":a]',
        "key: a\nkey: b",
        "key: [",
        "key: *a",
    ],
)
def test_what_libyaml_takes_otherwise_or_is_wrong_is_read_exactly(text: str) -> None:
    assert quickly(text.encode(), SOURCE) is None


def test_a_file_of_the_usual_kind_is_read_quickly() -> None:
    text = """# users
accounts:
  main:
    app_id: "12345"  # quoted
    users: {front-desk: {user_id: "0f8a"}, billing: {user_id: '77c1', poll: {every: 30s}}}
log:
  level: info
"""
    assert quickly(text.encode(), SOURCE) is not None
