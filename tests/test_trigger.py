"""trigger.py: jitter that is true, backoff that is bounded."""

import itertools
import random
import statistics
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.trigger import Backoff, JitterTrigger

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(
    interval_s=st.floats(0.02, 1e6),
    jitter_pct=st.floats(0, 50),
    seed=st.integers(),
    late_s=st.floats(0, 1e6),
)
def test_every_pause_lies_within_the_jitter_of_now(
    interval_s: float, jitter_pct: float, seed: int, late_s: float
) -> None:
    """Lateness never adds up: the next time counts from now."""
    trigger = JitterTrigger(interval_s, jitter_pct, random.Random(seed))
    previous = NOW - timedelta(seconds=late_s)
    for before in (None, previous):
        pause_s = (trigger.get_next_fire_time(before, NOW) - NOW).total_seconds()
        width_s = interval_s * jitter_pct / 100
        assert abs(pause_s - interval_s) <= width_s + 1e-5
        assert pause_s >= 0


def test_jitter_goes_both_ways() -> None:
    """Early as often as late, unlike APScheduler's own."""
    trigger = JitterTrigger(100, 10, random.Random(1))
    pauses = [
        (trigger.get_next_fire_time(None, NOW) - NOW).total_seconds()
        for _ in range(2000)
    ]
    assert 99.5 < statistics.mean(pauses) < 100.5
    assert min(pauses) < 91
    assert max(pauses) > 109
    assert str(trigger) == "every 100 s ± 10 %"


@given(
    failures=st.integers(0, 10_000),
    min_s=st.floats(0.1, 100),
    factor=st.floats(1, 100),
    seed=st.integers(),
)
def test_backoff_stays_within_its_bounds(
    failures: int, min_s: float, factor: float, seed: int
) -> None:
    """However often it failed."""
    backoff = Backoff(min_s=min_s, max_s=min_s * factor, rng=random.Random(seed))
    assert min_s <= backoff.next_delay(failures) <= min_s * factor


def test_backoff_doubles_up_to_its_bound_and_is_jittered() -> None:
    """The largest pauses are doubled ones; the upper half of each is random."""
    backoff = Backoff(min_s=5, max_s=120, rng=random.Random(1))
    spans = []
    for failures in range(1, 8):
        delays = [backoff.next_delay(failures) for _ in range(500)]
        spans.append((round(min(delays)), round(max(delays))))
    assert spans == [
        (5, 10),
        (10, 20),
        (20, 40),
        (40, 80),
        (60, 120),
        (60, 120),
        (60, 120),
    ]


def test_a_tick_fires_again_and_again() -> None:
    """Cadence on a real scheduler: no tick is lost, none comes in a burst."""
    times: list[datetime] = []
    enough = threading.Event()

    def tick() -> None:
        times.append(datetime.now(UTC))
        if len(times) == 6:
            enough.set()

    run(tick, enough)
    gaps = [
        (after - before).total_seconds() for before, after in itertools.pairwise(times)
    ]
    assert min(gaps) > 0.03
    assert len(gaps) >= 5


def run(tick: Callable[[], None], until: threading.Event) -> None:
    """Run `tick` each 50 ms until `until`."""
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.start()
    try:
        trigger = JitterTrigger(0.05, 10, random.Random(1))
        scheduler.add_job(tick, trigger, misfire_grace_time=None)
        assert until.wait(10)
    finally:
        scheduler.shutdown()
