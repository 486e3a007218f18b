"""Names on disk: no value from the API decides a path unchecked."""

import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.naming import (
    disambiguated,
    fax_key,
    fax_path,
    folded,
    part_closed_to_windows,
    path_template_problem,
    safe_id,
)
from tests.exhaustive import often

RECEIVED = datetime(2024, 5, 21, 23, 30, tzinfo=timezone(timedelta(hours=-8)))
DEFAULT = "{account}/{user}/{received:%Y/%m/%d}/{fax_id}"


def path(template: str, fax_id: str = "f1") -> str:
    return fax_path(template, account="main", user="desk", fax_id=fax_id, at=RECEIVED)


@pytest.mark.parametrize(
    ("fax_id", "expected"),
    [
        pytest.param("0f8a-AZ_9.x", "0f8a-AZ_9.x", id="safe-stays"),
        pytest.param("a/b", "a%2Fb", id="slash"),
        pytest.param("..", "%2E.", id="parent"),
        pytest.param(".", "%2E", id="leading-dot"),
        pytest.param("a.b.", "a.b.", id="other-dots-stay"),
        pytest.param("a b%~", "a%20b%25%7E", id="space-percent-tilde"),
        pytest.param("é€", "%C3%A9%E2%82%AC", id="utf-8"),
        pytest.param("a\x00\n", "a%00%0A", id="nul-and-newline"),
        pytest.param("\ud800", "%ED%A0%80", id="half-a-surrogate-pair"),
        pytest.param("٣", "%D9%A3", id="a-digit-that-is-not-ascii"),
        pytest.param("", "%", id="empty"),
        pytest.param("x" * 120, "x" * 120, id="120-bytes"),
    ],
)
def test_an_id_is_kept_or_percent_encoded(fax_id: str, expected: str) -> None:
    assert safe_id(fax_id) == expected


@pytest.mark.parametrize(
    ("fax_id", "first"),
    [
        pytest.param("x" * 121, "x" * 80, id="long"),
        pytest.param("é" * 50, ("%C3%A9" * 14)[:80], id="long-once-encoded"),
        pytest.param("." + "x" * 119, "%2E" + "x" * 77, id="long-by-its-leading-dot"),
    ],
)
def test_a_long_id_is_its_beginning_and_its_hash(fax_id: str, first: str) -> None:
    assert safe_id(fax_id) == f"{first}~{hashlib.sha256(fax_id.encode()).hexdigest()[:16]}"


UUID = "0f8a1b2c-3d4e-4f50-8a6b-7c8d9e0fa1b2"


@pytest.mark.parametrize("fax_id", [UUID, UUID.upper(), UUID[:13].upper() + UUID[13:]])
def test_a_uuid_in_any_letters_is_one_fax(fax_id: str) -> None:
    assert fax_key(fax_id) == UUID


@pytest.mark.parametrize(
    "fax_id",
    [
        pytest.param("CaseId", id="a word"),
        pytest.param(UUID.upper().replace("-", ""), id="without dashes"),
        pytest.param(f"{{{UUID.upper()}}}", id="in braces"),
        pytest.param(f"urn:uuid:{UUID.upper()}", id="a URN"),
        pytest.param(f"{UUID.upper()}\n", id="with a newline"),
        pytest.param(f"{UUID.upper()}A", id="longer"),
        pytest.param(UUID.upper()[:-1], id="shorter"),
        pytest.param(UUID.upper().replace("B", "É"), id="a letter that is no digit"),
    ],
)
def test_an_id_that_is_no_uuid_is_only_itself(fax_id: str) -> None:
    assert fax_key(fax_id) == fax_id


ODD_TEXT = st.text(st.characters(codec=None, categories=None), max_size=140)


@settings(max_examples=often(75))
@given(fax_id=ODD_TEXT)
def test_any_id_gives_a_name_that_is_safe(fax_id: str) -> None:
    name = safe_id(fax_id)
    assert re.fullmatch(r"[A-Za-z0-9_%-][A-Za-z0-9._%-]*(~[0-9a-f]{16})?", name, re.ASCII)
    assert len(name) <= 120
    assert safe_id(fax_id) == name


@settings(max_examples=often(50))
@given(ids=st.lists(st.text("aA.%/2EéF~", max_size=4), unique=True, max_size=30))
def test_two_ids_never_have_one_name(ids: list[str]) -> None:
    assert len({safe_id(one) for one in ids}) == len(ids)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(DEFAULT, "main/desk/2024/05/22/f1", id="default-in-utc"),
        pytest.param("{fax_id}", "f1", id="flat"),
        pytest.param("{received}-{fax_id}", "20240522T073000Z-f1", id="received-without-format"),
        pytest.param("in/{{x}}/{fax_id}-fax", "in/{x}/f1-fax", id="literals"),
        pytest.param("{fax_id}/{user}/{fax_id}", "f1/desk/f1", id="twice"),
    ],
)
def test_a_path_is_filled_in(template: str, expected: str) -> None:
    assert path_template_problem(template) is None
    assert path(template) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param("../{fax_id}", "%2E./f1", id="parent"),
        pytest.param("a//{fax_id}", "a/_/f1", id="empty-part"),
        pytest.param("{received:.%Y}/{fax_id}", "%2E2024/f1", id="hidden"),
        pytest.param("/{fax_id}", "_/f1", id="absolute"),
    ],
)
def test_no_part_of_a_path_is_dangerous_whatever_the_template(template: str, expected: str) -> None:
    assert path_template_problem(template) is not None
    assert path(template) == expected


