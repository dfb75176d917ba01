"""READ FIRST: the way of one job, from the pulled manifest to the delivered outcome.

Everything that touches the world is behind the ports; what is decided is decided here,
in the order in which a crash may happen. Three orders carry the promises: the manifest
is durable before the ack, the spawn mark before the payload, the outcome before anyone
is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aitbc_aps_miner import outcome as outcomes
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobError,
    JobGoneError,
    RefusedError,
    WorkspaceError,
)
from aitbc_aps_miner.models import (
    ExitFacts,
    JobReport,
    JobState,
    Manifest,
    Origin,
    Outcome,
    Reservation,
)
from aitbc_aps_miner.ports import (
    Collector,
    Coordinator,
    LeaseWatch,
    Observer,
    Runner,
    Signer,
    Transfer,
    Workspace,
    Workspaces,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A pulled and admitted job."""

    manifest: Manifest
    raw: Mapping[str, Any]
    origin: Origin
    reservation: Reservation


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The world of one job."""

    coordinator: Coordinator
    transfer: Transfer
    runner: Runner
    collector: Collector
    signer: Signer
    watch: LeaseWatch
    observer: Observer
    sandbox: str = "none"


def run_one(job: Job, workspaces: Workspaces, ports: Ports) -> JobReport:
    """Claim, ack, prepare, run, collect, record and deliver one job.

    Raises WorkspaceError when the claim cannot be stored (nothing was promised to
    anyone then) and UnavailableError when the ack has no answer (the claim stays on
    disk for the sweep to settle).
    """
    workspace = workspaces.claim(job.manifest, job.raw, job.origin, job.reservation)
    return resume_one(job, workspace, ports)


def resume_one(job: Job, workspace: Workspace, ports: Ports) -> JobReport:
    """Go on from a durable claim whose payload never ran."""
    manifest, observer = job.manifest, ports.observer
    try:
        ports.watch.lease(ports.coordinator.ack(manifest))
    except (JobGoneError, RefusedError) as gone:
        workspace.forget()
        return _report(manifest, JobState.IDLE, message=str(gone))
    outcome = _attempt(job, workspace, ports)
    try:
        workspace.record(outcome)  # durable before anyone is told
    except WorkspaceError as error:
        return _fail_unrecorded(manifest, workspace, ports, error)
    report = deliver(workspace, outcome, ports.coordinator)
    observer.finished(manifest, report)
    return report


def _attempt(job: Job, workspace: Workspace, ports: Ports) -> Outcome:
    """Do the job's own work; whatever goes wrong becomes its outcome."""
    manifest = job.manifest
    facts: ExitFacts | None = None
    try:
        _enter(workspace, JobState.ACKED, manifest, ports.observer)
        _enter(workspace, JobState.PREP, manifest, ports.observer)
        ports.runner.check(manifest)
        ports.transfer.fetch(manifest, workspace, ports.watch)
        ports.watch.check()
        workspace.mark_spawn()  # from here on it may have run
        ports.observer.entered(manifest, JobState.RUNNING)
        facts = ports.runner.run(
            manifest,
            workspace,
            job.reservation,
            ports.watch,
            lambda progress: ports.observer.progressed(manifest, progress),
        )
        outcomes.raise_unless_successful(facts)
        artifacts = ports.collector.collect(manifest, workspace, facts)
        outcome = outcomes.succeeded(manifest, facts, artifacts)
    except JobError as error:
        outcome = outcomes.failed(manifest, error, facts)
    except WorkspaceError as error:
        # The node's own disk: elsewhere, or here later, the job may succeed.
        lack = JobError(ErrorCode.E_NORES, str(error))
        outcome = outcomes.failed(manifest, lack, facts)
    except Exception as error:  # noqa: BLE001  a defect of ours fails one job, not the node
        error_id = ports.observer.defect(manifest, error)
        outcome = outcomes.failed(manifest, outcomes.defect(error, error_id), facts)
    outcome = replace(outcome, sandbox=ports.sandbox, timings=workspace.timings())
    return _signed(outcome, manifest, ports)


