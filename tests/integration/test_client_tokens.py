"""The token of an account: shared, renewed in time, not fought over."""

import asyncio
import gc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from poller import errors
from poller.client import Observer, Ports
from poller.client.tokens import Held, Tokens
from poller.efax.responses import Token
from poller.sealing import SealedToken

LIFE_S = 86400.0
RENEWED_AT_S = LIFE_S - 300 * 1.5  # with 0.5 for the random share


class Desk(Observer):
    """Tokens of a server that numbers them; clock, store and observer in one."""

    def __init__(self) -> None:
        self.wall = datetime(2024, 1, 1, tzinfo=UTC)
        self.seconds = 0.0
        self.slept: list[float] = []
        self.budgets: dict[str, tuple[float, datetime]] = {}
        self.kept: dict[str, SealedToken] = {}
        self.read_error: Exception | None = None
        self.save_error: Exception | None = None
        self.key = "key"
        self.sign_ins: list[tuple[float, str]] = []
        self.error: Exception | None = None
        self.life_s = LIFE_S
        self.gate: asyncio.Event | None = None
        self.reasons: list[str] = []
        self.told: list[str] = []
        self.taken_up: list[str] = []
        self.wars: list[int] = []
        self.peaces: list[int] = []
        self.tokens = self.restarted()

    def restarted(self, app_id: str = "app") -> Tokens:
        ports = Ports(self, lambda: 0.5, self, self)
        return Tokens(app_id, self._sign_in, ports, api_key=lambda: self.key)

    async def _sign_in(self, user: str) -> Token:
        self.sign_ins.append((self.seconds, user))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Token(f"token-{len(self.sign_ins)}", self.life_s)

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds

    async def load(self, app_id: str) -> tuple[float, datetime] | None:
        return self.budgets.get(app_id)

    async def save(self, app_id: str, level: float, at: datetime) -> None:
        self.budgets[app_id] = (level, at)

    async def token(self, app_id: str) -> SealedToken | None:
        if self.read_error is not None:
            raise self.read_error
        return self.kept.get(app_id)

    async def save_token(self, app_id: str, kept: SealedToken) -> None:
        if self.save_error is not None:
            raise self.save_error
        self.kept[app_id] = kept

    def signed_in(self, reason: str, token: str) -> None:
        self.reasons.append(reason)
        self.told.append(token)

    def token_war(self, count: int) -> None:
        self.wars.append(count)

    def token_war_over(self, count: int) -> None:
        self.peaces.append(count)

    def took_up(self, token: str) -> None:
        self.taken_up.append(token)

    async def hold(self, user: str = "ann") -> Held:
        await self.tokens.get(user)
        assert self.tokens.held is not None
        return self.tokens.held

    async def lose(self) -> None:
        """Learn that the token has ended, and sign in again."""
        self.tokens.refused(await self.hold(), "ann")
        await self.tokens.get("ann")


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_one_token_serves_everybody_until_shortly_before_its_end(desk: Desk) -> None:
    first = await desk.hold("ann")
    desk.advance(RENEWED_AT_S - 1)
    assert await desk.hold("bob") is first
    desk.advance(1)
    assert (await desk.hold("bob")).value == "token-2"
    assert desk.reasons == ["start", "ending"]
    assert desk.told == ["token-1", "token-2"]


async def test_a_short_lived_token_is_renewed_a_share_of_its_life_before_its_end(
    desk: Desk,
) -> None:
    desk.life_s = 100
    held = await desk.hold()
    assert held.renew_at == pytest.approx(92.5)


async def test_a_new_key_is_used_with_the_next_call(desk: Desk) -> None:
    first = await desk.hold()
    desk.tokens.key_changed()
    assert await desk.hold() is not first
    assert await desk.hold() is desk.tokens.held
    assert desk.reasons == ["start", "new key"]


async def test_a_new_key_spends_the_budget_as_any_sign_in_and_the_old_token_serves_meanwhile(
    desk: Desk,
) -> None:
    first = await desk.hold()
    desk.budgets["app"] = (-5.0, desk.wall)
    desk.tokens.key_changed()
    assert await desk.hold() is first
    assert len(desk.sign_ins) == 1
    desk.advance(600)
    assert await desk.hold() is not first
    assert desk.reasons == ["start", "new key"]


async def test_a_sign_in_under_way_when_the_key_changes_is_followed_by_one_with_the_new_key(
    desk: Desk,
) -> None:
    desk.gate = asyncio.Event()
    caller = asyncio.create_task(desk.hold())
    while not desk.sign_ins:
        await asyncio.sleep(0)
    desk.tokens.key_changed()
    desk.gate.set()
    first = await caller
    assert await desk.hold() is not first
    assert await desk.hold() is desk.tokens.held
    assert len(desk.sign_ins) == 2


