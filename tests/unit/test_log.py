import asyncio
import base64
import html
import io
import itertools
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from poller import events, log
from poller.cli import bootstrap
from poller.config.model import SecretRef
from poller.errors import ApiError, CannotStart
from poller.log.output import LineOutput
from poller.log.redaction import Redactor, cut
from tests.conftest import MakeConfig
from tests.exhaustive import often

KEY = b"k" * 32
NUMBER = "13235551212"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    log.configure("debug", "json", KEY, stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def said(out: io.StringIO) -> dict[str, Any]:
    (line,) = lines(out)
    return line


# -- the shape of a line ---------------------------------------------------------------------------


def test_an_event_is_one_json_line_in_the_form_of_the_contract(out: io.StringIO) -> None:
    log.event("fax-stored", "Stored.", account="main", user="front-desk", fax_id="f-1", pages=2)
    line = said(out)
    assert line["event"] == {"action": "fax-stored"}
    assert line["poller"] == {
        "account": "main",
        "user": "front-desk",
        "fax_id": "f-1",
        "pages": 2,
    }
    assert line["log.level"] == "info"
    assert line["message"] == "Stored."
    assert datetime.fromisoformat(line["@timestamp"]).tzinfo is not None
    assert line["@timestamp"].endswith("Z")


def test_unknown_fields_of_an_event_are_left_out(out: io.StringIO) -> None:
    log.event("service-started", "Started.", port=None)
    assert said(out)["poller"] == {}


def test_an_event_says_its_sentence_its_level_and_its_fields(out: io.StringIO) -> None:
    log.say(events.PollFailed("main", "desk", ApiError("no list"), is_news=True))
    line = said(out)
    assert line["event"] == {"action": "poll-failed"}
    assert line["log.level"] == "warning"
    assert line["poller"] == {"account": "main", "user": "desk"}
    assert line["error"] == {"type": "ApiError", "message": "no list"}
    assert line["message"].startswith("A poll failed; poller polls on schedule")


def test_an_event_that_is_no_news_has_no_line(out: io.StringIO) -> None:
    log.say(events.PollFailed("main", "desk", ApiError("no list"), is_news=False))
    assert not lines(out)


@pytest.mark.parametrize(
    ("happened", "level"),
    [
        pytest.param(events.PollCompleted("a", "u", 1, None), "info", id="nothing-wrong"),
        pytest.param(events.PollCompleted("a", "u", 0, None), "debug", id="nothing-new"),
        pytest.param(events.FaxDiscovered("a", "u", "f", None, 1, None), "debug", id="one-of-many"),
        pytest.param(events.AccountSlowed("a", 1.0, 2.0), "warning", id="wants-a-look"),
        pytest.param(events.StorageLost("full"), "error", id="wants-a-person"),
    ],
)
def test_each_event_has_its_own_level(happened: events.Event, level: str) -> None:
    assert happened.level == level


def test_events_below_the_level_are_not_said_until_it_changes(out: io.StringIO) -> None:
    log.set_level("warning")
    log.event("fax-stored", "Not said.")
    log.event("poll-completed", "Said, by its own level.", level="error")
    log.set_level("debug")
    log.event("fax-discovered", "Said now.", level="debug")
    assert [line["message"] for line in lines(out)] == ["Said, by its own level.", "Said now."]


def test_values_become_json_types(out: io.StringIO) -> None:
    class Colour(IntEnum):
        RED = 3

    log.event(
        "fax-stored",
        "Stored.",
        at=datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC),
        naive=datetime(2024, 5, 21, 4, 27),  # noqa: DTZ001
        took=timedelta(seconds=1.5),
        file=Path("/var/a.pdf"),
        path=PurePosixPath("a/b"),
        body=b"abc",
        colour=Colour.RED,
        some={"x"},
        ratio=float("nan"),
        nothing=float("inf"),
        share=0.25,
        yes=True,
        anything=object(),
        raised=ValueError("no"),
        many=list(range(500)),
        deep=_nested(20),
        nested={"a.b": {1: None}},
    )
    fields = said(out)["poller"]
    assert fields["at"] == "2024-05-21T04:27:56.000Z"
    assert fields["naive"] == "2024-05-21T04:27:00.000"
    assert fields["took"] == "1.5 s"
    assert (fields["file"], fields["path"]) == ("/var/a.pdf", "a/b")
    assert fields["body"] == "[3 bytes]"
    assert fields["colour"] == "3"
    assert fields["some"] == ["x"]
    assert (fields["ratio"], fields["nothing"]) == ("nan", "inf")
    assert fields["share"] == 0.25
    assert fields["yes"] is True
    assert fields["anything"] == "<object>"
    assert fields["raised"] == "ValueError: no"
    assert len(fields["many"]) == 200
    assert "[nested too deeply]" in json.dumps(fields["deep"])
    assert fields["nested"] == {"a_b": {"1": None}}


