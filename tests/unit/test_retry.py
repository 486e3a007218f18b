"""retry: what is repeated and when, backoff, growing intervals, giving up, Retry-After, sign-ins."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poller.errors import (
    AccountSuspended,
    ApiError,
    BadAnswer,
    DeadlinePassed,
    NotYet,
    RateLimited,
    Rejected,
    SignInDelayed,
    SignInRefused,
    TokenRefused,
    Unreachable,
    UserRefused,
    WindowRefused,
)
from poller.retry import (
    SignInBudget,
    backoff,
    gives_up,
    growing,
    next_attempt,
    parse_retry_after,
    pause_s,
    worth_repeating,
)
from tests.exhaustive import often

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

quick = settings(
    deadline=None, max_examples=often(50), suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is not a defect
numbers = st.integers(0, 10**5)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("attempt", "u", "wait_s"),
    [
        pytest.param(1, 0.5, 0.5, id="first"),
        pytest.param(2, 0.5, 1, id="second doubles"),
        pytest.param(5, 0.25, 4, id="fifth"),
        pytest.param(7, 0.5, 30, id="at the cap"),
        pytest.param(10**9, 0.5, 30, id="beyond any float"),
        pytest.param(3, 0, 0, id="full jitter reaches down to nothing"),
        pytest.param(0, 0.5, 0.5, id="counted from 0 by mistake"),
    ],
)
def test_backoff_doubles_up_to_its_cap_with_full_jitter(
    attempt: int, u: float, wait_s: float
) -> None:
    assert backoff(attempt, base=SECOND, cap=60 * SECOND, u=u) == wait_s * SECOND


@pytest.mark.parametrize(
    ("attempt", "error", "u", "wait_s"),
    [
        pytest.param(3, Unreachable("x"), 0.5, 2, id="half of four seconds"),
        pytest.param(1, BadAnswer("x"), 0.5, 0.5, id="nothing was asked for"),
        pytest.param(1, Unreachable("x", retry_after_s=7), 0.5, 7, id="as long as asked"),
        pytest.param(1, BadAnswer("x", retry_after_s=7), 0.5, 7, id="by whatever asks"),
        pytest.param(4, Unreachable("x", retry_after_s=2), 0.5, 4, id="the longer of both"),
        pytest.param(1, Unreachable("x", retry_after_s=3600), 0.5, 10, id="asked beyond the cap"),
        pytest.param(9, Unreachable("x"), 0.5, 5, id="jitter of the cap"),
        pytest.param(9, RateLimited("x", retry_after_s=7), 0.5, 0, id="pacing waits"),
    ],
)
def test_pause_is_the_backoff_or_what_the_server_asks_for(
    attempt: int, error: ApiError, u: float, wait_s: float
) -> None:
    assert pause_s(attempt, error, cap=10 * SECOND, u=u) == wait_s


@pytest.mark.parametrize(
    "error",
    [RateLimited("x"), Unreachable("x"), BadAnswer("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_in_a_moment_is_repeated(error: ApiError) -> None:
    assert worth_repeating(error)


@pytest.mark.parametrize(
    "error",
    [
        *[kind("x") for kind in (SignInRefused, TokenRefused, UserRefused, WindowRefused)],
        *[kind("x") for kind in (NotYet, Rejected, DeadlinePassed)],
        AccountSuspended("x", until=NOW),
        SignInDelayed("x", wait_s=1),
        OSError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nothing_else_is_repeated(error: BaseException) -> None:
    assert not worth_repeating(error)


@pytest.mark.parametrize(
    ("failures", "u", "wait_s"),
    [
        pytest.param(1, 0.5, 60, id="first"),
        pytest.param(1, 0, 48, id="a fifth less"),
        pytest.param(1, 1, 72, id="a fifth more"),
        pytest.param(4, 0.5, 480, id="fourth"),
        pytest.param(7, 0.5, 3600, id="at the cap"),
        pytest.param(7, 1, 3600, id="never beyond the cap"),
        pytest.param(10**9, 0, 2880, id="beyond any float, jittered downwards"),
    ],
)
def test_growing_intervals_double_with_a_fifth_of_jitter(
    failures: int, u: float, wait_s: float
) -> None:
    assert growing(failures, first=60 * SECOND, cap=HOUR, u=u) == wait_s * SECOND


@quick
@given(failures=st.integers(0, 10**6), u=jitters, quarantined=st.booleans())
def test_a_fax_is_asked_for_again_within_an_hour_and_a_quarantined_one_within_a_day(
    failures: int, u: float, quarantined: bool
) -> None:
    wait = next_attempt(failures, quarantined, u)
    assert (0.8 * DAY <= wait <= DAY) if quarantined else (24 * SECOND <= wait <= HOUR)


def test_a_fax_waits_half_a_minute_after_its_first_failure() -> None:
    assert next_attempt(1, False, 0.5) == 30 * SECOND


@pytest.mark.parametrize(
    ("after", "paused", "quarantined"),
    [
        pytest.param(timedelta(0), timedelta(0), False, id="its first failure"),
        pytest.param(7 * DAY, timedelta(0), False, id="exactly the time"),
        pytest.param(7 * DAY + SECOND, timedelta(0), True, id="later"),
        pytest.param(9 * DAY, 2 * DAY, False, id="paused time is not counted"),
        pytest.param(9 * DAY + SECOND, 2 * DAY, True, id="paused, and still later"),
        pytest.param(-400 * DAY, timedelta(0), False, id="the clock was set back"),
    ],
)
def test_a_fax_is_given_up_by_an_attempt_made_too_late(
    after: timedelta, paused: timedelta, quarantined: bool
) -> None:
    assert gives_up(NOW + after, NOW, paused, 7 * DAY) is quarantined


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="empty"),
        pytest.param("   ", None, id="blank"),
        pytest.param("0", 0, id="zero"),
        pytest.param("120", 120, id="seconds"),
        pytest.param(" 7 ", 7, id="white space around"),
        pytest.param("1.5", 1.5, id="fraction"),
        pytest.param("3600", 3600, id="an hour"),
        pytest.param("1000000000", 3600, id="a thousand million"),
        pytest.param("9" * 5000, 3600, id="more digits than int() reads"),
        pytest.param("-5", None, id="negative"),
        pytest.param("٣", None, id="digits that are not ASCII"),
        pytest.param("soon", None, id="a word"),
        pytest.param("1e9", None, id="a float in another spelling"),
        pytest.param("nan", None, id="not a number"),
        pytest.param("Tue, 21 May 2024 04:29:56 GMT", 120, id="IMF-fixdate"),
        pytest.param("Tuesday, 21-May-24 04:29:56 GMT", 120, id="RFC 850"),
        pytest.param("Tue May 21 04:29:56 2024", 120, id="asctime"),
        pytest.param("Sun Jun  2 04:29:56 2024", 3600, id="asctime with a short day"),
        pytest.param("Tue, 21 May 2024 04:27:56 GMT", 0, id="now"),
        pytest.param("Mon, 20 May 2024 04:27:56 GMT", 0, id="past date"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 3600, id="the end of time"),
        pytest.param("Tue, 21 May 2024 06:29:56 +0200", 120, id="another zone"),
        pytest.param("Tue, 32 May 2024 04:29:56 GMT", None, id="no such day"),
        pytest.param("Tue, 21 May 2024 25:29:56 GMT", None, id="no such hour"),
        pytest.param("2024-05-21T04:29:56Z", None, id="ISO 8601"),
        pytest.param("120, 60", None, id="two values"),
    ],
)
def test_retry_after_is_read_in_all_its_forms_and_clamped(
    value: str | None, wait_s: float | None
) -> None:
    assert parse_retry_after(value, NOW) == wait_s


@settings(quick, max_examples=often(100))
@given(
    st.text("0123456789 :,-+.TueMayGMTZ", max_size=40)
    | st.builds(
        "Tue, {} May {} {}:29:56 {:+}".format, numbers, numbers, numbers, st.integers(-9999, 10**20)
    )
)
@example("Tue, 21 May 2024 04:29:56 +99999999999999999999")
@example("Tue, 21 May " + "9" * 5000 + " 04:29:56 GMT")
@example("Mon, 1 Jan 0001 00:00:00 +2359")
def test_no_retry_after_breaks_the_reader(value: str) -> None:
    wait_s = parse_retry_after(value, NOW)
    assert wait_s is None or 0 <= wait_s <= 3600


def taken(budget: SignInBudget, now: datetime) -> SignInBudget:
    left = budget.take(now)
    assert isinstance(left, SignInBudget)
    return left


def spent(now: datetime) -> SignInBudget:
    budget = SignInBudget.full(now)
    for _ in range(5):
        budget = taken(budget, now)
    return budget


def test_five_sign_ins_may_go_at_once_and_then_one_every_half_minute() -> None:
    budget = spent(NOW)
    assert budget.take(NOW) == pytest.approx(30)
    assert budget.take(NOW + 10 * SECOND) == pytest.approx(20)
    budget = taken(budget, NOW + 30 * SECOND)
    assert budget.take(NOW + 45 * SECOND) == pytest.approx(15)


def test_a_budget_is_never_more_than_five() -> None:
    assert taken(spent(NOW), NOW + DAY) == SignInBudget(level=4, at=NOW + DAY)


def test_a_wait_rounded_down_by_a_microsecond_is_enough() -> None:
    budget = spent(NOW)
    assert isinstance(budget.take(NOW + 30 * SECOND - timedelta(microseconds=1)), SignInBudget)


def test_a_clock_set_back_a_little_makes_the_wait_a_little_longer() -> None:
    assert spent(NOW).take(NOW - 10 * SECOND) == 40


def test_a_clock_set_back_by_a_year_costs_one_sign_in_and_no_year_of_waiting() -> None:
    back = NOW - 365 * DAY
    budget = taken(spent(NOW), back)
    assert budget == SignInBudget(level=0, at=back)
    assert budget.take(back) == 30


@quick
@given(st.lists(st.floats(0, 60), max_size=60))
def test_no_window_sees_more_sign_ins_than_the_budget(gaps_s: list[float]) -> None:
    budget, now, made = SignInBudget.full(NOW), NOW, []
    for gap_s in gaps_s:
        now += gap_s * SECOND
        left = budget.take(now)
        if isinstance(left, SignInBudget):
            budget = left
            made.append(now)
    for first, begin in enumerate(made):
        for count, end in enumerate(made[first:], 1):
            assert count <= 5 + (end - begin).total_seconds() / 30 + 1e-4
