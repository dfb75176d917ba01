"""A loopback HTTP server that answers as a test says, down to single bytes."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    """With lower-case names."""
    body: bytes

    @property
    def json(self) -> Any:
        """Give the body's JSON value."""
        return json.loads(self.body)


Answer = Callable[[Seen, "Connection"], None]


class Connection:
    """The answering end of one request."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def reply(
        self,
        status: int = 200,
        value: Any = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        if body is None:
            body = b"" if value is None else json.dumps(value).encode()
        head = {"Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} x", *(f"{k}: {v}" for k, v in head.items())]
        self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def drain(self, request: Seen) -> int:
        """Read an unread body without keeping it; give its length."""
        left = int(request.headers["content-length"])
        while left and (piece := self._handler.rfile.read(min(left, 2**20))):
            left -= len(piece)
        return int(request.headers["content-length"]) - left

    def raw(self, data: bytes) -> bool:
        """Send bytes as they are; False when the client has hung up."""
        try:
            self._handler.connection.sendall(data)
        except OSError:
            return False
        return True

    def hang_up(self) -> None:
        """Close the connection after this answer."""
        self._handler.close_connection = True

    def gone(self, timeout_s: float = 20) -> None:
        """Wait until the client hangs up, or for `timeout_s`."""
        with contextlib.suppress(OSError):
            self._handler.connection.settimeout(timeout_s)
            self._handler.connection.recv(1)
        self.hang_up()


@dataclass
class ScriptedServer:
    """Answers requests with `answers` in turn, the last one for ever."""

    answers: list[Answer]
    read_body: bool = True
    context: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    def answer(self, request: Seen, connection: Connection) -> None:
        """Note the request and do what its turn says."""
        self.seen.append(request)
        turn = min(len(self.seen), len(self.answers)) - 1
        self.answers[turn](request, connection)


def says(
    status: int = 200,
    value: Any = None,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Give an answer that is always the same."""
    return lambda _, connection: connection.reply(
        status, value, body=body, headers=headers
    )


@contextlib.contextmanager
def serving(
    *answers: Answer, read_body: bool = True, context: ssl.SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """Serve on a free loopback port while the block runs."""
    script = ScriptedServer([*answers], read_body, context)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def setup(self) -> None:
            super().setup()
            script.connections += 1

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # clients of these tests hang up
                super().handle()

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            length = int(self.headers.get("Content-Length", 0))
            request = Seen(
                method=self.command,
                target=self.path,
                headers={key.lower(): value for key, value in self.headers.items()},
                body=self.rfile.read(length) if script.read_body else b"",
            )
            script.answer(request, Connection(self))

    class Server(ThreadingHTTPServer):
        block_on_close = True
        daemon_threads = False

        def get_request(self) -> tuple[socket.socket, Any]:
            sock, address = super().get_request()
            if script.context is not None:
                sock = script.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
            return sock, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a failed handshake is what some tests want."""

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http" if context is None else "https"
    script.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/api/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
