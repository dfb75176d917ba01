"""Turns what came home into what happens next: one reaction per tick, no I/O.

Runs on the executor's thread; anything slow is another tick.

    heartbeat  cancels, drains, registers again as told; backs off when it failed
    register   hands the token to everyone who waits for it
    probe      refreshes the machine's facts
    sweep      opens and closes gates; its jobs are settled in jobs.py
    pull       see pulls.py: starts its jobs, pulls again
    job        see jobs.py: frees its slot, pulls again now, heartbeats the true count
    deliver    see deliveries.py: tries again later, or is done
"""

from collections.abc import Callable, Mapping
from typing import Any

from apscheduler.events import JobExecutionEvent

from aitbc_aps_miner.callbacks.deliveries import Deliveries
from aitbc_aps_miner.callbacks.jobs import Jobs
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.callbacks.pulls import Pulls
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.executor import Isolated, TaskFailedError
from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.node import Node, TickEnd
from aitbc_aps_miner.scheduler import TASKS, TICKS
from aitbc_aps_miner.tokens import place_of
from aitbc_aps_miner.trigger import Backoff
from aitbc_aps_miner.util import log

# A burst of ending jobs is one heartbeat with the count at its end.
HEARTBEAT_GAP_S = 1.0

_log = log.get_logger()


