"""Recorded outcomes that still have to reach the coordinator: when, how many at once.

Nothing durable: what waits is on disk, and a sweep names it again after a restart.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.executor import Isolated
from aitbc_aps_miner.models import JobState
from aitbc_aps_miner.scheduler import TASKS
from aitbc_aps_miner.util import log

# After an outage a hundred results may wait: three processes and three uploads at a
# time deliver them as fast, and leave the machine to its jobs.
AT_ONCE = 3

DELIVERY_MIN_S = 1.0
DELIVERY_MAX_S = 600.0
# Uploads of many gigabytes take long; each of their calls has its own limit.
DELIVERY_DEADLINE_S = 6 * 3600

_log = log.get_logger()


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """One delivery that is to be tried."""

    due_at: float
    resend: bool


class Deliveries:
    """Starts deliveries when they are due, a few at once; safe from any thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._waiting: dict[str, _Waiting] = {}
        self._active: set[str] = set()
        self._tries: dict[str, int] = {}

    def now(self, job_id: str) -> None:
        """Deliver as soon as there is room, unless its next try is planned already."""
        self._plan(job_id, 0)

    def later(self, job_id: str, at_least_s: float = 0) -> None:
        """Try again after a growing pause; `at_least_s` is the coordinator's wish."""
        tries = self._tried(job_id)
        # Full jitter: a coordinator that comes back is not met by everyone at once.
        pause_s = self._parts.rng.uniform(DELIVERY_MIN_S / 2, _doubled_s(tries))
        self._plan(job_id, max(pause_s, at_least_s))

    def resend(self, job_id: str) -> None:
        """Answer a job handed out again with its kept outcome, in growing pauses."""
        if self.due_in_s(job_id) is not None:
            return
        tries = self._tried(job_id)
        self._plan(job_id, 0.0 if tries == 1 else _doubled_s(tries), resend=True)

    def due_in_s(self, job_id: str) -> float | None:
        """Give the seconds until the next try; 0 while it runs, None without one."""
        with self._lock:
            if job_id in self._active:
                return 0.0
            waiting = self._waiting.get(job_id)
        if waiting is None:
            return None
        return max(0.0, waiting.due_at - self._parts.clock.monotonic())

    def ended(self, job_id: str, report: Mapping[str, Any] | None) -> None:
        """Try again later, or be done."""
        told = report or {}
        state = told.get("state")
        with self._lock:
            self._active.discard(job_id)
            if state in (JobState.DONE, JobState.FAILED) and not told.get("resent"):
                self._tries.pop(job_id, None)
        if state in (JobState.DONE, JobState.FAILED):
            _log.info("job.delivered", **dict(told))
            self._parts.scheduler.run_in("sweep", 0)
        elif state != JobState.IDLE:
            self.later(job_id, float(told.get("retry_after_s") or 0))
        self.pump()

    def pump(self) -> None:
        """Start what is due, as far as there is room."""
        with self._lock:
            now = self._parts.clock.monotonic()
            due = sorted(
                (waiting.due_at, job_id)
                for job_id, waiting in self._waiting.items()
                if waiting.due_at <= now
            )
            for _, job_id in due[: max(0, AT_ONCE - len(self._active))]:
                self._start(job_id, self._waiting.pop(job_id))

    def _plan(self, job_id: str, in_s: float, *, resend: bool = False) -> None:
        with self._lock:
            if job_id in self._active or job_id in self._waiting:
                return
            due_at = self._parts.clock.monotonic() + in_s
            self._waiting[job_id] = _Waiting(due_at=due_at, resend=resend)
        self.pump()

    def _start(self, job_id: str, waiting: _Waiting) -> None:
        self._active.add(job_id)
        call = Isolated(
            ref=f"{TASKS}:deliver",
            deadline_s=DELIVERY_DEADLINE_S,
            kwargs={"job_id": job_id, "resend": waiting.resend},
        )
        self._parts.scheduler.once(f"deliver:{job_id}", call)

    def _tried(self, job_id: str) -> int:
        with self._lock:
            tries = self._tries[job_id] = self._tries.get(job_id, 0) + 1
        return tries


def _doubled_s(tries: int) -> float:
    """Give the ceiling of the pause after so many tries, without overflowing."""
    return min(DELIVERY_MIN_S * 2.0 ** min(tries, 32), DELIVERY_MAX_S)
