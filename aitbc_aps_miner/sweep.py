"""The sweep tick: looks at every workspace, asks the coordinator, puts things right.

What to do is decided by reconcile.decide; here are the deeds. Jobs that the daemon
itself counts are left alone. Files of settled jobs expire here, sooner when the disk
is above its mark.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from aitbc_aps_miner import outcome as outcomes
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.coordinator import JobView
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobError,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.jobrecord import Claim, Record
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import JobState, Origin
from aitbc_aps_miner.reconcile import Action, Found, OnDisk, View, decide
from aitbc_aps_miner.sandbox.cgroup import SPARE_PREFIX, Cgroup
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.tasks import Report, capacity_of, job_of
from aitbc_aps_miner.util import fs, log, proc
from aitbc_aps_miner.workspace import StoredJob, Workspaces
from aitbc_aps_miner.world import Line, World

# Deleting 100 000 expired workspaces goes on in the next sweeps.
EXPIRE_BUDGET_S = 20.0
KILL_WAIT_S = 5.0

_ACTIVE = frozenset({"leased", "acked", "running"})
_OURS = frozenset({"succeeded", "failed"})

_log = log.get_logger()


def sweep(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    roots: list[str],
    held: list[str],
    capacity: Mapping[str, Any],
) -> Report:
    """Settle every workspace under `roots`; `held` are the daemon's own jobs."""
    world = World(channel, config, token, extensions)
    settling = _Settling(world, capacity_of(capacity))
    delivered: list[tuple[Workspaces, StoredJob]] = []
    for root in roots:
        workspaces = world.workspaces(root)
        for job in workspaces.scan():
            if job.job_id in held:
                continue
            if job.delivered:
                delivered.append((workspaces, job))
            else:
                settling.settle(workspaces, job)
        with suppress(WorkspaceError):
            workspaces.tidy(budget_s=EXPIRE_BUDGET_S)
    used_pct = _expire(world, delivered)
    return {**settling.report, "disk_used_pct": used_pct}


class _Settling:
    """Carries out what is decided about each job that is not delivered."""

    def __init__(self, world: World, capacity: Capacity) -> None:
        self._world = world
        self._capacity = capacity
        self._lists: dict[Origin, dict[str, JobView] | CoordinatorError | None] = {}
        self.report: dict[str, Any] = {
            "running": [],
            "run": [],
            "deliver": [],
            "undelivered": 0,
            "damaged": [],
        }

    def settle(self, workspaces: Workspaces, job: StoredJob) -> None:
        """Decide about one job and do it; what can't be done now waits."""
        if job.record is None:
            self.report["damaged"].append(job.job_id)
            _log.warning("job.damaged", job_id=job.job_id, reason=job.damaged)
            return
        on_disk = _on_disk(job, job.record)
        self.report["undelivered"] += on_disk is OnDisk.UNDELIVERED
        if on_disk is OnDisk.DELIVERING:
            self._count(workspaces, job.record)
            return
        view = self._view(job.record)
        claim = _claim_of(workspaces.root / job.job_id)
        found = Found(
            job_id=job.job_id,
            on_disk=on_disk,
            idempotent=claim is not None and claim.raw.get("idempotent") is True,
        )
        action = decide(found, view)
        if action is not Action.WAIT:
            _log.info(
                "job.settle",
                job_id=job.job_id,
                on_disk=on_disk,
                view=view,
                action=action,
            )
        with suppress(WorkspaceBusyError):  # someone else is at it
            self._do(action, workspaces, job.record, claim)

    def _do(  # noqa: C901  one deed an action
        self,
        action: Action,
        workspaces: Workspaces,
        record: Record,
        claim: Claim | None,
    ) -> None:
        job_id = record.job_id
        match action:
            case Action.ADOPT:
                self._count(workspaces, record)
            case Action.STOP:
                self._count(workspaces, record)
                workspaces.write_control(job_id, {"cancel": True})
            case Action.DELIVER:
                self.report["deliver"].append(job_id)
            case Action.RUN | Action.RERUN:
                _end_leftovers(workspaces.root / record.job_id, record)
                self._run_again(workspaces, record, claim)
            case Action.FAIL_LOST:
                self._fail_lost(workspaces, record)
            case Action.FORGET | Action.ABANDON:
                _end_leftovers(workspaces.root / job_id, record)
                workspaces.remove(job_id)
            case Action.MARK_DELIVERED | Action.DROP:
                self._close(workspaces, job_id, action)
            case Action.WAIT:
                pass

    def _count(self, workspaces: Workspaces, record: Record) -> None:
        self.report["running"].append(
            {
                "job_id": record.job_id,
                "attempt": record.attempt,
                "state": record.state,
                "reservation": asdict(record.reservation),
                "root": str(workspaces.root),
            }
        )

    def _run_again(
        self, workspaces: Workspaces, record: Record, claim: Claim | None
    ) -> None:
        if claim is None or claim.secret_names:
            # Secrets are never on disk: without them it can't be run from here.
            self._fail_lost(workspaces, record)
            return
        manifest = parse(claim.raw, max_timeout_s=float("inf"))
        try:
            reservation = self._capacity.reserve(manifest.requirements)
        except JobError:
            return  # no slot now; the next sweep finds it as it is
        self._capacity = self._capacity.taking(manifest.job_id, reservation)
        self.report["run"].append(
            job_of(
                self._world,
                manifest,
                claim.raw,
                reservation,
                origin=record.origin,
                root=str(workspaces.root),
            )
        )

    def _fail_lost(self, workspaces: Workspaces, record: Record) -> None:
        _end_leftovers(workspaces.root / record.job_id, record)
        workspace = workspaces.open(record.job_id)
        try:
            manifest = parse(workspace.load_claim().raw, max_timeout_s=float("inf"))
            error = JobError(
                ErrorCode.E_LOST,
                "the attempt died with its process and may not be rerun here",
                {"state": record.state},
            )
            workspace.record(outcomes.failed(manifest, error, None))
            workspace.enter(JobState.RETRY_WAIT)
        finally:
            workspace.close()
        self.report["deliver"].append(record.job_id)

    def _close(self, workspaces: Workspaces, job_id: str, action: Action) -> None:
        workspace = workspaces.open(job_id)
        try:
            outcome = workspace.load_outcome()
            if outcome is None:
                return
            if action is Action.MARK_DELIVERED:
                workspace.mark_delivered(outcome)
            else:
                workspace.mark_dropped(outcome, "the job is not ours any more")
        finally:
            workspace.close()

    # The coordinator's view

    def _view(self, record: Record) -> View:
        try:
            active = self._active(record.origin)
            if active is None:
                return View.UNSUPPORTED
            view = active.get(record.job_id) or self._ask(record)
        except CoordinatorError as error:
            _log.info("job.view_unknown", job_id=record.job_id, reason=str(error))
            return View.UNKNOWN
        return view_of(view, record)

    def _active(self, origin: Origin) -> dict[str, JobView] | None:
        """Ask for the list once a sweep; a failure is remembered like an answer."""
        if origin not in self._lists:
            try:
                with self._world.coordinator(origin) as coordinator:
                    jobs = coordinator.active_jobs(origin.node_id)
                self._lists[origin] = (
                    None if jobs is None else {job.job_id: job for job in jobs}
                )
            except CoordinatorError as error:
                self._lists[origin] = error
        answer = self._lists[origin]
        if isinstance(answer, CoordinatorError):
            raise answer
        return answer

    def _ask(self, record: Record) -> JobView | None:
        with self._world.coordinator(record.origin) as coordinator:
            return coordinator.query(record.job_id)


