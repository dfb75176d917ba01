"""The status server's life: a daemon thread that starts, moves and stops on demand.

Beside the ticks, so that a stuck tick is seen and not suffered. Port trouble is given
back as words: a node without a status page still earns.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import threading
from collections.abc import Callable

from aitbc_aps_miner.status.metrics import Metrics
from aitbc_aps_miner.status.view import HealthView

_STOP_S = 1.0
_GRACE_S = 0.5  # for an answer that is on its way; less than _STOP_S


class StatusServer:
    """Serves `view` on one address at a time; not for use from several threads."""

    def __init__(self, view: Callable[[], HealthView], metrics: Metrics) -> None:
        self._view = view
        self._metrics = metrics
        self._listen = ""
        self._running: _Running | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that are really listened on; None while nothing is."""
        return None if self._running is None else self._running.address

    def start(self, listen: str) -> str | None:
        """Listen on "host:port" ("" for nothing); give a problem in words, or None."""
        return self.rebind(listen)

    def rebind(self, listen: str) -> str | None:
        """Move to another address; on trouble stay on the old one and say so."""
        if listen == self._listen and (self._running is not None or not listen):
            return None
        before = self._running
        try:
            now = self._run(listen) if listen else None
        except _AddressInUseError as exc:
            # It may be our own: 127.0.0.1:80 and 0.0.0.0:80 exclude one another.
            if before is None or before.port != _split(listen)[1]:
                return str(exc)
            return self._swap(before, listen)
        except _CannotListenError as exc:
            return str(exc)
        self._listen, self._running = listen, now
        if before is not None:
            before.stop()
        return None

    def stop(self) -> None:
        """Stop within a second; open connections are closed."""
        if self._running is not None:
            self._running.stop()
        self._listen, self._running = "", None

    def _swap(self, before: "_Running", listen: str) -> str | None:
        before.stop()
        problem: str | None = None
        try:
            self._listen, self._running = listen, self._run(listen)
        except _CannotListenError as exc:
            problem = str(exc)
            try:
                self._running = self._run(self._listen)
            except _CannotListenError as again:
                self._running = None
                problem = f"{problem}; {again}"
        return problem

    def _run(self, listen: str) -> "_Running":
        return _Running(listen, self._view, self._metrics)


class _CannotListenError(Exception):
    """The address cannot be listened on; the text is for people."""


class _AddressInUseError(_CannotListenError):
    """Somebody listens there already."""


class _Running:
    """One listening socket and the thread that serves it."""

    def __init__(
        self, listen: str, view: Callable[[], HealthView], metrics: Metrics
    ) -> None:
        self._socket = _bind(listen)
        host, port = self._socket.getsockname()[:2]
        self.address = (str(host), int(port))
        self.port = _split(listen)[1]
        self._view = view
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._is_stopped = False
        self._thread = threading.Thread(
            target=self._serve, name="status-server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and every connection; also before the thread got going."""
        self._is_stopped = True
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed already
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_STOP_S)
        self._socket.close()

    async def _wait(self) -> None:
        # Event before flag here, flag before event in stop: no order loses the wish.
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if not self._is_stopped:
            await self._stopping.wait()

    def _serve(self) -> None:
        # Here, not above: the libraries cost 0.15 s that the daemon's start, the
        # zygote and every command of the CLI would pay.
        import uvicorn  # noqa: PLC0415 - said above

        from aitbc_aps_miner.status.app import make_app  # noqa: PLC0415 - said above

        wait = self._wait

        class Server(uvicorn.Server):
            """Waits for its end instead of looking for it ten times a second."""

            async def main_loop(self) -> None:
                await wait()

        app = make_app(self._view, self._metrics, only_local=_is_loopback(self.address))
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,  # what it warns of reaches our log through stdlib logging
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=64,
            timeout_keep_alive=5,
        )
        config.timeout_graceful_shutdown = _GRACE_S  # type: ignore[assignment]  # any seconds do
        Server(config).run(sockets=[self._socket])


def _bind(listen: str) -> socket.socket:
    host, port = _split(listen)
    if port > 65_535:  # noqa: PLR2004 - TCP's; getaddrinfo takes it modulo 65536
        raise _CannotListenError(f"{listen}: no port above 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as exc:  # the latter for names that are no IDNA
        raise _CannotListenError(f"{listen}: {exc}") from exc
    try:
        # A daemon that is started again must not wait for connections of its
        # predecessor to time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as exc:
        listener.close()
        in_use = exc.errno == errno.EADDRINUSE
        kind_of = _AddressInUseError if in_use else _CannotListenError
        raise kind_of(f"{listen}: {exc}") from exc
    return listener


def _split(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def _is_loopback(address: tuple[str, int]) -> bool:
    return ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
