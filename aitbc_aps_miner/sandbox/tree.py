"""One payload's processes: who they are, signals to all of them, the kill ladder.

Members are found by the cgroup and by descent, always both: a process can leave a
group it may write to, and one that left its parent comes up as our own child, since
this process adopts orphans. Zombies are reaped, they don't count.
"""

import contextlib
import os
import signal
from collections.abc import Callable

from aitbc_aps_miner.sandbox.cgroup import Cgroup
from aitbc_aps_miner.util import proc

_KILL_S = 5.0  # a killed tree of 200 is gone in 15 ms; what needs longer is stuck (D)
# What our fork may touch between the look at its peak and its exec.
_RSS_TOLERANCE_MB = 8


class ProcessTree:
    """The tree below one child of this process; nobody else may reap its members."""

    def __init__(self, cgroup: Cgroup | None, *, main: int) -> None:
        """Take `main`, every child after it, and all in `cgroup` for members."""
        proc.adopt_orphans()
        self._pid = os.getpid()
        self._cgroup = cgroup
        self._main = main
        self._others = frozenset(proc.children(self._pid)) - {main}
        self.status: int | None = None
        """Wait status of the main process; None while it lives."""
        self.cpu_s = 0.0
        self.max_rss_mb = 0.0
        """Largest peak of one reaped process, 0 where it can't be told."""
        self.inherited_rss_mb = 0.0
        """Peak of the main process before its exec, which its own includes."""

    def members(self) -> list[int]:
        """List the live processes of the tree."""
        found = dict.fromkeys(self._cgroup.pids() if self._cgroup else ())
        for child in self._children():
            found |= dict.fromkeys(proc.descendants(child))
            if proc.is_alive(child):
                found[child] = None
        return list(found)

    def is_empty(self) -> bool:
        """Reap what has ended; whether nothing is left."""
        self.reap()
        if self._children():
            return False  # alive, or ended since and not reaped
        return self._cgroup is None or self._cgroup.is_empty()

    def reap(self) -> None:
        """Take the exit status and resource use of every child that has ended."""
        for child in self._children():
            with contextlib.suppress(ChildProcessError):
                pid, status, usage = os.wait4(child, os.WNOHANG)
                if pid == 0:
                    continue
                self.cpu_s += usage.ru_utime + usage.ru_stime
                peak_mb = usage.ru_maxrss / 1024
                if pid == self._main:
                    self.status = status
                    # Up to its own peak as our fork, it says nothing of the payload.
                    if peak_mb <= self.inherited_rss_mb + _RSS_TOLERANCE_MB:
                        continue
                self.max_rss_mb = max(self.max_rss_mb, peak_mb)

    def signal(self, signum: int) -> None:
        """Send `signum` to every member."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)

    def kill(self) -> None:
        """Kill whatever is a member now; call again until the tree is empty."""
        if self._cgroup is not None:
            self._cgroup.kill()
        self.signal(signal.SIGKILL)

    def _children(self) -> list[int]:
        return [pid for pid in proc.children(self._pid) if pid not in self._others]


class KillLadder:
    """SIGTERM, after `grace_s` SIGKILL, then a look until the tree is empty.

    Never waits itself: `step` is called in a loop that goes on pumping output.
    """

    def __init__(self, tree: ProcessTree, monotonic: Callable[[], float]) -> None:
        self._tree = tree
        self._monotonic = monotonic
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self.killed = False
        """Whether it took SIGKILL."""
        self.stuck = False
        """Whether something survived SIGKILL for longer than is believable."""

    @property
    def begun(self) -> bool:
        """Whether the tree is being ended."""
        return self._kill_at is not None

    def begin(self, grace_s: float) -> None:
        """Ask every member to end within `grace_s`; later calls only shorten it."""
        kill_at = self._monotonic() + grace_s
        if self._kill_at is None and grace_s > 0:
            self._tree.signal(signal.SIGTERM)
            # A stopped process takes its SIGTERM only when it goes on.
            self._tree.signal(signal.SIGCONT)
        self._kill_at = min(kill_at, self._kill_at or kill_at)

    def step(self) -> bool:
        """Go on; whether the end is reached: nothing left, or something is stuck."""
        if self._tree.is_empty():
            return True
        now = self._monotonic()
        if self._kill_at is None or now < self._kill_at:
            return False
        self.killed = True
        self._tree.kill()
        if self._give_up_at is None:
            self._give_up_at = now + _KILL_S
        self.stuck = now >= self._give_up_at
        return self.stuck
