"""The way of a job over fakes: every turn, and the order that promises rest on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobError,
    JobGoneError,
    RefusedError,
    UnavailableError,
    WorkspaceError,
)
from aitbc_aps_miner.lifecycle import Job, Ports, deliver, run_one
from aitbc_aps_miner.models import (
    ArtifactFile,
    Capabilities,
    ExitCause,
    ExitFacts,
    JobReport,
    JobState,
    Lease,
    Manifest,
    Origin,
    Outcome,
    PayloadLimits,
    Progress,
    ProgressReply,
    Reservation,
)
from aitbc_aps_miner.ports import Watch, Workspace

MANIFEST = Manifest(job_id="j", runner="cli", timeout_s=9, command="echo")
ORIGIN = Origin(api="node-v1", base_url="http://c/api/v1", node_id="n")
SLOT = Reservation(kind="cpu")
JOB = Job(manifest=MANIFEST, raw={"job_id": "j"}, origin=ORIGIN, reservation=SLOT)
GOOD = ExitFacts(cause=ExitCause.EXITED, exit_code=0)
ARTIFACT = ArtifactFile(
    path="a.txt", type="text/plain", size_bytes=1, sha256="aa", stored=".artifacts/0"
)


@dataclass
class World:
    """Every port in one stateful fake that writes down what happened in order."""

    ack_error: CoordinatorError | None = None
    deliver_errors: list[CoordinatorError] = field(default_factory=list)
    fetch_error: Exception | None = None
    full_at: str | None = None
    """The write that the disk refuses."""
    facts: ExitFacts = GOOD
    stop: ExitCause | None = None
    sign_error: JobError | None = None
    told: list[str] = field(default_factory=list)
    state: JobState = JobState.IDLE
    recorded: list[Outcome] = field(default_factory=list)

    # Workspaces and Workspace
    root = Path("/nowhere")
    exec_log = Path("/nowhere/logs/exec.log")
    capabilities = Capabilities()

    def claim(
        self, manifest: Manifest, raw: Any, origin: Origin, reservation: Reservation
    ) -> Workspace:
        self.told.append("claim")
        return self

    def enter(self, state: JobState, **facts: Any) -> None:
        self.refuse_when_full(state.value)
        self.state = state
        self.told.append(state.value)

    def refuse_when_full(self, write: str) -> None:
        if self.full_at == write:
            raise WorkspaceError(f"cannot {write}: disk full")

    def mark_spawn(self, **facts: Any) -> None:
        self.refuse_when_full("spawn-mark")
        self.state = JobState.RUNNING
        self.told.append("spawn-mark")

    def timings(self) -> Mapping[str, float]:
        return {"RUNNING": 1.0}

    def record(self, outcome: Outcome) -> None:
        self.refuse_when_full("record")
        self.recorded.append(outcome)
        self.told.append("record")

    def mark_delivered(self, outcome: Outcome) -> None:
        self.state = JobState.DONE if outcome.succeeded else JobState.FAILED
        self.told.append("delivered")

    def mark_dropped(self, outcome: Outcome, reason: str) -> None:
        self.state = JobState.FAILED
        self.told.append("dropped")

    def forget(self) -> None:
        self.told.append("forget")

    def artifact_path(self, artifact: ArtifactFile) -> Path:
        return self.root / artifact.stored

    def close(self) -> None:
        self.told.append("close")

    # Coordinator
    def ack(self, manifest: Manifest) -> Lease:
        self.told.append("ack")
        if self.ack_error:
            raise self.ack_error
        return Lease(ttl_s=60)

    def progress(self, manifest: Manifest, progress: Progress) -> ProgressReply:
        return ProgressReply()

    def deliver(
        self, outcome: Outcome, open_artifact: Callable[[ArtifactFile], Path], log: Path
    ) -> None:
        self.told.append("result" if outcome.succeeded else "fail")
        if self.deliver_errors:
            raise self.deliver_errors.pop(0)

    # Transfer, Runner, Collector, Signer
    def fetch(self, manifest: Manifest, workspace: Workspace, watch: Watch) -> None:
        self.told.append("fetch")
        if self.fetch_error:
            raise self.fetch_error

    def run(
        self,
        manifest: Manifest,
        workspace: Workspace,
        reservation: Reservation,
        watch: Watch,
        on_progress: Callable[[Progress], None],
    ) -> ExitFacts:
        self.told.append("run")
        on_progress(Progress(pct=50))
        return self.facts

    def collect(
        self, manifest: Manifest, workspace: Workspace, facts: ExitFacts
    ) -> tuple[ArtifactFile, ...]:
        self.told.append("collect")
        return (ARTIFACT,)

    def sign_receipt(self, outcome: Outcome, manifest: Manifest) -> Mapping[str, Any]:
        if self.sign_error:
            raise self.sign_error
        return {"signed": outcome.succeeded}

    # LeaseWatch
    def lease(self, lease: Lease) -> None:
        self.told.append(f"lease {lease.ttl_s}")

    def remaining_s(self) -> float:
        return 1.0

    def stop_cause(self) -> ExitCause | None:
        return self.stop

    def limits(self) -> PayloadLimits:
        return PayloadLimits()

    def check(self, manifest: Manifest | None = None) -> None:
        if self.stop:
            raise JobError(ErrorCode.E_CANCELLED, "cancelled")

    # Observer
    def entered(self, manifest: Manifest, state: JobState) -> None: ...

    def progressed(self, manifest: Manifest, progress: Progress) -> None:
        self.told.append(f"{progress.pct:.0f}%")

    def defect(self, manifest: Manifest, error: BaseException) -> str:
        return "id-1"

    def finished(self, manifest: Manifest, report: JobReport) -> None:
        self.told.append(f"finished {report.state}")


def go(world: World) -> JobReport:
    """Run the job in this world."""
    ports = Ports(
        coordinator=world,
        transfer=world,
        runner=world,
        collector=world,
        signer=world,
        watch=world,
        observer=world,
        sandbox="none",
    )
    return run_one(JOB, world, ports)


def test_a_good_job_goes_the_whole_way() -> None:
    """Claim before ack, spawn mark before run, record before result."""
    world = World()
    report = go(world)
    assert world.told == [
        *("claim", "ack", "lease 60", "ACKED", "PREP", "fetch", "spawn-mark", "run"),
        *("50%", "collect", "record", "UPLOADING", "result", "delivered"),
        "finished DONE",
    ]
    assert report == JobReport(
        job_id="j",
        attempt=1,
        state=JobState.DONE,
        timings={"RUNNING": 1.0},
        exit_code=0,
        resources=world.recorded[0].resources,
        artifacts=1,
        artifact_bytes=1,
        sandbox="none",
    )


def test_the_outcome_is_whole_before_it_is_recorded() -> None:
    """Artifacts, timings, sandbox level and receipt are part of what is recorded."""
    world = World()
    go(world)
    (outcome,) = world.recorded
    assert (
        outcome.artifacts,
        outcome.timings,
        outcome.sandbox,
        outcome.receipt,
    ) == ((ARTIFACT,), {"RUNNING": 1.0}, "none", {"signed": True})


@pytest.mark.parametrize("gone", [JobGoneError("409"), RefusedError("403", status=403)])
def test_a_job_that_is_not_ours_leaves_nothing(gone: CoordinatorError) -> None:
    """An ack that is refused ends in forgetting, before anything was fetched."""
    world = World(ack_error=gone)
    report = go(world)
    assert world.told == ["claim", "ack", "forget"]
    assert report == JobReport(
        job_id="j", attempt=1, state=JobState.IDLE, message=str(gone)
    )


def test_an_unanswered_ack_leaves_the_claim() -> None:
    """Nobody knows whether it was acked: the sweep settles it later."""
    world = World(ack_error=UnavailableError("timeout"))
    with pytest.raises(UnavailableError):
        go(world)
    assert world.told == ["claim", "ack"]


@pytest.mark.parametrize(
    ("world", "code"),
    [
        (
            World(fetch_error=JobError(ErrorCode.E_INPUT, "digest")),
            ErrorCode.E_INPUT,
        ),
        (World(stop=ExitCause.CANCELLED), ErrorCode.E_CANCELLED),
        (
            World(facts=ExitFacts(cause=ExitCause.EXITED, exit_code=2)),
            ErrorCode.E_EXIT,
        ),
        (World(fetch_error=KeyError("a bug of ours")), ErrorCode.E_INTERNAL),
        (World(full_at="ACKED"), ErrorCode.E_NORES),
        (World(full_at="PREP"), ErrorCode.E_NORES),
        (World(full_at="spawn-mark"), ErrorCode.E_NORES),
    ],
    ids=["input", "cancelled", "exit", "defect", "acked", "prep", "spawn"],
)
def test_what_goes_wrong_becomes_the_outcome(world: World, code: ErrorCode) -> None:
    """A failure is recorded and delivered like any other outcome."""
    report = go(world)
    assert (report.state, report.code) == (JobState.FAILED, code)
    assert world.told[-5:-1] == ["record", "UPLOADING", "fail", "delivered"]


def test_work_without_a_receipt_is_still_delivered() -> None:
    """What can't be signed is a defect of ours: it is named and costs no result."""
    world = World(sign_error=JobError(ErrorCode.E_INTERNAL, "no canonical form"))
    assert go(world).state is JobState.DONE
    (outcome,) = world.recorded
    assert (outcome.receipt, outcome.detail) == (None, {"unsigned": "id-1"})


