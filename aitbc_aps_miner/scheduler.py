"""What runs when: the table of ticks on APScheduler, retimed live.

Every tick is an interval job of its own process and deadline. A tick whose pause
depends on how it ended (pull, a failed heartbeat) is re-timed by its callback; the
interval is then only the backstop that fires should that callback be lost.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.executor import Isolated, ProcessExecutor
from aitbc_aps_miner.trigger import JitterTrigger

TASKS = "aitbc_aps_miner.tasks"

# Time for a tick's own work beside its HTTP calls: start, parsing, the report.
OVERHEAD_S = 5


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One row of the table: seconds between runs, and the hard deadline of one run."""

    ref: str
    interval_s: Callable[[Config], float]
    deadline_s: Callable[[Config], float]
    jitter_pct: Callable[[Config], float] = lambda _: 0.0


def _call_s(config: Config, calls: int = 1) -> float:
    return config.coordinator.timeout_s * calls + OVERHEAD_S


def _pull_deadline_s(config: Config) -> float:
    # One long poll, then a call for each job that has to be refused.
    return config.pull.wait_s + _call_s(config, 2)


TICKS = {
    "heartbeat": Tick(
        ref=f"{TASKS}:heartbeat",
        interval_s=lambda config: config.heartbeat.interval_s,
        # The call, a registration behind it, and the call again.
        deadline_s=lambda config: _call_s(config, 3),
        jitter_pct=lambda config: config.heartbeat.jitter_pct,
    ),
    "probe": Tick(
        ref=f"{TASKS}:probe",
        interval_s=lambda config: config.probe.interval_s,
        deadline_s=lambda config: config.probe.timeout_s + OVERHEAD_S,
    ),
    "sweep": Tick(
        ref="aitbc_aps_miner.sweep:sweep",
        interval_s=lambda config: config.sweep.interval_s,
        deadline_s=lambda config: _call_s(config, 3) + 60,
    ),
    "pull": Tick(
        ref=f"{TASKS}:pull",
        interval_s=lambda config: _pull_deadline_s(config) + config.pull.interval_s,
        deadline_s=_pull_deadline_s,
    ),
}


class Scheduler:
    """APScheduler with our executor, spoken to by the names of ticks."""

    def __init__(self, executor: ProcessExecutor, rng: random.Random) -> None:
        self._rng = rng
        self._scheduler = BackgroundScheduler(
            executors={"default": executor},
            timezone=UTC,
            job_defaults={
                "coalesce": True,
                "max_instances": 1,
                # The default of 1 s drops what is late, above all one-shot jobs.
                "misfire_grace_time": None,
            },
        )

    def listen(self, listener: Callable[[Any], None], mask: int) -> None:
        """Hear APScheduler's events."""
        self._scheduler.add_listener(listener, mask)

    def start(self) -> None:
        """Run what is due from now on."""
        self._scheduler.start()

    def stop(self) -> None:
        """Start nothing any more; what runs is the executor's business."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def add_tick(self, name: str, config: Config, first_in_s: float | None) -> None:
        """Put a tick of the table on the clock; None: only when asked for."""
        tick = TICKS[name]
        self._scheduler.add_job(
            self._isolated(tick, config),
            trigger=self._trigger(tick, config),
            id=name,
            next_run_time=_in(first_in_s) if first_in_s is not None else None,
        )

    def once(self, job_id: str, call: Isolated, in_s: float = 0) -> None:
        """Run `call` once; a second one of the same id replaces a waiting one."""
        self._scheduler.add_job(
            call,
            trigger="date",
            run_date=_in(in_s),
            id=job_id,
            replace_existing=True,
        )

    def run_in(self, name: str, in_s: float) -> None:
        """Let a tick run in `in_s` seconds instead of when it was due."""
        try:
            self._scheduler.modify_job(name, next_run_time=_in(in_s))
        except JobLookupError:
            return  # shut down meanwhile, or a tick that was never added

    def pause(self, name: str) -> None:
        """Let a tick wait until `run_in`."""
        with suppress(JobLookupError):  # shut down meanwhile
            self._scheduler.modify_job(name, next_run_time=None)

    def is_due(self, name: str) -> bool:
        """Whether the tick has a time to run at."""
        job = self._scheduler.get_job(name)
        return job is not None and job.next_run_time is not None

    def retime(self, config: Config, before: Config, floor_s: float = 0) -> None:
        """Apply new intervals and deadlines; `floor_s` only slows heartbeats.

        A tick whose interval is the same keeps its next time.
        """
        for name, tick in TICKS.items():
            job = self._scheduler.get_job(name)
            if job is None:
                continue
            floor = floor_s if name == "heartbeat" else 0
            job.modify(
                func=self._isolated(tick, config),
                trigger=self._trigger(tick, config, floor),
            )
            interval_s = tick.interval_s(config)
            is_paced = name != "pull" and job.next_run_time is not None
            if is_paced and interval_s != tick.interval_s(before):
                self.run_in(name, max(interval_s, floor))

    def shift(self, step_s: float) -> None:
        """Keep every tick's distance from now after the wall clock stepped.

        Otherwise one that stepped back silences all ticks until the old time comes.
        What a step forward leaves ahead stays where it is: a tick may have run and
        been timed anew before this, and must not wait for the step's length again.
        """
        step, now = timedelta(seconds=step_s), _in(0)
        for job in self._scheduler.get_jobs():
            at = job.next_run_time
            if at is not None and (step_s < 0 or at <= now):
                with suppress(JobLookupError):  # it ran meanwhile
                    job.modify(next_run_time=at + step)

    def _isolated(self, tick: Tick, config: Config) -> Isolated:
        return Isolated(ref=tick.ref, deadline_s=tick.deadline_s(config))

    def _trigger(self, tick: Tick, config: Config, floor_s: float = 0) -> JitterTrigger:
        return JitterTrigger(
            interval_s=max(tick.interval_s(config), floor_s),
            jitter_pct=tick.jitter_pct(config),
            rng=self._rng,
        )


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)
