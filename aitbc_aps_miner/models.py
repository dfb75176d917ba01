"""The nouns of the daemon as frozen records; nothing here does anything.

The states of a job on this node::

    IDLE ─> PULLING ─> ACKED ─> PREP ─> RUNNING ─> UPLOADING ─┬─> DONE
              │                   │        │                  ├─> FAILED
              └─> (forgotten)     └────────┴─> outcome ───────┴─> RETRY_WAIT ─> …

`PULLING` on disk means claimed and not yet acked. A job fails *into* UPLOADING: a
failure is an outcome that has to be delivered like any other. DONE and FAILED mean
delivered; RETRY_WAIT means recorded, not yet delivered, no slot held.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aitbc_aps_miner.errors import ErrorCode


class JobState(StrEnum):
    """Where a job stands on this node."""

    IDLE = "IDLE"
    """Nothing of the job is here yet."""
    PULLING = "PULLING"
    """Its manifest is durable here; the ack is not answered yet."""
    ACKED = "ACKED"
    """The coordinator knows that it is ours."""
    PREP = "PREP"
    """Inputs are being fetched."""
    RUNNING = "RUNNING"
    """The payload may have been started."""
    UPLOADING = "UPLOADING"
    """The outcome is durable and is being delivered."""
    DONE = "DONE"
    """Succeeded and delivered."""
    FAILED = "FAILED"
    """Failed and delivered."""
    RETRY_WAIT = "RETRY_WAIT"
    """The outcome is durable; its delivery waits for another try."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a job asks of the machine."""

    gpu: bool = False
    vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    gpu_uuid: str | None = None


@dataclass(frozen=True, kw_only=True)
class InputUrl:
    """One input to fetch into `input/<name>`."""

    url: str
    name: str
    sha256: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ArtifactSpec:
    """One file that the job declares as its result."""

    path: str
    """Relative to `work/`, then `output/`; checked to be plain before it gets here."""
    type: str = "application/octet-stream"
    max_mb: float = 1024


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A job as the coordinator describes it, checked (see manifest.parse)."""

    job_id: str
    attempt: int = 1
    runner: str
    requirements: Requirements = field(default_factory=Requirements)
    timeout_s: float
    inputs: tuple[InputUrl, ...] = ()
    inline: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    args: tuple[str, ...] = ()
    task: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[ArtifactSpec, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    idempotent: bool = False
    network_allow: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a job came from, and so where everything about it goes."""

    api: str
    base_url: str
    node_id: str
    auth: str | None = field(default=None, compare=False)
    """Where its bootstrap token is (`env:NAME`, `file:/path`); never the token."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What of the machine a job holds while it runs."""

    kind: str
    """`cpu` or `gpu`: which of the two slot counts it takes from."""
    cpu_threads: int = 1
    gpu_uuids: tuple[str, ...] = ()
    vram_mb: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Reservation":
        """Give the reservation whose fields JSON has carried between processes."""
        return cls(**{**fields, "gpu_uuids": tuple(fields.get("gpu_uuids", ()))})


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as a probe saw it; None where the source does not tell."""

    index: int
    uuid: str
    vendor: str = "nvidia"
    name: str | None = None
    vram_mb: int | None = None
    cuda_version: str | None = None
    driver: str | None = None
    util_pct: float | None = None
    mem_used_mb: int | None = None
    temp_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Until when the coordinator keeps the job for us.

    `ttl_s` counts from the moment the request was *sent*, so that a slow answer
    never makes a lease look longer than it is; None means no lease is granted.
    """

    ttl_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProgressReply:
    """What the coordinator answered to a progress report."""

    cancel: bool = False
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One throttled progress report of a running job."""

    pct: float
    note: str = ""
    state: JobState = JobState.RUNNING
    bytes_out: int = 0
    tail: str = ""


class ExitCause(StrEnum):
    """What ended a payload."""

    EXITED = "exited"
    """It ended by itself; `exit_code` or `signal` says how."""
    DEADLINE = "deadline"
    """Its time limit ended it."""
    CANCELLED = "cancelled"
    """The coordinator or the owner ended it."""
    DRAINED = "drained"
    """The node drained and its patience ended; the job may run elsewhere."""
    OOM = "oom"
    """Its memory limit ended it, with evidence."""
    OUTPUT = "output"
    """It wrote more than its limit."""
    LEASE = "lease"
    """The lease ran out without contact: two nodes must never run one job."""


@dataclass(frozen=True, kw_only=True)
class ExitFacts:
    """What was observed of a payload from its start to an empty process tree."""

    cause: ExitCause
    exit_code: int | None
    signal: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    stdout_bytes: int = 0
    tree_empty: bool = True
    error: Mapping[str, Any] | None = None
    """The task's own exception (`type`, `message`, `traceback`), where it had one."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Evidence for `cause`: limit, measured value, mechanism."""


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """A collected file: out of the payload's reach, sized, hashed and durable."""

    path: str
    """As declared; the part's filename is `artifacts/<path>`."""
    type: str
    size_bytes: int
    sha256: str
    stored: str
    """Where its bytes lie, relative to the workspace."""
    source: str = "file"
    """`file`, or `stdout` when it was filled from standard output."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one attempt; durable before anyone is told."""

    job_id: str
    attempt: int
    succeeded: bool
    code: ErrorCode | None = None
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent in each state."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[ArtifactFile, ...] = ()
    receipt: Mapping[str, Any] | None = None
    sandbox: str = "none"
    cleanup: Mapping[str, Any] = field(default_factory=dict)

    @property
    def idempotency_key(self) -> str:
        """The key under which every submission of this attempt's outcome is one."""
        return f"{self.job_id}:{self.attempt}"


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What a job process tells the daemon when it ends."""

    job_id: str
    attempt: int
    state: JobState
    """DONE, FAILED, RETRY_WAIT, or IDLE for a job that turned out not to be ours."""
    code: ErrorCode | None = None
    message: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    """What the payload used: wall_s, cpu_s, max_rss_mb, stdout_bytes."""
    artifacts: int = 0
    artifact_bytes: int = 0
    sandbox: str | None = None
    retry_after_s: float | None = None
    """The coordinator's own wish; only with RETRY_WAIT."""


@dataclass(frozen=True, kw_only=True)
class PayloadLimits:
    """The hard limits of one payload; the first four change while it runs."""

    nice: int = 10
    io_class: str = "best-effort"
    io_level: int = 6
    memory_mb: int | None = None
    """Resident memory of the whole tree; None means no limit of ours."""
    nofile: int = 4096
    log_mb: float = 64
    """Cap of `logs/exec.log`; what the payload prints beyond it is counted only."""
    output_mb: float | None = None
    """Bytes the payload may write to `work/` and `output/` together."""
    grace_s: float = 10
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a coordinator's dialect can do; an adapter never pretends."""

    ack: bool = True
    progress: bool = True
    fail: bool = True
    query: bool = True
    cancel: bool = True
    idempotency: bool = True
    uploads: bool = False
