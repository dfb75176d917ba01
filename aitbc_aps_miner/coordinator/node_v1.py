"""The node-v1 dialect: one method per row of contracts/node-v1.md.

Each method also holds its row's degradation, for a coordinator that speaks only the
specification. Delivery of outcomes is in delivery.py, recovery queries in queries.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aitbc_aps_miner.coordinator.answer import Reply
from aitbc_aps_miner.coordinator.api import HeartbeatReply, JobView, Registration
from aitbc_aps_miner.coordinator.delivery import Delivery
from aitbc_aps_miner.coordinator.queries import Queries
from aitbc_aps_miner.coordinator.retry import ABSENT, retrying
from aitbc_aps_miner.coordinator.transport import Transport
from aitbc_aps_miner.coordinator.tus import TusUploader
from aitbc_aps_miner.coordinator.wire import (
    Heard,
    Leased,
    Pulled,
    Registered,
    lease_of,
    read_answer,
    seconds_left,
)
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobGoneError,
    RefusedError,
    UnavailableError,
)
from aitbc_aps_miner.models import (
    ArtifactFile,
    Capabilities,
    Lease,
    Manifest,
    Outcome,
    Progress,
    ProgressReply,
)

_NOT_OURS = frozenset({409, 410})
_NOT_OURS_OR_UNKNOWN = frozenset({404}) | _NOT_OURS
_NO_CONTENT = 204
_UPLOADS = frozenset({"uploads", "tus"})
_QUERY = frozenset({"query", "queries", "jobs"})
_ACK_TRIES = 3
_PROGRESS_S = 5.0
"""A progress report is worth less than the time of the job that waits for it."""


class NodeV1:
    """One node (and its jobs) at one coordinator; see api.NodeApi."""

    def __init__(
        self,
        transport: Transport,
        node_id: str,
        *,
        extensions: frozenset[str] | None = None,
        resumable_above_mb: float = 64,
    ) -> None:
        self._transport = transport
        self._node_id = node_id
        self._extensions = extensions
        self._has_uploads: bool | None = None
        self._has_progress = True
        self._queries = Queries(transport)
        self._delivery = Delivery(
            transport,
            node_id,
            uploads_offered=self._uploads_offered,
            resumable_above_bytes=resumable_above_mb * 2**20,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What is known of this coordinator so far, without asking it.

        Where it has not said, queries are taken for possible (active_jobs tells) and
        uploads for impossible (deliver asks before it needs them).
        """
        said = self._extensions
        return Capabilities(
            progress=self._has_progress,
            query=said is None or bool(said & _QUERY),
            uploads=bool(self._has_uploads or (said or frozenset()) & _UPLOADS),
        )

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def register(
        self, descriptor: Mapping[str, Any], bootstrap_token: str
    ) -> Registration:
        """Present the node. Raises UnauthorizedError for a wrong bootstrap token."""
        try:
            reply = self._transport.call(
                "POST", "nodes/register", json=descriptor, bearer=bootstrap_token
            )
        except RefusedError as refused:
            if refused.status in ABSENT:
                return Registration(token=bootstrap_token, registered=False)
            raise
        answer = read_answer(Registered, reply)
        said = answer.extensions
        self._extensions = None if said is None else frozenset(said)
        return Registration(
            token=answer.node_token,
            expires_in_s=seconds_left(answer.expires_at, reply, self._now()),
            heartbeat_interval_s=answer.heartbeat_interval_s,
            extensions=self._extensions,
        )

    def heartbeat(self, body: Mapping[str, Any]) -> HeartbeatReply:
        """Say that the node lives, and hear what is wanted of it."""
        try:
            reply = self._transport.call("POST", "nodes/heartbeat", json=body)
        except RefusedError as refused:
            if refused.status in ABSENT:
                return HeartbeatReply(known=False)
            raise
        answer = read_answer(Heard, reply)
        return HeartbeatReply(
            cancel=tuple(answer.cancel),
            drain=answer.drain,
            refresh=frozenset(answer.refresh),
        )

    def pull(
        self, node_id: str, filters: Mapping[str, Any], max_jobs: int, wait_s: float
    ) -> tuple[object, ...]:
        """Ask for at most `max_jobs`; raw manifests, as many as came, none checked."""
        body = {
            "node_id": node_id,
            "filters": filters,
            "max_jobs": max_jobs,
            "wait_s": wait_s,
        }
        reply = self._transport.call(
            "POST",
            "jobs/pull",
            json=body,
            timeout_s=self._transport.timeout_s + wait_s,
        )
        if reply.status == _NO_CONTENT:
            return ()
        answer = read_answer(Pulled, reply)
        jobs = answer.jobs if answer.job is None else [answer.job, *answer.jobs]
        return tuple(jobs)  # more than asked for: each is owed an answer

    def fail_raw(
        self,
        job_id: str,
        attempt: int,
        code: ErrorCode,
        message: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Report a job whose manifest cannot become one."""
        self._delivery.fail_with(job_id, attempt, code, message, detail)

    def query(self, job_id: str) -> JobView | None:
        """Ask after one job; None when it is unknown there or cannot be asked."""
        return self._queries.one(job_id)

    def active_jobs(self, node_id: str) -> tuple[JobView, ...] | None:
        """Give all jobs the coordinator counts on this node for; None: no such call."""
        return self._queries.active(node_id)

    def ack(self, manifest: Manifest) -> Lease:
        """Take the job. Raises JobGoneError when it is no longer ours.

        Repeated when its answer is lost: an ack by the same node is one ack.
        """
        body = {
            "job_id": manifest.job_id,
            "node_id": self._node_id,
            "attempt": manifest.attempt,
        }
        # The specification's own mock reads the query, others read the body.
        params = {key: str(value) for key, value in body.items()}
        try:
            reply, answer = retrying(
                lambda: self._leased("jobs/ack", body, params),
                clock=self._transport.clock,
                tries=_ACK_TRIES,
                within_s=self._transport.timeout_s,
            )
        except RefusedError as refused:
            raise _gone(refused, _NOT_OURS_OR_UNKNOWN) from refused
        return lease_of(answer, reply, self._now())

    def progress(self, manifest: Manifest, progress: Progress) -> ProgressReply:
        """Tell how far the job is and renew its lease.

        A coordinator without this call is not asked again. A 404 therefore says
        nothing about the job; heartbeat and lease do.
        """
        if not self._has_progress:
            return ProgressReply()
        body = {
            "job_id": manifest.job_id,
            "pct": progress.pct,
            "note": progress.note,
            "node_id": self._node_id,
            "attempt": manifest.attempt,
            "state": progress.state,
            "bytes_out": progress.bytes_out,
            "tail": progress.tail,
        }
        limit_s = min(_PROGRESS_S, self._transport.timeout_s)
        try:
            reply, answer = self._leased("jobs/progress", body, timeout_s=limit_s)
        except RefusedError as refused:
            if refused.status in ABSENT:
                self._has_progress = False
                return ProgressReply()
            raise _gone(refused, _NOT_OURS) from refused
        lease = lease_of(answer, reply, self._now())
        return ProgressReply(cancel=answer.cancel, lease=lease)

    def deliver(
        self,
        outcome: Outcome,
        open_artifact: Callable[[ArtifactFile], Path],
        log: Path,
    ) -> None:
        """Submit the outcome once; return when it is final at the coordinator."""
        if outcome.succeeded:
            self._delivery.result(outcome, open_artifact, log)
        else:
            self._delivery.fail(outcome, log)

    def _leased(
        self,
        path: str,
        body: Mapping[str, Any],
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Reply, Leased]:
        reply = self._transport.call(
            "POST", path, json=body, params=params, timeout_s=timeout_s
        )
        return reply, read_answer(Leased, reply)

    def _now(self) -> float:
        return self._transport.clock.realtime()

    def _uploads_offered(self) -> bool:
        if self._extensions is not None:
            return bool(self._extensions & _UPLOADS)
        if self._has_uploads is None:
            try:
                self._has_uploads = TusUploader(self._transport).offered()
            except UnavailableError:
                return False  # not known; the multipart way says what is wrong
        return self._has_uploads


def _gone(refused: RefusedError, statuses: frozenset[int]) -> CoordinatorError:
    return JobGoneError(str(refused)) if refused.status in statuses else refused