def _nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


def test_a_secret_that_a_cut_goes_through_does_not_come_out_in_part(out: io.StringIO) -> None:
    token = "T0ken-" * 300
    log.register_secret(token)
    for start in range(8_000, 16_000, 500):
        text = "x" * start + token + "y" * 30_000
        for value in (text, text[::-1].replace(token[::-1], token)):
            log.event("poll-failed", "Failed.", body=value)
    assert "cut]" in out.getvalue()
    assert "T0ken" not in out.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"text": "y" * 200_000}, id="one-long-string"),
        pytest.param({"texts": ["é" * 50_000] * 100}, id="many-long-strings"),
        pytest.param({f"key{'x' * i}": "\x00" * 400 for i in range(150)}, id="many-escapes"),
        pytest.param({"numbers": [[i / 7 for i in range(200)]] * 50}, id="many-numbers"),
    ],
)
def test_a_line_is_valid_json_under_40_kib(out: io.StringIO, fields: dict[str, Any]) -> None:
    log.event("fax-stored", "A sentence.", **fields)
    line = said(out)
    assert len(out.getvalue().encode()) <= 40 * 1024 + 1
    assert (line["event"]["action"], line["message"]) == ("fax-stored", "A sentence.")


def test_a_long_string_keeps_its_beginning_and_its_end() -> None:
    short = cut("begin" + "x" * 1000 + "end", 100)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert "[908 characters cut]" in short


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_of_ours_says_its_type_and_sentence_and_has_no_trace(out: io.StringIO) -> None:
    log.event("poll-failed", "The poll failed.", error=ApiError("the answer is no list"))
    assert said(out)["error"] == {"type": "ApiError", "message": "the answer is no list"}


def test_a_bug_has_a_trace_without_locals(out: io.StringIO) -> None:
    def buggy(patient: str) -> float:
        return len(patient) / 0

    try:
        buggy("JOHN " + "DOE")
    except ZeroDivisionError as error:
        log.event("internal-error", "A bug.", error=error)
    trace = said(out)["error"]["stack_trace"]
    assert "in buggy" in trace
    assert "ZeroDivisionError: division by zero" in trace
    assert "JOHN DOE" not in trace


def test_an_exception_whose_text_fails_is_logged_without_it(out: io.StringIO) -> None:
    class Broken(ApiError):
        def __str__(self) -> str:
            raise RuntimeError

    log.event("poll-failed", "The poll failed.", error=Broken("x"))
    assert said(out)["error"] == {"type": "Broken", "message": ""}


def test_the_end_of_the_program_is_no_bug(out: io.StringIO) -> None:
    log.event("service-stopping", "Stopping.", error=asyncio.CancelledError())
    assert said(out)["error"] == {"type": "CancelledError", "message": ""}


# -- nothing private -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(NUMBER, id="digits"),
        pytest.param("+1 (323) 555-1212", id="north-american"),
        pytest.param("1-323-555-1212", id="dashes"),
        pytest.param("1.323.555.1212", id="dots"),
        pytest.param("%2B1%20323%20555%201212", id="percent-encoded"),
        pytest.param("1\u2011323\u2011555\u20111212", id="no-break-hyphens"),
        pytest.param("1\u00a0323\u00a0555\u00a01212", id="no-break-spaces"),
        pytest.param(
            "\uff11\uff13\uff12\uff13\uff15\uff15\uff15\uff11\uff12\uff11\uff12", id="wide"
        ),
    ],
)
def test_a_number_has_one_code_however_it_is_written(out: io.StringIO, written: str) -> None:
    masked = log.number(NUMBER)
    log.event("fax-stored", f"From {written}.", note=f"({written})", items=[written])
    line = said(out)
    assert line["message"] == f"From {masked}."
    assert masked in line["poller"]["note"]
    assert line["poller"]["items"] == [masked]