def test_an_outcome_that_no_disk_keeps_is_a_failure_told_at_once() -> None:
    """Whatever the payload achieved: nothing durable can stand for it."""
    world = World(full_at="record")
    report = go(world)
    assert (report.state, report.code) == (JobState.FAILED, ErrorCode.E_NORES)
    assert report.message == "cannot record: disk full"
    assert world.told[-3:] == ["collect", "fail", "finished FAILED"]


def test_an_outcome_that_no_disk_keeps_and_nobody_hears_of_is_the_sweeps() -> None:
    """What is on disk says that the payload may have run."""
    world = World(full_at="record", deliver_errors=[UnavailableError("503")])
    with pytest.raises(WorkspaceError, match="disk full"):
        go(world)
    assert "delivered" not in world.told


def test_an_unreachable_coordinator_means_retry() -> None:
    """The outcome stays recorded; no delivered mark is set."""
    world = World(deliver_errors=[UnavailableError("503")])
    report = go(world)
    assert report.state is JobState.RETRY_WAIT
    assert "delivered" not in world.told


def test_a_refused_result_is_rewritten_once_and_sent_to_fail() -> None:
    """413 or 422 turn a success into E_UPLOAD, durable before it is sent."""
    world = World(deliver_errors=[RefusedError("too large", status=413)])
    report = go(world)
    assert (report.state, report.code) == (JobState.FAILED, ErrorCode.E_UPLOAD)
    assert world.told[-7:-1] == [
        *("UPLOADING", "result", "record", "UPLOADING", "fail", "delivered"),
    ]


@pytest.mark.parametrize(
    "errors",
    [
        [RefusedError("no", status=422), RefusedError("no", status=422)],
        [JobGoneError("404")],
    ],
)
def test_what_nobody_takes_is_kept_for_the_owner(
    errors: list[CoordinatorError],
) -> None:
    """A failure that is refused, or a job nobody knows, is dropped and kept."""
    world = World(deliver_errors=errors)
    report = go(world)
    assert report.state is JobState.FAILED
    assert world.told[-2] == "dropped"


def test_a_kept_outcome_is_delivered_as_it_is() -> None:
    """A later try submits what was recorded and nothing else."""
    world = World()
    outcome = Outcome(job_id="j", attempt=1, succeeded=False, code=ErrorCode.E_EXIT)
    assert deliver(world, outcome, world).state is JobState.FAILED
    assert world.told == ["UPLOADING", "fail", "delivered"]
