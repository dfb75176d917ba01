"""Hands tasks to warm spares, ends them in time, hears how they ended.

One thread owns every socket, pidfd and deadline; nothing wakes it while nothing is
due. Other threads take a spare and write the task to it themselves. Zygotes are the
business of executor_generations.py.

A spare's way: asked of the zygote ─> idle ─> busy ─┬─> told its end ─> lingers ─> gone
                                                    └─> died, or killed ─────────> gone
"""

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from aitbc_aps_miner.executor.generations import Generations
from aitbc_aps_miner.executor.task import (
    Log,
    OnMessage,
    PoolSettings,
    RunningTask,
    Task,
    TaskEnd,
    TaskOutcome,
    refused,
    told,
)
from aitbc_aps_miner.executor.zygotes import Spare
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util import frames
from aitbc_aps_miner.util.loop import Loop

_LINGER_S = 1.0
"""A process that told its end gets so long to exit."""
_STATUS_S = 0.5
"""How long the zygote may take to clean up after a dead spare and tell its status."""
_JOIN_S = 0.7
_REFILL_DELAY_S = 0.003
"""Forking the next spare while a tick runs makes the tick three times slower where
cores are few, and most ticks are over by then. Without any spare left it can't wait."""


class Pool:
    """The processes of the executor."""

    def __init__(
        self, settings: PoolSettings, on_message: OnMessage, log: Log, clock: Clock
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._idle: deque[Spare] = deque()
        self._spares: list[Spare] = []
        self._is_closing = False
        self._refill_at: float | None = None
        self._loop = Loop(self._on_timer)
        self._generations = Generations(
            settings,
            self._loop,
            log,
            clock,
            on_spare=self._on_spare,
            on_exit=self._on_exit,
            detached_pids=lambda: {s.pid for s in self._spares if s.detached},
        )
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)

    def start(self) -> None:
        """Start the first zygote."""
        self._thread.start()

    def launch(self, task: Task, frame: bytes) -> None:
        """Hand `task` to a spare; waits for one. Its end comes to `task.on_end`."""
        # Undelivered means that it didn't run: all spares may have died unseen.
        for _ in range(self._settings.spares + 1):
            spare = self._take(task)
            if spare is None:
                why = f"no process for it: {self._generations.trouble}"
                task.on_end(refused(why))
                return
            if self._is_delivered(task, spare, is_sent=spare.send(frame)):
                return
        why = "every process ended before it was handed over"
        task.on_end(refused(why))

    def kill(self, job_id: str, reason: str) -> None:
        """Kill the task of `job_id`, if it runs, with everything it started."""
        self._loop.post(lambda: self._kill_job(job_id, reason))

    def new_generation(self, reason: str) -> None:
        """Fork from a fresh zygote from now on; running tasks go on."""
        with self._changed:
            idle = list(self._idle)
            self._idle.clear()
            self._generations.retire()
        self._loop.post(lambda: self._replace(reason, idle))

    def running(self) -> dict[str, RunningTask]:
        """Say which tasks are in a process now, by job id."""
        with self._changed:
            return {
                spare.task.job_id: spare.describe(spare.task)
                for spare in self._spares
                if spare.task is not None
            }

    def close(self) -> None:
        """End all but detached tasks, in less than a second."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._loop.post(self._loop.stop)
        # Not for ever: a listener may wait for a lock that our caller holds.
        self._thread.join(_JOIN_S)

    # What other threads do for themselves

    def _take(self, task: Task) -> Spare | None:
        with self._changed:
            if not self._idle:
                self._changed.wait_for(
                    lambda: self._is_closing or bool(self._idle),
                    self._settings.start_timeout_s,
                )
            if self._is_closing or not self._idle:
                return None
            spare = self._idle.popleft()
            spare.task = task
            task.is_sending = True
            task.started_at = self._clock.monotonic()
            if task.deadline_s is not None:
                task.due_at = task.started_at + task.deadline_s
            if not self._idle:
                self._generations.refill(0)
            self._refill_at = task.started_at + _REFILL_DELAY_S
        return spare

    def _is_delivered(self, task: Task, spare: Spare, *, is_sent: bool) -> bool:
        with self._changed:
            task.is_sending = False
            if spare.task is not task:
                self._arm()
                return True  # it has ended meanwhile
            if not is_sent:
                spare.task = None
            self._arm()
            is_lost = spare.is_dead or not is_sent
        if is_lost:
            self._loop.post(lambda: self._bury(spare))
        return is_sent

    def _arm(self) -> None:
        """Set the timer to what is due first; the caller holds the lock."""
        due = [spare.due_at for spare in self._spares if spare.due_at is not None]
        due += [] if self._refill_at is None else [self._refill_at]
        self._loop.arm(due + self._generations.due())

    # What only the pool's own thread does

    def _run(self) -> None:
        try:
            self._generations.start()
            self._after_batch()
            self._loop.run(self._after_batch)
        finally:
            self._shut()

    def _after_batch(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            is_due = self._refill_at is None or self._refill_at <= now
            if not self._is_closing and (is_due or not self._idle):
                self._generations.refill(len(self._idle))
                self._refill_at = None
            self._arm()

    def _on_timer(self) -> None:
        now = self._clock.monotonic()
        for spare in list(self._spares):
            if spare.due_at is not None and spare.due_at <= now:
                self._end_overdue(spare)
        self._generations.on_timer(now)

    def _on_spare(self, spare: Spare) -> None:
        with self._changed:
            self._spares.append(spare)
            self._idle.append(spare)
            self._changed.notify()
        self._loop.watch(spare.sock.fileno(), lambda: self._on_readable(spare))
        self._loop.watch(spare.pidfd, lambda: self._on_death(spare))

    def _replace(self, reason: str, idle: list[Spare]) -> None:
        for spare in idle:
            self._bury(spare)
        self._log.info("zygote.replaced", reason=reason)
        self._generations.start()
        self._generations.close_unused({s.zygote for s in self._spares})

    def _on_readable(self, spare: Spare) -> None:
        data = spare.read()
        if data == b"":
            # Closing its socket isn't dying yet; the pidfd tells that.
            self._loop.unwatch(spare.sock.fileno())
        # After a task's end nothing that is said has a meaning.
        if not data or spare.task is None:
            return
        try:
            for frame in spare.decoder.feed(data):
                self._hear(spare, frame)
        except (frames.FrameError, KeyError) as exc:
            why = f"the process wrote what is no frame: {exc}"
            self._end(spare, TaskEnd.GARBLED, why)

    def _hear(self, spare: Spare, frame: Mapping[str, Any]) -> None:
        task = spare.task
        if task is None:
            return  # it ended by an earlier frame
        match frame["kind"]:
            case "message":
                self._call(task.job_id, frame["name"], frame["payload"])
            case "ask":
                answer = self._call(task.job_id, frame["name"], frame["payload"])
                spare.answer(frame["id"], answer)
            case "detached":
                spare.detached = True
            case "result" | "raised":
                spare.linger_until = self._clock.monotonic() + _LINGER_S
                self._finish(spare, told(frame))
            case kind:
                raise frames.FrameError(f"unknown kind {kind!r}")

    def _call(self, job_id: str, name: str, payload: Any) -> Any:
        try:
            return self._on_message(job_id, name, payload)
        except Exception as exc:  # noqa: BLE001  a hook's failure is its asker's
            self._log.warning("message.failed", job_id=job_id, name=name, error=exc)
            failed: Future[Any] = Future()
            failed.set_exception(exc)
            return failed

    def _on_death(self, spare: Spare) -> None:
        """Note a death; the zygote, if it lives, cleans up and tells the status."""
        self._loop.unwatch(spare.pidfd)
        if spare.zygote.is_dead:
            self._bury(spare)
        else:
            spare.status_until = self._clock.monotonic() + _STATUS_S

    def _on_exit(
        self, zygote: object, pid: int | None, status: Mapping[str, Any]
    ) -> None:
        """Hear that `pid` of `zygote` ended, or (None) the zygote and all its ticks."""
        for spare in [s for s in self._spares if s.zygote is zygote]:
            if spare.pid == pid or (pid is None and not spare.detached):
                spare.status = status
                self._bury(spare)

    def _end_overdue(self, spare: Spare) -> None:
        task = spare.task
        if task is None or spare.status_until is not None:
            self._bury(spare)
            return
        why = f"not done after {task.deadline_s} s"
        self._end(spare, TaskEnd.TIMED_OUT, why, spare.traceback())

    def _kill_job(self, job_id: str, reason: str) -> None:
        for spare in list(self._spares):
            if spare.task is not None and spare.task.job_id == job_id:
                self._end(spare, TaskEnd.DIED, f"killed: {reason}")

    def _end(self, spare: Spare, end: TaskEnd, why: str, trace: str = "") -> None:
        """Kill the tree, then tell; the zygote reaps what is left."""
        is_empty = spare.kill()
        if not is_empty:
            why += "; some of its processes could not be killed yet"
        spare.linger_until = self._clock.monotonic() + _LINGER_S
        self._finish(spare, TaskOutcome(end=end, message=why, traceback=trace))

    def _bury(self, spare: Spare) -> None:
        """Kill what is left of a spare, tell its task's end, forget it."""
        if spare not in self._spares:
            return
        while spare.has_data():  # its last words may have come with its death
            self._on_readable(spare)
        with self._changed:
            if spare.task is not None and spare.task.is_sending:
                spare.is_dead = True  # the writer finds out, and posts this again
                return
            self._spares.remove(spare)
            if spare in self._idle:
                self._idle.remove(spare)
        self._loop.unwatch(spare.sock.fileno())
        self._loop.unwatch(spare.pidfd)
        spare.clean_up()
        if spare.task is not None:
            self._finish(spare, spare.died())
        self._loop.after_batch(spare.close)
        self._generations.close_unused({s.zygote for s in self._spares})

    def _finish(self, spare: Spare, outcome: TaskOutcome) -> None:
        with self._changed:
            task, spare.task = spare.task, None
        if task is None:
            return
        duration_s = self._clock.monotonic() - task.started_at
        try:
            task.on_end(outcome.lasting(duration_s))
        except Exception as exc:  # noqa: BLE001  a listener must not end the executor
            self._log.warning("listener.failed", job_id=task.job_id, error=exc)

    def _shut(self) -> None:
        """End everything but detached tasks, which go on without us."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for spare in list(self._spares):
            if spare.task is not None and not spare.detached:
                self._end(spare, TaskEnd.DIED, "killed: the executor was shut down")
            spare.close()
        self._generations.close()
        self._loop.close()
