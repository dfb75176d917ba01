"""The routes of nodes: register, heartbeat, pull, ack, progress, result, fail."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from aitbc_aps_miner.reference_coordinator.matching import appetite
from aitbc_aps_miner.reference_coordinator.multipart import Form, read_form
from aitbc_aps_miner.reference_coordinator.problems import (
    conflict,
    invalid,
    not_found,
)
from aitbc_aps_miner.reference_coordinator.records import Job, Submission
from aitbc_aps_miner.reference_coordinator.results import (
    collect,
    fingerprint,
    read_metadata,
)
from aitbc_aps_miner.reference_coordinator.uploads import Uploads
from aitbc_aps_miner.reference_coordinator.views import lease_expires_at, rfc3339
from aitbc_aps_miner.reference_coordinator.wire import (
    Site,
    read_json,
    reply,
    text_field,
    unauthorized,
)

EXTENSIONS = ("long-poll", "leases", "cancel", "query", "uploads", "idempotency")
_OK = {"ok": True}
MAX_WAIT_S = 300.0  # a long poll that a proxy or NAT has forgotten ends by itself


class NodeApi:
    """What nodes call."""

    def __init__(self, site: Site, uploads: Uploads) -> None:
        self._site = site
        self._state = site.state
        self._rules = site.state.rules
        self._uploads = uploads
        self.router = APIRouter()
        for path in ("jobs/pull", "jobs/ack", "jobs/progress", "jobs/fail"):
            endpoint = getattr(self, path.rpartition("/")[2])
            self.router.add_api_route(f"/{path}", endpoint, methods=["POST"])
        self.router.add_api_route("/jobs/result", self.result, methods=["POST"])
        for endpoint in (self.register, self.heartbeat):
            # Without registration they are still routes: /nodes/{node_id} is one, too.
            served = self._absent if self._rules.no_registration else endpoint
            path = f"/nodes/{endpoint.__name__}"
            self.router.add_api_route(path, served, methods=["POST"])

    async def register(self, request: Request) -> Response:
        """Give a node its token."""
        if request.headers.get("authorization") != (
            f"Bearer {self._rules.bootstrap_token}"
        ):
            raise unauthorized("the bootstrap token is missing or wrong")
        body = await read_json(request)
        text_field(body, "node_id")
        token, expires_at = self._state.register(body)
        answer: dict[str, Any] = {"node_token": token}
        if not self._rules.spec_only:
            answer["expires_at"] = rfc3339(expires_at)
            answer["extensions"] = list(EXTENSIONS)
            if self._rules.heartbeat_interval_s is not None:
                answer["heartbeat_interval_s"] = self._rules.heartbeat_interval_s
        return reply(answer)

    async def heartbeat(self, request: Request) -> Response:
        """Note that a node lives; give it its orders."""
        body = await read_json(request)
        node_id = self._site.identify(request, text_field(body, "node_id"))
        assert node_id is not None
        orders = self._state.heartbeat(node_id, body)
        return reply({} if self._rules.spec_only else orders)

    async def pull(self, request: Request) -> Response:
        """Hand out jobs, or hold an empty answer for `wait_s`."""
        body = await read_json(request)
        node_id = self._site.identify(request, text_field(body, "node_id"))
        assert node_id is not None
        is_batch = "max_jobs" in body and not self._rules.spec_only
        wanted = appetite(body.get("filters"), body.get("max_jobs") if is_batch else 1)
        jobs = await self._site.wait_for(
            request, lambda: self._state.pull(node_id, wanted), self._wait_s(body)
        )
        if is_batch:
            return reply({"jobs": [job.handout for job in jobs]})
        return reply({"job": jobs[0].handout if jobs else None})

    async def ack(self, request: Request) -> Response:
        """Note that a node took a job; JSON body or query parameters."""
        is_bare = request.headers.get("content-length", "0") == "0"
        body = {} if is_bare else await read_json(request)
        said = {**request.query_params, **body}
        node_id = self._site.identify(request, text_field(said, "node_id"))
        job = self._state.ack(
            text_field(said, "job_id"), node_id, _attempt(said.get("attempt"))
        )
        return reply(self._lease(job))

    async def progress(self, request: Request) -> Response:
        """Note how far a job is; renew its lease and tell about a cancel."""
        body = await read_json(request)
        node_id = self._site.identify(request, body.get("node_id"))
        job = self._state.progress(text_field(body, "job_id"), node_id, body)
        if self._rules.spec_only:
            return reply({})
        return reply({"cancel": job.cancel_requested, **self._lease(job)})

    async def fail(self, request: Request) -> Response:
        """Accept a failure."""
        body = await read_json(request)
        job_id, code = text_field(body, "job_id"), text_field(body, "error_code")
        node_id = self._site.identify(request, body.get("node_id"))
        submission = self._submission(
            request,
            job_id=job_id,
            node_id=node_id,
            attempt=body.get("attempt"),
            fingerprint=f"fail {code}",
            outcome={**body, "succeeded": False},
        )
        retryable = body.get("retryable") is True and not self._rules.spec_only
        self._state.fail(submission, retryable=retryable)
        return reply(_OK)

    async def result(self, request: Request) -> Response:
        """Accept a result whose artifacts are what its metadata says."""
        node_id = self._site.node_of(request)
        with await read_form(request, self._site.spool) as form:
            job_id = form.field("job_id")
            metadata = read_metadata(form.field("metadata"))
            node_id = node_id or _named_node(metadata)
            submission = self._submission(
                request,
                job_id=job_id,
                node_id=node_id,
                attempt=metadata.get("attempt"),
                fingerprint=fingerprint(metadata),
                outcome={"succeeded": True, "metadata": metadata},
            )
            return self._settle(submission, form, metadata)

    async def _absent(self) -> Response:
        raise not_found("call: this coordinator has no registration")

    def _settle(
        self, submission: Submission, form: Form, metadata: dict[str, Any]
    ) -> Response:
        # What was accepted before is answered before its files are looked at: the
        # uploads that it names may be gone.
        if self._state.knows(submission):
            return reply(_OK)
        files = collect(form, metadata, self._uploads)
        self._state.succeed(submission, files)
        form.keep()
        for each in files:
            self._uploads.release(each.file)
        return reply(_OK)

    def _submission(
        self, request: Request, *, attempt: Any, job_id: str, **rest: Any
    ) -> Submission:
        key = request.headers.get("idempotency-key")
        if self._rules.spec_only:
            return Submission(job_id=job_id, attempt=None, key=None, **rest)
        named = _attempt(attempt)
        if key is None:
            key = f"{job_id}:{named or self._state.job(job_id).attempt}"
        owner, _, number = key.rpartition(":")
        if owner != job_id or not number.isdecimal():
            raise invalid(
                f"Idempotency-Key: expected {job_id}:<attempt>, given {key:.200}"
            )
        if named is not None and named != int(number):
            raise conflict(f"attempt {named} does not fit key {key}", "attempt")
        return Submission(job_id=job_id, attempt=int(number), key=key, **rest)

    def _lease(self, job: Job) -> dict[str, Any]:
        if self._rules.spec_only:
            return {}
        return {
            "lease_ttl_s": self._rules.lease_s,
            "lease_expires_at": lease_expires_at(self._state, job),
        }

    def _wait_s(self, body: dict[str, Any]) -> float:
        wait_s = body.get("wait_s", 0)
        if self._rules.spec_only or isinstance(wait_s, bool):
            return 0
        if not isinstance(wait_s, (int, float)):
            raise invalid(f"wait_s: expected seconds, given {wait_s!r:.100}")
        return min(wait_s, MAX_WAIT_S)


def _attempt(value: Any) -> int | None:
    """Read an attempt from JSON, a query or metadata; ProblemError 422."""
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or len(text) > 9:  # noqa: PLR2004 - no attempt has ten digits
        raise invalid(f"attempt: expected a positive integer, given {text:.100}")
    return int(text)


def _named_node(metadata: dict[str, Any]) -> str | None:
    node_id = metadata.get("node_id")
    return node_id if isinstance(node_id, str) else None
