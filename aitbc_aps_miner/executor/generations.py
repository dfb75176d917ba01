"""Which zygote the spares come from: start, replace, give up, start again.

For the pool's thread only, except `refill`, `due` and `retire`: its lock guards them.
"""

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aitbc_aps_miner import kill
from aitbc_aps_miner.executor.task import Log, PoolSettings
from aitbc_aps_miner.executor.zygotes import GROUP_PREFIX, Spare, ZygoteProcess
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.sandbox import cgroup
from aitbc_aps_miner.util import frames, proc
from aitbc_aps_miner.util.loop import Loop

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0

_everyone: "weakref.WeakSet[Generations]" = weakref.WeakSet()
"""All executors of this process, usually one: none may kill another's zygotes."""

OnExit = Callable[[ZygoteProcess, int | None, Mapping[str, Any]], None]


class Generations:
    """The zygotes: the current one, and earlier ones that still have tasks."""

    def __init__(
        self,
        settings: PoolSettings,
        loop: Loop,
        log: Log,
        clock: Clock,
        *,
        on_spare: Callable[[Spare], None],
        on_exit: OnExit,
        detached_pids: Callable[[], set[int]],
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._log = log
        self._clock = clock
        self._on_spare = on_spare
        self._on_exit = on_exit
        self._detached_pids = detached_pids
        self._base = cgroup.find_base() if settings.use_cgroups else None
        if self._base is not None:
            _remove_stale_groups(self._base)
        else:
            # Without groups, what a dead zygote's ticks leave must come to us.
            proc.adopt_orphans()
        self._current: ZygoteProcess | None = None
        self._retired: list[ZygoteProcess] = []
        self._ending: list[ZygoteProcess] = []
        _everyone.add(self)
        self._failures = 0
        self._restart_at: float | None = None
        self.trouble = "the zygote is not ready yet"
        """Why there may be no spare, in words."""

    def start(self) -> None:
        """Start the next generation."""
        self._restart_at = None
        try:
            zygote = ZygoteProcess.start(self._settings.zygote, self._base)
        except OSError as exc:
            self._plan_restart(f"no zygote could be started: {exc}")
            return
        zygote.waiting_since.append(self._clock.monotonic())  # for its `ready`
        self._current = zygote
        self._loop.watch(zygote.control.fileno(), lambda: self._on_control(zygote))
        self._log.info("zygote.started", generation=zygote.generation)

    def refill(self, idle: int) -> None:
        """Ask for the spares that are missing when `idle` are there."""
        zygote = self._current
        if zygote is not None and zygote.is_ready:
            missing = self._settings.spares - idle - len(zygote.waiting_since)
            for _ in range(missing):
                zygote.request_spare(self._clock.monotonic())

    def due(self) -> list[float]:
        """Say when `on_timer` is to be called."""
        due = [] if self._restart_at is None else [self._restart_at]
        zygote = self._current
        if zygote is not None and zygote.waiting_since:
            due.append(zygote.waiting_since[0] + self._patience_s(zygote))
        return due

    def on_timer(self, now: float) -> None:
        """Give up a mute zygote; start the next one when its time has come."""
        zygote = self._current
        if zygote is not None and zygote.waiting_since:
            patience_s = self._patience_s(zygote)
            if zygote.waiting_since[0] + patience_s <= now:
                self._lose(zygote, f"it said nothing for {patience_s} s")
        if self._restart_at is not None and self._restart_at <= now:
            self.start()

    def retire(self) -> None:
        """Take no more spares of the current zygote, which ends with its last task."""
        zygote, self._current = self._current, None
        if zygote is not None:
            self._retired.append(zygote)

    def close_unused(self, used: set[ZygoteProcess]) -> None:
        """Let retired zygotes end that no spare is left of."""
        for zygote in [z for z in self._retired if z not in used]:
            self._retired.remove(zygote)
            zygote.is_dead = True
            self._let_end(zygote)

    def close(self) -> None:
        """End all zygotes, and with them what they hold."""
        current = [] if self._current is None else [self._current]
        for zygote in [*self._ending, *self._retired, *current]:
            zygote.close()
        if self._base is None:
            proc.adopt_orphans(adopt=False)

    def _on_control(self, zygote: ZygoteProcess) -> None:
        try:
            while not zygote.is_dead and (received := zygote.receive()) is not None:
                self._hear(zygote, *received)
        except (frames.FrameError, KeyError, ValueError) as exc:
            self._lose(zygote, str(exc))

    def _hear(
        self, zygote: ZygoteProcess, message: Mapping[str, Any], fds: list[int]
    ) -> None:
        match message["kind"]:
            case "ready":
                zygote.is_ready = True
                zygote.waiting_since.clear()
            case "spare":
                self._failures = 0
                del zygote.waiting_since[:1]
                spare = Spare(zygote, message, fds)
                if zygote is self._current:
                    self._on_spare(spare)
                else:
                    spare.close()
            case "exited":
                self._on_exit(zygote, message["pid"], message)
            case kind:
                raise frames.FrameError(f"unknown kind {kind!r}")

    def _lose(self, zygote: ZygoteProcess, reason: str) -> None:
        """Give up a zygote that is dead, or as good as dead, and its ticks with it."""
        zygote.is_dead = True
        reason = f"its zygote is gone: {zygote.last_words() or reason}"
        self._log.warning("zygote.lost", generation=zygote.generation, reason=reason)
        # Ticks before the zygote: alive, they still hold their trees together.
        self._on_exit(zygote, None, {"message": reason})
        zygote.kill()
        self._let_end(zygote)
        if self._base is None:
            kill.end_orphans(self._find_strays)
        if zygote is self._current:
            self._current = None
            self._plan_restart(reason)
        else:
            self._retired.remove(zygote)

    def _find_strays(self) -> list[int]:
        """Find children in foreign sessions: the daemon itself starts none of those.

        Zygotes and detached jobs have sessions of their own too, and are left alone.
        """
        found = set(proc.children(os.getpid()))
        for other in list(_everyone):
            found -= other._known_pids()  # noqa: SLF001  of this very class
        return [pid for pid in found if proc.session(pid) not in {os.getsid(0), None}]

    def _known_pids(self) -> set[int]:
        zygotes = [*self._ending, *self._retired, self._current]
        known = {zygote.process.pid for zygote in zygotes if zygote is not None}
        return known | self._detached_pids()

    def _let_end(self, zygote: ZygoteProcess) -> None:
        """Close its control socket, which ends it, and reap it when it has ended."""
        self._loop.unwatch(zygote.control.fileno())
        zygote.control.close()
        self._ending.append(zygote)
        self._loop.watch(zygote.pidfd, lambda: self._reap(zygote))

    def _reap(self, zygote: ZygoteProcess) -> None:
        self._loop.unwatch(zygote.pidfd)
        self._ending.remove(zygote)
        self._loop.after_batch(zygote.close)

    def _plan_restart(self, reason: str) -> None:
        """Try again at once after one that worked, ever later after others."""
        self.trouble = reason
        pause_s = _FIRST_PAUSE_S * 2**self._failures if self._failures else 0
        self._restart_at = self._clock.monotonic() + min(pause_s, _LONGEST_PAUSE_S)
        self._failures += 1

    def _patience_s(self, zygote: ZygoteProcess) -> float:
        if zygote.is_ready:
            return self._settings.spare_timeout_s
        return self._settings.start_timeout_s


def _remove_stale_groups(base: cgroup.Cgroup) -> None:
    """Remove the empty groups of zygotes that are gone: jobs that outlived them."""
    for path in base.path.glob(f"{GROUP_PREFIX}-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            cgroup.Cgroup(path=path).remove()