def test_a_masked_number_is_four_digits_and_a_code_of_the_key() -> None:
    one, other = Redactor(KEY), Redactor(b"x" * 32)
    assert one.number(NUMBER).startswith("…1212#")
    assert len(one.number(NUMBER)) == len("…1212#a1b2c3d4")
    assert one.number(NUMBER) == one.number("+1 323 555 1212")
    assert one.number(NUMBER) != one.number("13235551213")
    assert one.number(NUMBER) != other.number(NUMBER)


@pytest.mark.parametrize("text", ["unavailable", "911", "123456", ""])
def test_of_a_partial_number_only_the_code_is_shown(text: str) -> None:
    assert Redactor(KEY).number(text).startswith("…#")


@given(number=st.from_regex(r"[0-9]{7,15}", fullmatch=True))
@settings(max_examples=often(25))
def test_a_masked_number_stays_as_it_is_when_it_is_redacted_again(number: str) -> None:
    redactor = Redactor(KEY)
    masked = redactor.number(number)
    assert redactor.text(f"from {masked} again") == f"from {masked} again"
    assert redactor.value({"fax_number": masked}) == {"fax_number": masked}


@given(
    groups=st.lists(st.from_regex(r"[0-9]{1,5}", fullmatch=True), min_size=1, max_size=6),
    between=st.sampled_from(["", " ", "-", " - ", "+", "(", ") ", "\t"]),
    before=st.sampled_from(["", "from ", "x", "=", '"', "#", "tel:+"]),
)
@settings(max_examples=often(50))
def test_seven_digits_never_come_out(groups: list[str], between: str, before: str) -> None:
    digits = "".join(groups)
    shown = Redactor(KEY).text(before + between.join(groups) + " end")
    looks_like_a_date = "-" in between and len(groups) >= 3
    if len(digits) >= 7 and not looks_like_a_date:
        assert between.join(groups) not in shown
        assert digits not in shown


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("2024-05-21T04:27:56.000+0000", id="timestamp-of-the-api"),
        pytest.param("2024-05-21T04%3A27%3A56.000%2B0000", id="timestamp-in-a-url"),
        pytest.param("2024-05-21T04:27:56.123456Z", id="timestamp-microseconds"),
        pytest.param("from 2024-05-21 04:27:56 to 2024-05-22", id="dates-in-words"),
        pytest.param("12345678-1234-4321-8765-123456789012", id="uuid"),
        pytest.param("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", id="hash"),
        pytest.param("192.168.100.200:9410", id="address"),
        pytest.param("123456 faxes", id="six-digits"),
        pytest.param("1234 of 5678 in 90 s", id="words-between"),
        pytest.param("the basic authentication and the bearer token", id="prose"),
        pytest.param("y:4: a.b.api_key: file /x/key cannot be read: No such file", id="key-file"),
        pytest.param("y:4: a.b.api_key: credential x cannot be read", id="key-credential"),
        pytest.param("y:4: a.b.api_key: environment variable X is not set", id="key-variable"),
        pytest.param(
            "y:4: a.b.api_key: a secret is never written here; say where", id="key-literal"
        ),
        pytest.param("y:4: a.b.api_key: must have exactly one of credential", id="key-kinds"),
    ],
)
def test_text_that_is_neither_a_number_nor_a_secret_stays(text: str) -> None:
    assert Redactor(KEY).text(text) == text


def test_identities_paths_and_sizes_stay_readable(out: io.StringIO) -> None:
    fields: dict[str, Any] = {
        "path": "main/1234567/2024/05/21/13235551212",
        "file": "13235551212.pdf",
        "bytes": 123456789,
        "free_bytes": 1 << 40,
        "took_ms": 98765432,
        "removed": ["main/desk-555-123-4567"],
    }
    log.event("fax-stored", "Stored.", fax_id="13235551212", **fields)
    assert said(out)["poller"] == fields | {"fax_id": "13235551212"}


