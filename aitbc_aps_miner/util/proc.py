"""What Linux knows of processes and Python has no name for: prctl, pidfds, trees."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_ROUND_PAUSE_S = 0.0005

_HAS_CHILDREN = Path("/proc/thread-self/children").exists()
"""Kernels without CONFIG_PROC_CHILDREN make us read every process instead."""

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, signum: int = signal.SIGKILL) -> bool:
    """Ask for `signum` when the parent ends; False when it has ended already.

    "Parent" is the *thread* that forked us. The setting is cleared by a change of
    uid and by executing a set-uid program, not by fork's own children: they never
    have it (prctl(2), PR_SET_PDEATHSIG).
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    return os.getppid() == parent_pid


def outlive_parent() -> None:
    """Take `die_with_parent` back."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def hide_memory() -> None:
    """Keep processes of the same user out of our memory and environment.

    Lasts until the next exec; for anyone but root it also closes /proc/self/fd.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def adopt_orphans(*, adopt: bool = True) -> None:
    """Become, or stop being, the parent of descendants whose own parents end.

    Not inherited by fork.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def set_name(name: str) -> None:
    """Show `name` as our command in ps, top and /proc; the kernel keeps 15 bytes.

    The setting is the calling thread's, and a process shows its main thread's. It is
    inherited by fork and lasts until the next exec.
    """
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)  # can't fail: cut, not refused


def children(pid: int) -> list[int]:
    """List the children of all threads of `pid`, zombies too; none when it is gone."""
    if not _HAS_CHILDREN:
        return _children_by_scan(pid)
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            # A thread that ends while we look hands its children to another.
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """List the live descendants of `pid`, parents first, without zombies."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children(waiting.pop(0))
        waiting += below
        found += (child for child in below if is_alive(child))
    return found


def is_alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    return _stat_fields(pid)[:1] not in ([], ["Z"], ["X"])


def start_ticks(pid: int) -> int | None:
    """Give the start time of `pid` in clock ticks since boot; None when it is gone.

    Together with the boot id this tells a process from a later one of the same pid.
    """
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def session(pid: int) -> int | None:
    """Give the session of `pid`, a zombie's too; None when it is gone."""
    fields = _stat_fields(pid)
    return int(fields[3]) if fields else None


def send_signal(pidfd: int, signum: int) -> bool:
    """Signal the very process behind `pidfd`; False when it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True


def kill_descendants(pid: int, timeout_s: float) -> bool:
    """Kill everything below `pid` until nothing is left; False when time ran out.

    Complete only when `pid` adopts orphans (`adopt_orphans`) and is stopped or waits:
    then whatever loses its parent comes up here and is found in the next round. A
    process with SIGKILL pending cannot fork any more, so rounds come to an end.
    """
    deadline = time.monotonic() + timeout_s
    while found := descendants(pid):
        for descendant in found:
            # A pid can't be another's yet: its parent, which is in this tree and
            # stopped or dead, has not reaped it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_ROUND_PAUSE_S)
    return True


def _children_by_scan(pid: int) -> list[int]:
    everyone = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
    return [other for other in everyone if _stat_fields(other)[1:2] == [str(pid)]]


def _stat_fields(pid: int) -> list[str]:
    """Give the fields of /proc/<pid>/stat from the state on; [] when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    # The name before may hold blanks and parentheses itself.
    return stat.rpartition(")")[2].split()


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
