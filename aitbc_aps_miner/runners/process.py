"""One contained payload, from its start to an empty process tree.

    start ──> running ──────────────> ending ──────────> empty (or stuck) ──> facts
                │ main process ended    │ SIGTERM, grace,
                │ deadline, cancel,     │ SIGKILL, all of
                │ lease, memory, disk   │ the tree

One loop does everything: it moves output, wakes exactly at the deadline and at the
end of the main process, and looks at the rest four times a second. What the facts
mean is decided elsewhere (outcome.py).
"""

import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aitbc_aps_miner.models import ExitCause, ExitFacts
from aitbc_aps_miner.ports import Watch
from aitbc_aps_miner.runners.disk import DiskWatch
from aitbc_aps_miner.runners.launcher import Launcher, Orders
from aitbc_aps_miner.runners.payload import Payload
from aitbc_aps_miner.runners.progress import ProgressMeter
from aitbc_aps_miner.runners.pump import OutputPump
from aitbc_aps_miner.sandbox import limits as kernel
from aitbc_aps_miner.sandbox import memory
from aitbc_aps_miner.sandbox.cgroup import Cgroup
from aitbc_aps_miner.sandbox.tree import KillLadder, ProcessTree

MIB = 1 << 20
LOOK_S = 0.25
_WALK_PAUSE_S = 0.02
_ENDING_PAUSE_S = 0.005
# What a payload leaves behind is a leak: it gets a moment to put things in order.
_LEFTOVER_GRACE_S = 2.0
# A thread can be born of one that is not changed yet: limits are set twice.
_PASSES = 2


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why the payload has to end, with evidence."""

    cause: ExitCause
    grace_s: float
    evidence: Mapping[str, Any]


class Run:
    """One run of one payload."""

    def __init__(
        self,
        payload: Payload,
        watch: Watch,
        launcher: Launcher,
        cgroup: Cgroup | None,
        guard: memory.MemoryGuard,
    ) -> None:
        self._payload = payload
        self._watch = watch
        self._launcher = launcher
        self._limits = watch.limits()
        self._tree = ProcessTree(cgroup, main=launcher.pid)
        self._ladder = KillLadder(self._tree, time.monotonic)
        self._guard = guard
        output_mb = self._limits.output_mb
        limit_bytes = None if output_mb is None else output_mb * MIB
        self._disk = DiskWatch(payload.measured, limit_bytes, time.monotonic)
        self._stop: Stop | None = None
        self._refused: set[str] = set()
        self._passes = 0
        self._peak_mb = 0.0
        self._next_look = 0.0
        self._began = 0.0

    def end(self) -> None:
        """Leave nothing behind, whatever happened; a no-op after a whole run."""
        self._ladder.begin(0)
        while not self._ladder.step():
            time.sleep(_ENDING_PAUSE_S)

    def to_the_end(self, meter: ProgressMeter) -> ExitFacts:
        """Start the payload, see it through, say what was observed."""
        self._start()
        with OutputPump(
            self._launcher.stdout,
            self._launcher.stderr,
            self._payload.logs,
            log_bytes=int(self._limits.log_mb * MIB),
            keep_stdout=self._payload.keep_stdout,
            secrets=self._payload.secrets,
            on_output=meter.feed,
        ) as pump:
            pipes = self._pump_until_empty(pump, meter)
            pump.drain(pipes)
        meter.tick()
        return self._facts(pump, time.monotonic() - self._began)

    def _start(self) -> None:
        self._set_memory()
        own_peak_mb = _peak_mb(self._launcher.pid)
        self._began = time.monotonic()
        self._launcher.start(
            Orders(
                argv=self._payload.argv,
                env=self._payload.env,
                cwd=self._payload.cwd,
                limits=self._limits,
                stdin=self._payload.stdin,
            )
        )
        self._tree.inherited_rss_mb = own_peak_mb
        self._refused.update(kernel.apply_live([self._launcher.pid], self._limits))

    def _pump_until_empty(self, pump: OutputPump, meter: ProgressMeter) -> set[int]:
        """Loop until the tree is empty; give the pipes that are not at their end."""
        pipes = {self._launcher.stdout, self._launcher.stderr}
        poll = select.poll()
        for fd in (*pipes, self._launcher.pidfd):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._pause_ms()):
                if fd in pipes and pump.read(fd) == 0:
                    pipes.remove(fd)
                    poll.unregister(fd)
                elif fd == self._launcher.pidfd:
                    poll.unregister(fd)  # said once is enough
                    self._main_ended()
            self._look(meter)
            if self._ladder.begun and self._ladder.step():
                return pipes

    def _pause_ms(self) -> float:
        pause_s = max(0.0, self._next_look - time.monotonic())
        if self._ladder.begun:
            pause_s = min(pause_s, _ENDING_PAUSE_S)
        else:
            pause_s = min(pause_s, max(0.0, self._watch.remaining_s()))
        return pause_s * 1000

    def _main_ended(self) -> None:
        """Take the status; what is left of the tree is to follow."""
        self._tree.reap()
        self._ladder.begin(min(self._limits.grace_s, _LEFTOVER_GRACE_S))

    def _look(self, meter: ProgressMeter) -> None:
        """Decide whether the payload has to end, and keep the rest up to date."""
        if not self._ladder.begun:
            cause = self._watch.stop_cause()
            if cause is not None:
                self._end_for(
                    Stop(cause=cause, grace_s=self._limits.grace_s, evidence={})
                )
        now = time.monotonic()
        if now < self._next_look:
            return
        pids = self._tree.members()
        self._peak_mb = max(self._peak_mb, memory.resident_mb(pids))
        if not self._ladder.begun:
            self._follow_limits(pids)
            self._end_for(self._excess(pids))
        meter.tick()
        self._next_look = now + (_WALK_PAUSE_S if self._disk.walking else LOOK_S)

    def _end_for(self, stop: Stop | None) -> None:
        if stop is not None and not self._ladder.begun:
            self._stop = stop
            self._ladder.begin(stop.grace_s)

    def _excess(self, pids: list[int]) -> Stop | None:
        """Say whether memory or disk is over its limit: both end without grace."""
        breach = self._guard.breach(pids)
        if breach is not None:
            return Stop(cause=ExitCause.OOM, grace_s=0, evidence=breach.evidence())
        return self._too_much_output(self._disk.step())

    def _too_much_output(self, seen_bytes: int | None) -> Stop | None:
        if seen_bytes is None:
            return None
        evidence = {
            "mechanism": "disk watch",
            "limit_mb": self._limits.output_mb,
            "seen_mb": round(seen_bytes / MIB, 1),
        }
        return Stop(cause=ExitCause.OUTPUT, grace_s=0, evidence=evidence)

    def _follow_limits(self, pids: list[int]) -> None:
        """Apply an edit of the limits to every thread of every process."""
        limits = self._watch.limits()
        if limits != self._limits:
            self._limits, self._passes = limits, _PASSES
            self._refused.clear()
            self._set_memory()
        elif "memory" in self._refused:
            self._set_memory()  # what was in use above the limit may be free by now
        if self._passes > 0:
            self._passes -= 1
            self._refused.update(kernel.apply_live(pids, limits))

    def _set_memory(self) -> None:
        if self._guard.limit(self._limits.memory_mb):
            self._refused.discard("memory")
        else:
            self._refused.add("memory")

    def _facts(self, pump: OutputPump, wall_s: float) -> ExitFacts:
        status = self._tree.status
        code = None if status is None else os.waitstatus_to_exitcode(status)
        facts = ExitFacts(
            cause=ExitCause.EXITED,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            wall_s=wall_s,
            cpu_s=self._tree.cpu_s,
            max_rss_mb=max(self._peak_mb, self._tree.max_rss_mb),
            stdout_bytes=pump.stdout_bytes,
            tree_empty=not self._ladder.stuck,
            detail=self._detail(pump),
        )
        stop = self._stop or self._late_excess(facts)
        if stop is None:
            return facts
        return replace(
            facts, cause=stop.cause, detail={**facts.detail, **stop.evidence}
        )

    def _late_excess(self, facts: ExitFacts) -> Stop | None:
        """Find the limit that ended the payload before we could look."""
        breach = self._guard.breach(())
        if breach is not None:
            return Stop(cause=ExitCause.OOM, grace_s=0, evidence=breach.evidence())
        seen_bytes = self._disk.final()
        if seen_bytes is None and facts.signal == signal.SIGXFSZ:
            seen_bytes = int((self._limits.output_mb or 0) * MIB)
        return self._too_much_output(seen_bytes)

    def _detail(self, pump: OutputPump) -> Mapping[str, Any]:
        detail: dict[str, Any] = {}
        if self._payload.keep_stdout:
            detail["stdout_truncated"] = pump.stdout_truncated
        if pump.log_dropped_bytes:
            detail["log_dropped_bytes"] = pump.log_dropped_bytes
        if self._refused:
            detail["pending"] = sorted(self._refused)
        if self._ladder.stuck:
            detail["stuck_pids"] = self._tree.members()
        return detail


def _peak_mb(pid: int) -> float:
    """Give the peak of resident memory so far, which a process keeps over its exec."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in status.splitlines())
    return next((int(line[1]) / 1024 for line in lines if line[0] == "VmHWM:"), 0.0)
