"""When a tick runs next: true ±jitter, and backoff.

APScheduler's own `jitter` only delays, and its interval counts from a start time, so
that lateness adds up. What a stepped wall clock does to times already given is the
business of scheduler.py.
"""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from apscheduler.triggers.base import BaseTrigger


class JitterTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler is untyped
    """Every `interval_s` ± `jitter_pct` percent, counted from now each time.

    Counting from now, and not from the last time, means that lateness never adds up
    to a burst. The first time is one such pause from now.
    """

    def __init__(
        self, interval_s: float, jitter_pct: float, rng: random.Random
    ) -> None:
        self.interval_s = interval_s
        self.jitter_pct = jitter_pct
        self._rng = rng

    def get_next_fire_time(
        self, _previous_fire_time: datetime | None, now: datetime
    ) -> datetime:
        """Give the next time; aware, in the zone of `now`."""
        share = self._rng.uniform(-self.jitter_pct, self.jitter_pct) / 100
        return now + timedelta(seconds=max(0.0, self.interval_s * (1 + share)))

    def __str__(self) -> str:
        return f"every {self.interval_s:g} s ± {self.jitter_pct:g} %"


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses after failures: doubled each time, jittered, within two bounds."""

    min_s: float
    max_s: float
    rng: random.Random

    def next_delay(self, failures: int) -> float:
        """Seconds to wait after `failures` (1, 2, …) failures in a row.

        The upper half of the pause is random: nodes that lost their coordinator
        together don't come back together, and none comes back at once.
        """
        # Beyond 2**32 every bound is reached; a float overflows at 2**1024.
        longest_s = min(self.max_s, self.min_s * 2.0 ** min(max(failures, 1), 32))
        return self.rng.uniform(max(self.min_s, longest_s / 2), longest_s)