def test_a_number_that_comes_as_a_number_is_masked_too(out: io.StringIO) -> None:
    masked = log.number(NUMBER)
    log.event("fax-stored", "Stored.", who=int(NUMBER), what=float(NUMBER), fax_number=911)
    fields = said(out)["poller"]
    assert (fields["who"], fields["what"]) == (masked, masked)
    assert fields["fax_number"].startswith("…#")


def test_fields_of_names_and_numbers_never_come_out(out: io.StringIO) -> None:
    fax = {
        "originating_fax_tsid": "DR SMITH CLINIC",
        "destination_fax_csid": "LAW FIRM",
        "originating_fax_number": "unavailable",
        "sender_name": "SMITH",
    }
    log.event("fax-stored", "Stored.", fax=fax)
    (key,) = said(out)["poller"]["fax"]
    assert key == "originating_fax_number"
    assert said(out)["poller"]["fax"][key].startswith("…#")


def test_a_name_inside_quoted_metadata_is_taken_out(out: io.StringIO) -> None:
    raw = json.dumps({"originating_fax_tsid": 'DR "X" SMITH', "pages": 2})
    log.event("poll-failed", f"Bad entry {raw}", error=ApiError("tsid: SMITH CLINIC, pages 2"))
    assert "SMITH" not in out.getvalue()
    assert said(out)["message"].endswith('"pages": 2}')


SECRET = 'S3cr3t/Key+With=Odd & "signs" é'


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(SECRET, id="bare"),
        pytest.param(base64.b64encode(f"12345:{SECRET}".encode()).decode(), id="basic"),
        pytest.param(base64.urlsafe_b64encode(f"1:{SECRET}".encode()).decode(), id="basic-url"),
        pytest.param(base64.b64encode(f"12:{SECRET}".encode()).decode().rstrip("="), id="no-pads"),
        pytest.param(
            "S3cr3t%2FKey%2BWith%3DOdd%20%26%20%22signs%22%20%C3%A9", id="percent-encoded"
        ),
        pytest.param("S3cr3t%2FKey%2BWith%3DOdd+%26+%22signs%22+%C3%A9", id="form-encoded"),
        pytest.param(json.dumps(SECRET), id="json"),
        pytest.param(repr({"key": SECRET}), id="repr"),
    ],
)
def test_a_registered_secret_never_comes_out(out: io.StringIO, shown: str) -> None:
    log.register_secret(SECRET)
    log.event(
        "poll-failed",
        f"Sent {shown}.",
        fax_id=shown,
        path=f"/x/{shown}",
        items=[{shown: shown}],
        error=ValueError(f"bad {shown}"),
    )
    logging.getLogger("aiohttp").warning("header %s", shown)
    assert "[secret]" in lines(out)[0]["message"]
    text = out.getvalue()
    for part in (SECRET, shown, shown[8:24], "S3cr3t", "signs"):
        assert part not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "Authorization: bearer abc.def-1", "Authorization: bearer [secret]", id="bearer"
        ),
        pytest.param("got 'Basic MTI6a2V5' back", "got 'Basic [secret]' back", id="basic"),
        pytest.param("sent eyJhbGciOi.eyJzdWIi.x_y-z now", "sent [secret] now", id="jwt"),
        pytest.param("token eyJhbGciOiJIUz, cut", "token [secret], cut", id="jwt-cut-off"),
        pytest.param('{"access_token": "abc"}', '{"access_token": "[secret]"}', id="json"),
        pytest.param("GET /metrics?token=abc&x=1", "GET /metrics?token=[secret]&x=1", id="query"),
        pytest.param("api_key=abc", "api_key=[secret]", id="key"),
        pytest.param("api_key: file", "api_key: [secret]", id="key-that-is-a-word"),
        pytest.param("api_key: files abc", "api_key: [secret] abc", id="key-that-begins-so"),
        pytest.param("api_key: File abc", "api_key: [secret] abc", id="key-in-capitals"),
        pytest.param("api_key:file abc", "api_key:[secret] abc", id="key-without-a-space"),
        pytest.param("password: file abc", "password: [secret] abc", id="password"),
        pytest.param('api_key: "file abc"', 'api_key: "[secret] abc"', id="key-that-is-quoted"),
        pytest.param("http://me:pw@proxy:3128/", "http://[secret]@proxy:3128/", id="proxy"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, expected: str) -> None:
    assert Redactor(KEY).text(text) == expected


