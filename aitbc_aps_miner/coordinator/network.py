"""Sockets under httpx with one deadline for a whole call.

httpx counts its timeouts anew for every read, so a server that trickles one byte at a
time holds a caller for hours. Here each connect, handshake, read and write gets what is
left of the call's own deadline, and a server that answers while it is still being sent
to (a 413, say) is heard at once. httpcore's public interfaces only. Looking up a name
is the one thing that libc does not let us cut short; the tick's own deadline does.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import httpcore
import httpx

_PIECE_BYTES = 1024 * 1024
"""What is written between two looks at the deadline."""
_GLANCE_S = 0.001
"""How long a read may take that only looks whether an answer is there already."""
_READ_BYTES = 65536


class Deadline(threading.local):
    """When the call of this thread must be over, on the monotonic clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._at: float | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give every socket operation inside `seconds` all together."""
        before, self._at = self._at, self._monotonic() + seconds
        try:
            yield
        finally:
            self._at = before

    def limit(self, timeout_s: float | None) -> float | None:
        """Give the time one operation may take; httpcore.TimeoutException at none."""
        if self._at is None:
            return timeout_s
        left = self._at - self._monotonic()
        if left <= 0:
            raise httpcore.TimeoutException("the call's own deadline has passed")
        return left if timeout_s is None else min(left, timeout_s)


class DeadlineTransport(httpx.BaseTransport):
    """httpcore's connection pool as an httpx transport that minds the deadline."""

    def __init__(self, ssl_context: ssl.SSLContext | None, deadline: Deadline) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=4,
            max_keepalive_connections=2,
            # Below the 60 s after which common servers and proxies hang up.
            keepalive_expiry=45,
            network_backend=_Backend(deadline),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; raises httpcore's exceptions, which the caller maps."""
        answer = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=cast("Iterable[bytes]", request.stream),
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Stream(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class _Stream(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(
            host, port, self._deadline.limit(timeout), local_address, socket_options
        )
        return _Socket(stream, self._deadline)


class _Socket(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline
        self._early = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._early:
            early, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return early
        return self._inner.read(max_bytes, self._deadline.limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._stop_if_answered()
            # A view, so that what the kernel did not take is never copied.
            self._inner.write(cast("bytes", piece), self._deadline.limit(timeout))

    def _stop_if_answered(self) -> None:
        """Raise httpcore.WriteError, on which httpcore goes on to read the answer.

        Without this the rest of a refused upload is written into a closed connection,
        whose reset then destroys the answer that said why.
        """
        if not self._inner.get_extra_info("is_readable"):
            return
        try:
            self._early += self._inner.read(_READ_BYTES, _GLANCE_S)
        except httpcore.ReadTimeout:
            return  # TLS talked to itself: session tickets, no answer yet
        raise httpcore.WriteError("the server answered before the end of the request")

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = self._deadline.limit(timeout)
        stream = self._inner.start_tls(ssl_context, server_hostname, limit)
        return _Socket(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
