"""What the way of a job needs from the world, stated by its consumer.

Only Protocols: lifecycle.py is written against these, job.py wires the adapters in,
tests wire fakes in. Errors are those of errors.py and nothing else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

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


class Clock(Protocol):
    """Time as an argument; seconds everywhere."""

    def realtime(self) -> float:
        """Seconds since the epoch, UTC; may step in either direction."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step and stand still while the machine is suspended."""
        ...

    def boottime(self) -> float:
        """Seconds that never step and go on while the machine is suspended."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Coordinator(Protocol):
    """The job's side of a dialect. Every method may raise CoordinatorError."""

    @property
    def capabilities(self) -> Capabilities:
        """What this coordinator can do."""
        ...

    def ack(self, manifest: Manifest) -> Lease:
        """Take the job. Raise JobGoneError when it is no longer ours."""
        ...

    def progress(self, manifest: Manifest, progress: Progress) -> ProgressReply:
        """Tell how far the job is and renew its lease."""
        ...

    def deliver(
        self,
        outcome: Outcome,
        open_artifact: Callable[[ArtifactFile], Path],
        log: Path,
    ) -> None:
        """Submit the outcome once; return when it is final at the coordinator.

        A 409 (already final) is success. `open_artifact` gives the path of an
        artifact's stored bytes; `log` is the execution log, sent first where it
        exists. Raises
        RefusedError when this outcome will never be taken, JobGoneError when the
        coordinator does not know the job any more.
        """
        ...


class Workspace(Protocol):
    """One job's directory; whoever holds this object holds the job's lock."""

    @property
    def root(self) -> Path:
        """The job's directory. `input`, `work`, `output` and `logs` lie in it."""
        ...

    @property
    def state(self) -> JobState:
        """The state entered last."""
        ...

    def enter(self, state: JobState, **facts: Any) -> None:
        """Move to `state` with its time; durable only where a promise needs it."""
        ...

    def mark_spawn(self, **facts: Any) -> None:
        """Make durable that a payload may run from now on (state RUNNING)."""
        ...

    def timings(self) -> Mapping[str, float]:
        """Seconds spent in each state so far."""
        ...

    def record(self, outcome: Outcome) -> None:
        """Make the outcome durable; nobody is told before this returns."""
        ...

    def mark_delivered(self, outcome: Outcome) -> None:
        """Make durable that the coordinator has it, and drop the inputs."""
        ...

    def mark_dropped(self, outcome: Outcome, reason: str) -> None:
        """Note that nobody will take the outcome; it is kept for the owner."""
        ...

    def forget(self) -> None:
        """Remove the directory: the job never was ours."""
        ...

    def artifact_path(self, artifact: ArtifactFile) -> Path:
        """Where the bytes of a collected artifact lie."""
        ...

    @property
    def exec_log(self) -> Path:
        """`logs/exec.log`: what the payload printed."""
        ...

    def close(self) -> None:
        """Release the lock."""
        ...


class Workspaces(Protocol):
    """All jobs' directories under one root."""

    def claim(
        self, manifest: Manifest, raw: Any, origin: Origin, reservation: Reservation
    ) -> Workspace:
        """Make the job's directory and its job.json durable, and lock it.

        Raises WorkspaceError when the attempt is here already or cannot be stored.
        """
        ...


class Watch(Protocol):
    """What may end a job before it ends by itself; cheap to ask."""

    def remaining_s(self) -> float:
        """Seconds left of the job's own time limit; zero or less when it is over."""
        ...

    def stop_cause(self) -> ExitCause | None:
        """DEADLINE, CANCELLED or LEASE once the job has to stop."""
        ...

    def limits(self) -> PayloadLimits:
        """Give the limits in force now; they change when the owner edits the config."""
        ...

    def check(self) -> None:
        """Raise JobError when the job has to stop."""
        ...


class LeaseWatch(Watch, Protocol):
    """A watch that also guards the job's lease."""

    def lease(self, lease: Lease) -> None:
        """Take note of a granted or renewed lease."""
        ...


class Transfer(Protocol):
    """Brings a job's inputs into its workspace."""

    def fetch(self, manifest: Manifest, workspace: Workspace, watch: Watch) -> None:
        """Fill `input/` and show every input by name in `work/`.

        Raises JobError: E_INPUT, E_DENY for a host that policy forbids, E_NORES.
        """
        ...


class Runner(Protocol):
    """Runs one kind of payload."""

    def check(self, manifest: Manifest) -> None:
        """Raise JobError (E_DENY, E_MANIFEST) before any process is started."""
        ...

    def run(
        self,
        manifest: Manifest,
        workspace: Workspace,
        reservation: Reservation,
        watch: Watch,
        on_progress: Callable[[Progress], None],
    ) -> ExitFacts:
        """Run the payload to an empty process tree and say what was observed.

        Raises JobError when it could not be started.
        """
        ...


class Collector(Protocol):
    """Takes a payload's results out of its reach."""

    def collect(
        self, manifest: Manifest, workspace: Workspace, facts: ExitFacts
    ) -> tuple[ArtifactFile, ...]:
        """Move, size, hash and fsync the artifacts.

        Raises JobError: E_ARTIFACT, and E_NORES for trouble with the node's disk.
        """
        ...


class Signer(Protocol):
    """Signs what the node says."""

    def sign_receipt(self, outcome: Outcome, manifest: Manifest) -> Mapping[str, Any]:
        """Give the node's signed receipt of `outcome`."""
        ...


class Observer(Protocol):
    """Hears what happens to the job; must never raise."""

    def entered(self, manifest: Manifest, state: JobState) -> None:
        """Hear that the job moved to `state`."""
        ...

    def progressed(self, manifest: Manifest, progress: Progress) -> None:
        """Hear a throttled progress report."""
        ...

    def defect(self, manifest: Manifest, error: BaseException) -> str:
        """Log an unexpected error with its traceback; give its error id."""
        ...

    def finished(self, manifest: Manifest, report: JobReport) -> None:
        """Hear the end of the job process's work."""
        ...
