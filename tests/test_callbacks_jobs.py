"""Jobs that hold a slot: started, ended, adopted, delivered later."""

from typing import Any

import pytest
from daemon_fakes import Bench, job_report

from aitbc_aps_miner import hooks
from aitbc_aps_miner.callbacks.deliveries import Deliveries
from aitbc_aps_miner.callbacks.jobs import (
    ADOPTED_SWEEP_S,
    JOB_REF,
    UNCLAIMED_SWEEP_S,
    Jobs,
)
from aitbc_aps_miner.executor import Isolated, TaskEnd, TaskOutcome
from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.node import Running


class Yard(Bench):
    """A bench with jobs on it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.freed = 0
        self.deliveries = Deliveries(self.parts)
        self.jobs = Jobs(self.parts, self.deliveries, self._freed)

    def _freed(self) -> None:
        self.freed += 1

    def ends(self, job_id: str = "j", **report: Any) -> None:
        """Let a job's process return its report."""
        told = {"job_id": job_id, "attempt": 1, "code": None, "message": "", **report}
        self.jobs.ended(f"{job_id}:1", told)

    def held(self) -> list[str]:
        """Name the jobs that hold a slot."""
        return sorted(job.job_id for job in self.node.jobs())


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Yard:
    """Give a yard with one third-party hook."""
    monkeypatch.setattr(hooks, "discover", lambda: ("mine",))
    return Yard()


def heard(yard: Yard) -> list[tuple[str, Any]]:
    """Give what the hook was called with, by event."""
    return [
        (call.kwargs["event"], call.kwargs["payload"])
        for job_id, (call, _) in yard.scheduler.jobs.items()
        if job_id.startswith("hook:")
    ]


def test_an_accepted_job_holds_its_slot_and_starts() -> None:
    """In a process whose outer net is its deadline."""
    yard = Yard()
    job = job_report("a", attempt=2)
    yard.jobs.start(job, resume=True)
    assert yard.node.jobs() == (
        Running(
            job_id="a",
            attempt=2,
            reservation=Reservation(kind="cpu"),
            since_monotonic=1000,
            runner="cli",
            root="/jobs",
        ),
    )
    call = Isolated(ref=JOB_REF, deadline_s=60, kwargs={"job": job, "resume": True})
    assert yard.scheduler.jobs == {"job:a:2": (call, 0)}


@pytest.mark.parametrize(
    ("state", "code", "counted", "due"),
    [
        ("DONE", None, [None], []),
        ("FAILED", "E_EXIT", ["E_EXIT"], []),
        ("RETRY_WAIT", None, [None], []),
        ("IDLE", None, [], []),
    ],
)
def test_an_ended_job_frees_its_slot(
    state: str, code: str | None, counted: list[str | None], due: list[str]
) -> None:
    """It is counted when it has an outcome, and delivered later where it must."""
    yard = Yard()
    yard.jobs.start(job_report())
    yard.scheduler.jobs.clear()
    yard.ends(state=state, code=code)
    assert (yard.held(), yard.freed) == ([], 1)
    assert yard.metrics.jobs == counted
    assert list(yard.scheduler.jobs) == due
    assert yard.scheduler.take() == {}


def test_a_job_that_could_not_be_claimed_closes_a_gate() -> None:
    """Or the node would take every job of its coordinator and run none."""
    yard = Yard()
    yard.ends(state="PULLING", message="No space left on device")
    (gate,) = yard.node.gates()
    assert (gate.name, gate.reason) == ("workspace", "No space left on device")
    assert yard.scheduler.take() == {"sweep": UNCLAIMED_SWEEP_S}
    assert yard.metrics.jobs == []


@pytest.mark.parametrize("report", [None, {"error": "died: killed"}])
def test_a_job_process_that_died_is_settled_by_the_sweep(report: Any) -> None:
    """Its workspace says what happened."""
    yard = Yard()
    yard.jobs.start(job_report())
    yard.jobs.ended("j:1", report)
    assert (yard.held(), yard.freed) == ([], 1)
    assert yard.scheduler.take() == {"sweep": 0}


def test_orders_go_to_jobs_that_hold_a_slot() -> None:
    """Under the root that they live in."""
    yard = Yard()
    yard.jobs.start(job_report("a", root="/old"))
    yard.jobs.start(job_report("b"))
    yard.scheduler.jobs.clear()
    yard.jobs.control("a", {"limits": {}, "cancel": True})
    yard.jobs.control("gone", {"cancel": True})
    ((name, (call, in_s)),) = yard.scheduler.jobs.items()
    assert (name, call.ref, in_s) == (
        "control:a:cancel+limits",
        "aitbc_aps_miner.tasks:control",
        0,
    )
    assert call.kwargs == {
        "root": "/old",
        "job_id": "a",
        "orders": {"limits": {}, "cancel": True},
    }


# What a sweep found


def running(job_id: str) -> dict[str, Any]:
    """Give a running job as a sweep tells of it."""
    return job_report(job_id, state="RUNNING")


def test_a_job_that_outlived_a_daemon_is_adopted_until_it_ends() -> None:
    """It holds its slot, is looked at often, and frees its slot in the end."""
    yard = Yard()
    yard.jobs.settle({"running": [running("a")]})
    (job,) = yard.node.jobs()
    assert (job.job_id, job.adopted, job.state) == ("a", True, "RUNNING")
    assert yard.scheduler.take() == {"sweep": ADOPTED_SWEEP_S}
    yard.jobs.settle({"running": [running("a")]})
    assert yard.node.jobs() == (job,)
    yard.jobs.settle({"running": []})
    assert (yard.held(), yard.freed) == ([], 1)
    assert yard.scheduler.take() == {"sweep": ADOPTED_SWEEP_S}
    yard.jobs.settle({"running": []})
    assert (yard.freed, yard.scheduler.take()) == (1, {})