@given(
    st.sampled_from(["api_key: ", "accounts.main.api_key: ", "password: ", "token=", "api-key="]),
    st.text("abcdefilmnrstuv-_0", max_size=12),
    st.sampled_from(["", "file", "credential", "environment", "must", "a"]),
)
def test_what_stands_alone_behind_the_name_of_a_key_never_comes_out(
    name: str, key: str, word: str
) -> None:
    for found in (f"{word}{key}", f"{key}{word}"):
        if found:
            assert Redactor(KEY).text(f"{name}{found}") == f"{name}[secret]"
            assert Redactor(KEY).text(f"{name}{found}\nx") == f"{name}[secret]\nx"


def test_fields_called_like_secrets_never_come_out(out: io.StringIO) -> None:
    headers = {"Authorization": "zzz", "x-api-key": 12, "token": "zzz", "Cookie": "zzz"}
    log.event("poll-failed", "Failed.", headers=headers)
    assert set(said(out)["poller"]["headers"].values()) == {"[secret]"}


def test_of_a_slot_the_last_secrets_are_remembered_and_others_for_ever() -> None:
    redactor = Redactor(KEY)
    redactor.register("the-api-key")
    redactor.register("  ")
    redactor.register("abc")
    for number in range(100, 110):
        redactor.register(f"token-{number}", "main")
    redactor.register("token-109", "main")
    assert redactor.text("the-api-key token-109 token-106") == "[secret] [secret] [secret]"
    assert redactor.text("token-100") == "token-100"
    assert redactor.text("abcd") == "abcd", "too short to be looked for in every word"


def test_hostile_text_is_redacted_in_reasonable_time() -> None:
    redactor = Redactor(KEY)
    for piece in ("a-", "eyJ-", "1 ", "1.22", "tsid", "://", "2024-05-2", "%2B", "bearer "):
        redactor.text(piece * 30_000)


def test_a_bare_structlog_call_cannot_bypass_the_redaction(out: io.StringIO) -> None:
    log.register_secret("correct-horse-battery")
    try:
        _fail("bearer abc")
    except RuntimeError:
        structlog.get_logger().exception("correct-horse-battery", field=NUMBER)
    structlog.get_logger().info("ok", exc_info=ApiError("correct-horse-battery"))
    structlog.get_logger().info(None)
    text = out.getvalue()
    assert len(lines(out)) == 3
    assert lines(out)[0]["error"]["type"] == "RuntimeError"
    assert NUMBER not in text
    assert "abc" not in text
    assert "horse" not in text


def test_lone_surrogates_do_not_spoil_the_line(out: io.StringIO) -> None:
    log.event("fax-stored", "odd \ud800 text", fax_id="\udcff")
    out.getvalue().encode("utf-8")
    assert said(out)["poller"]["fax_id"] == "\ufffd"


# -- libraries and uncaught errors ------------------------------------------------------------------


def test_warnings_of_libraries_come_out_and_chatter_does_not(out: io.StringIO) -> None:
    logger = logging.getLogger("apscheduler.scheduler")
    logger.info("chatter")
    logger.warning("number %s", NUMBER)
    try:
        _fail("no")
    except RuntimeError:
        logger.exception("failed")
    first, second = lines(out)
    assert first["message"] == f"number {log.number(NUMBER)}"
    assert first["event"]["action"] == "library-message"
    assert first["log"] == {"logger": "apscheduler.scheduler"}
    assert (second["log.level"], second["error"]["type"]) == ("error", "RuntimeError")


def test_a_librarys_line_with_wrong_arguments_is_still_logged(out: io.StringIO) -> None:
    record = logging.LogRecord("aiohttp", logging.ERROR, "", 1, "fits not %d", ("x",), None)
    (ours,) = (h for h in logging.getLogger().handlers if type(h).__module__ == "poller.log")
    ours.handle(record)
    assert said(out)["message"] == "fits not %d"


