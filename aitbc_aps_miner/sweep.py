"""The sweep tick: looks at every workspace, asks the coordinator, puts things right.

What to do is decided by reconcile.decide; here are the deeds. Jobs that the daemon
itself counts are left alone. Files of settled jobs expire in expiry.py.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from aitbc_aps_miner import outcome as outcomes
from aitbc_aps_miner.coordinator import JobView
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobError,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.expiry import EXPIRE_BUDGET_S, expire
from aitbc_aps_miner.jobrecord import Claim, Record
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import JobState, Origin
from aitbc_aps_miner.reconcile import Action, Found, OnDisk, View, decide
from aitbc_aps_miner.sandbox.cgroup import SPARE_PREFIX, Cgroup
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.tasks import Report, capacity_of, job_of
from aitbc_aps_miner.util import fs, log, proc
from aitbc_aps_miner.workspace import Glance, StoredJob, Workspaces
from aitbc_aps_miner.world import Line, World

KILL_WAIT_S = 5.0

LOST_DISK = "this node has no trace of the attempt; it may have run and may not rerun"

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
    orphans: list[str],
    capacity: Mapping[str, Any],
) -> Report:
    """Settle every workspace under `roots`; `held` are the daemon's own jobs.

    `orphans` are the jobs that the last sweep found at the coordinator and not here:
    one seen twice did not belong to a pull that was open meanwhile.
    """
    world = World(channel, config, token, extensions)
    settling = _Settling(world, capacity_of(capacity))
    settled: list[tuple[Workspaces, Glance]] = []
    here = set(held)
    for root in roots:
        workspaces = world.workspaces(root)
        for seen in workspaces.glance():
            if seen.job_id in held:
                continue
            here.add(seen.job_id)
            if seen.settled:
                settled.append((workspaces, seen))
            elif (job := workspaces.find(seen.job_id)) is not None:
                settling.settle(workspaces, job)
        with suppress(WorkspaceError):
            workspaces.tidy(budget_s=EXPIRE_BUDGET_S)
    settling.settle_the_rest(here, {job.job_id for _, job in settled}, orphans)
    used_pct = expire(world, settled)
    return {
        **settling.report,
        "disk_used_pct": used_pct,
        "unwritable": _unwritable(Path(world.config.workspace.root)),
    }


def _unwritable(root: Path) -> str | None:
    """Say why nothing can be stored under `root`; None when something can."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fs.write_durable(root / ".writable", b"")
    except OSError as error:
        return str(error)
    return None


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
            "resend": [],
            "orphans": [],
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

    def settle_the_rest(
        self, here: set[str], delivered: set[str], orphans: list[str]
    ) -> None:
        """Settle what the coordinator expects of us and we have done or never had."""
        try:
            active = self._active(self._world.origin) or {}
        except CoordinatorError:
            return  # unknown is never "none"
        self.report["resend"] = sorted(delivered & active.keys())
        for job_id in active.keys() - here:
            self.report["orphans"].append(job_id)
            if job_id in orphans:
                self._settle_orphan(active[job_id])

    def _settle_orphan(self, view: JobView) -> None:
        raw = view.manifest if isinstance(view.manifest, Mapping) else {}
        found = Found(
            job_id=view.job_id,
            on_disk=OnDisk.NOTHING,
            idempotent=raw.get("idempotent") is True,
        )
        leased = view.state == "leased"
        action = decide(found, View.LEASED if leased else View.RUNNING)
        _log.info("job.orphan", job_id=view.job_id, state=view.state, action=action)
        if action is Action.RUN:
            self._run(raw)
        elif action is Action.FAIL_LOST:
            self._fail_raw(view.job_id, view.attempt, LOST_DISK)

    def _run(self, raw: Mapping[str, Any]) -> None:
        try:
            manifest = parse(raw, max_timeout_s=self._world.config.resources.max_job_s)
            reservation = self._capacity.reserve(manifest.requirements)
        except JobError as error:
            _log.info("job.orphan_waits", reason=str(error))
            return  # its lease runs out, or a slot is free at the next sweep
        self._capacity = self._capacity.taking(manifest.job_id, reservation)
        self.report["run"].append(
            {**job_of(self._world, manifest, raw, reservation), "fresh": True}
        )

    def _fail_raw(self, job_id: str, attempt: int, words: str) -> None:
        with (
            suppress(CoordinatorError),
            self._world.coordinator() as coordinator,
        ):
            coordinator.fail_raw(job_id, attempt, ErrorCode.E_LOST, words, {})

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
