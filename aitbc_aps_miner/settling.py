"""Carries out what is decided about each job that is not settled.

What to do is decided by reconcile.decide; here are the deeds. Jobs that the daemon
itself counts are left alone.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aitbc_aps_miner import outcome as outcomes
from aitbc_aps_miner.coordinator import JobView
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobError,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.intake import job_of
from aitbc_aps_miner.leftovers import end_leftovers
from aitbc_aps_miner.lifecycle import report_of
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import JobState, Manifest, Outcome, Reservation
from aitbc_aps_miner.reconcile import Action, Found, OnDisk, View, decide
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.util import fs, log
from aitbc_aps_miner.views import ACTIVE, Views, on_disk_of
from aitbc_aps_miner.workspace import Glance, StoredJob, Workspaces
from aitbc_aps_miner.workspace.record import Claim, Record
from aitbc_aps_miner.world import World

LOST_DISK = "this node has no trace of the attempt; it may have run and may not rerun"

_log = log.get_logger()


class Settling:
    """Carries out what is decided about each job that is not delivered."""

    def __init__(
        self,
        world: World,
        capacity: Capacity | None,
        adopted: frozenset[str],
        *,
        root: str,
        evidence: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._evidence = evidence
        self._world = world
        self._capacity = capacity
        self._adopted = adopted
        self._root = root
        self._views = Views(world)
        self._all_seen = True
        self.here: set[str] = set()
        self.settled: list[tuple[Workspaces, Glance]] = []
        self.report: dict[str, Any] = {
            "running": [],
            "run": [],
            "deliver": [],
            "resend": [],
            "ended": [],
            "orphans": [],
            "undelivered": 0,
            "damaged": [],
        }

    def settle_root(self, workspaces: Workspaces, held: Collection[str]) -> None:
        """Settle every job under one root but those of the daemon itself."""
        try:
            jobs = list(workspaces.glance())
        except OSError as error:
            root = str(workspaces.root)
            _log.warning("root.unreadable", root=root, reason=str(error))
            self._all_seen = False
            return
        for seen in jobs:
            if seen.job_id in held:
                continue
            job = None if seen.settled else workspaces.find(seen.job_id)
            if job is not None and self._is_set_aside(workspaces, job):
                continue
            self.here.add(seen.job_id)
            if seen.settled:
                self.settled.append((workspaces, seen))
            elif job is not None:
                self.settle(workspaces, job)

    def still_running(self) -> list[dict[str, Any]]:
        """Give the jobs that were found running, but those that ended meanwhile.

        One that the daemon started and heard the end of during this sweep would be
        adopted for nothing. Those adopted before are looked at again in any case.
        """
        return [
            job
            for job in self.report["running"]
            if job["job_id"] in self._adopted or self._is_alive(job)
        ]

    def _is_alive(self, job: Mapping[str, Any]) -> bool:
        found = self._world.workspaces(job["root"]).find(job["job_id"])
        return found is not None and found.lock_held

    def _is_set_aside(self, workspaces: Workspaces, job: StoredJob) -> bool:
        """Move a damaged job out of the way of a new claim; one in use stays."""
        if job.record is not None:
            return False
        self.report["damaged"].append(job.job_id)
        try:
            workspaces.set_aside(job)
        except WorkspaceError as error:
            _log.warning("job.unsettled", job_id=job.job_id, reason=str(error))
            return False
        return True

    def settle(self, workspaces: Workspaces, job: StoredJob) -> None:
        """Decide about one job and do it; what can't be done now waits."""
        if job.record is None:
            return  # damaged, and in use or on a bad disk
        on_disk = on_disk_of(job, job.record)
        # A job process without a daemon keeps trying by itself, and holds no slot.
        waits = job.outcome_recorded and job.record.state is JobState.RETRY_WAIT
        self.report["undelivered"] += waits or on_disk is OnDisk.UNDELIVERED
        if job.lock_held and not waits:
            self._count(workspaces, job.record)
        if on_disk is OnDisk.DELIVERING:
            return
        view = self._views.of(job.record)
        claim = _claim_of(workspaces.root / job.job_id)
        found = Found(
            job_id=job.job_id,
            on_disk=on_disk,
            adopted=job.job_id in self._adopted,
            # What our own net ended would only end there again.
            idempotent=job.job_id not in self._evidence
            and claim is not None
            and _is_idempotent(claim.raw),
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
        try:
            self._do(action, workspaces, job.record, claim)
        except WorkspaceBusyError:
            return  # someone else is at it
        except WorkspaceError as error:
            # One damaged workspace must not keep the others from being settled.
            _log.warning("job.unsettled", job_id=job.job_id, reason=str(error))

    def settle_the_rest(self, orphans: list[str]) -> None:
        """Settle what the coordinator expects of us and we have done or never had."""
        if not self._all_seen:
            return  # what seems to be missing may lie where nobody can look now
        # Of a job under two roots the attempt under today's is the later one.
        kept = {job.job_id: where for where, job in reversed(self.settled)}
        here = set(self.here)
        try:
            listed = self._views.active(self._world.origin) or {}
        except CoordinatorError:
            return  # unknown is never "none"
        us = (None, self._world.origin.node_id)
        active = {
            job_id: view
            for job_id, view in listed.items()
            if view.state in ACTIVE and view.node_id in us
        }
        for job_id in sorted(kept.keys() & active.keys()):
            found = kept[job_id].find(job_id)
            if found is None or found.record is None:
                continue
            if found.record.attempt < active[job_id].attempt:
                here.discard(job_id)  # what is here is of an earlier attempt
            else:
                self.report["resend"].append(job_id)
        for job_id in sorted(active.keys() - here):
            self.report["orphans"].append(job_id)
            if job_id in orphans:
                self._settle_orphan(active[job_id])

    def _settle_orphan(self, view: JobView) -> None:
        raw = view.manifest
        if not isinstance(raw, Mapping):
            return  # this list doesn't tell what the job is: its lease has to run out
        found = Found(
            job_id=view.job_id,
            on_disk=OnDisk.NOTHING,
            idempotent=_is_idempotent(raw),
        )
        leased = view.state == "leased"
        action = decide(found, View.LEASED if leased else View.RUNNING)
        _log.info("job.orphan", job_id=view.job_id, state=view.state, action=action)
        if action is Action.RUN:
            self._run(view, {**raw, "attempt": view.attempt})
        elif action is Action.FAIL_LOST:
            self._fail_raw(view, JobError(ErrorCode.E_LOST, LOST_DISK))

    def _run(self, view: JobView, raw: Mapping[str, Any]) -> None:
        try:
            manifest = parse(raw, max_timeout_s=self._world.config.resources.max_job_s)
        except JobError as error:
            self._fail_raw(view, error)
            return
        # Without a slot now its lease runs out, or the next sweep has one.
        if (reservation := self._reserve(manifest)) is not None:
            job = job_of(self._world, manifest, raw, reservation, root=self._root)
            self.report["run"].append({**job, "fresh": True})

    def _reserve(self, manifest: Manifest) -> Reservation | None:
        """Take a slot; None when none fits or the node takes no work now."""
        if self._capacity is None:
            return None
        try:
            reservation = self._capacity.reserve(manifest.requirements)
        except JobError as error:
            _log.info("job.waits", job_id=manifest.job_id, reason=str(error))
            return None
        self._capacity = self._capacity.taking(manifest.job_id, reservation)
        return reservation

    def _fail_raw(self, view: JobView, error: JobError) -> None:
        with (
            suppress(CoordinatorError),
            self._world.coordinator() as coordinator,
        ):
            coordinator.fail_raw(
                view.job_id, view.attempt, error.code, error.message, error.detail
            )

    def _do(
        self,
        action: Action,
        workspaces: Workspaces,
        record: Record,
        claim: Claim | None,
    ) -> None:
        job_id = record.job_id
        match action:
            case Action.STOP:
                workspaces.write_control(job_id, {"cancel": True})
            case Action.DELIVER:
                self.report["deliver"].append(job_id)
            case Action.RUN | Action.RERUN:
                end_leftovers(workspaces.root / record.job_id, record)
                self._run_again(workspaces, record, claim)
            case Action.FAIL_LOST:
                self._fail_lost(workspaces, record)
            case Action.FORGET | Action.ABANDON:
                end_leftovers(workspaces.root / job_id, record)
                workspaces.remove(job_id)
            case Action.MARK_DELIVERED | Action.DROP:
                self._close(workspaces, job_id, action)
            case Action.ADOPT | Action.WAIT:
                pass  # counted already, if it runs

    def _count(self, workspaces: Workspaces, record: Record) -> None:
        self.report["running"].append(
            {
                "job_id": record.job_id,
                "attempt": record.attempt,
                "state": record.state,
                "reservation": asdict(record.reservation),
                "root": str(workspaces.root),
                "origin": asdict(record.origin),
            }
        )

    def _run_again(
        self, workspaces: Workspaces, record: Record, claim: Claim | None
    ) -> None:
        if claim is None or claim.secret_names:
            # Secrets are never on disk: without them it can't be run from here.
            self._fail_lost(workspaces, record)
            return
        try:
            manifest = parse(claim.raw, max_timeout_s=float("inf"))
        except JobError:  # a later version of ours took it
            self._fail_lost(workspaces, record)
            return
        # Without a slot now the next sweep finds it as it is.
        if (reservation := self._reserve(manifest)) is not None:
            self.report["run"].append(
                job_of(
                    self._world,
                    manifest,
                    claim.raw,
                    reservation,
                    root=str(workspaces.root),
                    origin=record.origin,
                )
            )

    def _fail_lost(self, workspaces: Workspaces, record: Record) -> None:
        end_leftovers(workspaces.root / record.job_id, record)
        workspace = workspaces.open(record.job_id)
        try:
            # Its manifest may be what was lost; nothing but the key is needed here.
            manifest = Manifest(
                job_id=record.job_id, attempt=record.attempt, runner="", timeout_s=0
            )
            outcome = outcomes.failed(manifest, self._how_lost(record), None)
            workspace.record(outcome)
            workspace.enter(JobState.RETRY_WAIT)
            self._tell(outcome, JobState.RETRY_WAIT)
        finally:
            workspace.close()
        self.report["deliver"].append(record.job_id)

    def _how_lost(self, record: Record) -> JobError:
        seen = self._evidence.get(record.job_id)
        if seen is None:
            return JobError(
                ErrorCode.E_LOST,
                "the attempt died with its process and may not be rerun here",
                {"state": record.state},
            )
        words = f"a defect of the miner: its job process {seen['end']}"
        return JobError(ErrorCode.E_INTERNAL, words, {**seen, "state": record.state})

    def tell_ended(self, roots: list[str]) -> None:
        """Say how adopted jobs ended that run no more: nobody else heard of it."""
        running = {str(job["job_id"]) for job in self.still_running()}
        for job_id in self._adopted - running:
            for root in roots:
                with suppress(WorkspaceError):
                    self._tell_one(self._world.workspaces(root), job_id)

    def _tell_one(self, workspaces: Workspaces, job_id: str) -> None:
        found = workspaces.find(job_id)
        if found is None or found.record is None or not found.outcome_recorded:
            return
        workspace = workspaces.open(job_id)
        try:
            outcome = workspace.load_outcome()
        finally:
            workspace.close()
        if outcome is not None:
            self._tell(outcome, found.record.state)

    def _tell(self, outcome: Outcome, state: JobState) -> None:
        self.report["ended"].append(asdict(report_of(outcome, state)))

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


def _claim_of(path: Path) -> Claim | None:
    try:
        return Claim.from_json(fs.read_json(path / "job.json"))
    except (OSError, ValueError, TypeError):
        return None


def _is_idempotent(raw: Any) -> bool:
    return isinstance(raw, Mapping) and raw.get("idempotent") is True