def test_a_part_too_long_for_a_file_system_is_shortened() -> None:
    template = "é" * 100 + "-{fax_id}"
    whole = "é" * 100 + "-f1"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
    assert path(template) == "é" * 80 + "~" + digest
    assert path(template) != path(template, "f2")
    assert path("é" * 98 + "--{fax_id}") == "é" * 98 + "--f1"
    assert path("x" + template).startswith("x" + "é" * 79 + "~")


@settings(max_examples=often(40))
@given(
    fax_id=ODD_TEXT,
    template=st.sampled_from([DEFAULT, "{fax_id}", "{fax_id}/{fax_id}", "{user}{fax_id}{fax_id}"]),
)
def test_any_id_gives_a_path_without_dangerous_parts(fax_id: str, template: str) -> None:
    got = path(template, fax_id)
    for part in got.split("/"):
        assert part
        assert not part.startswith(".")
        assert len(part.encode()) <= 200
    assert got.count("/") == path(template).count("/")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        pytest.param("", "must contain {fax_id}", id="empty"),
        pytest.param("{account}/{user}", "must contain {fax_id}", id="no-fax-id"),
        pytest.param("{{fax_id}}", "must contain {fax_id}", id="escaped-fax-id"),
        pytest.param("{fax_id}/{sender}", "unknown placeholder {sender}", id="unknown"),
        pytest.param("{fax_id}{}", "unknown placeholder {}", id="nameless"),
        pytest.param(
            "{fax_id.__class__}", "unknown placeholder {fax_id.__class__}", id="attribute"
        ),
        pytest.param("{fax_id[0]}", "unknown placeholder {fax_id[0]}", id="index"),
        pytest.param("{fax_id:>20}", "a format for {fax_id}", id="format-of-an-id"),
        pytest.param("{fax_id!r}", "a format for {fax_id}", id="conversion"),
        pytest.param("{received:{fax_id}}{fax_id}", "a format for {received}", id="nested"),
        pytest.param("{fax_id", "is not a path template", id="open-brace"),
        pytest.param("{fax_id}}", "is not a path template", id="lone-brace"),
        pytest.param("/faxes/{fax_id}", "must be relative", id="absolute"),
        pytest.param("{received:/%Y}/{fax_id}", "must be relative", id="absolute-by-format"),
        pytest.param("{fax_id}/", "must end with a file name", id="directory"),
        pytest.param("a//{fax_id}", "empty part", id="empty-part"),
        pytest.param("a/../{fax_id}", "begins with a dot", id="parent"),
        pytest.param("./{fax_id}", "begins with a dot", id="here"),
        pytest.param(".{fax_id}", "begins with a dot", id="hidden"),
        pytest.param("{received:%Y/.%m}/{fax_id}", "begins with a dot", id="hidden-by-format"),
        pytest.param("a\x00{fax_id}", "control characters", id="nul"),
        pytest.param("{received:%n}{fax_id}", "control characters", id="newline-by-format"),
        pytest.param("\ud800{fax_id}", "control characters", id="half-a-surrogate-pair"),
    ],
)
def test_a_template_that_cannot_work_is_refused_in_a_sentence(template: str, problem: str) -> None:
    assert problem in (path_template_problem(template) or "")


def test_two_faxes_with_one_path_get_two() -> None:
    other = disambiguated("a/b", "12345/u1/f1")
    assert other == "a/b~" + hashlib.sha256(b"12345/u1/f1").hexdigest()[:8]
    assert other == disambiguated("a/b", "12345/u1/f1")
    assert other != disambiguated("a/b", "12345/u2/f1")


def test_received_in_utc_stays_as_it_is() -> None:
    got = fax_path("{received}{fax_id}", account="", user="", fax_id="", at=RECEIVED)
    same = fax_path(
        "{received}{fax_id}", account="", user="", fax_id="", at=RECEIVED.astimezone(UTC)
    )
    assert got == same == "20240522T073000Z%"


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ("main/desk/2026/01/02/f1.pdf", None),
        ("main/console/com/f1.pdf", None),
        ("main/con/f1.pdf", "con"),
        ("aux.main/desk/f1.pdf", "aux.main"),
        ("main/desk/Com1.pdf", "Com1.pdf"),
        ("main/desk./f1.pdf", "desk."),
        ("main /desk/f1.pdf", "main "),
        ("main/10:30/f1.pdf", "10:30"),
        ("main/a*b/f1.pdf", "a*b"),
    ],
)
def test_a_part_that_windows_clients_cannot_open_is_found(whole: str, part: str | None) -> None:
    assert part_closed_to_windows(whole) == part


def test_only_ascii_is_folded_as_the_ledger_does_it() -> None:
    assert folded("Main/A-ÄÖ%C3/é.Z") == "main/a-ÄÖ%c3/é.z"