async def test_callers_share_one_sign_in(desk: Desk) -> None:
    desk.gate = asyncio.Event()
    callers = [asyncio.create_task(desk.hold(str(user))) for user in range(10)]
    await asyncio.sleep(0)
    desk.gate.set()
    assert {held.value for held in await asyncio.gather(*callers)} == {"token-1"}
    assert len(desk.sign_ins) == 1


async def test_a_caller_that_is_cancelled_does_not_take_the_sign_in_from_the_others(
    desk: Desk,
) -> None:
    desk.gate = asyncio.Event()
    first = asyncio.create_task(desk.hold("ann"))
    await asyncio.sleep(0)
    second = asyncio.create_task(desk.hold("bob"))
    await asyncio.sleep(0)
    first.cancel()
    desk.gate.set()
    assert (await second).value == "token-1"
    assert len(desk.sign_ins) == 1


async def test_a_sign_in_that_fails_when_all_callers_are_gone_is_quiet(desk: Desk) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    desk.gate, desk.error = asyncio.Event(), errors.Unreachable("down")
    caller = asyncio.create_task(desk.hold())
    await asyncio.sleep(0.001)
    caller.cancel()
    desk.gate.set()
    await asyncio.sleep(0.001)
    desk.error = None
    assert (await desk.hold()).value == "token-2"
    gc.collect()
    assert complaints == []


async def test_a_failed_sign_in_fails_all_who_waited_and_is_tried_again_next_time(
    desk: Desk,
) -> None:
    desk.error = errors.Unreachable("down")
    results = await asyncio.gather(desk.hold(), desk.hold(), return_exceptions=True)
    assert [str(result) for result in results] == ["down", "down"]
    assert len(desk.sign_ins) == 1
    desk.error = None
    assert (await desk.hold()).value == "token-2"
    assert desk.reasons == ["start"]


async def test_closing_ends_a_sign_in_under_way(desk: Desk) -> None:
    await desk.tokens.close()
    desk.gate = asyncio.Event()
    caller = asyncio.create_task(desk.hold())
    await asyncio.sleep(0.001)
    await desk.tokens.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


# -- renewing in time -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [errors.Unreachable("down"), errors.RateLimited("x"), errors.LedgerUnavailable("x")]
)
async def test_a_token_that_cannot_be_renewed_yet_is_used_to_its_end(
    desk: Desk, error: Exception
) -> None:
    first = await desk.hold()
    desk.advance(RENEWED_AT_S)
    desk.error = error
    assert await desk.hold() is first
    assert await desk.hold() is first
    assert len(desk.sign_ins) == 2  # not again at once
    desk.advance(60)
    assert await desk.hold() is first
    assert len(desk.sign_ins) == 3
    desk.advance(400)
    with pytest.raises(type(error)):
        await desk.hold()


async def test_a_sign_in_refused_is_not_hidden_by_a_token_that_lives(desk: Desk) -> None:
    await desk.hold()
    desk.advance(RENEWED_AT_S)
    desk.error = errors.SignInRefused("no")
    with pytest.raises(errors.SignInRefused):
        await desk.hold()


# -- 401 ------------------------------------------------------------------------------------------


async def test_a_401_to_an_older_token_does_not_count_against_the_newer(desk: Desk) -> None:
    old = await desk.hold()
    assert desk.tokens.refused(old, "ann")
    new = await desk.hold()
    assert desk.tokens.refused(old, "bob")
    assert desk.tokens.held is new
    assert desk.wars == []


async def test_a_user_who_was_served_again_has_his_say(desk: Desk) -> None:
    held = await desk.hold()
    desk.tokens.doubt("ann")
    desk.tokens.accepted(held, "bob")
    assert not desk.tokens.refused(held, "ann")
    assert desk.tokens.held is held
    desk.tokens.accepted(held, "ann")
    assert desk.tokens.refused(held, "ann")
    assert desk.tokens.held is None


async def test_a_doubtful_user_has_his_say_about_a_token_that_served_nobody(desk: Desk) -> None:
    held = await desk.hold()
    desk.tokens.doubt("ann")
    assert desk.tokens.refused(held, "ann")
    assert desk.tokens.held is None


# -- the budget -----------------------------------------------------------------------------------


async def test_five_sign_ins_may_go_at_once_then_one_per_thirty_seconds(desk: Desk) -> None:
    for _ in range(7):
        desk.kept.clear()
        desk.tokens = desk.restarted()
        await desk.tokens.get("ann")
    assert [round(at) for at, _ in desk.sign_ins] == [0, 0, 0, 0, 0, 30, 60]
    assert desk.slept == [pytest.approx(30), pytest.approx(30)]


