"""The reference coordinator in a thread of the test's process, on a free port."""

import asyncio
import functools
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aitbc_aps_miner.reference_coordinator.app import Application
from aitbc_aps_miner.reference_coordinator.breaking import Call
from aitbc_aps_miner.reference_coordinator.faults import Faults, parse_fault
from aitbc_aps_miner.reference_coordinator.records import Job
from aitbc_aps_miner.reference_coordinator.rules import Rules
from aitbc_aps_miner.reference_coordinator.server import Server, listen
from aitbc_aps_miner.reference_coordinator.spool import Spool
from aitbc_aps_miner.reference_coordinator.state import State
from aitbc_aps_miner.reference_coordinator.views import job_view
from aitbc_aps_miner.reference_coordinator.wire import PREFIX
from aitbc_aps_miner.util.clock import SystemClock

T = TypeVar("T")

FINAL = ("succeeded", "failed", "cancelled", "expired")


class CoordinatorServer:
    """A coordinator over real HTTP that a test can look into, break and restart.

    `CoordinatorServer(lease_s=1)` takes the fields of `Rules`; `tls` is a pair of
    certificate and key file. Times are real; wait with deadlines, never by sleeping.
    """

    def __init__(
        self, *, tls: tuple[Path, Path] | None = None, port: int = 0, **rules: Any
    ) -> None:
        self.rules = Rules(**rules)
        self.requests: list[tuple[str, str, int | None, dict[str, str]]] = []
        """(method, path, status or None for no answer, headers in lower case)."""
        self.state = State(self.rules, SystemClock())
        self.faults = Faults(chance=random.Random(1))
        self._tls = tls
        self._spool = Spool()
        self._changed = threading.Condition()
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app: Application | None = None
        self._server: Server | None = None

    @property
    def base_url(self) -> str:
        """The URL with the API prefix."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._port}{PREFIX}"

    @property
    def token(self) -> str:
        """The bootstrap token."""
        return self.rules.bootstrap_token

    @property
    def port(self) -> int:
        """The port, the same after every restart."""
        return self._port

    @property
    def spool_path(self) -> Path:
        """The directory of uploaded files."""
        return self._spool.path

    # Jobs ---------------------------------------------------------------------

    def submit(self, manifest: Any) -> str:
        """Queue any JSON as a manifest, unchecked; give the job's id."""
        return self.call(lambda: self.state.submit(manifest).job_id)

    def job(self, job_id: str) -> dict[str, Any]:
        """Give what `GET /jobs/{job_id}` would say."""
        return self.call(lambda: job_view(self.state, self.state.job(job_id), PREFIX))

    def artifact(self, job_id: str, path: str) -> bytes:
        """Give the bytes of an artifact that was accepted."""
        return self.call(
            lambda: self.state.job(job_id).artifacts[path].file
        ).read_bytes()

    def cancel(self, job_id: str, *, force: bool = False) -> None:
        """Cancel a job as a client would."""
        self.call(lambda: self.state.cancel(job_id, force=force))

    def wait(self, job_id: str, timeout_s: float, *states: str) -> dict[str, Any]:
        """Wait until the job is final, or in one of `states`; TimeoutError if not."""
        wanted = states or FINAL
        self.wait_until(
            lambda: self.state.jobs[job_id].state in wanted,
            timeout_s,
            lambda: f"job {job_id} is {self.state.jobs[job_id].history}",
        )
        return self.job(job_id)

    def wait_until(
        self,
        is_true: Callable[[], bool],
        timeout_s: float,
        say: Callable[[], str] = lambda: "",
    ) -> None:
        """Wait until `is_true` holds after a call or a change of a job."""
        with self._changed:
            if not self._changed.wait_for(is_true, timeout_s):
                last = [call[:3] for call in self.requests[-10:]]
                raise TimeoutError(f"after {timeout_s} s: {say()}; last calls: {last}")

    def wait_for_polls(self, count: int = 1, timeout_s: float = 10) -> None:
        """Wait until so many long polls are held open."""
        left_s = deadline(timeout_s)
        while self.polls < count:
            left_s()

    @property
    def polls(self) -> int:
        """How many long polls are held open."""
        return self.call(self._polls)

    def forget_tokens(self) -> None:
        """Make every node register again."""
        self.call(self.state.tokens.forget)

    # Faults -------------------------------------------------------------------

    def set_fault(self, call: str, kind: str, **settings: Any) -> None:
        """Switch a fault on: see reference_coordinator.faults.Fault."""
        fault = parse_fault({"call": call, "kind": kind, **settings})
        self.call(lambda: self.faults.active.append(fault))

    def clear_faults(self) -> None:
        """Switch all faults off."""
        self.call(self.faults.active.clear)

    def calls(self, path: str) -> list[tuple[str, str, int | None, dict[str, str]]]:
        """Give the requests to `path`, relative to the prefix: `jobs/pull`."""
        return [call for call in self.requests if call[1] == f"{PREFIX}/{path}"]

    # Life ---------------------------------------------------------------------

    def start(self) -> None:
        """Listen; on the same port as before."""
        sock = listen("127.0.0.1", self._port)
        self._port = sock.getsockname()[1]
        up: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(sock, up))
        self._thread.start()
        up.result(10)

    def stop(self) -> None:
        """Close every connection and end; jobs, nodes and tokens are kept."""
        if self._thread is None or self._loop is None or self._server is None:
            return
        server = self._server
        self._loop.call_soon_threadsafe(_end, server)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the coordinator does not end"
        self._thread = None

    def restart(self, *, forget: bool = False) -> None:
        """Stop and start again; `forget`: without jobs, nodes and tokens."""
        self.stop()
        if forget:
            self.state = State(self.rules, SystemClock())
        self.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` where the state lives: in the coordinator's thread."""
        if self._thread is None or self._loop is None:
            return function()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except Exception as exc:  # noqa: BLE001 - handed to the caller
                done.set_exception(exc)

        self._loop.call_soon_threadsafe(run)
        return done.result(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._spool.__exit__(kind, error, trace)

    def _polls(self) -> int:
        # The server's own tick waits on the same bell.
        return 0 if self._app is None else self._app.site.bell.waiting - 1

    def _main(self, sock: socket.socket, up: "Future[None]") -> None:
        asyncio.run(self._serve(sock, up))

    async def _serve(self, sock: socket.socket, up: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self.state.listeners = [self._on_change]
        self._app = Application(self.state, self._spool, self.faults, self._on_call)
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl_certfile": self._tls[0], "ssl_keyfile": self._tls[1]}
        ready = functools.partial(up.set_result, None)
        self._server = Server(self._app, ready, log_config=None, **tls)
        await self._server.serve(sockets=[sock])

    def _on_change(self, job: Job) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_call(self, call: Call) -> None:
        with self._changed:
            self.requests.append(
                (call.method, call.path, call.status, dict(call.headers))
            )
            self._changed.notify_all()


def _end(server: Server) -> None:
    server.stop()
    # Tests do not wait for calls under way: that is what a crash looks like, too.
    server.abort_all()


def echo_manifest(job_id: str | None = None, **more: Any) -> dict[str, Any]:
    """Give the specification's own sample job."""
    named = {} if job_id is None else {"job_id": job_id}
    return {
        **named,
        "runner": "cli",
        "requirements": {"gpu": False, "vram_mb": 0, "cpu_threads": 1},
        "timeout_s": 120,
        "input": {"urls": [], "inline": {}},
        "command": "echo",
        "args": ["hello", "world"],
        "artifacts": [{"path": "output.txt", "type": "text/plain", "max_mb": 1}],
        **more,
    }


def deadline(timeout_s: float) -> Callable[[], float]:
    """Give a function that says how many seconds are left, TimeoutError at zero."""
    until = time.monotonic() + timeout_s

    def left_s() -> float:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not within {timeout_s} s")
        return left

    return left_s
