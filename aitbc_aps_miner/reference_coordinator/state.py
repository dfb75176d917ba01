"""The rules of jobs, leases and outcomes over memory; no I/O, the clock is given.

Everything runs in one thread. No call costs more than the jobs it concerns: finished
jobs are never searched, leases wait in a heap whose outdated entries are skipped.
"""

import heapq
import itertools
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.reference_coordinator.matching import Appetite
from aitbc_aps_miner.reference_coordinator.problems import (
    ProblemError,
    conflict,
    not_found,
)
from aitbc_aps_miner.reference_coordinator.records import (
    Job,
    JobState,
    Node,
    StoredFile,
    Submission,
)
from aitbc_aps_miner.reference_coordinator.rules import Rules
from aitbc_aps_miner.reference_coordinator.tokens import Tokens

__all__ = ["Listener", "Rules", "State"]

Listener = Callable[[Job], None]


class State:
    """All jobs, nodes and tokens."""

    def __init__(
        self,
        rules: Rules,
        clock: Clock,
        new_secret: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        self.rules = rules
        self.clock = clock
        self.tokens = Tokens(rules.token_ttl_s, clock, new_secret)
        self.jobs: dict[str, Job] = {}
        self.nodes: dict[str, Node] = {}
        self.counts: Counter[JobState] = Counter()
        self.listeners: list[Listener] = []
        # OrderedDict: the first key of a dict that lost many costs a walk over them.
        self._queue: OrderedDict[str, Job] = OrderedDict()
        self._final: OrderedDict[str, Job] = OrderedDict()
        self._leases: list[tuple[float, int, Job]] = []
        self._ticket = itertools.count()

    # Clients ------------------------------------------------------------------

    def submit(self, manifest: Any) -> Job:
        """Queue a job; a manifest without an id gets one."""
        named = manifest.get("job_id") if isinstance(manifest, dict) else None
        job_id = named if isinstance(named, str) else f"job-{secrets.token_hex(6)}"
        if job_id in self.jobs:
            raise conflict(f"job {job_id!r} exists already", "job_exists")
        job = self.jobs[job_id] = Job(job_id=job_id, manifest=manifest)
        self._queue[job_id] = job
        self._enter(job, JobState.QUEUED)
        return job

    def job(self, job_id: str) -> Job:
        """Give the job; ProblemError 404 when there is none."""
        self.expire()
        try:
            return self.jobs[job_id]
        except KeyError:
            raise not_found(f"job: {job_id!r}") from None

    def cancel(self, job_id: str, *, force: bool = False) -> Job:
        """End a queued job at once, ask the node of an active one to stop it.

        `force` ends an active one at once, too: its node is no longer listened to.
        """
        job = self.job(job_id)
        if job.state.is_final:
            raise conflict(f"job {job_id!r} is {job.state} already", "final")
        job.cancel_requested = True
        if force or job.state is JobState.QUEUED:
            self._release(job, JobState.CANCELLED)
        return job

    # Nodes --------------------------------------------------------------------

    def register(self, descriptor: Mapping[str, Any]) -> tuple[str, float]:
        """Give a node its token and the realtime second at which that expires."""
        node = self.node(str(descriptor["node_id"]))
        node.descriptor = descriptor
        token, until = self.tokens.issue(node.node_id)
        return token, self.realtime(until)

    def node(self, node_id: str) -> Node:
        """Give the node's record, a new one for a name never heard before."""
        return self.nodes.setdefault(node_id, Node(node_id=node_id))

    def heartbeat(self, node_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Note the sign of life; give the node's orders."""
        self.expire()
        node = self.node(node_id)
        node.heartbeat, node.heartbeat_at = body, self.clock.monotonic()
        wanted = {job.job_id for job in node.active.values() if job.cancel_requested}
        running = body.get("running")
        if isinstance(running, list):
            wanted |= {name for name in running if self._is_foreign(name, node_id)}
        orders: dict[str, Any] = {"cancel": sorted(wanted)}
        if node.drain:
            orders["drain"] = True
        if node.refresh:
            orders["refresh"], node.refresh = node.refresh, []
        return orders

    def pull(self, node_id: str, appetite: Appetite) -> list[Job]:
        """Lease what fits, oldest first."""
        self.expire()
        taken = appetite.choose(self._queue.values())
        node = self.node(node_id) if taken else None
        for job in taken:
            assert node is not None
            del self._queue[job.job_id]
            job.node_id = node_id
            node.active[job.job_id] = job
            self._renew(job)
            self._enter(job, JobState.LEASED)
        return taken

    def ack(self, job_id: str, node_id: str | None, attempt: int | None) -> Job:
        """Note that the node has taken the job; a second time changes nothing."""
        job = self.held(job_id, node_id, attempt)
        self._renew(job)
        if job.state is JobState.LEASED:
            self._enter(job, JobState.ACKED)
        return job

    def progress(self, job_id: str, node_id: str | None, report: Any) -> Job:
        """Note how far the job is and renew its lease."""
        job = self.held(job_id, node_id, report.get("attempt"))
        job.progress = report
        self._renew(job)
        if job.state is not JobState.RUNNING:
            self._enter(job, JobState.RUNNING)
        return job

    def knows(self, submission: Submission) -> bool:
        """Whether this outcome was accepted before; ProblemError for another one.

        False means that it may be accepted now.
        """
        job = self.job(submission.job_id)
        known = job.accepted.get(submission.key) if submission.key else None
        if known is None:
            self._check_held(submission)
            return False
        if known != submission.fingerprint:
            raise conflict(
                f"{submission.key!r} was accepted with a different outcome",
                "different_outcome",
            )
        return True

    def succeed(self, submission: Submission, files: Iterable[StoredFile]) -> Job:
        """Accept a result that is not known yet."""
        job = self._accept(submission)
        job.artifacts = {each.path: each for each in files}
        self._release(job, JobState.SUCCEEDED)
        return job

    def fail(self, submission: Submission, *, retryable: bool) -> Job:
        """Accept a failure; a retryable one is queued again while attempts are left."""
        if self.knows(submission):
            return self.jobs[submission.job_id]
        job = self._accept(submission)
        if job.cancel_requested:
            self._release(job, JobState.CANCELLED)
        elif retryable and job.attempt < self.rules.max_attempts:
            self._requeue(job)
        else:
            self._release(job, JobState.FAILED)
        return job

    def held(self, job_id: str, node_id: str | None, attempt: Any) -> Job:
        """Give a job that this attempt of this node holds, else 404, 409 or 410."""
        job = self.job(job_id)
        if job.state.is_final:
            raise ProblemError(410, f"job {job_id!r} is {job.state}", "final")
        wrong_node = node_id is not None and job.node_id != node_id
        wrong_attempt = attempt is not None and attempt != job.attempt
        if not job.state.is_active or wrong_node or wrong_attempt:
            raise conflict(
                f"job {job_id!r} is {job.state}, attempt {job.attempt}, held by "
                f"{job.node_id or 'nobody'}; not by attempt {attempt} of {node_id}",
                "not_held",
            )
        return job

    # Time ---------------------------------------------------------------------

    def expire(self) -> None:
        """Take back every job whose lease is over."""
        now = self.clock.monotonic()
        while self._leases and self._leases[0][0] <= now:
            until, _, job = heapq.heappop(self._leases)
            if job.lease_until != until:
                continue  # renewed or released since
            if job.cancel_requested:
                self._release(job, JobState.CANCELLED)
            elif job.attempt < self.rules.max_attempts:
                self._requeue(job)
            else:
                self._release(job, JobState.EXPIRED)

    def next_expiry_s(self) -> float:
        """Seconds after which `expire` may have something to do."""
        # A lease granted meanwhile ends later than this: no alarm is needed for it.
        if not self._leases:
            return self.rules.lease_s
        due_s = self._leases[0][0] - self.clock.monotonic()
        return min(max(due_s, 0.0), self.rules.lease_s)

    def realtime(self, at_monotonic: float) -> float:
        """Translate monotonic seconds for people and the wire."""
        return self.clock.realtime() + at_monotonic - self.clock.monotonic()

    # Below: what the rules above have in common ---------------------------------

    def _check_held(self, submission: Submission) -> None:
        try:
            self.held(submission.job_id, submission.node_id, submission.attempt)
        except ProblemError as problem:
            if problem.error_code != "final":
                raise
            # The contract: for an outcome, "already final" is 409.
            raise conflict(problem.detail, "final") from None

    def _accept(self, submission: Submission) -> Job:
        self._check_held(submission)
        job = self.jobs[submission.job_id]
        job.outcome = submission.outcome
        if submission.key is not None:
            job.accepted[submission.key] = submission.fingerprint
        return job

    def _is_foreign(self, name: Any, node_id: str) -> bool:
        """Whether a node runs what was cancelled, has expired or is another's."""
        job = self.jobs.get(name) if isinstance(name, str) else None
        if job is None or job.state is JobState.QUEUED:
            return False
        given_up = job.state in {JobState.CANCELLED, JobState.EXPIRED}
        return given_up or (job.state.is_active and job.node_id != node_id)

    def _renew(self, job: Job) -> None:
        if self.rules.spec_only:
            return
        job.lease_until = self.clock.monotonic() + self.rules.lease_s
        heapq.heappush(self._leases, (job.lease_until, next(self._ticket), job))

    def _requeue(self, job: Job) -> None:
        self._drop(job)
        job.attempt += 1
        self._queue[job.job_id] = job
        self._enter(job, JobState.QUEUED)

    def _release(self, job: Job, state: JobState) -> None:
        node_id = job.node_id
        self._drop(job)
        self._queue.pop(job.job_id, None)
        job.node_id = node_id
        self._final[job.job_id] = job
        self._enter(job, state)
        if len(self._final) > self.rules.keep_jobs:
            self._forget(self._final.popitem(last=False)[1])

    def _drop(self, job: Job) -> None:
        if job.node_id is not None:
            self.nodes[job.node_id].active.pop(job.job_id, None)
        job.node_id = job.lease_until = None

    def _forget(self, job: Job) -> None:
        del self.jobs[job.job_id]
        self.counts[job.state] -= 1
        for stored in job.artifacts.values():
            stored.file.unlink(missing_ok=True)

    def _enter(self, job: Job, state: JobState) -> None:
        if job.history:
            self.counts[job.state] -= 1
        self.counts[state] += 1
        job.state = state
        job.history.append(
            {
                "state": state,
                "at": self.clock.realtime(),
                "attempt": job.attempt,
                "node_id": job.node_id,
            }
        )
        for listener in self.listeners:
            listener(job)
