"""Puts the coordinator's parts together into one ASGI application."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from importlib import resources

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from aitbc_aps_miner.reference_coordinator.breaking import Breaking, Call
from aitbc_aps_miner.reference_coordinator.client_api import ClientApi
from aitbc_aps_miner.reference_coordinator.faults import Faults, parse_fault
from aitbc_aps_miner.reference_coordinator.node_api import NodeApi
from aitbc_aps_miner.reference_coordinator.problems import ProblemError
from aitbc_aps_miner.reference_coordinator.records import Job, JobState
from aitbc_aps_miner.reference_coordinator.spool import Spool
from aitbc_aps_miner.reference_coordinator.state import State
from aitbc_aps_miner.reference_coordinator.uploads import Uploads
from aitbc_aps_miner.reference_coordinator.wire import (
    PREFIX,
    Site,
    problem_reply,
    read_json,
    reply,
)

_SEED = 0  # faults with a rate strike the same calls in each run


class Application:
    """One coordinator: the ASGI app and what steers it from outside."""

    def __init__(
        self,
        state: State,
        spool: Spool,
        faults: Faults | None = None,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self.site = Site(state=state, spool=spool)
        self.state = state
        self.faults = faults or Faults(chance=random.Random(_SEED))  # noqa: S311 - faults are no secret
        self.asgi = Breaking(self._routes(), self.faults, self.site.bell, on_call)

    def _routes(self) -> FastAPI:
        # No generated docs: their page loads scripts from elsewhere.
        app = FastAPI(openapi_url=None, lifespan=self._lifespan)
        uploads = Uploads(self.site)
        app.include_router(NodeApi(self.site, uploads).router, prefix=PREFIX)
        if not self.state.rules.spec_only:
            app.include_router(uploads.router, prefix=PREFIX)
        app.include_router(FaultApi(self.faults).router, prefix=PREFIX)
        app.include_router(ClientApi(self.site).router, prefix=PREFIX)
        app.add_api_route("/", _page, methods=["GET"])
        app.add_exception_handler(ProblemError, _on_problem)
        app.add_exception_handler(HTTPException, _on_http_exception)
        app.add_exception_handler(ClientDisconnect, _on_disconnect)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        reaper = asyncio.create_task(self._reap())
        self.state.listeners.append(self._ring)
        try:
            yield
        finally:
            self.state.listeners.remove(self._ring)
            reaper.cancel()

    def _ring(self, job: Job) -> None:
        if job.state is JobState.QUEUED:
            self.site.bell.ring()

    async def _reap(self) -> None:
        """Requeue jobs whose lease ran out while nobody calls."""
        while True:
            # The least pause keeps a rounded-down due time from spinning.
            await asyncio.sleep(max(self.state.next_expiry_s(), 0.001))
            self.state.expire()


class FaultApi:
    """The switchboard of faults."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.router = APIRouter()
        self.router.add_api_route("/faults", self.add, methods=["POST"])
        self.router.add_api_route("/faults", self.listed, methods=["GET"])
        self.router.add_api_route("/faults", self.clear, methods=["DELETE"])

    async def add(self, request: Request) -> Response:
        """Switch a fault on."""
        fault = parse_fault(await read_json(request))
        self._faults.active.append(fault)
        return reply(fault.view(), 201)

    async def listed(self) -> Response:
        """List faults with how often each has struck."""
        return reply({"faults": [fault.view() for fault in self._faults.active]})

    async def clear(self) -> Response:
        """Switch all faults off."""
        self._faults.active.clear()
        return reply({"faults": []})


async def _page() -> Response:
    page = resources.files(__package__).joinpath("page.html")
    return HTMLResponse(page.read_text(encoding="utf-8"))


async def _on_problem(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ProblemError)
    return problem_reply(exc)


async def _on_http_exception(_request: Request, exc: Exception) -> Response:
    """Answer the router's own 404 and 405."""
    assert isinstance(exc, HTTPException)
    return problem_reply(
        ProblemError(exc.status_code, str(exc.detail), headers=exc.headers)
    )


async def _on_disconnect(_request: Request, _exc: Exception) -> Response:
    """Answer a client that is gone; nobody reads this."""
    return Response(status_code=400)
