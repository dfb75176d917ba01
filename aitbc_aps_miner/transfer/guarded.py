"""Connections to judged addresses only: egress.py's policy on the wire.

The name is looked up once, every address of the answer is judged, and the connection
goes to an address that was judged: a name server that answers differently the second
time gains nothing. TLS and the Host header keep the name. Every wait is short, so that
a job that has to stop is never held up by a peer.
"""

import errno
import functools
import os
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import httpcore

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.transfer.egress import address_allowed

Resolve = Callable[[str, int], list[str]]
"""(host, port) → addresses as text; raises OSError."""

SLICE_S = 0.25
"""How long a wait may last before the job is asked whether it has to stop."""

_T = TypeVar("_T")


def system_resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class GuardedBackend(httpcore.NetworkBackend):
    """httpcore's sockets, to judged addresses only, asking `check` while they wait.

    `check` is called at least each SLICE_S and may raise; what it raises comes through
    httpcore as it is. A refused address raises JobError E_DENY.
    """

    def __init__(
        self,
        *,
        private: bool,
        check: Callable[[], None],
        clock: Clock,
        resolve: Resolve = system_resolve,
    ) -> None:
        self._private = private
        self._check = check
        self._clock = clock
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, judge, connect; the first address that answers is taken."""
        del local_address, socket_options  # the pool above us sets neither
        addresses = self._addresses(host, port, self._wait(timeout))
        problem: OSError = OSError("it has no address")
        # One address that swallows packets must not use up the time of the others.
        share = None if timeout is None else timeout / max(1, len(addresses))
        for address in addresses:
            try:
                wait = self._wait(share)
                return _Stream(_connect(address, port, wait), self._check, self._clock)
            except OSError as exc:
                problem = exc
        if isinstance(problem, TimeoutError):
            raise httpcore.ConnectTimeout(f"{host}: no connection") from problem
        raise httpcore.ConnectError(f"{host}: {problem}") from problem

    def _wait(self, timeout: float | None) -> "_Wait":
        return _Wait(self._check, self._clock, timeout)

    def _addresses(self, host: str, port: int, wait: "_Wait") -> list[str]:
        try:
            addresses = _resolved(self._resolve, host, port, wait)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(f"looking up {host} takes too long") from exc
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"cannot look up {host}: {exc}") from exc
        for address in addresses:
            if not address_allowed(address, private=self._private):
                raise JobError(
                    ErrorCode.E_DENY,
                    f"{host} is at {address}, which is not a public address",
                    {"host": host, "address": address, "key": "network.private"},
                )
        return addresses


class _Wait:
    """A wait in slices: asks `check` between them, TimeoutError when it is over."""

    def __init__(
        self, check: Callable[[], None], clock: Clock, timeout_s: float | None
    ) -> None:
        self._check = check
        self._clock = clock
        self._until = None if timeout_s is None else clock.monotonic() + timeout_s

    def slice_s(self) -> float:
        self._check()
        if self._until is None:
            return SLICE_S
        left_s = self._until - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return min(SLICE_S, left_s)


class _Stream(httpcore.NetworkStream):
    """One connection; every wait is sliced."""

    def __init__(
        self, sock: socket.socket, check: Callable[[], None], clock: Clock
    ) -> None:
        self._socket = sock
        self._check = check
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._sliced(lambda: self._socket.recv(max_bytes), timeout)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(f"no byte for {timeout} s") from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        try:
            while view:
                sent = self._sliced(functools.partial(self._socket.send, view), timeout)
                view = view[sent:]
        except TimeoutError as exc:
            raise httpcore.WriteTimeout("the request is not taken") from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            self._socket = ssl_context.wrap_socket(
                self._socket,
                server_hostname=server_hostname,
                do_handshake_on_connect=False,
            )
            self._sliced(self._socket.do_handshake, timeout)
        except OSError as exc:
            self.close()  # the pool above us forgets a stream that fails here
            raise _handshake_error(server_hostname, exc) from exc
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """Give the TLS object for the pool's ALPN; nothing else is known here."""
        is_tls = isinstance(self._socket, ssl.SSLSocket)
        return self._socket if info == "ssl_object" and is_tls else None

    def _sliced(self, call: Callable[[], _T], timeout: float | None) -> _T:
        wait = _Wait(self._check, self._clock, timeout)
        while True:
            self._socket.settimeout(wait.slice_s())
            try:
                return call()
            except TimeoutError:
                continue


def _handshake_error(host: str | None, exc: OSError) -> Exception:
    if isinstance(exc, ssl.SSLCertVerificationError):
        # No later try will find a better certificate.
        return JobError(ErrorCode.E_INPUT, f"{host}: {exc.verify_message}")
    if isinstance(exc, TimeoutError):
        return httpcore.ConnectTimeout(f"{host}: the TLS handshake takes too long")
    return httpcore.ConnectError(f"{host}: {exc}")


def _resolved(resolve: Resolve, host: str, port: int, wait: _Wait) -> list[str]:
    """Resolve in a thread: the system's resolver cannot be interrupted."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(host, port))
        except (OSError, UnicodeError) as exc:
            answers.put(exc)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=wait.slice_s())
        except queue.Empty:
            continue
        if isinstance(answer, Exception):
            raise answer
        return answer


def _connect(address: str, port: int, wait: _Wait) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _finish_connect(sock, address, port, wait)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _finish_connect(sock: socket.socket, address: str, port: int, wait: _Wait) -> None:
    sock.setblocking(False)
    code = sock.connect_ex((address, port))
    if code == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while not poll.poll(wait.slice_s() * 1000):
            pass
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
