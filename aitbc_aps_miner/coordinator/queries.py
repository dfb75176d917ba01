"""node-v1's recovery queries: what the coordinator thinks this node is doing."""

from collections.abc import Mapping
from urllib.parse import quote

from aitbc_aps_miner.coordinator.answer import Reply
from aitbc_aps_miner.coordinator.api import JobView
from aitbc_aps_miner.coordinator.retry import ABSENT
from aitbc_aps_miner.coordinator.transport import Transport
from aitbc_aps_miner.coordinator.wire import Job, Jobs, lease_of, read_answer
from aitbc_aps_miner.errors import RefusedError, UnavailableError

_UNKNOWN = ABSENT | {410}
_MAX_PAGES = 1000


class Queries:
    """Asks one coordinator."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def one(self, job_id: str) -> JobView | None:
        """Ask after one job; None when it is unknown there or cannot be asked."""
        try:
            reply = self._transport.call("GET", f"jobs/{quote(job_id, safe='')}")
        except RefusedError as refused:
            if refused.status in _UNKNOWN:
                return None
            raise
        answer = read_answer(Job, reply)
        if answer.job_id != job_id:
            raise UnavailableError(
                f"answer not understood: asked for {job_id!r}, "
                f"given {ascii(answer.job_id)[:200]}"
            )
        return self._view(answer, reply)

    def active(self, node_id: str) -> tuple[JobView, ...] | None:
        """Give all jobs of the node; None where the coordinator has no such call.

        Follows `next`, a link or a cursor, to the end: half a list is no list.
        """
        first = {"node_id": node_id, "state": "active"}
        path, params = "jobs", first
        views: list[JobView] = []
        for _ in range(_MAX_PAGES):
            reply = self._page(path, params, first=params is first)
            if reply is None:
                return None
            answer = read_answer(Jobs, reply)
            views += [self._view(job, reply) for job in answer.jobs]
            if answer.next is None:
                return tuple(views)
            if answer.next.startswith(("http:", "https:", "/", "?")):
                path, params = answer.next, {}
            else:
                params = {**first, "next": answer.next}
        raise UnavailableError(f"the list of jobs has more than {_MAX_PAGES} pages")

    def _page(
        self, path: str, params: Mapping[str, str], *, first: bool
    ) -> Reply | None:
        try:
            # A link carries its own query; None leaves it as it is.
            return self._transport.call("GET", path, params=params or None)
        except RefusedError as refused:
            if first and refused.status in ABSENT:
                return None
            raise

    def _view(self, job: Job, reply: Reply) -> JobView:
        return JobView(
            job_id=job.job_id,
            state=job.state,
            node_id=job.node_id,
            attempt=job.attempt,
            lease=lease_of(job, reply, self._transport.clock.realtime()),
            outcome=job.outcome,
            manifest=job.manifest,
        )
