"""Starts one payload from a process that may have threads by then.

A fork taken while this process has one thread joins its groups, which can take the
kernel 10 ms, and waits on a pipe for its orders; then it limits itself and becomes
the payload. Nothing of ours is inherited but standard input, output and error.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import PayloadLimits
from aitbc_aps_miner.sandbox import limits as kernel
from aitbc_aps_miner.util import proc

# Larger than the kernel's 64 KiB: fewer turns of the pump for the same flood.
_PIPE_BYTES = 1 << 20
# Joining groups and executing take milliseconds; a hung file system takes for ever.
_START_S = 30.0
# Above this, the few descriptors that the child works with cannot be in the way of
# the three that it sets up.
_HIGH_FD = 10
_ERROR_MAX = 65536


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the waiting child is to become."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    limits: PayloadLimits
    stdin: str = ""

    def to_json(self) -> bytes:
        """Put the orders on the wire between the two processes."""
        orders = {
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": str(self.cwd),
            "limits": asdict(self.limits),
            "stdin": self.stdin,
        }
        return json.dumps(orders).encode()


class Launcher:
    """One child in waiting; make it in the main thread, before other threads."""

    def __init__(self, join: Sequence[Path] = ()) -> None:
        """Fork; the child writes itself into the `cgroup.procs` files of `join`."""
        # PR_SET_PDEATHSIG fires when the forking *thread* ends, not the process.
        assert threading.current_thread() is threading.main_thread()
        go_read, self._go = os.pipe()
        self._error, error_write = os.pipe()
        self.stdout, out_write = os.pipe()
        self.stderr, err_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                child = _Child(parent, go_read, error_write, (out_write, err_write))
                child.run(join)
            finally:
                os._exit(os.EX_OSERR)
        for fd in (go_read, error_write, out_write, err_write):
            os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)
        for fd in (self.stdout, self.stderr):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # over the user's budget of pipe pages
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._open = {self._go, self._error, self.stdout, self.stderr, self.pidfd}

    def start(self, orders: Orders) -> None:
        """Turn the waiting child into the payload; its pid stays the same.

        Raises JobError: E_EXIT when it cannot be executed, E_INTERNAL when something
        before that failed. The child is gone then, but for its zombie.
        """
        try:
            with os.fdopen(self._take(self._go), "wb") as pipe:
                pipe.write(orders.to_json())
        except BrokenPipeError:
            pass  # it has died; the other pipe says why, or nothing
        complaint = self._read_complaint()
        if complaint is not None:
            raise _error_of(orders, complaint)

    def close(self) -> None:
        """Close what is still open; a child that was not started ends by that."""
        for fd in list(self._open):
            os.close(self._take(fd))

    def _take(self, fd: int) -> int:
        self._open.discard(fd)
        return fd

    def _read_complaint(self) -> Mapping[str, Any] | None:
        """Wait until the child has executed (None) or said why it could not."""
        data = b""
        with os.fdopen(self._take(self._error), "rb", buffering=0) as pipe:
            while True:
                if not _readable(pipe.fileno(), _START_S):
                    proc.send_signal(self.pidfd, signal.SIGKILL)
                    return {"step": "start", "error": f"not done in {_START_S:g} s"}
                chunk = pipe.read(_ERROR_MAX)
                if not chunk:
                    break
                data += chunk
        if data:
            complaint: Mapping[str, Any] = json.loads(data)
            return complaint
        return None


class _Child:
    """The fork: runs until its exec and never returns to the code it came from."""

    def __init__(
        self, parent: int, go: int, error: int, outputs: tuple[int, int]
    ) -> None:
        self._parent = parent
        fds = (go, error, *outputs)
        high = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for fd in fds)
        self._go, self._error, self._stdout, self._stderr = high
        self._step = "start"

    def run(self, join: Sequence[Path]) -> NoReturn:
        """Wait for orders, follow them, and say what went wrong."""
        # From here on it dies with the job, and holds none of the job's files: a
        # fork that keeps the lock's descriptor would keep the lock.
        if not proc.die_with_parent(self._parent):
            os._exit(0)
        _close_all_but({self._go, self._error, self._stdout, self._stderr})
        os.setsid()
        _reset_signals()
        try:
            self._step = "cgroup"
            for procs in join:
                procs.write_text("0")
            self._step = "orders"
            with os.fdopen(self._go, "rb") as pipe:
                data = pipe.read()
            if not data:
                os._exit(0)  # the job ended without a payload
            self._follow(json.loads(data))
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else None
            words = os.strerror(number) if number else str(error)
            complaint = {"step": self._step, "errno": number, "error": words}
            os.write(self._error, json.dumps(complaint).encode())
        os._exit(os.EX_OSERR)

    def _follow(self, orders: Mapping[str, Any]) -> None:
        self._step = "standard input"
        os.dup2(_stdin(orders["stdin"]), 0)
        os.set_inheritable(0, True)  # dup2 onto itself leaves it to close on exec
        os.dup2(self._stdout, 1)
        os.dup2(self._stderr, 2)
        _close_all_but({0, 1, 2, self._error})
        self._step = "working directory"
        os.chdir(orders["cwd"])
        os.umask(0o077)
        self._step = "limits"
        kernel.limit_self(PayloadLimits(**orders["limits"]))
        # A change of uid, when there is one, belongs here: it clears what follows.
        if not proc.die_with_parent(self._parent):
            os._exit(0)
        self._step = "exec"
        argv, env = orders["argv"], orders["env"]
        os.execve(argv[0], argv, env)  # noqa: S606 - no shell is the point


def _stdin(text: str) -> int:
    """Give a descriptor that reads `text`: no pipe, so that nobody has to feed it."""
    if not text:
        return os.open(os.devnull, os.O_RDONLY)
    fd = os.memfd_create("stdin")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _reset_signals() -> None:
    """Undo what is inherited through an exec: ignored signals and blocked ones."""
    for signum in signal.valid_signals():
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_all_but(keep: set[int]) -> None:
    """Close every other descriptor; /proc/self/fd may be closed to us."""
    first = 0
    for fd in (*sorted(keep), os.sysconf("SC_OPEN_MAX")):
        if first < fd:  # CPython takes an empty range from 0 for "all"
            os.closerange(first, fd)
        first = fd + 1


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _error_of(orders: Orders, complaint: Mapping[str, Any]) -> JobError:
    step, words = complaint["step"], complaint["error"]
    if step != "exec":
        return JobError(
            ErrorCode.E_INTERNAL, f"the payload could not be set up: {step}: {words}"
        )
    if complaint["errno"] == errno.E2BIG:
        words = "its arguments and environment are larger than the kernel takes"
    return JobError(
        ErrorCode.E_EXIT,
        f"{orders.argv[0]} could not be executed: {words}",
        {"path": orders.argv[0], "errno": complaint["errno"]},
    )