def _signed(outcome: Outcome, manifest: Manifest, ports: Ports) -> Outcome:
    """Add the receipt; without one the work is still worth delivering."""
    try:
        receipt = ports.signer.sign_receipt(outcome, manifest)
    except JobError as error:
        error_id = ports.observer.defect(manifest, error)
        unsigned = {**outcome.detail, "unsigned": error_id}
        return replace(outcome, detail=unsigned)
    return replace(outcome, receipt=receipt)


def _fail_unrecorded(
    manifest: Manifest, workspace: Workspace, ports: Ports, error: WorkspaceError
) -> JobReport:
    """Tell at once that this disk could not keep the outcome, whatever that was.

    Raises the error when nobody hears it: the sweep settles what the disk does hold.
    """
    lack = JobError(ErrorCode.E_NORES, str(error))
    outcome = _signed(outcomes.failed(manifest, lack, None), manifest, ports)
    try:
        ports.coordinator.deliver(outcome, workspace.artifact_path, workspace.exec_log)
    except CoordinatorError:
        raise error from None
    report = _report(outcome, JobState.FAILED, outcome)
    ports.observer.finished(manifest, report)
    return report


def deliver(
    workspace: Workspace, outcome: Outcome, coordinator: Coordinator
) -> JobReport:
    """Submit a durable outcome once and record how that ended.

    Give DONE or FAILED when it is final at the coordinator or will never be taken, and
    RETRY_WAIT when it has to be tried again.
    """
    workspace.enter(JobState.UPLOADING)
    try:
        coordinator.deliver(outcome, workspace.artifact_path, workspace.exec_log)
    except RefusedError as refused:
        if not outcome.succeeded:
            return _drop(workspace, outcome, str(refused))
        # The result as it is will never be taken: the job fails with the reason, once.
        error = JobError(ErrorCode.E_UPLOAD, str(refused), {"status": refused.status})
        rewritten = outcomes.rewritten(outcome, error)
        workspace.record(rewritten)
        return deliver(workspace, rewritten, coordinator)
    except JobGoneError as gone:
        return _drop(workspace, outcome, str(gone))
    except CoordinatorError as error:
        workspace.enter(JobState.RETRY_WAIT, reason=str(error))
        report = _report(outcome, JobState.RETRY_WAIT, outcome, message=str(error))
        wish_s = getattr(error, "retry_after_s", None)
        return replace(report, retry_after_s=wish_s)
    workspace.mark_delivered(outcome)
    return _report(outcome, workspace.state, outcome)


def _drop(workspace: Workspace, outcome: Outcome, reason: str) -> JobReport:
    """Keep an outcome that nobody will take for the owner to see."""
    workspace.mark_dropped(outcome, reason)
    return _report(outcome, workspace.state, outcome, message=f"dropped: {reason}")


def _enter(
    workspace: Workspace, state: JobState, manifest: Manifest, observer: Observer
) -> None:
    workspace.enter(state)
    observer.entered(manifest, state)


def report_of(outcome: Outcome, state: JobState) -> JobReport:
    """Give the report of a job that ended with `outcome` and has come to `state`."""
    return _report(outcome, state, outcome)


def _report(
    job: Manifest | Outcome,
    state: JobState,
    outcome: Outcome | None = None,
    message: str = "",
) -> JobReport:
    report = JobReport(
        job_id=job.job_id, attempt=job.attempt, state=state, message=message
    )
    if outcome is None:
        return report
    return replace(
        report,
        code=outcome.code,
        message=message or outcome.message,
        timings=outcome.timings,
        exit_code=outcome.exit_code,
        resources=outcome.resources,
        artifacts=len(outcome.artifacts),
        artifact_bytes=sum(file.size_bytes for file in outcome.artifacts),
        sandbox=outcome.sandbox,
    )