def test_a_job_of_this_daemon_is_never_adopted() -> None:
    """Nor ended by a sweep that began before it had a workspace."""
    yard = Yard()
    yard.jobs.start(job_report("a"))
    yard.jobs.settle({"running": [running("a")]})
    yard.jobs.settle({"running": []})
    (job,) = yard.node.jobs()
    assert not job.adopted
    assert yard.scheduler.take() == {}


def test_short_sweep_intervals_stay_short() -> None:
    """Adopted jobs are not looked at less often than the rest."""
    yard = Yard(sweep={"interval_s": 0.5})
    yard.jobs.settle({"running": [running("a")]})
    assert yard.scheduler.take() == {"sweep": 0.5}


def test_an_orphan_is_looked_for_again_soon_once() -> None:
    """Seen twice it is settled; what can't be settled waits for the next sweep."""
    yard = Yard()
    yard.jobs.settle({"orphans": ["a"]})
    assert (yard.jobs.orphans, yard.scheduler.take()) == (["a"], {"sweep": 2.0})
    yard.jobs.settle({"orphans": ["a"]})
    assert yard.scheduler.take() == {}
    yard.jobs.settle({"orphans": ["a", "b"]})
    assert yard.scheduler.take() == {"sweep": 2.0}
    yard.jobs.settle({})
    assert yard.jobs.orphans == []


def test_what_never_ran_is_run() -> None:
    """From its claim, or anew; never twice."""
    yard = Yard()
    yard.jobs.start(job_report("held"))
    run = [job_report("old"), job_report("new", fresh=True), job_report("held")]
    yard.scheduler.jobs.clear()
    yard.jobs.settle({"run": run})
    assert yard.held() == ["held", "new", "old"]
    resumed = {name: call.kwargs["resume"] for name, (call, _) in _jobs(yard)}
    assert resumed == {"job:old:1": True, "job:new:1": False}


def _jobs(yard: Yard) -> Any:
    return yard.scheduler.jobs.items()


def test_a_draining_daemon_starts_nothing_that_a_sweep_found() -> None:
    """The job is the next daemon's: this one would only end it."""
    yard = Yard()
    yard.node.draining = True

    yard.jobs.settle({"run": [job_report("a")]})

    assert (yard.held(), yard.scheduler.jobs) == ([], {})


def test_what_waits_is_delivered() -> None:
    """Now, but not before its backoff is over."""
    yard = Yard()
    yard.deliveries.later("late", 50)
    yard.jobs.settle({"deliver": ["late", "now"], "resend": ["again"]})
    assert {name: in_s for name, (_, in_s) in _jobs(yard)} == {
        "deliver:again": 0,
        "deliver:now": 0,
    }
    assert (yard.deliveries.due_in_s("late") or 0) >= 50


# Hooks


def test_hooks_hear_of_each_job_once(hooked: Yard) -> None:
    """Accepted, started, finished or failed; a job that was not ours is no outcome."""
    hooked.jobs.start(job_report("a"))
    hooked.clock.now += 1
    hooked.jobs.moved({"job_id": "a", "state": "RUNNING"})
    hooked.clock.now += 1
    hooked.jobs.moved({"job_id": "a", "pct": 50})
    hooked.ends("a", state="DONE")
    hooked.ends("b", state="RETRY_WAIT", code="E_EXIT")
    hooked.ends("c", state="IDLE")
    told = heard(hooked)
    assert [(event, payload["job_id"]) for event, payload in told] == [
        ("on_job_accepted", "a"),
        ("on_job_started", "a"),
        ("on_job_finished", "a"),
        ("on_job_failed", "b"),
    ]
    assert told[0][1] == {"job_id": "a", "attempt": 1}


def test_jobs_that_ended_unheard_are_counted_by_the_sweep(hooked: Yard) -> None:
    """Adopted ones and lost ones have their line, their hook and their metric too."""
    told = {"job_id": "j", "attempt": 1, "state": "RETRY_WAIT", "code": "E_LOST"}
    hooked.jobs.settle({"ended": [told]})
    assert hooked.metrics.jobs == ["E_LOST"]
    assert heard(hooked) == [("on_job_failed", told)]
    assert hooked.deliveries.due_in_s("j") is not None


@pytest.mark.parametrize(
    ("end", "kept"), [(TaskEnd.TIMED_OUT, True), (TaskEnd.DIED, False)]
)
def test_evidence_of_a_failing_job_process_is_kept_for_its_outcome(
    end: TaskEnd, *, kept: bool
) -> None:
    """But one that was killed from outside is simply lost."""
    yard = Yard()
    outcome = TaskOutcome(end=end, message="m", traceback="t")
    yard.jobs.failed("j:1", outcome)
    evidence = {"j": {"end": str(end), "message": "m", "traceback": "t"}}
    assert yard.jobs.evidence == (evidence if kept else {})
    yard.jobs.settle(
        {"ended": [{"job_id": "j", "attempt": 1, "state": "RETRY_WAIT", "code": "E"}]}
    )
    assert yard.jobs.evidence == {}
