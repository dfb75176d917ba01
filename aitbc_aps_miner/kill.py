"""Ends a task's whole process tree, proves it empty, and takes evidence before.

Best by its cgroup; else by walking its descendants, which works because every spare
adopts the orphans below it. Knows nothing of tasks.
"""

import os
import signal
import time
from collections.abc import Callable

from aitbc_aps_miner.sandbox.cgroup import Cgroup
from aitbc_aps_miner.util import proc

TRACEBACK_SIGNAL = signal.SIGRTMAX - 3
"""Asks for a traceback of all threads; a real-time signal that no library uses."""

EMPTY_TIMEOUT_S = 1.0
"""SIGKILL takes longer only for a process stuck in the kernel (state D)."""

_EVIDENCE_TIMEOUT_S = 0.02
"""It comes within one millisecond; only a machine that is very busy needs more."""
_EVIDENCE_PAUSE_S = 0.0002
_EVIDENCE_BYTES = 64 * 1024


def take_traceback(pidfd: int, evidence_fd: int) -> str:
    """Have a hung process write where it hangs; wait at most 2 ms for it.

    The handler is faulthandler's, in C: it also answers inside an endless loop that
    holds the interpreter lock, not inside a system call that can't be interrupted.
    """
    before = os.fstat(evidence_fd).st_size
    if proc.send_signal(pidfd, TRACEBACK_SIGNAL):
        deadline = time.monotonic() + _EVIDENCE_TIMEOUT_S
        size, last = before, -1
        while time.monotonic() < deadline and (size == before or size != last):
            time.sleep(_EVIDENCE_PAUSE_S)
            last, size = size, os.fstat(evidence_fd).st_size
    return read_evidence(evidence_fd)


def read_evidence(evidence_fd: int) -> str:
    """Give the end of what a process left in its evidence file."""
    start = max(0, os.fstat(evidence_fd).st_size - _EVIDENCE_BYTES)
    return os.pread(evidence_fd, _EVIDENCE_BYTES, start).decode(errors="replace")


def end_tree(pid: int, pidfd: int, group: Cgroup | None) -> bool:
    """Kill a spare with all of its descendants; whether the tree is empty now."""
    if group is not None:
        group.kill()
        # What left its group, which only root can, is still a descendant.
    elif proc.send_signal(pidfd, signal.SIGSTOP):
        # Stopped, it forks no more and still adopts what loses its parent.
        proc.kill_descendants(pid, EMPTY_TIMEOUT_S)
    proc.send_signal(pidfd, signal.SIGKILL)
    # A process leaves its group a moment before it is seen as dead.
    is_empty = group is None or group.wait_empty(EMPTY_TIMEOUT_S)
    return is_empty and _wait_dead(pid)


def end_group(group: Cgroup | None) -> bool:
    """Kill what a task left in its group and remove the group."""
    if group is None:
        return True
    if not group.is_empty():
        group.kill()
        group.wait_empty(EMPTY_TIMEOUT_S)
    return group.remove()


def end_orphans(find: Callable[[], list[int]]) -> bool:
    """Kill and reap the adopted children that `find` finds, until it finds none.

    An orphan's task has ended, so nothing of it may stay. Killing one brings up its
    own children as the next ones.
    """
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while orphans := find():
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)  # ours to reap, so the pid is still its own
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_EVIDENCE_PAUSE_S)
    return True


def _wait_dead(pid: int) -> bool:
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while proc.is_alive(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_EVIDENCE_PAUSE_S)
    return True
