"""When to pull, and what becomes of what a pull brought."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.executor import Isolated
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.scheduler import TASKS
from aitbc_aps_miner.trigger import Backoff

# A coordinator that hands the same finished job out again and again is answered in
# ever longer pauses: from the pull interval to this.
DUPLICATE_PAUSE_MAX_S = 300.0


class Pulls:
    """Keeps one pull open while there is room, and times the next one."""

    def __init__(
        self,
        parts: Parts,
        start_job: Callable[[Mapping[str, Any]], None],
        resend: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._start_job = start_job
        self._resend = resend
        self._asked = False
        self._kinds: frozenset[str] = frozenset()
        self._failures = 0
        self._duplicates = 0
        self._refusals = 0
        self._recovered = False
        self._open = False
        self.was_ended = False

    def recovered(self) -> None:
        """Allow pulls: what ran before this daemon is counted now."""
        first, self._recovered = not self._recovered, True
        if first or not self._parts.scheduler.is_due("pull"):
            self.request()
        else:
            self.check_open()  # a sweep may have filled the slots

    def request(self) -> None:
        """Pull now if there is room; end an open long poll that asks for too little."""
        wanted = self._recovered and self._parts.node.takes_work
        if self._open:
            self._asked = self._asked or wanted
            self.check_open()
        elif wanted:
            self._parts.scheduler.run_in("pull", 0)
        else:
            self._parts.scheduler.pause("pull")

    def check_open(self) -> None:
        """End an open long poll that asks for what there is no room for, or less."""
        if not self._open or self.was_ended:
            return
        node = self._parts.node
        if not node.takes_work:
            self._end_open("the node takes no more work")
        elif kinds(node) != self._kinds:
            # The coordinator's list of active jobs brings back a job whose handing
            # out crosses this: the next sweep finds it leased and unknown here.
            self._end_open("its filters are stale")

    def stop(self) -> None:
        """Pull no more; an open long poll brings nothing that would be run."""
        self._recovered = False
        self._parts.scheduler.pause("pull")
        self._end_open("the daemon ends")

    def renew(self, reason: str) -> None:
        """End an open long poll that an edit has made ask the wrong thing."""
        if self._open:
            self._asked = True
            self._end_open(reason)

    def polling(self) -> None:
        """Look again when the pull is in its process: only now it can be ended."""
        if self.was_ended:
            self._end_open("asked for before it had a process")
        else:
            self.check_open()

    def _end_open(self, reason: str) -> None:
        self.was_ended = True
        self._parts.executor.kill("pull", reason)

    def opening(self) -> Mapping[str, Any]:
        """Note what the opening pull asks for; give the tick its capacity."""
        self._asked = self.was_ended = False
        self._open = True
        self._kinds = kinds(self._parts.node)
        return {"capacity": asdict(self._parts.node.capacity())}

    def ended(self, report: Mapping[str, Any] | None) -> None:
        """Start what was accepted and time the next pull."""
        # Ended by us, or asked for meanwhile: pull again at once.
        self._asked = self._asked or self.was_ended
        self.was_ended = self._open = False
        if not self._recovered:
            return
        if report is None or "error" in report:
            self._pull_in(self._pause_after_failure_s(report or {}))
            return
        self._failures = 0
        accepted = report.get("accepted", ())
        duplicates = report.get("duplicates", ())
        for job in accepted:
            self._start_job(job)
        for job_id in duplicates:
            self._resend(str(job_id))
        self._refuse(report.get("refused", ()))
        only_duplicates = bool(duplicates) and not accepted
        self._duplicates = self._duplicates + 1 if only_duplicates else 0
        self._pull_in(self._pause_s(report))

    def _pull_in(self, pause_s: float) -> None:
        if self._parts.node.takes_work:
            self._parts.scheduler.run_in("pull", pause_s)
        else:
            self._parts.scheduler.pause("pull")

    def _refuse(self, refused: Iterable[Mapping[str, Any]]) -> None:
        # Of one without an id nobody could be told which it is.
        named = [job for job in refused if job["job_id"] is not None]
        if not named:
            return
        self._refusals += 1
        timeout_s = self._parts.config.coordinator.timeout_s
        call = Isolated(
            ref=f"{TASKS}:refuse",
            deadline_s=timeout_s * (len(named) + 1),
            kwargs={"refused": named},
        )
        self._parts.scheduler.once(f"refuse:{self._refusals}", call)

    def _pause_s(self, report: Mapping[str, Any]) -> float:
        interval_s: float = self._parts.config.pull.interval_s
        if report.get("accepted") or self._asked:
            return 0.0
        if report.get("duplicates"):
            # A float overflows at 2**1024; that many answers take some days.
            doubled = 2.0 ** min(self._duplicates, 32)
            return min(interval_s * doubled, DUPLICATE_PAUSE_MAX_S)
        # A long poll that waited is asked again at once.
        waited = float(report.get("held_s", 0)) >= interval_s
        return 0.0 if waited else interval_s

    def _pause_after_failure_s(self, report: Mapping[str, Any]) -> float:
        if self._asked:
            return 0.0
        self._failures += 1
        backoff = self._parts.config.heartbeat.backoff
        pause_s = Backoff(
            min_s=min(self._parts.config.pull.interval_s, backoff.min_s),
            max_s=backoff.max_s,
            rng=self._parts.rng,
        ).next_delay(self._failures)
        asked_s = float(report.get("retry_after_s") or 0)
        return max(pause_s, asked_s)


def kinds(node: Node) -> frozenset[str]:
    """Name the kinds of jobs that there is room for."""
    capacity = node.capacity()
    return frozenset(
        kind
        for kind, free in (("cpu", capacity.cpu_free), ("gpu", capacity.gpu_free))
        if free
    )
