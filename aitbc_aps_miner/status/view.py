"""What the status server shows, as one frozen snapshot; pure.

The daemon fills a HealthView; every judgement about it (healthy, ready) and every form
of it (JSON) is made here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.util.words import utc_text

_MISSED = 3
# A heartbeat may be late by its jitter and one slow call (20 s is a call's default
# limit), but by no more than an interval: else a fast node could miss a fourth one,
# a fifth and so on, and be called healthy.
_SLACK_S = 20.0


class NodeState(StrEnum):
    """What the node is willing to do."""

    RUNNING = "running"
    """It takes jobs, unless a gate refuses."""
    DRAINING = "draining"
    """It takes no more jobs and ends when the running ones have ended."""
    PAUSED = "paused"
    """Its owner wants no more jobs for now; running ones go on."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One reason why no jobs are pulled."""

    gate: str
    """A word: `disk`, `undelivered`, `paused`…"""
    since: float
    """Seconds since the epoch."""
    remedy: str
    """What the owner can do about it."""


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """One job that holds a slot."""

    job_id: str
    runner: str
    state: str
    slot: str = "cpu"
    age_s: float = 0.0
    timeout_s: float | None = None
    pct: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Places for jobs of one kind."""

    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class TickView:
    """How a tick went when it ran last."""

    tick: str
    outcome: str
    """`ok`, or a word for what went wrong."""
    age_s: float
    took_s: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class HealthView:
    """The node at one moment."""

    node_id: str
    version: str
    uptime_s: float
    heartbeat_interval_s: float
    state: NodeState = NodeState.RUNNING
    jobs: tuple[RunningJob, ...] = ()
    queued: int = 0
    """Jobs pulled and not yet started."""
    undelivered: int = 0
    """Results that the coordinator does not have yet."""
    cpu_load: float = 0.0
    """Load average of the last minute."""
    cores: int = 0
    memory_mb: int = 0
    memory_free_mb: int = 0
    disk_free_mb: int = 0
    disk_used_pct: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    gpu_source: str = "none"
    slots: Mapping[str, Slots] = field(default_factory=dict)
    """`cpu` and `gpu`."""
    last_heartbeat_age_s: float | None = None
    """Since the last heartbeat that was answered; None before the first."""
    heartbeats_offered: bool = True
    """False where the coordinator has no heartbeat: then none is missed."""
    coordinator_url: str = ""
    registered: bool = False
    """True also where the coordinator has no registration."""
    coordinator_error: str | None = None
    config_hash: str = ""
    config_path: str = ""
    config_problems: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    ticks: tuple[TickView, ...] = ()

    @property
    def vram_free_mb(self) -> int | None:
        """Free VRAM of all GPUs that tell; None where none does."""
        known = [
            gpu.vram_mb - (gpu.mem_used_mb or 0)
            for gpu in self.gpus
            if gpu.vram_mb is not None
        ]
        return sum(known) if known else None


def is_healthy(view: HealthView) -> bool:
    """Whether the daemon does its work: heartbeats are answered, or aren't due yet.

    A rejected configuration, a gate or a pause are reasons to look, not to restart:
    they leave the node healthy.
    """
    if not view.heartbeats_offered:
        return True
    interval_s, age_s = view.heartbeat_interval_s, view.last_heartbeat_age_s
    if age_s is None:
        # Starting takes what it takes, however fast heartbeats are going to be.
        return view.uptime_s <= _MISSED * interval_s + _SLACK_S
    return age_s <= _MISSED * interval_s + min(_SLACK_S, interval_s)


def not_ready_because(view: HealthView) -> tuple[str, ...]:
    """Give every reason why no job would be taken now; empty means ready."""
    reasons: list[str] = []
    if not is_healthy(view):
        reasons.append("heartbeat")
    if not view.registered:
        reasons.append("registration")
    if view.state is not NodeState.RUNNING:
        reasons.append(str(view.state))
    return tuple(dict.fromkeys([*reasons, *(gate.gate for gate in view.gates)]))


def health_json(view: HealthView) -> dict[str, Any]:
    """Give the body of /healthz."""
    age_s = view.last_heartbeat_age_s
    return {
        "healthy": is_healthy(view),
        "running": len(view.jobs),
        "queued": view.queued,
        "cpu_load": view.cpu_load,
        "vram_free": view.vram_free_mb,
        "last_heartbeat_age_s": None if age_s is None else round(age_s, 1),
        "config": {
            "ok": not view.config_problems,
            "hash": view.config_hash,
            "path": view.config_path,
            "problems": list(view.config_problems),
        },
        "node_id": view.node_id,
        "version": view.version,
        "state": str(view.state),
        "gates": [
            {
                "gate": gate.gate,
                "since": utc_text(gate.since, "seconds"),
                "remedy": gate.remedy,
            }
            for gate in view.gates
        ],
        "jobs": [job.job_id for job in view.jobs],
        "slots": {
            kind: {"total": slots.total, "free": slots.free}
            for kind, slots in view.slots.items()
        },
        "undelivered": view.undelivered,
        "coordinator": {
            "base_url": view.coordinator_url,
            "registered": view.registered,
            "last_error": view.coordinator_error,
        },
        "uptime_s": round(view.uptime_s, 1),
    }


def ready_json(view: HealthView) -> dict[str, Any]:
    """Give the body of /readyz."""
    reasons = not_ready_because(view)
    return {
        "status": "degraded" if reasons else "ready",
        "reasons": list(reasons),
        "registered": view.registered,
        "last_error": view.coordinator_error,
    }
