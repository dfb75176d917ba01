"""The jobs that this daemon counts: started, ended, adopted."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aitbc_aps_miner import hooks
from aitbc_aps_miner.callbacks.deliveries import Deliveries
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.executor import Isolated, TaskEnd, TaskOutcome
from aitbc_aps_miner.models import JobState, Origin, Reservation
from aitbc_aps_miner.node import Running
from aitbc_aps_miner.scheduler import TASKS
from aitbc_aps_miner.util import log

JOB_REF = "aitbc_aps_miner.job:run"

# While adopted jobs run nobody of ours waits for their end, and an orphan has to be
# seen twice: look more often.
ADOPTED_SWEEP_S = 2.0

# A claim failed: long enough that a disk which always fails isn't asked in a loop.
UNCLAIMED_SWEEP_S = 5.0

_log = log.get_logger()


class Jobs:
    """Holds slots for running jobs."""

    def __init__(
        self, parts: Parts, deliveries: Deliveries, slot_freed: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._deliveries = deliveries
        self._slot_freed = slot_freed
        self._hooks = hooks.discover()
        self.orphans: list[str] = []
        self.evidence: dict[str, Mapping[str, Any]] = {}
        """How job processes failed that did not simply die: for their outcomes."""

    def start(self, job: Mapping[str, Any], *, resume: bool = False) -> None:
        """Give a job its slot and its process."""
        job_id, attempt = str(job["job_id"]), int(job["attempt"])
        self._parts.node.hold(self._running(job))
        call = Isolated(
            ref=JOB_REF,
            # The job process ends the payload at the job's own limit; this outer net
            # only catches a job process that does not, after delivery had its time.
            deadline_s=float(job["net_s"]),
            kwargs={"job": dict(job), "resume": resume},
        )
        self._parts.scheduler.once(f"job:{job_id}:{attempt}", call)
        _log.info("job.accepted", job_id=job_id, attempt=attempt)
        self.hook("on_job_accepted", {"job_id": job_id, "attempt": attempt})

    def moved(self, facts: Mapping[str, Any]) -> None:
        """Note what a running job says of itself."""
        job_id = str(facts["job_id"])
        known = {key: facts[key] for key in ("state", "pct", "note") if key in facts}
        self._parts.node.moved(job_id, **known)
        if facts.get("state") == JobState.RUNNING:
            self.hook("on_job_started", {"job_id": job_id})

    def failed(self, key: str, outcome: TaskOutcome) -> None:
        """Keep the evidence of a job process that the executor saw failing.

        One that was killed from outside is lost, and no defect of ours.
        """
        if outcome.end is not TaskEnd.DIED:
            self.evidence[key.rpartition(":")[0]] = {
                "end": str(outcome.end),
                "message": outcome.message,
                "traceback": outcome.traceback,
            }

    def ended(self, key: str, report: Mapping[str, Any] | None) -> None:
        """Free the slot of the job `<id>:<attempt>`."""
        job_id = key.rpartition(":")[0]
        job = self._parts.node.release(job_id)
        if report is None or "error" in report:
            # Its workspace says what happened; the sweep reads it.
            self._parts.scheduler.run_in("sweep", 0)
        else:
            self._reported(job_id, report, job.runner if job else "")
        self._slot_freed()

    def _reported(self, job_id: str, report: Mapping[str, Any], runner: str) -> None:
        state = JobState(report["state"])
        code = report.get("code")
        told = {key: value for key, value in report.items() if value is not None}
        if state in (JobState.IDLE, JobState.PULLING):
            _log.info("job.not_run", **told)
            if state is JobState.PULLING:
                self._unclaimed(str(report.get("message")))
            return
        self._parts.metrics.job_finished(code)
        say = _log.info if code is None else _log.warning
        say("job.finished", runner=runner, **told)
        if state is JobState.RETRY_WAIT:
            self._deliveries.later(job_id, float(report.get("retry_after_s") or 0))
        self.hook("on_job_finished" if code is None else "on_job_failed", report)

    def _unclaimed(self, reason: str) -> None:
        """Take no more jobs until a sweep has written where this one could not."""
        self._parts.node.close(
            "workspace", reason, "make workspace.root writable; the next sweep looks"
        )
        self._parts.scheduler.run_in("sweep", UNCLAIMED_SWEEP_S)

    def control(self, job_id: str, orders: Mapping[str, Any]) -> None:
        """Give orders to a running job through its control file."""
        for job in self._parts.node.jobs():
            if job.job_id != job_id:
                continue
            call = Isolated(
                ref=f"{TASKS}:control",
                deadline_s=10,
                kwargs={"root": job.root, "job_id": job_id, "orders": dict(orders)},
            )
            which = "+".join(sorted(orders))
            self._parts.scheduler.once(f"control:{job_id}:{which}", call)

    # What a sweep found

    def settle(self, report: Mapping[str, Any]) -> None:
        """Adopt what runs, resume what never ran, deliver what waits."""
        self._adopt(report)
        for told in report.get("ended", ()):
            self.evidence.pop(told["job_id"], None)
            self._reported(told["job_id"], told, "")
        self._look_again_soon(list(report.get("orphans", ())))
        self._run(report.get("run", ()))
        for job_id in report.get("resend", ()):
            self._deliveries.resend(str(job_id))
        for job_id in report.get("deliver", ()):
            self._deliveries.now(str(job_id))

    def _run(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        if self._parts.node.draining:
            return  # this daemon ends: what never ran is the next one's
        held = {job.job_id for job in self._parts.node.jobs()}
        for job in jobs:
            if job["job_id"] not in held:
                self.start(job, resume=not job.get("fresh", False))

    def _adopt(self, report: Mapping[str, Any]) -> None:
        node = self._parts.node
        alive = {str(job["job_id"]): job for job in report.get("running", ())}
        held = {job.job_id: job for job in node.jobs()}
        for job_id in alive.keys() - held.keys():
            node.hold(self._running(alive[job_id], adopted=True))
            _log.info("job.adopted", job_id=job_id)
        ended = [
            job for job in held.values() if job.adopted and job.job_id not in alive
        ]
        for job in ended:
            node.release(job.job_id)
            _log.info("job.adopted_ended", job_id=job.job_id)
        if ended:
            self._slot_freed()

    def _look_again_soon(self, orphans: list[str]) -> None:
        seen_once = set(orphans).difference(self.orphans)
        self.orphans = orphans
        if seen_once or any(job.adopted for job in self._parts.node.jobs()):
            pause_s = min(ADOPTED_SWEEP_S, self._parts.config.sweep.interval_s)
            self._parts.scheduler.run_in("sweep", pause_s)

    def _running(self, job: Mapping[str, Any], *, adopted: bool = False) -> Running:
        return Running(
            job_id=str(job["job_id"]),
            attempt=int(job["attempt"]),
            reservation=Reservation.of(job["reservation"]),
            since_monotonic=self._parts.clock.monotonic(),
            runner=str(job.get("runner", "")),
            state=str(job.get("state", JobState.PULLING)),
            adopted=adopted,
            root=str(job["root"]),
            origin=Origin(**job["origin"]) if "origin" in job else None,
        )

    # Hooks of third parties

    def hook(self, event: str, payload: Mapping[str, Any]) -> None:
        """Call every installed hook for `event`, each in a process of its own."""
        for entry_point in self._hooks:
            call = Isolated(
                ref="aitbc_aps_miner.hooks:call",
                deadline_s=hooks.DEADLINE_S,
                kwargs={
                    "entry_point": entry_point,
                    "event": event,
                    "payload": dict(payload),
                },
            )
            unique = f"{entry_point}:{self._parts.clock.monotonic()}"
            self._parts.scheduler.once(f"hook:{event}:{unique}", call)