class Callbacks:
    """Reacts to what the executor reports."""

    def __init__(
        self, parts: Parts, on_slot_freed: Callable[[], None] = lambda: None
    ) -> None:
        self._parts = parts
        self._on_slot_freed = on_slot_freed
        self.deliveries = Deliveries(parts)
        self.jobs = Jobs(parts, self.deliveries, self._slot_freed)
        self.pulls = Pulls(parts, self.jobs.start, self.deliveries.resend)
        self._heartbeat_at = float("-inf")
        self._heartbeat_asked = False
        self._register_again = False
        self._unknown_heartbeats = 0
        self._is_ending = False
        self._began: dict[str, float] = {}
        self._reactions = {
            "heartbeat": lambda _, report: self._heartbeat_ended(report),
            "register": lambda _, report: self._register_ended(report),
            "probe": lambda _, report: self._probe_ended(report),
            "sweep": lambda _, report: self._sweep_ended(report),
            "pull": lambda _, report: self.pulls.ended(report),
            "job": self.jobs.ended,
            "deliver": self.deliveries.ended,
        }

    def started(self, job_id: str) -> None:
        """Note when a tick or a job was given to a process."""
        self._began[job_id] = self._parts.clock.monotonic()

    def end(self) -> None:
        """Take no notice any more of ticks that die: the daemon's own end ends them."""
        self._is_ending = True

    def on_event(self, event: JobExecutionEvent) -> None:
        """React to the end of a tick or a job, however it ended."""
        if self._is_ending and event.exception is not None:
            return
        name, _, key = event.job_id.partition(":")
        report = event.retval if isinstance(event.retval, Mapping) else None
        if event.exception is not None:
            report = {"error": str(event.exception)}
        error = event.exception or (report or {}).get("error")
        if name == "pull" and self.pulls.was_ended:
            error = None  # by us, on purpose
        self._note_end(event, name, error)
        if name == "job" and isinstance(event.exception, TaskFailedError):
            self.jobs.failed(key, event.exception.outcome)
        reaction = self._reactions.get(name)
        if reaction is not None:
            reaction(key, report)

    def _note_end(self, event: JobExecutionEvent, name: str, error: object) -> None:
        now = self._parts.clock.monotonic()
        took_s = now - self._began.pop(event.job_id, now)
        self._parts.metrics.tick_ended(name, _word(error), took_s)
        words = "" if error is None else str(error)
        if name in TICKS:
            self._parts.node.ticks[name] = TickEnd(
                outcome=_word(error), at_monotonic=now, took_s=took_s, error=words
            )
        if error is not None:
            trace = event.traceback if event.exception else None
            _log.warning(
                "tick.failed", tick=event.job_id, error=words, traceback=trace or None
            )

    def on_message(self, job_id: str, kind: str, payload: Any) -> Any:
        """Hear a running child; the return value answers a question."""
        if kind == "token":
            return self._parts.tokens.answer(
                payload.get("stale"), str(payload.get("place", ""))
            )
        if kind == "log":
            log.emit(payload)
        elif kind == "job" and job_id.startswith("job:"):
            self.jobs.moved(payload)
        elif kind == "polling" and job_id == "pull":
            self.pulls.polling()
        return None

    def _slot_freed(self) -> None:
        self._on_slot_freed()
        self.pulls.request()
        self.request_heartbeat()

    def owner_decided(self, config: Config) -> None:
        """Open or close the owner's own gate."""
        if config.owner.paused:
            self._close("paused", "owner.paused is true", "set owner.paused = false")
        else:
            self._open("paused")

    def moved_root(self, config: Config, problem: str | None) -> None:
        """Open or close the gate of a workspace root that an edit named."""
        if problem is None:
            self._open("root")
            return
        self._close(
            "root",
            f"workspace.root {config.workspace.root} can't be used: {problem}",
            "name a directory that this user may write and no other daemon holds",
        )

    # Heartbeat and registration

    def request_heartbeat(self) -> None:
        """Heartbeat the true counts soon; a burst of requests is one heartbeat."""
        node = self._parts.node
        if node.heartbeat_failures or not node.heartbeats_offered:
            return  # its backoff goes first; where there are none, none is sent
        if "heartbeat" in self._parts.executor.running():
            self._heartbeat_asked = True
            return
        due = self._heartbeat_at + HEARTBEAT_GAP_S - self._parts.clock.monotonic()
        self._parts.scheduler.run_in("heartbeat", max(0.0, due))

    def start_registration(self) -> None:
        """Register; everyone who waits for a token hears of it."""
        if "register" in self._parts.executor.running():
            self._register_again = True  # what it tells may be a moment old
            return
        timeout_s = self._parts.config.coordinator.timeout_s
        call = Isolated(ref=f"{TASKS}:register", deadline_s=timeout_s * 2 + 5)
        self._parts.scheduler.once("register", call)

    def _register_ended(self, report: Mapping[str, Any] | None) -> None:
        node = self._parts.node
        if report is None or "token" not in report:
            told = report or {}
            message = str(told.get("error", "the registration did not end"))
            unauthorized = bool(told.get("unauthorized"))
            node.coordinator_error = message
            if unauthorized:
                self._close(
                    "unauthorized",
                    f"the coordinator refused the token: {message}",
                    "put a valid token into coordinator.auth_token",
                )
            self._register_again = False  # whoever needs it asks again
            self._parts.tokens.failed(
                message,
                unauthorized=unauthorized,
                retry_after_s=told.get("retry_after_s"),
            )
            return
        config = self._parts.config
        place = str(report.get("place"))
        if place != place_of(config) or self._register_again:
            # Begun before an edit: this token, or what was told, is not today's.
            self._register_again = False
            self.start_registration()
            if place != place_of(config):
                return
        node.registered = bool(report.get("registered", True))
        node.coordinator_error = None
        node.heartbeat_floor_s = float(report.get("heartbeat_interval_s") or 0)
        self._parts.tokens.extensions = report.get("extensions")
        self._open("unauthorized")
        self._parts.scheduler.retime(config, config, node.heartbeat_floor_s)
        _log.info("node.registered", registered=node.registered)
        log.add_secrets([str(report["token"])])
        self._parts.tokens.registered(str(report["token"]), place)
        if node.registered and not node.heartbeats_offered:
            node.heartbeats_offered = True
            self._parts.scheduler.run_in("heartbeat", 0)

    def _heartbeat_ended(self, report: Mapping[str, Any] | None) -> None:
        node = self._parts.node
        self._heartbeat_at = self._parts.clock.monotonic()
        if report is None or "error" in report:
            node.heartbeat_failures += 1
            node.coordinator_error = str((report or {}).get("error", "no answer"))
            pause_s = self._backoff_s(node.heartbeat_failures)
            asked_s = float((report or {}).get("retry_after_s") or 0)
            self._parts.scheduler.run_in("heartbeat", max(pause_s, asked_s))
            return
        if self._heartbeat_asked:
            self._heartbeat_asked = False
            self._parts.scheduler.run_in("heartbeat", HEARTBEAT_GAP_S)
        lost_contact = node.heartbeat_failures > 0
        node.heartbeat_failures = 0
        node.heartbeat_ok_at = self._heartbeat_at
        node.coordinator_error = None
        for job_id in report.get("cancel", ()):
            self.jobs.control(str(job_id), {"cancel": True})
        self._drain_as_told(report)
        if not report.get("known", True):
            self._unknown_to_coordinator()
            return
        self._unknown_heartbeats = 0
        if set(report.get("refresh", ())) & {"capabilities", "token"}:
            self.start_registration()
        if lost_contact:
            self._parts.scheduler.run_in("sweep", 0)

    def _unknown_to_coordinator(self) -> None:
        """Register again; without registration there are no heartbeats either."""
        self._unknown_heartbeats += 1
        if self._parts.node.registered:
            self._parts.tokens.reset()
            again_in_s = HEARTBEAT_GAP_S
            if self._unknown_heartbeats > 1:
                again_in_s = self._backoff_s(self._unknown_heartbeats - 1)
            self._parts.scheduler.run_in("heartbeat", again_in_s)
            return
        self._parts.node.heartbeats_offered = False
        self._parts.scheduler.pause("heartbeat")
        _log.info("heartbeat.not_offered", words="this coordinator has no heartbeat")

    def _backoff_s(self, failures: int) -> float:
        section = self._parts.config.heartbeat.backoff
        backoff = Backoff(min_s=section.min_s, max_s=section.max_s, rng=self._parts.rng)
        return backoff.next_delay(failures)

    def _drain_as_told(self, report: Mapping[str, Any]) -> None:
        if report.get("drain") is True:
            self._close(
                "drain-request",
                "the coordinator asked this node to drain",
                "ask the coordinator's operator, or wait until it withdraws",
            )
        elif report.get("drain") is False:
            self._open("drain-request")

    # Sweep and probe

    def _sweep_ended(self, report: Mapping[str, Any] | None) -> None:
        if report is not None and "error" not in report:
            self.jobs.settle(report)
            self._judge(report)
        # Also after a sweep that failed: a node that can't look at its workspaces for
        # ever still does new work, whose claim would tell if the disk is the reason.
        self.pulls.recovered()

    def _judge(self, report: Mapping[str, Any]) -> None:
        node, config = self._parts.node, self._parts.config
        node.undelivered = int(report.get("undelivered", 0))
        node.disk_used_pct = used = float(report.get("disk_used_pct", 0))
        self._judge_workspace(report.get("unwritable"))
        if used >= config.workspace.disk_high_pct:
            self._close(
                "disk",
                f"the workspace's disk is {used:.0f} % full",
                "free space, or shorten workspace.keep_success and keep_failed",
            )
        elif used < config.workspace.disk_low_pct:
            self._open("disk")
        limit = config.results.max_undelivered
        if node.undelivered >= limit:
            self._close(
                "undelivered",
                f"{node.undelivered} results wait for delivery (limit {limit})",
                "check the coordinator; results.max_undelivered raises the limit",
            )
        else:
            self._open("undelivered")

    def _judge_workspace(self, reason: str | None) -> None:
        if reason is None:
            self._open("workspace")
            return
        self._close(
            "workspace",
            f"nothing can be stored under the workspace root: {reason}",
            "make it writable, or name another workspace.root",
        )

    def _close(self, gate: str, reason: str, remedy: str) -> None:
        if self._parts.node.close(gate, reason, remedy):
            _log.warning("gate.closed", gate=gate, reason=reason, remedy=remedy)
            self.pulls.check_open()
            self.request_heartbeat()

    def _open(self, gate: str) -> None:
        if self._parts.node.open(gate):
            _log.info("gate.opened", gate=gate)
            self.pulls.request()

    def _probe_ended(self, report: Mapping[str, Any] | None) -> None:
        node = self._parts.node
        if report is None or "error" in report:
            return
        first = not node.host
        before = _capabilities(node)
        node.host = dict(report["host"])
        node.gpus = tuple(Gpu(**gpu) for gpu in report["gpus"])
        node.gpu_source = str(report["source"])
        self._say_problems(tuple(report.get("problems", ())))
        if first:
            self._parts.scheduler.run_in("heartbeat", 0)
        elif before != _capabilities(node) and self._parts.tokens.token is not None:
            _log.info("node.changed", gpus=len(node.gpus), source=node.gpu_source)
            self.start_registration()
            self.pulls.request()

    def _say_problems(self, problems: tuple[str, ...]) -> None:
        """Log what is wrong with allowlists and task paths, once for each change."""
        before, self._parts.node.problems = self._parts.node.problems, problems
        for problem in problems:
            if problem not in before:
                _log.warning("runners.problem", problem=problem)
        if before and not problems:
            _log.info("runners.good_again")


def _capabilities(node: Node) -> tuple[Any, ...]:
    """Give what a coordinator was told at registration and has to be told again."""
    gpus = tuple((gpu.uuid, gpu.name, gpu.vram_mb) for gpu in node.gpus)
    return node.host.get("cores"), node.host.get("memory_mb"), gpus


def _word(error: object) -> str:
    """Say in one of a few words how a tick ended."""
    if error is None:
        return "ok"
    return str(error.outcome.end) if isinstance(error, TaskFailedError) else "failed"
