"""The coordinator's process: uvicorn that can break connections and ends at once."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aitbc_aps_miner.reference_coordinator.app import Application
from aitbc_aps_miner.reference_coordinator.breaking import TRANSPORT

_LAST_WORDS_S = 0.3
_DATE_HEADER_S = 1.0
_KEEP_ALIVE_S = 75  # longer than a node's pause between two calls


class OpenProtocol(H11Protocol):
    """HTTP/1.1 whose requests can reach their transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it the same way
        """Put the transport where every request of the connection finds it."""
        self.app_state = {**self.app_state, TRANSPORT: transport}
        super().connection_made(transport)


class Server(uvicorn.Server):
    """Uvicorn that lets waiting calls go, then closes what is still open."""

    def __init__(
        self, app: Application, on_up: Callable[[], None], **settings: Any
    ) -> None:
        config = uvicorn.Config(
            app.asgi,
            http=OpenProtocol,
            ws="none",
            lifespan="on",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            **settings,
        )
        super().__init__(config)
        self._app = app
        self._on_up = on_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, then say so."""
        await super().startup(sockets)
        self._on_up()

    def stop(self) -> None:
        """End soon; to be called in the event loop's thread."""
        self.should_exit = True
        self._app.site.bell.close()

    async def main_loop(self) -> None:
        """Serve until `stop`; uvicorn would look for that ten times a second."""
        while not await self.on_tick(0):
            await self._app.site.bell.sleep(_DATE_HEADER_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give calls under way a moment, then close what is left.

        Uvicorn would wait for them for as long as they take, with pauses.
        """
        for server in [*self.servers, *(sockets or ())]:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_for_calls()
        self.abort_all()
        await self._wait_for_calls()
        await self.lifespan.shutdown()

    def abort_all(self) -> None:
        """Close every connection, whatever is under way on it."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _wait_for_calls(self) -> None:
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT.

        Uvicorn's own way raises the signal again afterwards, before the spool is gone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        yield


def listen(host: str, port: int) -> socket.socket:
    """Give a listening socket; OSError when the address is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off only where
    # it is; otherwise each answer on a kept connection waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(512)
    except BaseException:
        sock.close()
        raise
    return sock
