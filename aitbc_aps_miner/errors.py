"""Every error that crosses a module border, and the E_ codes of the wire contract.

Siblings differ by what the caller can do about them::

    MinerError
    ├─ JobError            the job fails with an E_ code; the node goes on
    ├─ CoordinatorError    a call did not succeed
    │   ├─ UnavailableError    try again later (network, 429, 5xx, an unreadable answer)
    │   ├─ UnauthorizedError   the token was refused, also after registering again
    │   ├─ JobGoneError        the job is no longer ours: drop it
    │   └─ RefusedError        the call is wrong and stays wrong: never repeat it
    ├─ ConfigError         the TOML cannot be used; carries every problem
    ├─ IdentityError       the node's key cannot be used until a person acts
    └─ WorkspaceError      the job's directory cannot be trusted or used
        ├─ WorkspaceBusyError  another process holds the job's lock
        └─ AttemptHereError    this attempt, or a later one, is here already

Nothing here does I/O; adapters translate foreign exceptions into these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Why a job failed: the closed set of the node-v1 contract."""

    E_DENY = "E_DENY"
    """Command, argument, task, host or policy is not allowed here."""
    E_MANIFEST = "E_MANIFEST"
    """The manifest is malformed or impossible."""
    E_SIGNATURE = "E_SIGNATURE"
    """The manifest's signature is missing or wrong."""
    E_NOGPU = "E_NOGPU"
    """No GPU that fits is free or present."""
    E_NORES = "E_NORES"
    """Disk, memory or slots are missing."""
    E_INPUT = "E_INPUT"
    """An input could not be fetched, or its digest differs."""
    E_TIMEOUT = "E_TIMEOUT"
    """The job's own time limit was reached."""
    E_OOM = "E_OOM"
    """The payload was killed for its memory."""
    E_EXIT = "E_EXIT"
    """The command or task ended in an error."""
    E_ARTIFACT = "E_ARTIFACT"
    """A declared artifact is missing, escapes the workspace or is too large."""
    E_UPLOAD = "E_UPLOAD"
    """The coordinator refused the result for good."""
    E_CANCELLED = "E_CANCELLED"
    """Cancelled by the coordinator or the owner."""
    E_LOST = "E_LOST"
    """The attempt died with the node and may not be rerun here."""
    E_RUNTIME = "E_RUNTIME"
    """The inference runtime is absent, unhealthy or lacks the model."""
    E_INTERNAL = "E_INTERNAL"
    """A defect of the miner; its error id stands in the log."""

    @property
    def retryable(self) -> bool:
        """Whether another attempt, here or on another node, may succeed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.E_NOGPU,
        ErrorCode.E_NORES,
        ErrorCode.E_INPUT,
        ErrorCode.E_LOST,
        ErrorCode.E_RUNTIME,
        ErrorCode.E_INTERNAL,
    }
)


class MinerError(Exception):
    """Root of every error this project raises on purpose."""


class JobError(MinerError):
    """The job fails with `code`; `message` is for people, `detail` for machines."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.detail = dict(detail or {})


class CoordinatorError(MinerError):
    """A call to the coordinator did not succeed."""


class UnavailableError(CoordinatorError):
    """Try again later; `retry_after_s` is the coordinator's own wish, if any."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnauthorizedError(CoordinatorError):
    """The token was refused: a configuration error until a person acts."""


class JobGoneError(CoordinatorError):
    """The coordinator says that the job is no longer this node's."""


class RefusedError(CoordinatorError):
    """The coordinator will never take this call; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration, and what to do about it."""

    key: str
    """Dotted key, `heartbeat.interval_s`; empty for the file itself."""
    line: int | None
    """Line in the file, counted from 1; None when it has none (a missing key)."""
    expected: str
    given: str
    remedy: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        key = self.key or "(file)"
        return (
            f"{where}{key}: expected {self.expected}, given {self.given}; {self.remedy}"
        )


class ConfigError(MinerError):
    """The configuration cannot be used; `problems` holds all of them at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class WorkspaceError(MinerError):
    """A job's directory is missing, foreign, damaged or not writable."""


class WorkspaceBusyError(WorkspaceError):
    """Another process holds the job's lock: it is at work, or about to end."""


class AttemptHereError(WorkspaceError):
    """The claimed attempt, or a later one, is on disk; the fields say how far it is."""

    def __init__(
        self, job_id: str, *, attempt: int, state: str, delivered: bool
    ) -> None:
        super().__init__(f"attempt {attempt} of {job_id} is here already, in {state}")
        self.job_id = job_id
        self.attempt = attempt
        self.state = state
        self.delivered = delivered


class IdentityError(MinerError):
    """The node's key file cannot be used; never answered by making a new key."""
