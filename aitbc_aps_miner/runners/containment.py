"""Where the payloads of one job process run, and the fork kept ready for the first."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from aitbc_aps_miner.models import ExitFacts, Progress
from aitbc_aps_miner.ports import Watch
from aitbc_aps_miner.runners.launcher import Launcher
from aitbc_aps_miner.runners.payload import Payload
from aitbc_aps_miner.runners.process import Run
from aitbc_aps_miner.runners.progress import (
    ProgressMeter,
    ProgressSource,
    TextProgress,
)
from aitbc_aps_miner.sandbox import memory
from aitbc_aps_miner.sandbox.cgroup import Cgroup

OpenGuard = Callable[[Cgroup | None], memory.MemoryGuard]


class Containment:
    """Where payloads of this process run; the first can be prepared for.

    Make it in the main thread, before there are others.
    """

    def __init__(
        self,
        cgroup: Cgroup | None = None,
        *,
        prepare: bool = False,
        open_guard: OpenGuard = memory.open_guard,
    ) -> None:
        self._cgroup = cgroup
        self._open_guard = open_guard
        self._ready = self._stand_by() if prepare else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was prepared and not needed."""
        if self._ready is not None:
            launcher, guard = self._ready
            self._ready = None
            launcher.close()
            os.waitpid(launcher.pid, 0)
            guard.close()

    def run(
        self,
        payload: Payload,
        watch: Watch,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        source: ProgressSource | None = None,
    ) -> ExitFacts:
        """Run `payload` and end everything that it started.

        Raises JobError when it could not be started. The main thread must call this
        and must not end before it returns.
        """
        launcher, guard = self._ready or self._stand_by()
        self._ready = None
        with ExitStack() as stack:
            stack.callback(guard.close)
            stack.callback(launcher.close)
            run = Run(payload, watch, launcher, self._cgroup, guard)
            stack.callback(run.end)
            meter = ProgressMeter(source or TextProgress(), on_progress, time.monotonic)
            return run.to_the_end(meter)

    def _stand_by(self) -> tuple[Launcher, memory.MemoryGuard]:
        guard = self._open_guard(self._cgroup)
        groups = [] if self._cgroup is None else [self._cgroup.path / "cgroup.procs"]
        if guard.procs is not None:
            groups.append(guard.procs)
        return Launcher(groups), guard
