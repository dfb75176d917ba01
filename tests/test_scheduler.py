"""The table of ticks on a real APScheduler: deadlines, intervals, clock steps."""

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from daemon_fakes import config_of
from freezegun import freeze_time

from aitbc_aps_miner.executor import Isolated, ProcessExecutor
from aitbc_aps_miner.scheduler import TICKS, Scheduler
from aitbc_aps_miner.trigger import JitterTrigger

CONFIG = config_of(
    heartbeat={"interval_s": 15, "jitter_pct": 10},
    pull={"interval_s": 2, "wait_s": 25},
    sweep={"interval_s": 60},
    probe={"interval_s": 30, "timeout_s": 10},
    coordinator={"timeout_s": 20},
)


@pytest.fixture
def timetable() -> Iterator[Scheduler]:
    """Give a scheduler that was started and has nothing due."""
    threads = cast("ProcessExecutor", ThreadPoolExecutor(1))
    scheduler = Scheduler(threads, random.Random(1))
    for name in TICKS:
        scheduler.add_tick(name, CONFIG, None if name == "pull" else 1000)
    scheduler.start()
    yield scheduler
    scheduler.stop()


def job(timetable: Scheduler, name: str) -> Any:
    """Give APScheduler's own job."""
    return timetable._scheduler.get_job(name)


def due_s(timetable: Scheduler, name: str) -> float | None:
    """Give the seconds until a job is due, rounded; None when it waits."""
    at = job(timetable, name).next_run_time
    return (
        None if at is None else float(round((at - datetime.now(UTC)).total_seconds()))
    )


def test_every_tick_has_its_deadline_and_its_pause(timetable: Scheduler) -> None:
    """Each deadline has room for the tick's calls."""
    table = {
        name: (
            job(timetable, name).func.ref.partition(":")[2],
            job(timetable, name).func.deadline_s,
            job(timetable, name).trigger.interval_s,
            job(timetable, name).trigger.jitter_pct,
        )
        for name in TICKS
    }
    assert table == {
        "heartbeat": ("heartbeat", 65, 15, 10),
        "probe": ("probe", 15, 30, 0),
        "sweep": ("sweep", 125, 60, 0),
        "pull": ("pull", 70, 72, 0),
    }
    assert {name: due_s(timetable, name) for name in TICKS} == {
        "heartbeat": 1000,
        "probe": 1000,
        "sweep": 1000,
        "pull": None,
    }


def test_ticks_coalesce_and_are_never_dropped_for_being_late(
    timetable: Scheduler,
) -> None:
    """One instance of each at a time."""
    tick = job(timetable, "heartbeat")
    assert (tick.coalesce, tick.max_instances, tick.misfire_grace_time) == (
        True,
        1,
        None,
    )


def test_a_tick_is_timed_by_its_name(timetable: Scheduler) -> None:
    """Sooner, later, not at all; names that nobody knows are nobody's."""
    timetable.run_in("pull", 500)
    assert due_s(timetable, "pull") == 500
    assert timetable.is_due("pull")
    timetable.pause("pull")
    assert not timetable.is_due("pull")
    timetable.run_in("unknown", 0)
    timetable.pause("unknown")
    assert not timetable.is_due("unknown")


def test_a_one_shot_job_runs_once_and_its_end_is_heard(timetable: Scheduler) -> None:
    """A second one of its name replaces one that waits."""
    ended = threading.Event()
    heard: list[str] = []

    def listen(event: Any) -> None:
        heard.append(event.retval)
        ended.set()

    timetable.listen(listen, EVENT_JOB_EXECUTED)
    replaced = Isolated(ref="os:getcwd")
    timetable.once("x", replaced, 1000)
    timetable.once("x", cast("Isolated", lambda: "second"))
    assert ended.wait(10)
    assert heard == ["second"]
    assert not timetable.is_due("x")