async def test_a_failed_sign_in_is_spent_too(desk: Desk) -> None:
    desk.error = errors.Unreachable("down")
    with pytest.raises(errors.Unreachable):
        await desk.tokens.get("ann")
    assert desk.budgets["app"][0] == 4


async def test_callers_do_not_wait_for_a_distant_sign_in(desk: Desk) -> None:
    desk.budgets["app"] = (0.0, desk.wall + timedelta(seconds=20))
    with pytest.raises(errors.SignInDelayed) as raised:
        await desk.tokens.get("ann")
    assert raised.value.wait_s == pytest.approx(50)
    assert desk.sign_ins == []


# -- kept over restarts ---------------------------------------------------------------------------


async def kept_and_restarted(desk: Desk, later_s: float = 60) -> None:
    await desk.hold()
    desk.advance(later_s)
    desk.tokens = desk.restarted()


async def test_a_restart_uses_the_kept_token_without_a_sign_in(desk: Desk) -> None:
    await kept_and_restarted(desk)
    first, second = await asyncio.gather(desk.hold("ann"), desk.hold("bob"))
    assert first is second
    assert (first.value, first.ends_at) == ("token-1", LIFE_S)
    assert desk.taken_up == ["token-1"]
    assert desk.reasons == ["start"]
    assert len(desk.sign_ins) == 1


async def test_a_kept_token_is_renewed_in_time(desk: Desk) -> None:
    await kept_and_restarted(desk, RENEWED_AT_S - 1)
    assert (await desk.hold()).value == "token-1"
    desk.advance(1)
    assert (await desk.hold()).value == "token-2"
    assert desk.reasons == ["start", "ending"]


async def test_a_kept_token_that_is_about_to_end_is_used_while_no_new_one_can_be_had(
    desk: Desk,
) -> None:
    await kept_and_restarted(desk, RENEWED_AT_S)
    desk.error = errors.Unreachable("down")
    assert (await desk.hold()).value == "token-1"
    assert (await desk.hold()).value == "token-1"
    desk.advance(60)
    desk.error = None
    assert (await desk.hold()).value == "token-3"


async def test_a_kept_token_that_has_ended_is_not_used(desk: Desk) -> None:
    await kept_and_restarted(desk, LIFE_S)
    assert (await desk.hold()).value == "token-2"
    assert desk.taken_up == []
    assert desk.reasons == ["start", "start"]


async def test_a_kept_token_lives_no_longer_than_its_life_after_the_clock_was_set_back(
    desk: Desk,
) -> None:
    await desk.hold()
    desk.wall -= timedelta(days=400)
    desk.tokens = desk.restarted()
    held = await desk.hold()
    assert held.ends_at - desk.seconds == LIFE_S


async def test_a_kept_token_that_efax_refuses_costs_one_sign_in_and_is_no_loss(desk: Desk) -> None:
    await kept_and_restarted(desk)
    held = await desk.hold()
    assert held.is_kept
    assert desk.tokens.refused(held, "ann")
    assert not (await desk.hold()).is_kept
    assert desk.reasons == ["start", "refused"]
    await desk.lose()
    assert desk.wars == []


async def test_a_kept_token_that_worked_and_was_then_refused_is_a_loss(desk: Desk) -> None:
    await kept_and_restarted(desk)
    desk.tokens.accepted(await desk.hold(), "ann")
    await desk.lose()
    await desk.lose()
    assert desk.wars == [2]


async def test_a_changed_key_signs_in(desk: Desk) -> None:
    await desk.hold()
    desk.key = "another"
    desk.tokens = desk.restarted()
    assert (await desk.hold()).value == "token-2"
    assert desk.reasons == ["start", "start"]


async def test_a_key_that_changes_before_the_first_call_signs_in_once(desk: Desk) -> None:
    await kept_and_restarted(desk)
    desk.key = "another"
    desk.tokens.key_changed()
    assert (await desk.hold()).value == "token-2"
    assert await desk.hold() is desk.tokens.held
    assert len(desk.sign_ins) == 2


async def test_a_token_kept_under_the_key_that_a_reload_brings_is_used(desk: Desk) -> None:
    await kept_and_restarted(desk)
    desk.tokens.key_changed()
    assert (await desk.hold()).value == "token-1"
    desk.advance(RENEWED_AT_S)
    await desk.hold()
    assert desk.reasons == ["start", "ending"]


async def test_a_token_obtained_with_a_key_that_has_just_changed_is_not_kept(desk: Desk) -> None:
    desk.gate = asyncio.Event()
    caller = asyncio.create_task(desk.hold())
    while not desk.sign_ins:
        await asyncio.sleep(0)
    desk.key = "another"
    desk.tokens.key_changed()
    desk.gate.set()
    await caller
    assert desk.kept == {}
    await desk.hold()
    desk.tokens = desk.restarted()
    assert (await desk.hold()).value == "token-2"


