"""Schedule the polls: one APScheduler job per stream."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from poller import events, plan, schedule
from poller.config.model import Poll
from poller.daemon.trigger import PollTrigger
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.stream import Direction

_POLL_STUCK_S = 110.0  # plus ten until the next look: two minutes
_BETWEEN_POLLS = timedelta(seconds=1)
POLLS_PER_S = 200.0  # per account if all its users are due; more would only wait in memory
_TICK = Poll(every=timedelta(seconds=10))


class Planner:
    """Plans and runs the polls of all users. `tick_at` is the scheduler's last activity (monotonic)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._clock = runtime.services.clock
        self._emit = runtime.services.emit
        self._polls: dict[asyncio.Task[object], tuple[AccountRunner, StreamState]] = {}
        self.tick_at = self._clock.monotonic()
        self.plan_also: Callable[[AsyncIOScheduler], None] = lambda _: None
        # Late jobs must run too: misfire_grace_time is one second by default.
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        # `_poll` reports its errors itself; APScheduler would only add jobs that `stop` cancelled.
        logging.getLogger("apscheduler.executors").setLevel(logging.CRITICAL)
        self._scheduler.add_listener(self._skipped, EVENT_JOB_MAX_INSTANCES)
        self._scheduler.start(paused=True)  # or it looks for due jobs after each new one
        self.plan()
        self._scheduler.resume()

    async def stop(self) -> None:
        """Start no more polls and end those under way; the ledger keeps what they listed."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await self._end(list(self._polls))

    async def end_polls(self, account: AccountRunner) -> None:
        """End the polls of an account that has left the runtime; the ledger keeps what they listed.

        They must end before the account is closed: afterwards they would wait for a turn forever.
        """
        await self._end([poll for poll, (of, _) in self._polls.items() if of is account])

    @staticmethod
    async def _end(polls: list[asyncio.Task[object]]) -> None:
        for poll in polls:
            poll.cancel()
        if polls:
            await asyncio.wait(polls)

    def plan(self) -> None:
        """Schedule a job for every user; do not disturb polls under way."""
        self._scheduler.remove_all_jobs()
        self._scheduler.add_job(self._tick, PollTrigger(_TICK, "tick"), id="tick")
        for account in self._runtime.accounts.values():
            self.add(account, alone=False)
        self.plan_also(self._scheduler)

    def remove(self, account: AccountRunner) -> None:
        """Schedule nothing more for the users of an account."""
        for state in account.streams:
            for job in (str(state.id), f"canary {state.id}"):
                with suppress(JobLookupError):
                    self._scheduler.remove_job(job)

    def poll_within(self, account: AccountRunner, spread: timedelta) -> None:
        """Bring forward the next poll of every user of `account`, spread over the time given."""
        for state in account.states.values():
            self._bring_forward(state, schedule.phase(state.key, spread))

    def poll_soon(self, state: StreamState, delay: timedelta = timedelta(0)) -> None:
        self._bring_forward(state, delay)

    def end_stuck_polls(self) -> None:
        """End polls without progress for two minutes, and report them by name."""
        for poll, (account, state) in self._polls.items():
            if self._is_stuck(account, state):
                self._emit(events.Stalled("poll", *state.user.names))
                poll.cancel()

    def is_overdue(self, state: StreamState) -> bool:
        """Return whether the poll after the last successful one is long past."""
        now, last = self._clock.now(), state.progress.last_success_at
        if last is not None and now <= last + schedule.LATE_AT_LEAST:
            return False  # true for most users, whatever their schedule
        job = self._scheduler.get_job(str(state.id))
        if job is None:
            return True
        if last is None:
            waited_s = self._clock.monotonic() - state.planned_at
            return waited_s > schedule.LATE_AT_LEAST.total_seconds()
        trigger: PollTrigger = job.trigger
        return schedule.is_overdue(trigger.poll, trigger.identity, last, now, trigger.factor)

    def add(self, account: AccountRunner, *, alone: bool = True) -> None:
        """Schedule a job for each stream of an account; `alone`: and for all else that it needs."""
        limit = account.account.limits.requests_per_second
        polls = [state.user.poll for state in account.states.values()]
        factor = plan.demand(polls, limit, self._clock.now()).factor
        name = account.account.name
        self._runtime.services.metrics.set("schedule_stretch_ratio", factor, name)
        if factor > 1:
            self._emit(events.ScheduleStretched(name, round(factor, 2), limit))
        per_second = min(limit * schedule.LISTS_SHARE, POLLS_PER_S)
        spread = timedelta(seconds=len(account.states) / per_second)
        for state in account.states.values():
            self._plan_stream(account, state, factor, spread)
        # Sent lists go when no received list waits.
        for state in account.lanes[Direction.SENT].states.values():
            self._plan_stream(account, state, 1.0, spread)
        if alone:
            self.plan_also(self._scheduler)

    def _plan_stream(
        self, account: AccountRunner, state: StreamState, factor: float, spread: timedelta
    ) -> None:
        """Schedule a stream; the first polls start now, spread over the time the limit needs for all."""
        now = self._clock.now()
        state.planned_at = min(state.planned_at, self._clock.monotonic())
        identity = schedule.identity(state.user.app_id, state.user.user_id, state.direction)
        trigger = PollTrigger(state.user.poll, identity, factor)
        first = trigger.get_next_fire_time(None, now)
        if state.sweep_now or state.progress.backfill_waits:
            first = min(first, now + schedule.phase(state.key, spread))
        self._scheduler.add_job(
            _poll,
            trigger,
            args=(self, account, state, trigger),
            id=str(state.id),
            name=state.key,
            next_run_time=first,
        )

    def _bring_forward(self, state: StreamState, delay: timedelta) -> None:
        job = self._scheduler.get_job(str(state.id))
        if job is not None:
            soon = self._clock.now() + delay
            job.modify(next_run_time=min(soon, job.next_run_time or soon))

    async def _poll(self, account: AccountRunner, state: StreamState, trigger: PollTrigger) -> None:
        """Run one poll; catch its errors, so that the job continues."""
        if self._runtime.accounts.get(account.account.app_id) is not account:
            return  # a reload is closing the account, and will plan again when it is done
        now = self._clock.now()
        pause = trigger.get_next_fire_time(None, now) - now
        task = asyncio.current_task()
        assert task is not None
        self._polls[task] = (account, state)
        state.poll_began_at = self._clock.monotonic()
        goes_on = False
        try:
            outcome = await account.poll(state, until=state.poll_began_at + pause.total_seconds())
            goes_on = (
                state.progress.backfill_waits and outcome.error is None and outcome.skipped is None
            )
        except asyncio.CancelledError:
            pass  # ended by `end_stuck_polls`, `end_polls` or `stop`; nothing else cancels a job
        except Exception as bug:  # noqa: BLE001 - a bug in one user's poll must not stop the others
            await account.broke_off(state, bug)
        finally:
            account.client.pacing.slots.calm(state.user.name)
            state.poll_began_at = None
            del self._polls[task]
            if goes_on:  # a backfill, even if the next scheduled poll is hours away
                self._bring_forward(state, self._backfill_pause(state))

    def _backfill_pause(self, state: StreamState) -> timedelta:
        """Return a pause that lets this poll end before the next one starts."""
        pause_s = state.backfill_not_before - self._clock.monotonic()
        return max(_BETWEEN_POLLS, timedelta(seconds=pause_s))

    def _is_stuck(self, account: AccountRunner, state: StreamState) -> bool:
        """Return whether a poll made no progress for too long; waiting for pacing does not count."""
        if state.poll_began_at is None or account.client.pacing.slots.has_waiting(state.user.name):
            return False
        quiet_since = max(state.poll_began_at, state.progress_at, account.progress_at)
        return self._clock.monotonic() - quiet_since >= _POLL_STUCK_S

    def _skipped(self, event: JobSubmissionEvent) -> None:
        job = self._scheduler.get_job(event.job_id)
        if job is not None:
            state: StreamState = job.args[2]
            self._runtime.services.metrics.poll(*state.user.names, "skipped", state.direction)

    async def _tick(self) -> None:
        self.tick_at = self._clock.monotonic()


async def _poll(
    planner: Planner, account: AccountRunner, state: StreamState, trigger: PollTrigger
) -> None:
    await planner._poll(account, state, trigger)


# APScheduler computes the signature of each job's function, which is nearly half the time that
# adding the job takes, unless the function has it as an attribute.
setattr(_poll, "__signature__", inspect.signature(_poll))  # noqa: B010 - mypy knows no such attribute
