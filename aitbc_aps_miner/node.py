"""What the daemon holds in memory: the machine, its slots, its jobs, its gates.

Nothing here is durable; kill the daemon at any moment and the workspaces and the
coordinator tell the next one everything. Callbacks write, the status server reads.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aitbc_aps_miner.models import Gpu, Origin, Reservation
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.slots import Capacity


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One reason why the node takes no work, since when, and what to do."""

    name: str
    since_monotonic: float
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Running:
    """One job that holds a slot."""

    job_id: str
    attempt: int
    reservation: Reservation
    since_monotonic: float
    runner: str = ""
    state: str = "PULLING"
    pct: float | None = None
    note: str = ""
    adopted: bool = False
    root: str = ""
    """Workspace root that the job lives under; it may differ from today's."""
    origin: Origin | None = None
    """Whose job it is; it may be another coordinator's or name's than today's."""


@dataclass(frozen=True, kw_only=True)
class TickEnd:
    """How a tick went when it ran last."""

    outcome: str
    at_monotonic: float
    took_s: float
    error: str = ""


@dataclass(kw_only=True)
class Node:
    """The daemon's memory. Every method is safe from any thread."""

    clock: Clock
    cpu_slots: int
    gpu_slots: int
    host: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    gpu_source: str = "none"
    problems: tuple[str, ...] = ()
    """What of the owner's allowlists and task paths cannot be used."""
    heartbeat_ok_at: float | None = None
    heartbeat_failures: int = 0
    heartbeat_floor_s: float = 0
    coordinator_error: str | None = None
    registered: bool = False
    heartbeats_offered: bool = True
    draining: bool = False
    undelivered: int = 0
    disk_used_pct: float = 0
    ticks: dict[str, TickEnd] = field(default_factory=dict)
    _jobs: dict[str, Running] = field(default_factory=dict)
    _gates: dict[str, Gate] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def capacity(self) -> Capacity:
        """Give the slots as they are now, for one pull to reserve from."""
        with self._lock:
            return Capacity(
                cpu_slots=self.cpu_slots,
                gpu_slots=self.gpu_slots,
                cpu_threads=int(self.host.get("cores", 0)),
                memory_mb=int(self.host.get("memory_mb", 0)),
                disk_free_mb=int(self.host.get("disk_free_mb", 0)),
                gpus=self.gpus,
                held={job.job_id: job.reservation for job in self._jobs.values()},
            )

    def hold(self, job: Running) -> None:
        """Count a job's slot."""
        with self._lock:
            self._jobs[job.job_id] = job

    def release(self, job_id: str) -> Running | None:
        """Free a job's slot; give what held it."""
        with self._lock:
            return self._jobs.pop(job_id, None)

    def moved(self, job_id: str, **facts: Any) -> None:
        """Note what a running job says of itself."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None:
                self._jobs[job_id] = replace(job, **facts)

    def jobs(self) -> tuple[Running, ...]:
        """Give the jobs that hold a slot."""
        with self._lock:
            return tuple(self._jobs.values())

    def close(self, name: str, reason: str, remedy: str) -> bool:
        """Close a gate; whether it was open before."""
        with self._lock:
            known = self._gates.get(name)
            since = known.since_monotonic if known else self.clock.monotonic()
            self._gates[name] = Gate(
                name=name, since_monotonic=since, reason=reason, remedy=remedy
            )
            return known is None

    def open(self, name: str) -> bool:
        """Open a gate; whether it was closed before."""
        with self._lock:
            return self._gates.pop(name, None) is not None

    def is_closed(self, name: str) -> bool:
        """Whether a gate is closed."""
        with self._lock:
            return name in self._gates

    def gates(self) -> tuple[Gate, ...]:
        """Give the closed gates, oldest first."""
        with self._lock:
            return tuple(
                sorted(self._gates.values(), key=lambda gate: gate.since_monotonic)
            )

    @property
    def takes_work(self) -> bool:
        """Whether a pull makes sense now."""
        with self._lock:
            return not self._gates and self.capacity().free > 0