async def test_a_damaged_seal_signs_in(desk: Desk) -> None:
    await desk.hold()
    kept = desk.kept["app"]
    desk.kept["app"] = replace(kept, sealed=kept.sealed[:-8] + "AAAAAAA=")
    desk.tokens = desk.restarted()
    assert (await desk.hold()).value == "token-2"
    desk.tokens = desk.restarted()
    assert (await desk.hold()).value == "token-2"


async def test_each_account_has_its_own_token(desk: Desk) -> None:
    await desk.hold()
    desk.tokens = desk.restarted("other")
    assert (await desk.hold()).value == "token-2"
    desk.kept["app"] = desk.kept["other"]  # even a row in the wrong place opens nothing
    desk.tokens = desk.restarted()
    assert (await desk.hold()).value == "token-3"


async def test_a_kept_token_is_looked_for_again_when_the_ledger_could_not_be_read(
    desk: Desk,
) -> None:
    await kept_and_restarted(desk)
    desk.read_error = errors.LedgerUnavailable("x")
    with pytest.raises(errors.LedgerUnavailable):
        await desk.hold()
    desk.read_error = None
    assert (await desk.hold()).value == "token-1"


async def test_a_new_token_that_cannot_be_kept_costs_no_second_sign_in(desk: Desk) -> None:
    desk.save_error = errors.LedgerUnavailable("x")
    with pytest.raises(errors.LedgerUnavailable):
        await desk.hold()
    assert (await desk.hold()).value == "token-1"


# -- another program with this App ID -------------------------------------------------------------


async def test_a_token_refused_at_its_end_is_no_war(desk: Desk) -> None:
    desk.life_s = 600
    for _ in range(4):
        held = await desk.hold()
        desk.advance(560)
        desk.tokens.refused(held, "ann")
    assert desk.wars == []


async def test_two_tokens_refused_long_before_their_end_are_a_war_said_once(desk: Desk) -> None:
    await desk.lose()
    assert desk.wars == []
    desk.advance(600)
    await desk.lose()
    assert desk.wars == [2]
    desk.advance(600)
    await desk.lose()
    assert desk.wars == [2]
    assert desk.reasons == ["start", "refused", "refused", "refused"]


async def test_sign_ins_keep_a_growing_distance_in_a_war(desk: Desk) -> None:
    await desk.lose()
    waits = []
    for _ in range(8):
        desk.tokens.refused(await desk.hold(), "ann")
        try:
            slept = len(desk.slept)
            await desk.tokens.get("ann")
            waits.append(sum(desk.slept[slept:]))
        except errors.SignInDelayed as delayed:
            waits.append(delayed.wait_s)
            desk.advance(delayed.wait_s)
            await desk.tokens.get("ann")
    assert waits[:6] == pytest.approx([30, 60, 120, 240, 480, 600])
    assert max(waits) == pytest.approx(600)


async def test_an_hour_without_a_loss_ends_the_pauses_but_not_the_war(desk: Desk) -> None:
    await desk.lose()
    await desk.lose()
    desk.advance(3601)
    await desk.lose()
    assert desk.seconds < 3640  # it did not have to wait
    await desk.lose()
    assert desk.wars == [2]


async def test_a_job_that_signs_in_every_few_hours_is_noticed_too_and_never_delays(
    desk: Desk,
) -> None:
    for _ in range(12):
        desk.tokens.accepted(await desk.hold(), "ann")
        await desk.lose()
        desk.advance(7 * 3600)
    assert desk.wars == [3]
    assert desk.peaces == []
    assert desk.slept == []


async def test_two_tokens_lost_hours_apart_are_no_war(desk: Desk) -> None:
    for hours in (2, 23, 2):
        await desk.lose()
        desk.advance(hours * 3600)
    assert desk.wars == []


async def test_a_day_without_a_loss_is_peace_reported_once_and_the_next_war_is_reported_again(
    desk: Desk,
) -> None:
    desk.life_s = 7 * LIFE_S
    for _ in range(3):
        await desk.lose()
        desk.advance(600)
    desk.tokens.accepted(await desk.hold(), "ann")
    desk.advance(LIFE_S - 601)
    desk.tokens.accepted(await desk.hold(), "ann")
    assert desk.peaces == []
    for _ in range(2):
        desk.advance(1)
        desk.tokens.accepted(await desk.hold(), "ann")
    assert desk.peaces == [3]
    for _ in range(2):
        await desk.lose()
    assert desk.wars == [2, 2]


def test_a_token_in_use_does_not_show_itself() -> None:
    assert "secret" not in repr(Held("secret", 1.0, 2.0))
