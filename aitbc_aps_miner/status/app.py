"""The routes of the status server: GET only, no cookies, no cross-origin access."""

import re
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from aitbc_aps_miner.status.metrics import CONTENT_TYPE, Metrics
from aitbc_aps_miner.status.page import render
from aitbc_aps_miner.status.view import (
    HealthView,
    health_json,
    is_healthy,
    ready_json,
)

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    view: Callable[[], HealthView], metrics: Metrics, *, only_local: bool
) -> Starlette:
    """Give the application; `only_local` refuses names that aren't this machine's.

    A web page somewhere can make a browser ask a loopback server under a name that it
    controls (DNS rebinding); the Host header gives that away.
    """

    async def healthz(_request: Request) -> Response:
        now = view()
        return _json(health_json(now), ok=is_healthy(now))

    async def readyz(_request: Request) -> Response:
        body = ready_json(view())
        return _json(body, ok=body["status"] == "ready")

    async def metrics_text(_request: Request) -> Response:
        return Response(metrics.render(), headers=_headers(CONTENT_TYPE))

    async def page(_request: Request) -> Response:
        return HTMLResponse(render(view()), headers=_HEADERS)

    handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": page,
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": metrics_text,
    }
    return Starlette(
        routes=[Route(path, each, methods=["GET"]) for path, each in handlers.items()],
        middleware=[Middleware(_LocalOnly)] if only_local else [],
    )


class _LocalOnly:
    """Answers 421 to requests that name another host than this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if _is_local(scope) else _MISDIRECTED
        await app(scope, receive, send)


_MISDIRECTED = Response("this server answers to localhost only\n", status_code=421)


def _is_local(scope: Scope) -> bool:
    hosts = [value for key, value in scope["headers"] if key == b"host"]
    if len(hosts) != 1:
        return False
    name = re.sub(r":\d{1,5}$", "", hosts[0].decode("latin-1"))
    return name.lower() in _LOCAL_NAMES


def _json(body: dict[str, object], *, ok: bool) -> Response:
    return JSONResponse(body, status_code=200 if ok else 503, headers=_HEADERS)


def _headers(content_type: str) -> dict[str, str]:
    return {**_HEADERS, "Content-Type": content_type}
