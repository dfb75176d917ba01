"""Runs one foreign program under a deadline, a size cap and a process group of its own.

Used for probes only: payloads of jobs are the business of the runners.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PIECE = 65_536
_REAP_S = 0.5  # a program in uninterruptible sleep stays; the probe doesn't wait for it


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a program printed, and how it ended."""

    output: str
    """Standard output up to the cap; bytes that are no UTF-8 are replaced."""
    problem: str | None
    """None when it ended by itself with status 0."""


def run_command(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_bytes: int = 1_048_576,
    env: Mapping[str, str] | None = None,
) -> CommandResult:
    """Run `argv` to its end, to `timeout_s` or to `max_bytes`, whichever is first.

    Its whole process group is killed in the end. Never raises for what the program
    does or for a program that cannot be started.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=None if env is None else dict(env),
        )
    except (OSError, ValueError) as exc:
        return CommandResult(output="", problem=f"cannot be started: {exc}")
    assert process.stdout is not None  # PIPE was asked for
    with process.stdout as pipe:
        data, problem = _collect(process.pid, pipe.fileno(), timeout_s, max_bytes)
        # Before it is reaped its pid, and so the group's id, cannot be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    status = _reap(process)
    if problem is None and status != 0:
        problem = f"ended with status {status}"
    return CommandResult(output=data.decode("utf-8", "replace"), problem=problem)


def _collect(
    pid: int, pipe_fd: int, timeout_s: float, max_bytes: int
) -> tuple[bytes, str | None]:
    """Read until the program ends: a grandchild may hold its output open for ever."""
    until = time.monotonic() + timeout_s
    os.set_blocking(pipe_fd, False)
    data = bytearray()
    pid_fd = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pid_fd, selectors.EVENT_READ)
            selector.register(pipe_fd, selectors.EVENT_READ)
            while (left_s := until - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(left_s)}
                if not _drain(pipe_fd, data, max_bytes):
                    selector.unregister(pipe_fd)
                    pipe_fd = -1
                if len(data) > max_bytes:
                    return bytes(data[:max_bytes]), f"printed over {max_bytes} bytes"
                if pid_fd in ready:
                    return bytes(data), None
    finally:
        os.close(pid_fd)
    return bytes(data), f"did not end within {timeout_s:g} s"


def _drain(fd: int, data: bytearray, max_bytes: int) -> bool:
    """Read what is there; give whether more may come."""
    while fd >= 0 and len(data) <= max_bytes:
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return True
        if not piece:
            return False
        data += piece
    return True


def _reap(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return None
