"""The coordinator's nouns: jobs, nodes and stored files; plain data, no rules.

The states of a job at the coordinator::

    queued ─> leased ─> acked ─> running ─┬─> succeeded
      ^         │         │         │     ├─> failed
      │         │         │         │     ├─> cancelled
      └─────────┴─────────┴─────────┘     └─> expired   (no attempt is left)
        lease over, or failed(retryable)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class JobState(StrEnum):
    """Where a job stands at the coordinator."""

    QUEUED = "queued"
    """No node has it."""
    LEASED = "leased"
    """Handed out, not yet acked."""
    ACKED = "acked"
    """A node has taken it."""
    RUNNING = "running"
    """Its node has reported progress."""
    SUCCEEDED = "succeeded"
    """A result was accepted."""
    FAILED = "failed"
    """A failure was accepted and no other attempt follows."""
    CANCELLED = "cancelled"
    """Ended by a client's wish."""
    EXPIRED = "expired"
    """Every attempt's lease ran out."""

    @property
    def is_active(self) -> bool:
        """Whether a node holds the job."""
        return self in {JobState.LEASED, JobState.ACKED, JobState.RUNNING}

    @property
    def is_final(self) -> bool:
        """Whether nothing about the job changes any more."""
        return self is not JobState.QUEUED and not self.is_active


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An artifact whose bytes lie in the spool."""

    path: str
    """As the node named it; never used as a path here."""
    type: str
    size_bytes: int
    sha256: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a node says about the end of one attempt."""

    job_id: str
    node_id: str | None
    attempt: int | None
    key: str | None
    """The idempotency key; None where the coordinator has no such extension."""
    fingerprint: str
    """Equal for two submissions exactly when they tell the same outcome."""
    outcome: Mapping[str, Any]


@dataclass(kw_only=True)
class Job:
    """One submitted job and all that happened to it."""

    job_id: str
    manifest: Any
    """As submitted: not even an object when the client asked for no checks."""
    state: JobState = JobState.QUEUED
    attempt: int = 1
    node_id: str | None = None
    lease_until: float | None = None
    """Monotonic seconds."""
    cancel_requested: bool = False
    progress: Mapping[str, Any] | None = None
    outcome: Mapping[str, Any] | None = None
    artifacts: dict[str, StoredFile] = field(default_factory=dict)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    accepted: dict[str, str] = field(default_factory=dict)
    """Idempotency key → fingerprint of the outcome that was accepted with it."""

    @property
    def handout(self) -> Any:
        """The manifest as nodes get it."""
        if not isinstance(self.manifest, dict):
            return self.manifest
        return {"job_id": self.job_id, **self.manifest, "attempt": self.attempt}


@dataclass(kw_only=True)
class Node:
    """What is known of a node; `cancel` follows from its jobs."""

    node_id: str
    descriptor: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: Mapping[str, Any] | None = None
    heartbeat_at: float | None = None
    """Monotonic seconds."""
    active: dict[str, Job] = field(default_factory=dict)
    drain: bool = False
    refresh: list[str] = field(default_factory=list)
    """Told once, at the next heartbeat."""