def test_an_edit_retimes_only_what_it_changed(timetable: Scheduler) -> None:
    """Other ticks keep their next time; the deadlines are new for all."""
    edited = CONFIG.model_copy(
        update={"sweep": CONFIG.sweep.model_copy(update={"interval_s": 10})}
    )
    timetable.retime(edited, CONFIG)
    assert {name: due_s(timetable, name) for name in TICKS} == {
        "heartbeat": 1000,
        "probe": 1000,
        "sweep": 10,
        "pull": None,
    }
    slower = CONFIG.model_copy(
        update={
            "coordinator": CONFIG.coordinator.model_copy(update={"timeout_s": 40}),
            "pull": CONFIG.pull.model_copy(update={"interval_s": 5}),
        }
    )
    timetable.retime(slower, CONFIG)
    assert job(timetable, "heartbeat").func.deadline_s == 125
    assert job(timetable, "pull").trigger.interval_s == 115
    assert due_s(timetable, "pull") is None


@pytest.mark.parametrize(("floor_s", "interval_s"), [(40, 40), (5, 15)])
def test_a_coordinator_may_only_slow_heartbeats(
    timetable: Scheduler, floor_s: float, interval_s: float
) -> None:
    """Nothing else of the table is its business."""
    timetable.retime(CONFIG, CONFIG, floor_s)
    assert job(timetable, "heartbeat").trigger.interval_s == interval_s
    assert job(timetable, "sweep").trigger.interval_s == 60


def test_a_tick_that_waits_is_not_woken_by_an_edit(timetable: Scheduler) -> None:
    """A coordinator without heartbeats gets none for it."""
    timetable.pause("heartbeat")
    quick = CONFIG.heartbeat.model_copy(update={"interval_s": 1})
    timetable.retime(CONFIG.model_copy(update={"heartbeat": quick}), CONFIG)
    assert not timetable.is_due("heartbeat")


@pytest.mark.parametrize(
    ("step_s", "moved_s"), [(3600.0, 3600), (-3600.0, -3600), (100.0, 0)]
)
def test_a_stepped_wall_clock_moves_times(
    timetable: Scheduler, step_s: float, moved_s: float
) -> None:
    """Distances from now stay; what waits, or is ahead still, is left alone."""
    before = job(timetable, "sweep").next_run_time
    with freeze_time(datetime.now(UTC) + timedelta(seconds=step_s)):
        timetable.shift(step_s)
        moved = job(timetable, "sweep").next_run_time - before
    assert moved == timedelta(seconds=moved_s)
    assert not timetable.is_due("pull")


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_step_of_an_hour_changes_nothing_in_the_cadence(step_s: float) -> None:
    """Due in 50 ms before the step is due in 50 ms after it."""
    fired = threading.Event()
    with freeze_time(datetime(2026, 1, 1, tzinfo=UTC), tick=True) as clock:
        threads = cast("ProcessExecutor", ThreadPoolExecutor(1))
        timetable = Scheduler(threads, random.Random(1))
        timetable.start()
        try:
            trigger = JitterTrigger(0.05, 0, random.Random(1))
            timetable._scheduler.add_job(fired.set, trigger)
            assert fired.wait(10)
            clock.tick(timedelta(seconds=step_s))
            timetable.shift(step_s)
            for _ in range(3):
                fired.clear()
                assert fired.wait(10)
        finally:
            timetable.stop()


def test_a_job_that_ends_while_the_clock_is_handled_harms_nobody(
    timetable: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ticks are moved all the same."""
    real = timetable._scheduler.modify_job
    before = job(timetable, "sweep").next_run_time

    def modify(job_id: str, *args: Any, **changes: Any) -> Any:
        if job_id == "heartbeat":
            raise JobLookupError(job_id)
        return real(job_id, *args, **changes)

    monkeypatch.setattr(timetable._scheduler, "modify_job", modify)
    timetable.shift(-100)
    assert job(timetable, "sweep").next_run_time - before == timedelta(seconds=-100)


def test_ticks_jitter_by_a_trigger_of_our_own(timetable: Scheduler) -> None:
    """APScheduler's only delays."""
    assert isinstance(job(timetable, "heartbeat").trigger, JitterTrigger)


def test_after_the_stop_nothing_can_be_timed(timetable: Scheduler) -> None:
    """Late reactions find nobody, and stopping twice is stopping once."""
    timetable.stop()
    timetable.stop()
    timetable.run_in("pull", 0)
    timetable.pause("pull")
    timetable.retime(CONFIG, CONFIG)
    assert not timetable.is_due("pull")
