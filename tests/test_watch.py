"""What ends a job: its time, a cancellation, a lease; on clocks that a test moves."""

from collections.abc import Mapping
from typing import Any

import pytest
from daemon_fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import ExitCause, Lease, PayloadLimits
from aitbc_aps_miner.watch import POLL_S, JobWatch

LIMITS = PayloadLimits(nice=10, memory_mb=100, grace_s=4)


class Watched:
    """A watch with its clock and its control file."""

    def __init__(self, timeout_s: float = 100) -> None:
        self.clock = FakeClock()
        self.control: Mapping[str, Any] = {}
        self.reads = 0
        self.watch = JobWatch(
            clock=self.clock,
            timeout_s=timeout_s,
            limits=LIMITS,
            read_control=self._read,
        )

    def _read(self) -> Mapping[str, Any]:
        self.reads += 1
        return self.control


def test_the_time_limit_ends_the_job() -> None:
    """Exactly when nothing of it is left."""
    job = Watched(timeout_s=10)
    assert job.watch.deadline_boottime == job.clock.boottime() + 10
    job.clock.now += 9.9
    assert job.watch.stop_cause() is None
    job.clock.now += 0.1
    assert job.watch.stop_cause() is ExitCause.DEADLINE
    assert job.watch.remaining_s() <= 0


def test_time_spent_suspended_is_not_the_jobs() -> None:
    """Its limit counts on the monotonic clock."""
    job = Watched(timeout_s=10)
    job.clock.suspended_s = 3600
    assert job.watch.stop_cause() is None


@pytest.mark.parametrize(
    ("ttl_s", "stops_after_s"),
    [(60.0, 55.0), (15.0, 10.0), (6.0, 4.0), (1.0, 2 / 3)],
)
def test_a_lease_stops_the_job_while_it_can_still_be_killed(
    ttl_s: float, stops_after_s: float
) -> None:
    """Early by the grace period and a second, or a third of a short lease."""
    job = Watched()
    job.watch.lease(Lease(ttl_s=ttl_s))
    assert job.watch.lease_ttl_s == ttl_s
    job.clock.now += stops_after_s - 0.01
    assert job.watch.stop_cause() is None
    job.clock.now += 0.02
    assert job.watch.stop_cause() is ExitCause.LEASE


def test_a_renewed_lease_counts_from_its_renewal() -> None:
    """And an answer that grants none changes nothing."""
    job = Watched()
    job.watch.lease(Lease(ttl_s=60))
    job.clock.now += 50
    job.watch.lease(Lease(ttl_s=30))
    job.watch.lease(Lease())
    job.clock.now += 24
    assert job.watch.stop_cause() is None
    job.clock.now += 2
    assert job.watch.stop_cause() is ExitCause.LEASE


def test_without_a_lease_none_runs_out() -> None:
    """A coordinator of the bare specification grants none."""
    job = Watched(timeout_s=1e9)
    assert job.watch.lease_ttl_s is None
    job.clock.now += 1e6
    assert job.watch.stop_cause() is None


def test_a_machine_that_slept_through_its_lease_stops_the_job() -> None:
    """The lease goes on while the machine is suspended; another node may run it."""
    job = Watched()
    job.watch.lease(Lease(ttl_s=60))
    job.clock.suspended_s = 3600
    assert job.watch.stop_cause() is ExitCause.LEASE


@given(
    step_s=st.floats(-7200, 7200),
    after_s=st.floats(0, 120),
    ttl_s=st.floats(1, 100),
)
def test_a_wall_clock_that_is_set_changes_nothing(
    step_s: float, after_s: float, ttl_s: float
) -> None:
    """However far and in whichever direction."""
    stepped, steady = Watched(), Watched()
    for job in (stepped, steady):
        job.watch.lease(Lease(ttl_s=ttl_s))
        job.clock.now += after_s
    stepped.clock.epoch += step_s
    assert stepped.watch.stop_cause() is steady.watch.stop_cause()
    assert stepped.watch.remaining_s() == steady.watch.remaining_s()


def test_cancellation_comes_first() -> None:
    """Whatever else would end the job as well, and it is never taken back."""
    job = Watched(timeout_s=1)
    job.clock.now += 2
    job.watch.cancel()
    assert job.watch.stop_cause() is ExitCause.CANCELLED
    with pytest.raises(JobError) as told:
        job.watch.check()
    assert told.value.code is ErrorCode.E_CANCELLED


def test_a_drain_ends_a_job_as_lost_and_not_as_cancelled() -> None:
    """Another node may run it; a cancellation would be for good."""
    job = Watched()
    job.control = {"drain": True}
    assert job.watch.stop_cause() is ExitCause.DRAINED
    with pytest.raises(JobError) as told:
        job.watch.check()
    assert told.value.code is ErrorCode.E_LOST


def test_a_job_that_may_go_on_is_not_stopped() -> None:
    """The check says nothing."""
    Watched().watch.check()


@pytest.mark.parametrize("value", [1, "true", None, [True]])
def test_only_true_cancels(value: object) -> None:
    """The file is ours; still, nothing else is taken for an order."""
    job = Watched()
    job.control = {"cancel": value, "limits": value}
    assert job.watch.stop_cause() is None
    assert job.watch.limits() == LIMITS


def test_the_control_file_is_read_a_few_times_each_second() -> None:
    """However often the runner asks."""
    job = Watched()
    for _ in range(10):
        job.watch.stop_cause()
        job.watch.limits()
    assert job.reads == 1
    job.control = {"cancel": True}
    job.clock.now += POLL_S
    assert job.watch.stop_cause() is ExitCause.CANCELLED
    assert job.reads == 2
    job.control = {}
    job.clock.now += POLL_S
    assert job.watch.stop_cause() is ExitCause.CANCELLED


def test_an_owners_edit_changes_the_live_limits_only() -> None:
    """What the kernel fixes at the start stays as it was."""
    job = Watched()
    orders: dict[str, Any] = {
        "nice": 19,
        "io_class": "idle",
        "io_level": 7,
        "memory_mb": None,
    }
    job.control = {"limits": {**orders, "nofile": 1, "grace_s": 0, "unknown": 1}}
    assert job.watch.limits() == PayloadLimits(**orders, grace_s=4)
    job.control = {"limits": {"nice": 5}}
    job.clock.now += POLL_S
    assert job.watch.limits() == PayloadLimits(**{**orders, "nice": 5}, grace_s=4)
