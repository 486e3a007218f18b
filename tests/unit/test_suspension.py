"""suspension: when an account is suspended, and what ends that."""

from datetime import UTC, datetime, timedelta

import pytest

from poller.suspension import EndsBy, Suspension

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def suspended(users: int = 3) -> Suspension:
    suspension = Suspension(users)
    for n in range(5):
        suspension.failed("ab"[n % 2], NOW, 0.5)
    assert suspension.until == NOW + 5 * SECOND
    return suspension


@pytest.mark.parametrize(
    ("user_count", "users", "suspends"),
    [
        pytest.param(2, "abab", [False] * 4, id="four are not enough"),
        pytest.param(2, "ababa", [False] * 4 + [True], id="five over two users"),
        pytest.param(2, "ababab", [False] * 4 + [True, False], id="said once"),
        pytest.param(2, "aaaaaaa", [False] * 7, id="one user's trouble is its own"),
        pytest.param(2, "aaaaaab", [False] * 6 + [True], id="until another has it too"),
        pytest.param(1, "aaaaa", [False] * 4 + [True], id="unless it is the only one"),
        pytest.param(9, "-----", [False] * 4 + [True], id="sign-in and health are no user's"),
    ],
)
def test_an_account_is_suspended_by_five_failures_in_a_row(
    user_count: int, users: str, suspends: list[bool]
) -> None:
    suspension = Suspension(user_count)
    found = [suspension.failed(None if u == "-" else u, NOW, 0.5) for u in users]
    assert found == suspends
    assert (suspension.until is not None) is any(suspends)
    assert suspension.failures == len(users)


def test_an_answer_in_between_restarts_the_count() -> None:
    suspension = Suspension(2)
    for user in "abab":
        suspension.failed(user, NOW, 0.5)
    assert not suspension.succeeded()
    for _ in range(9):
        assert not suspension.failed("a", NOW, 0.5)
    assert suspension.until is None


def test_a_refused_sign_in_suspends_at_once_and_says_why() -> None:
    suspension = Suspension(2)
    assert suspension.sign_in_refused(NOW, 0.5, "the API key is refused")
    assert not suspension.sign_in_refused(NOW, 0.5, "the API key is refused")
    assert suspension.until == NOW + 5 * SECOND
    assert suspension.reason == "the API key is refused"


def test_an_account_whose_answers_are_not_trusted_is_suspended_until_what_is_asked_for_comes() -> (
    None
):
    suspension = Suspension(2)
    assert suspension.distrusted(NOW, 0.5, "nothing is listed", EndsBy.JUDGEMENT)
    assert (suspension.until, suspension.ends_by) == (NOW + 5 * SECOND, EndsBy.JUDGEMENT)
    assert suspension.may_probe(NOW + 5 * SECOND)
    assert not suspension.distrusted(NOW + 5 * SECOND, 0.5, "nothing is listed", EndsBy.JUDGEMENT)
    assert suspension.until == NOW + 15 * SECOND
    assert suspension.succeeded()
    assert suspension.ends_by is EndsBy.ANSWER


def test_an_account_that_is_not_suspended_needs_no_probe() -> None:
    suspension = Suspension(2)
    assert suspension.may_probe(NOW)
    assert suspension.may_probe(NOW)


def test_one_probe_goes_when_its_time_has_come() -> None:
    suspension = suspended()
    assert not suspension.may_probe(NOW + 4 * SECOND)
    assert suspension.may_probe(NOW + 5 * SECOND)
    assert not suspension.may_probe(NOW + 6 * SECOND)


def test_probes_that_fail_come_at_growing_intervals() -> None:
    suspension, now, waits_s = suspended(), NOW, []
    for _ in range(8):
        assert suspension.until is not None
        waits_s.append((suspension.until - now).total_seconds())
        now = suspension.until
        assert suspension.may_probe(now)
        assert not suspension.failed("a", now, 0.5)
    assert waits_s == [5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize(("u", "wait_s"), [(0.0, 4), (0.5, 5), (1.0, 6)])
def test_probes_are_jittered(u: float, wait_s: float) -> None:
    suspension = Suspension(1)
    suspension.sign_in_refused(NOW, u, "refused")
    assert suspension.until == NOW + wait_s * SECOND


def test_failures_of_requests_from_before_the_suspension_do_not_lengthen_it() -> None:
    suspension = suspended()
    for _ in range(20):
        suspension.failed("c", NOW + SECOND, 0.5)
    assert suspension.until == NOW + 5 * SECOND


def test_a_probe_that_succeeds_ends_the_suspension_and_all_that_it_remembered() -> None:
    suspension = suspended()
    suspension.may_probe(NOW + 5 * SECOND)
    assert suspension.succeeded()
    assert not suspension.succeeded()
    assert (suspension.until, suspension.reason, suspension.failures) == (None, "", 0)
    for n in range(5):
        suspension.failed("ab"[n % 2], NOW, 0.5)
    assert suspension.until == NOW + 5 * SECOND


def test_a_new_key_brings_the_probe_of_a_refused_sign_in_forward_and_no_other() -> None:
    for refused in (False, True):
        suspension = Suspension(1)
        suspension.key_changed(NOW)
        assert suspension.until is None
        for _ in range(5):
            suspension.failed("ann", NOW, 0.5)
        if refused:
            suspension.may_probe(NOW + timedelta(minutes=1))
            suspension.sign_in_refused(NOW, 0.5, "the API key is refused")
        assert not suspension.may_probe(NOW)
        suspension.key_changed(NOW)
        assert suspension.may_probe(NOW) is refused


def test_a_refused_sign_in_is_forgotten_when_the_suspension_has_ended() -> None:
    suspension = Suspension(1)
    suspension.sign_in_refused(NOW, 0.5, "the API key is refused")
    suspension.succeeded()
    for _ in range(5):
        suspension.failed("ann", NOW, 0.5)
    suspension.key_changed(NOW)
    assert not suspension.may_probe(NOW)


def test_a_probe_that_is_never_heard_of_again_does_not_suspend_for_ever() -> None:
    suspension = suspended()
    assert suspension.may_probe(NOW + 5 * SECOND)
    assert not suspension.may_probe(NOW + 94 * SECOND)
    assert suspension.may_probe(NOW + 95 * SECOND)


def test_a_clock_set_back_by_a_day_does_not_suspend_for_a_day() -> None:
    assert suspended().may_probe(NOW - timedelta(days=1))


def test_a_suspension_that_another_node_found_ends_by_a_list_alone() -> None:
    suspension = Suspension(3)
    suspension.keep(NOW + 60 * SECOND, "eFax refuses the account")
    assert suspension.until == NOW + 60 * SECOND
    assert suspension.reason == "eFax refuses the account"
    assert suspension.failures == 1
    assert suspension.ends_by is EndsBy.LIST
