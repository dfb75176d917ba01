"""Counts a process's durable steps, and kills the process at one of them.

Wraps what a job does to the world: names and bytes on disk, requests and answers,
forks, starts and waits. A step is named by what is about to happen, as in
`fsync jobs/j/state.json`, and numbered among its like, so that the same step is found
again in another run. Install it in a process of its own: nothing is put back.
"""

import builtins
import io
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aitbc_aps_miner.coordinator.network import _Socket
from aitbc_aps_miner.coordinator.transport import Transport
from aitbc_aps_miner.runners.launcher import Launcher

# Random parts of names differ from run to run.
_RANDOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{8,}(?![0-9a-f])")
_WRITING = set("wax+")
_OF_TWO = ("rename", "replace", "link", "symlink")


class Step(NamedTuple):
    """The `number`th time that `what` is about to happen."""

    what: str
    number: int


class Steps:
    """The steps of this process beneath the directory `scope`.

    `last` is the step that it dies at: by name, or the how manyth of all.
    """

    def __init__(
        self,
        scope: Path,
        job_id: str,
        last: Step | int | None,
        before_death: Callable[[], None],
    ) -> None:
        self.trail: list[Step] = []
        self.on: dict[str, Callable[[], None]] = {}
        """What else is to happen when a step is reached first."""
        self.synced: Callable[[int], None] = lambda _fd: None
        """Told of each descriptor after its fsync."""
        self._scope = f"{scope.resolve()}/"
        # Each run has an id of its own; a step's name must not.
        self._job_id = re.compile(rf"\b{re.escape(job_id)}\b")
        self._last = last
        self._before_death = before_death
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._off = False

    def install(self) -> None:
        """Wrap the primitives of this process."""
        for name in ("mkdir", "rmdir", "unlink", *_OF_TWO):
            self._wrap_names(name)
        for name in ("write", "fsync", "ftruncate"):
            self._wrap_descriptor(name)
        self._wrap_opening()
        self._wrap_processes()
        self._wrap_requests()

    def reached(self, what: str) -> None:
        """Count a step; die if it is the last one."""
        with self._lock:
            if self._off:
                return
            self._counts[what] += 1
            step = Step(what, self._counts[what])
            self.trail.append(step)
            if self._last in (step, len(self.trail)):
                self._off = True
                self._before_death()
                signal.raise_signal(signal.SIGKILL)
            if step.number == 1 and what in self.on:
                self.on[what]()

    def _on_path(self, verb: str, path: Any, dir_fd: int | None = None) -> None:
        if isinstance(path, bytes):
            return
        # An absolute path takes no notice of what it is joined to.
        base = Path.cwd() if dir_fd is None else _path_of(dir_fd)
        whole = base / path
        text = str(whole.parent.resolve() / whole.name)
        if not text.startswith(self._scope) or text.endswith("/logs/job.log"):
            return
        inside = text.removeprefix(self._scope)
        before, trash, _ = inside.partition(".trash/")
        shown = before + ".trash" if trash else self._job_id.sub("JOB", inside)
        self.reached(f"{verb} {_RANDOM.sub('*', shown)}")

    def _wrap_names(self, name: str) -> None:
        real = getattr(os, name)

        def wrapped(path: Any, *args: Any, **more: Any) -> Any:
            target = args[0] if name in _OF_TWO else path
            dir_fd = more.get("dst_dir_fd", more.get("dir_fd"))
            self._on_path(name, target, dir_fd)
            return real(path, *args, **more)

        setattr(os, name, wrapped)

    def _wrap_descriptor(self, name: str) -> None:
        real = getattr(os, name)

        def wrapped(fd: int, *args: Any) -> Any:
            self._on_path(name, _path_of(fd))
            result = real(fd, *args)
            if name == "fsync":
                self.synced(fd)
            return result

        setattr(os, name, wrapped)

    def _wrap_opening(self) -> None:
        os_open, fdopen, io_open = os.open, os.fdopen, io.open

        def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self._on_path("create", path, more.get("dir_fd"))
            return os_open(path, flags, *args, **more)

        def wrapped(fd: int, mode: str = "r", *args: Any, **more: Any) -> Any:
            if _WRITING & set(mode):  # made, and still without its bytes
                self._on_path("fill", _path_of(fd))
            return fdopen(fd, mode, *args, **more)

        def file(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if _WRITING & set(mode) and not isinstance(path, int):
                self._on_path("create", path)
            return io_open(path, mode, *args, **more)

        # An alias in either place is the same function to its callers.
        patched: dict[tuple[Any, str], Any] = {
            (os, "open"): opened,
            (os, "fdopen"): wrapped,
            (io, "open"): file,
            (builtins, "open"): file,
        }
        for (module, name), function in patched.items():
            setattr(module, name, function)

    def _wrap_processes(self) -> None:
        fork, wait4, kill = os.fork, os.wait4, os.kill

        def forked() -> int:
            self.reached("fork")
            pid = fork()
            if pid == 0:
                self._off = True
            else:
                self.reached("forked")
            return pid

        def waited(pid: int, options: int) -> Any:
            result = wait4(pid, options)
            if result[0]:
                self.reached("reaped")
            return result

        def killed(pid: int, signum: int) -> None:
            self.reached(f"signal {signum}")
            kill(pid, signum)

        for name, function in {"fork": forked, "wait4": waited, "kill": killed}.items():
            setattr(os, name, function)
        self._wrap_start()

    def _wrap_start(self) -> None:
        start, complaint = Launcher.start, Launcher._read_complaint

        def started(launcher: Launcher, orders: Any) -> None:
            self.reached("start the payload")
            start(launcher, orders)
            self.reached("payload started")

        def ordered(launcher: Launcher) -> Any:
            self.reached("payload ordered")
            return complaint(launcher)

        patched = {"start": started, "_read_complaint": ordered}
        for name, function in patched.items():
            setattr(Launcher, name, function)

    def _wrap_requests(self) -> None:
        exchange, write = Transport._exchange, _Socket.write
        call = threading.local()

        def exchanged(transport: Transport, request: Any, within_s: float) -> Any:
            place = re.sub(r"uploads/.*", "uploads/*", request.url.path)
            call.name = f"{request.method} {place.removeprefix('/api/v1/')}"
            self.reached(f"call {call.name}")
            reply = exchange(transport, request, within_s)
            self.reached(f"answered {call.name}")
            return reply

        def written(sock: _Socket, buffer: bytes, timeout: float | None = None) -> None:
            write(sock, buffer, timeout)
            self.reached(f"sent {getattr(call, 'name', 'GET input')}")

        patched: dict[tuple[Any, str], Any] = {
            (Transport, "_exchange"): exchanged,
            (_Socket, "write"): written,
        }
        for (owner, name), function in patched.items():
            setattr(owner, name, function)


def _path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()