def test_a_handler_that_writes_to_the_terminal_is_replaced() -> None:
    root = logging.getLogger()
    plain = logging.StreamHandler(io.StringIO())
    root.addHandler(plain)
    log.configure("info", "json", KEY, io.StringIO())
    log.configure("info", "json", KEY, io.StringIO())
    assert plain not in root.handlers
    ours = [handler for handler in root.handlers if type(handler).__module__ == "poller.log"]
    assert len(ours) == 1


def test_what_nobody_caught_becomes_an_event(out: io.StringIO) -> None:
    log.install_hooks()
    error = ValueError(f"bearer abc {NUMBER}")
    sys.excepthook(ValueError, error, None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    thread = threading.Thread(target=_fail)
    thread.start()
    thread.join()
    stopped = threading.Thread(target=sys.exit)
    stopped.start()
    stopped.join()
    log.handle_loop_exception(
        cast("asyncio.AbstractEventLoop", None), {"message": "Lost.", "exception": error}
    )
    log.handle_loop_exception(cast("asyncio.AbstractEventLoop", None), {})
    actions = [(line["event"]["action"], line["log.level"]) for line in lines(out)]
    assert actions == [("internal-error", "error")] * 4
    assert NUMBER not in out.getvalue()


def test_an_error_in_a_finalizer_becomes_an_event(out: io.StringIO) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    log.install_hooks()
    broken = Broken()
    del broken
    assert said(out)["error"]["message"] == "in a finalizer"


def _fail(why: str = "in a thread") -> None:
    raise RuntimeError(f"{why} {NUMBER}")


# -- the terminal ----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_columns_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        log.configure("info", "auto", KEY, stream)
        log.event("fax-stored", "Stored.", account="main", user="front-desk", pages=2)
    assert said(pipe)["message"] == "Stored."
    plain = terminal.getvalue()
    assert "\x1b[" in plain
    for word in ("fax-stored", "main/front-desk", "Stored.", "pages"):
        assert word in plain


def test_the_terminal_shows_the_same_redacted_facts() -> None:
    stream = io.StringIO()
    log.configure("info", "console", stream=stream)
    error = ValueError(f"bearer abc {NUMBER}")
    said = f"From {NUMBER}\x1b[2J\nnext"
    log.event("poll-failed", said, level="warning", account="main", error=error, a=[1])
    text = stream.getvalue()
    assert NUMBER not in text
    assert "bearer abc" not in text
    assert "\x1b" not in text
    assert "\\x1b[2J\\nnext" in text
    assert "a=[1]" in text
    assert "error=ValueError" in text
    assert "[warning]" in text
    log.event("fax-stored", "No account.")
    assert "No account." in stream.getvalue()
    assert log.redact(f"{NUMBER}") == log.number(NUMBER)


# -- where lines go --------------------------------------------------------------------------------


def test_a_closed_stdout_does_not_break_anything() -> None:
    stream = io.StringIO()
    log.configure("info", "json", KEY, stream)
    stream.close()
    log.event("fax-stored", "Nobody hears it.")


def test_a_process_without_stdout_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    output = LineOutput()
    output.write("line")
    assert not output.is_terminal()
    assert output.lost == 1


def test_a_stream_that_cannot_say_what_it_is_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not LineOutput(stream).is_terminal()


def test_lines_go_to_the_stdout_of_the_moment(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json", KEY)
    log.event("fax-stored", "Stored – é.")
    assert json.loads(capfd.readouterr().out)["message"] == "Stored – é."


def test_a_reader_that_has_gone_loses_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        output = LineOutput(stream)
        output.write("nobody reads it")
        output.write("nor this")
    assert output.lost == 2


def test_a_reader_that_sleeps_does_not_stall_and_sees_whole_lines_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("poller.log.output._HANG_TIMEOUT_S", 0.01)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb") as source:
        output = LineOutput(stream)
        for _ in range(40):
            output.write("x" * 9000)
        lost = output.lost
        assert 0 < lost < 40
        os.read(source.fileno(), 1 << 20)
        output.write("awake")
        assert output.lost == lost
        assert os.read(source.fileno(), 1 << 20).endswith(b"\nawake\n")


def test_a_write_that_fails_in_the_middle_is_ended_by_the_next_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = os.write
    with (tmp_path / "out").open("w") as stream:
        output = LineOutput(stream)
        errors = iter([None, OSError(28, "No space left on device"), InterruptedError(4, "again")])

        def failing(descriptor: int, data: bytes) -> int:
            if (error := next(errors, None)) is not None:
                raise error
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", failing)
        output.write("x" * 5000)
        output.write("next")
        monkeypatch.undo()
    assert output.lost == 1
    assert (tmp_path / "out").read_text() == "x" * 4096 + "\nnext\n"


def test_a_closed_pipe_does_not_change_the_exit_code() -> None:
    program = textwrap.dedent(
        """
        from poller import log
        log.configure("info", "json", b"k" * 32)
        for _ in range(50):
            log.event("service-started", "Started.")
        """
    )
    command = f"{sys.executable} -c '{program}' | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


# -- several nodes -----------------------------------------------------------------------------------


def test_each_line_names_the_node_for_machines_and_no_line_on_a_terminal_does() -> None:
    for words, named in (("json", True), ("console", False)):
        stream = io.StringIO()
        log.configure("info", cast("Any", words), KEY, stream, node="node-13235551212")
        log.say(events.FaxStored("main", "desk", "f", "f.pdf", 1, 1, is_again=False, waited_s=1.0))
        assert ("node-13235551212" in stream.getvalue()) is named
    log.configure("info", "json", KEY, stream := io.StringIO(), node="node-a")
    log.event("library-message", "Something.")
    (line,) = lines(stream)
    assert line["poller"] == {"node": "node-a"}
    assert line["host"] == {"name": socket.gethostname()}


def test_a_single_node_is_not_named(out: io.StringIO) -> None:
    log.event("service-started", "Started.")
    (line,) = lines(out)
    assert line.keys().isdisjoint({"host"})
    assert line["poller"] == {}


def test_nodes_with_one_key_give_a_number_the_same_code(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = set()
    monkeypatch.setenv("POLLER_TEST_LOG_KEY", "k" * 32)
    for name in ("a", "b"):
        settings = make_config("http://127.0.0.1:1")
        state = replace(settings.state, directory=tmp_path / name)
        key = replace(settings.log, key=SecretRef("env", "POLLER_TEST_LOG_KEY"))
        bootstrap.start_log(replace(settings, state=state, log=key))
        codes.add(log.number("13235551212"))
        assert not (tmp_path / name).exists()
    assert len(codes) == 1


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    state = tmp_path / "var" / "state"
    key = log.load_or_create_key(state)
    assert log.load_or_create_key(state) == key
    assert len(key) == 32
    assert stat.S_IMODE((state / "redaction.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert os.listdir(state) == ["redaction.key"]


def test_what_a_process_left_that_was_killed_while_it_made_the_key_is_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / ".redaction.key.0a1b2c3d").write_bytes(b"half")

    log.load_or_create_key(tmp_path)

    assert os.listdir(tmp_path) == ["redaction.key"]


def test_of_two_processes_that_make_the_key_both_use_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def other_was_first(source: Path, target: Path) -> None:
        target.write_bytes(b"o" * 32)
        link(source, target)

    monkeypatch.setattr(os, "link", other_was_first)
    assert log.load_or_create_key(tmp_path) == b"o" * 32


def test_a_damaged_key_is_reported_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "redaction.key").write_bytes(b"short")
    with pytest.raises(CannotStart, match="damaged"):
        log.load_or_create_key(tmp_path)
    assert (tmp_path / "redaction.key").read_bytes() == b"short"


def test_an_impossible_state_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="cannot read or create"):
        log.load_or_create_key(tmp_path / "file")


# -- episodes --------------------------------------------------------------------------------------


def test_an_episode_is_reported_at_its_start_its_change_and_its_end() -> None:
    episode = log.Episode()
    assert episode.recovered() == 0
    assert [episode.failed(why) for why in ("a", "a", "b", "b")] == [True, False, True, False]
    assert (episode.failures, episode.recovered()) == (4, 4)
    assert (episode.failures, episode.failed("b")) == (0, True)


def test_lines_lost_while_nobody_read_are_counted_when_output_resumes() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb") as pipe:
        log.configure("info", "json", KEY, stream)
        for number in range(600):
            log.event("fax-stored", "x" * 400, fax_id=f"f{number}")
        os.set_blocking(reader, False)
        heard = pipe.read() or b""
        for number in range(2):
            log.event("fax-stored", "Again.", fax_id=f"g{number}")
        heard += pipe.read() or b""
    lines = [json.loads(line) for line in heard.splitlines() if line.endswith(b"}")]
    told = [one["poller"]["count"] for one in lines if action(one) == "log-lines-lost"]
    assert told == [602 - sum(action(one) == "fax-stored" for one in lines)]


def action(line: dict[str, Any]) -> str:
    return str(line["event"]["action"])


# -- evidence: bytes of any kind ------------------------------------------------------------------

TOKEN = 'eyJhbGciOi.J9+/tok=en<&>"§.that-is-quite-long'


def written(secret: str) -> list[str]:
    """Return the ways in which a server may send a secret back."""
    return [
        secret,
        f"Bearer {secret}",
        json.dumps(secret)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        urllib.parse.quote(secret, safe=""),
        re.sub("%..", lambda one: one[0].lower(), urllib.parse.quote(secret, safe="")),
        html.escape(secret),
        base64.b64encode(secret.encode()).decode(),
        base64.urlsafe_b64encode(f"app-1:{secret}".encode()).decode(),
        base64.b64encode(f"app-1:{secret}".encode()).decode().replace("/", "\\/"),
    ]


@pytest.mark.parametrize("is_text", [True, False])
@given(
    spelling=st.sampled_from(written(TOKEN)),
    encoding=st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]),
    around=st.tuples(st.binary(max_size=40), st.binary(max_size=40)),
    cuts=st.lists(st.integers(1, 60), max_size=30),
)
def test_no_chunk_border_and_no_spelling_lets_a_secret_into_evidence(
    is_text: bool,
    spelling: str,
    encoding: str,
    around: tuple[bytes, bytes],
    cuts: list[int],
) -> None:
    redactor = Redactor(KEY)
    redactor.register(TOKEN)
    data = around[0] + spelling.encode(encoding) + around[1]
    borders = [0, *itertools.accumulate(cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(borders)]
    kept = b"".join(redactor.evidence(chunks, is_text=is_text))
    assert b"[secret]" in kept
    assert spelling.removeprefix("Bearer ")[8:-8].encode(encoding) not in kept
    assert is_text or kept.startswith(around[0])


@pytest.mark.parametrize("left", range(8, len(TOKEN)))
def test_secret_through_which_the_limit_goes_is_no_evidence_either(left: int) -> None:
    redactor = Redactor(KEY)
    redactor.register("K" + TOKEN)  # no pattern knows it
    kept = b"".join(redactor.evidence([b"%PDF-1.7 ", ("K" + TOKEN)[:left].encode()], is_text=False))
    assert kept == b"%PDF-1.7 [secret]"


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_evidence_without_a_secret_is_kept_byte_for_byte(chunks: list[bytes]) -> None:
    redactor = Redactor(KEY)
    redactor.register("key-" + TOKEN)
    assert b"".join(redactor.evidence(chunks, is_text=False)) == b"".join(chunks)


def test_evidence_keeps_numbers_and_names_and_loses_text_that_looks_like_a_secret() -> None:
    body = f'{{"originating_fax_tsid": "Dr. Jane Roe", "from": "{NUMBER}", "t": "eyJabcdef.eyJdef.xyz"}}'
    kept = b"".join(Redactor(KEY).evidence([body.encode()], is_text=True)).decode()
    assert kept == body.replace("eyJabcdef.eyJdef.xyz", "[secret]")
    header = b"authorization: Basic YXBwOmtleQ=="
    assert (
        b"".join(Redactor(KEY).evidence([header], is_text=True)) == b"authorization: Basic [secret]"
    )
