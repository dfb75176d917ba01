"""The routes of clients, open to all: submit, read, cancel, download; and the queries.

`GET /jobs/{id}` and `GET /jobs?node_id=` serve nodes, too: with a bearer they are the
node API's queries.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from aitbc_aps_miner.reference_coordinator.manifests import complaints
from aitbc_aps_miner.reference_coordinator.problems import invalid, not_found
from aitbc_aps_miner.reference_coordinator.views import (
    job_line,
    job_view,
    node_view,
    recovery_line,
)
from aitbc_aps_miner.reference_coordinator.wire import (
    MAX_JSON_BYTES,
    PREFIX,
    Site,
    parse_json,
    read_body,
    read_json,
    reply,
)

_LIST_MAX = 200  # the page shows the newest; a node's own list is always complete


class ClientApi:
    """What people, submitters and the page call."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._state = site.state
        self.router = APIRouter()
        add: Callable[..., None] = self.router.add_api_route
        add("/jobs", self.submit, methods=["POST"])
        add("/jobs", self.jobs, methods=["GET"])
        add("/nodes", self.nodes, methods=["GET"])
        add("/nodes/{node_id}", self.order, methods=["POST"])
        # Job ids that no node would take may hold slashes: the longer paths first.
        add("/jobs/{job_id:path}/cancel", self.cancel, methods=["POST"])
        add("/jobs/{job_id}/artifacts/{path:path}", self.artifact, methods=["GET"])
        add("/jobs/{job_id:path}", self.job, methods=["GET"])

    async def submit(self, request: Request) -> Response:
        """Queue a job; `?unchecked=1` takes any JSON, to see what nodes make of it."""
        manifest = parse_json(await read_body(request, MAX_JSON_BYTES))
        if "unchecked" not in request.query_params and (wrong := complaints(manifest)):
            raise invalid("; ".join(wrong), "manifest")
        job = self._state.submit(manifest)
        return reply(job_view(self._state, job, PREFIX), 201)

    async def jobs(self, request: Request) -> Response:
        """List jobs, the newest first; with `node_id`, all that this node holds."""
        node_id = request.query_params.get("node_id")
        if node_id is not None:
            return self._held(request, node_id)
        newest = islice(reversed(self._state.jobs.values()), _LIST_MAX)
        return reply(
            {
                "jobs": [job_line(self._state, job) for job in newest],
                "counts": self._state.counts,
            }
        )

    async def job(self, request: Request, job_id: str) -> Response:
        """Give all about one job."""
        if "authorization" in request.headers:
            self._enter_query(request)
        return reply(job_view(self._state, self._state.job(job_id), PREFIX))

    async def cancel(self, request: Request, job_id: str) -> Response:
        """Cancel a job; `{"force": true}` does not wait for its node."""
        is_bare = request.headers.get("content-length", "0") == "0"
        body: dict[str, Any] = {} if is_bare else await read_json(request)
        job = self._state.cancel(job_id, force=body.get("force") is True)
        return reply(job_view(self._state, job, PREFIX))

    async def artifact(self, job_id: str, path: str) -> Response:
        """Give an artifact's bytes."""
        stored = self._state.job(job_id).artifacts.get(path)
        if stored is None:
            raise not_found(f"artifact of job {job_id!r}: {path!r}")
        # What a job made must never run as a page of this origin.
        headers = {
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
            "X-Artifact-Sha256": stored.sha256,
        }
        kind = stored.type if re.fullmatch(r"[\w.+/-]+", stored.type) else None
        return FileResponse(
            stored.file, media_type=kind or "application/octet-stream", headers=headers
        )

    async def nodes(self) -> Response:
        """List nodes."""
        nodes = [node_view(self._state, node) for node in self._state.nodes.values()]
        return reply({"nodes": nodes})

    async def order(self, request: Request, node_id: str) -> Response:
        """Leave `{drain?: bool, refresh?: [word]}` for a node's next heartbeat."""
        body = await read_json(request)
        node = self._state.nodes.get(node_id)
        if node is None:
            raise not_found(f"node: {node_id!r}")
        node.drain = body.get("drain", node.drain) is True
        node.refresh += [str(word) for word in body.get("refresh", ())]
        return reply(node_view(self._state, node))

    def _held(self, request: Request, node_id: str) -> Response:
        self._enter_query(request)
        self._site.identify(request, node_id)
        self._state.expire()
        node = self._state.nodes.get(node_id)
        active = node.active.values() if node else ()
        return reply({"jobs": [recovery_line(self._state, job) for job in active]})

    def _enter_query(self, request: Request) -> None:
        """Let a node's query in; ProblemError 404 where nodes have no queries."""
        if self._state.rules.spec_only:
            raise not_found("query: this coordinator speaks the bare specification")
        self._site.node_of(request)