def view_of(view: JobView | None, record: Record) -> View:
    """Say what the coordinator's answer means for our attempt."""
    if view is None:
        return View.ABSENT
    ours = view.node_id in (None, record.origin.node_id)
    if not ours or view.attempt != record.attempt:
        return View.OTHER
    if view.state in _ACTIVE:
        return View.LEASED if view.state == "leased" else View.RUNNING
    return View.FINAL_OURS if view.state in _OURS else View.OTHER


def _on_disk(job: StoredJob, record: Record) -> OnDisk:
    if job.outcome_recorded:
        return OnDisk.DELIVERING if job.lock_held else OnDisk.UNDELIVERED
    if job.lock_held:
        return OnDisk.RUNNING
    if record.spawned:
        return OnDisk.SPAWNED
    return OnDisk.CLAIMED if record.state is JobState.PULLING else OnDisk.ACKED


def _claim_of(path: Path) -> Claim | None:
    try:
        return Claim.from_json(fs.read_json(path / "job.json"))
    except (OSError, ValueError, TypeError):
        return None


def _end_leftovers(path: Path, record: Record) -> None:
    """Kill what is left of a job whose process died; its lock is free."""
    cgroup = record.facts.get("cgroup")
    if isinstance(cgroup, str) and Path(cgroup).name.startswith(SPARE_PREFIX):
        group = Cgroup(path=Path(cgroup))
        group.kill()
        group.wait_empty(KILL_WAIT_S)
        group.remove()
    home = str(path / "work")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            # The payload's environment names its job and its directory.
            if process.environ().get("HOME") == home:
                proc.kill_descendants(process.pid, KILL_WAIT_S)
                process.kill()


def _expire(world: World, delivered: list[tuple[Workspaces, StoredJob]]) -> float:
    """Remove what is past its time, and more, oldest first, on a full disk.

    What stays for `results.keep_trying` is a tombstone that recognises a job handed
    out again. Gives the disk use in per cent.
    """
    config, now = world.config, world.clock.realtime()
    budget_ends = world.clock.monotonic() + EXPIRE_BUDGET_S
    used_pct = disk_used_pct(config.workspace.root)
    pressed = used_pct >= config.workspace.disk_high_pct
    delivered.sort(key=lambda pair: _ended_at(pair[1]))
    for workspaces, job in delivered:
        if world.clock.monotonic() > budget_ends:
            break
        age_s = now - _ended_at(job)
        keep_s = _keep_s(config, job)
        with suppress(WorkspaceError):
            if age_s > max(keep_s, config.results.keep_trying):
                workspaces.remove(job.job_id)
            elif (age_s > keep_s or pressed) and not _is_buried(job):
                _bury(workspaces, job.job_id)
                used_pct = disk_used_pct(config.workspace.root)
                pressed = pressed and used_pct >= config.workspace.disk_low_pct
    return used_pct


def _keep_s(config: Config, job: StoredJob) -> float:
    done = job.record is not None and job.record.state is JobState.DONE
    return config.workspace.keep_success if done else config.workspace.keep_failed


def _ended_at(job: StoredJob) -> float:
    record = job.record
    if record is None:
        return 0.0
    return record.delivered_at or record.history[-1].moment.realtime


def _is_buried(job: StoredJob) -> bool:
    return job.record is not None and job.record.buried


def _bury(workspaces: Workspaces, job_id: str) -> None:
    workspace = workspaces.open(job_id)
    try:
        workspace.bury()
    finally:
        workspace.close()


def disk_used_pct(root: Path) -> float:
    """Give how full the disk of `root` is, in per cent; 0 when it can't be asked."""
    while True:
        try:
            return float(psutil.disk_usage(str(root)).percent)
        except FileNotFoundError:
            root = root.parent
        except OSError:
            return 0.0
