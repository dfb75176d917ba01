"""What every route shares: JSON in and out with limits, bearer checks, waiting.

Nothing here knows what a call means.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from aitbc_aps_miner.reference_coordinator.problems import ProblemError, invalid
from aitbc_aps_miner.reference_coordinator.spool import Spool
from aitbc_aps_miner.reference_coordinator.state import State

PREFIX = "/api/v1"
MAX_JSON_BYTES = 1 << 20  # a manifest or a report; artifacts don't travel as JSON


_T = TypeVar("_T")


class Bell:
    """Wakes everybody who waits: rung for new work and, for good, at the end."""

    def __init__(self) -> None:
        self.is_closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    def ring(self) -> None:
        """Wake all who wait now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Wake all who wait, now and ever after."""
        self.is_closed = True
        self.ring()

    async def wait(
        self, timeout_s: float, other: asyncio.Future[Any] | None = None
    ) -> None:
        """Return at the next ring, when `other` is done, or after the time."""
        if self.is_closed:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            waited_for = {waiter} if other is None else {waiter, other}
            await asyncio.wait(
                waited_for,
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._waiters.discard(waiter)

    async def sleep(self, seconds: float) -> None:
        """Wait for the time or for the end, whatever rings meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self.is_closed and (left_s := until - loop.time()) > 0:
            await self.wait(left_s)


@dataclass(kw_only=True)
class Site:
    """What the routes work on."""

    state: State
    spool: Spool
    bell: Bell = field(default_factory=Bell)

    def node_of(self, request: Request) -> str | None:
        """Give the node that the bearer belongs to; ProblemError 401 for none.

        None without registration: then the one token names nobody.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if self.state.rules.no_registration:
            if token == self.state.rules.bootstrap_token:
                return None
            raise unauthorized("the bootstrap token is wrong")
        node_id = self.state.tokens.node_of(token)
        if node_id is None:
            raise unauthorized("the node token is missing, unknown or expired")
        return node_id

    def identify(self, request: Request, claimed: Any) -> str | None:
        """Give the calling node; 403 where token and body name two of them."""
        node_id = self.node_of(request)
        named = claimed if isinstance(claimed, str) and claimed else None
        if node_id is not None and named is not None and named != node_id:
            raise ProblemError(
                403, f"the token is of {node_id!r}, not of {named!r}", "wrong_node"
            )
        return node_id or named

    async def wait_for(
        self, request: Request, take: Callable[[], list[_T]], wait_s: float
    ) -> list[_T]:
        """Give what `take` finds, at most `wait_s` later; nothing once it hung up.

        `take` is never asked for a client that has gone: nobody would get its jobs.
        """
        if found := take():
            return found
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        with _watch_hang_up(request) as gone:
            while not self.bell.is_closed and (left_s := until - loop.time()) > 0:
                await self.bell.wait(left_s, gone)
                if gone.done():
                    raise ClientDisconnect
                if found := take():
                    return found
        return []


def unauthorized(detail: str) -> ProblemError:
    """Say that the caller is not who it has to be."""
    return ProblemError(401, detail, "unauthorized", {"WWW-Authenticate": "Bearer"})


def reply(
    body: Any, status: int = 200, *, media_type: str = "application/json"
) -> Response:
    """Give JSON; ASCII only, so that lone surrogates from the wire can be echoed."""
    text = json.dumps(body, separators=(",", ":"))
    return Response(text, status_code=status, media_type=media_type)


def problem_reply(problem: ProblemError) -> Response:
    """Give a problem as RFC 9457 wants it."""
    response = reply(
        problem.body(), problem.status, media_type="application/problem+json"
    )
    response.headers.update(problem.headers)
    return response


async def read_json(request: Request) -> dict[str, Any]:
    """Read a JSON object; ProblemError 400, 413 or 422 for anything else."""
    body = parse_json(await read_body(request, MAX_JSON_BYTES))
    if not isinstance(body, dict):
        raise invalid(f"expected a JSON object, given a {type(body).__name__}")
    return body


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read a small body; ProblemError 413 as soon as it is over the limit."""
    body = bytearray()
    announced = request.headers.get("content-length", "0")
    async for piece in request.stream():
        body += piece
        if max(len(body), int(announced)) > limit_bytes:
            raise ProblemError(
                413, f"the body is over {limit_bytes} bytes", "too_large"
            )
    return bytes(body)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as RFC 8259 has it, without Python's NaN; ProblemError 400."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as exc:
        raise ProblemError(400, f"the body is not JSON: {exc}", "not_json") from exc


def text_field(body: dict[str, Any], name: str) -> str:
    """Give a field that has to be a non-empty string; ProblemError 422."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise invalid(f"{name}: expected a non-empty string, given {value!r:.100}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    # 1e999 is JSON, but its infinity could not be given out as JSON again.
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large")
    return number


@contextlib.contextmanager
def _watch_hang_up(request: Request) -> Iterator[asyncio.Future[None]]:
    async def hear() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(hear())
    try:
        yield gone
    finally:
        gone.cancel()
