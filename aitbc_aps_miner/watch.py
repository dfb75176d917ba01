"""What may end a job before it ends by itself: time, cancellation, a lost lease.

The runner asks this object a few times each second. It costs a clock read and, every
`POLL_S`, one look at the job's control file, through which the daemon (or any daemon
after it) cancels the job, ends it in a drain, and changes its limits.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aitbc_aps_miner import outcome
from aitbc_aps_miner.models import ExitCause, Lease, PayloadLimits
from aitbc_aps_miner.ports import Clock

POLL_S = 0.25

# Limits that an owner's edit changes while the payload runs.
LIVE_LIMITS = ("nice", "io_class", "io_level", "memory_mb")


class JobWatch:
    """The LeaseWatch of one job process; safe from its progress thread."""

    def __init__(
        self,
        *,
        clock: Clock,
        timeout_s: float,
        limits: PayloadLimits,
        read_control: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._clock = clock
        self._deadline = clock.monotonic() + timeout_s
        self._limits = limits
        self._read_control = read_control
        self._lock = threading.Lock()
        self._cancelled = False
        self._drained = False
        self._lease_end: float | None = None
        self._lease_ttl_s: float | None = None
        self._next_poll = 0.0

    @property
    def deadline_boottime(self) -> float:
        """The deadline as CLOCK_BOOTTIME, for whoever adopts this job."""
        return self._clock.boottime() + self.remaining_s()

    def lease(self, lease: Lease) -> None:
        """Take note of a granted or renewed lease."""
        if lease.ttl_s is None:
            return
        # Stop early enough that the payload is dead before another node may start.
        margin_s = min(self._limits.grace_s + 1, lease.ttl_s / 3)
        with self._lock:
            self._lease_end = self._clock.boottime() + lease.ttl_s - margin_s
            self._lease_ttl_s = lease.ttl_s

    @property
    def lease_ttl_s(self) -> float | None:
        """How long the last granted lease was; None without one."""
        with self._lock:
            return self._lease_ttl_s

    def cancel(self) -> None:
        """Stop the job: the coordinator said so."""
        with self._lock:
            self._cancelled = True

    def remaining_s(self) -> float:
        """Give the seconds left of the job's own time limit."""
        return self._deadline - self._clock.monotonic()

    def stop_cause(self) -> ExitCause | None:
        """Say why the job has to stop, if it has to."""
        self._poll()
        with self._lock:
            if self._cancelled:
                return ExitCause.CANCELLED
            if self._drained:
                return ExitCause.DRAINED
            if self._lease_end is not None and self._clock.boottime() > self._lease_end:
                return ExitCause.LEASE
        return ExitCause.DEADLINE if self.remaining_s() <= 0 else None

    def limits(self) -> PayloadLimits:
        """Give the limits in force now."""
        self._poll()
        with self._lock:
            return self._limits

    def check(self) -> None:
        """Raise JobError when the job has to stop."""
        cause = self.stop_cause()
        if cause is not None:
            raise outcome.stopped(cause)

    def _poll(self) -> None:
        now = self._clock.monotonic()
        with self._lock:
            if now < self._next_poll:
                return
            self._next_poll = now + POLL_S
        control = self._read_control()
        changes = control.get("limits")
        with self._lock:
            self._cancelled = self._cancelled or control.get("cancel") is True
            self._drained = self._drained or control.get("drain") is True
            if isinstance(changes, Mapping):
                known = {key: changes[key] for key in LIVE_LIMITS if key in changes}
                self._limits = replace(self._limits, **known)
