"""ASGI middleware that lets calls suffer their fault, and tells who called.

It stands outside the application: what happens here, the application never sees.
"""

import asyncio
import contextlib
import math
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import IO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aitbc_aps_miner.reference_coordinator.faults import (
    Fault,
    FaultKind,
    Faults,
    call_name,
)
from aitbc_aps_miner.reference_coordinator.problems import ProblemError
from aitbc_aps_miner.reference_coordinator.wire import PREFIX, Bell, problem_reply

TRANSPORT = "transport"
"""Key of the connection's transport in the scope's state (server.py puts it there)."""
_PIECE = b"x" * (1 << 16)
_HUGE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as it ended; what tests look at."""

    method: str
    path: str
    status: int | None
    """None when the client got no answer."""
    headers: Mapping[str, str]
    query: str = ""


class Breaking:
    """The middleware."""

    def __init__(
        self,
        app: ASGIApp,
        faults: Faults,
        bell: Bell,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self._app = app
        self._faults = faults
        self._bell = bell
        self._on_call = on_call
        self._again: list[Message] = []
        """A pull's answer that the next pull gets, too."""
        self._kinds: dict[FaultKind, Callable[[_Exchange], Awaitable[None]]] = {
            FaultKind.DROP_REPLY: self._drop_reply,
            FaultKind.STATUS: self._status,
            FaultKind.STALL: self._stall,
            FaultKind.CUT: self._cut,
            FaultKind.CUT_REPLY: self._cut_reply,
            FaultKind.GARBAGE: self._garbage,
            FaultKind.HUGE: self._huge,
            FaultKind.ANSWER_TWICE: self._twice,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, broken or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line = _Line(scope, send)
        try:
            await self._serve(scope, receive, line)
        finally:
            if self._on_call is not None:
                self._on_call(line.call())

    async def _serve(self, scope: Scope, receive: Receive, line: "_Line") -> None:
        path = scope["path"].removeprefix(PREFIX).strip("/")
        is_node = any(name == b"authorization" for name, _ in scope["headers"])
        call = call_name(scope["method"], path, is_node=is_node)
        if call == "pull" and self._again:
            again, self._again = self._again, []
            await _drain(receive)
            for message in again:
                await line.send(message)
            return
        fault = self._faults.take(call, scope["method"]) if call else None
        if fault is None:
            await self._app(scope, receive, line.send)
            return
        broken = _Exchange(fault=fault, scope=scope, receive=receive, line=line)
        await self._kinds[fault.kind](broken)

    async def _drop_reply(self, call: "_Exchange") -> None:
        await self._app(call.scope, call.receive, _nowhere)
        await call.line.abort(call.receive)

    async def _status(self, call: "_Exchange") -> None:
        problem = ProblemError(call.fault.status, "a fault that was asked for", "fault")
        if call.fault.retry_after_s is not None:
            # Whole seconds on the wire; never sooner than asked for.
            problem.headers["Retry-After"] = str(math.ceil(call.fault.retry_after_s))
        await problem_reply(problem)(call.scope, call.receive, call.line.send)

    async def _stall(self, call: "_Exchange") -> None:
        async def send_late(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._bell.sleep(call.fault.seconds)
            await call.line.send(message)

        await self._app(call.scope, call.receive, send_late)

    async def _cut(self, call: "_Exchange") -> None:
        left = call.fault.bytes or 0
        is_cut = left == 0

        async def receive_some() -> Message:
            nonlocal left, is_cut
            if is_cut:
                return await call.line.abort(call.receive)
            message = await call.receive()
            body = message.get("body", b"")
            if len(body) < left:
                left -= len(body)
                return message
            is_cut = True
            return {**message, "body": body[:left], "more_body": True}

        await self._app(call.scope, receive_some, call.line.send)

    async def _cut_reply(self, call: "_Exchange") -> None:
        left = call.fault.bytes or 0

        async def send_some(message: Message) -> None:
            nonlocal left
            if message["type"] != "http.response.body":
                await call.line.send(message)
                return
            body = message.get("body", b"")[:left]
            left -= len(body)
            await call.line.send({**message, "body": body, "more_body": True})
            if left == 0:
                call.line.close()

        await self._app(call.scope, call.receive, send_some)
        call.line.close()

    async def _garbage(self, call: "_Exchange") -> None:
        await _drain(call.receive)
        await call.line.start()
        body = b'<html>\xff\x00{"job": [[[NaN,'
        await call.line.send({"type": "http.response.body", "body": body})

    async def _huge(self, call: "_Exchange") -> None:
        await _drain(call.receive)
        await call.line.start()
        left = _HUGE_BYTES if call.fault.bytes is None else call.fault.bytes
        body = b'{"job": "'
        while left > 0 and not call.line.is_closing and not self._bell.is_closed:
            await call.line.send(
                {"type": "http.response.body", "body": body, "more_body": True}
            )
            left -= len(body)
            body = _PIECE[:left]
        await call.line.send({"type": "http.response.body", "body": b'"}'})

    async def _twice(self, call: "_Exchange") -> None:
        path = call.scope["path"]
        if path.endswith("/jobs/pull"):
            await self._pull_twice(call)
            return
        async with _spooled(call.receive) as body:
            await self._app(call.scope, _replay(body), _nowhere)
            await self._app(call.scope, _replay(body), call.line.send)

    async def _pull_twice(self, call: "_Exchange") -> None:
        answer: list[Message] = []

        async def note(message: Message) -> None:
            answer.append(message)
            await call.line.send(message)

        await self._app(call.scope, call.receive, note)
        if b'"job_id"' in b"".join(each.get("body", b"") for each in answer):
            self._again = answer
        else:
            self._faults.give_back(call.fault)


class _Line:
    """The way back to the client, and how to break it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._transport: asyncio.Transport = scope["state"][TRANSPORT]
        self._status: int | None = None

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.is_closing:
            self._status = message["status"]
        await self._send(message)

    async def start(self) -> None:
        headers = [(b"content-type", b"application/json")]
        await self.send(
            {"type": "http.response.start", "status": 200, "headers": headers}
        )

    async def abort(self, receive: Receive) -> Message:
        """Close at once, also on unsent bytes; give the server's word for that."""
        self._transport.abort()
        while (message := await receive())["type"] != "http.disconnect":
            pass
        return message

    def close(self) -> None:
        """Close after what was written."""
        self._transport.close()

    def call(self) -> Call:
        return Call(
            method=self._scope["method"],
            path=self._scope["path"],
            query=self._scope["query_string"].decode("latin-1"),
            status=self._status,
            headers={
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in self._scope["headers"]
            },
        )


@dataclass(frozen=True, kw_only=True)
class _Exchange:
    """A call and the fault that it suffers."""

    fault: Fault
    scope: Scope
    receive: Receive
    line: _Line


async def _nowhere(_message: Message) -> None:
    """Swallow an answer."""


async def _drain(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


@contextlib.asynccontextmanager
async def _spooled(receive: Receive) -> AsyncIterator[IO[bytes]]:
    """Give the whole body, on disk where it is large."""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as file:
        more = True
        while more:
            message = await receive()
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
        yield file


def _replay(body: IO[bytes]) -> Receive:
    body.seek(0)

    async def receive() -> Message:
        piece = body.read(1 << 16)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    return receive
