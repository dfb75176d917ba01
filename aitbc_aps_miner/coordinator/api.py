"""What ticks and jobs may ask of a coordinator, whatever its dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aitbc_aps_miner.errors import ErrorCode
from aitbc_aps_miner.models import Lease
from aitbc_aps_miner.ports import Coordinator


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What registering gave."""

    token: str
    """The node's bearer token; the bootstrap token where there is no registration."""
    registered: bool = True
    """False: this coordinator has no registration."""
    expires_in_s: float | None = None
    """From the moment the call returned."""
    heartbeat_interval_s: float | None = None
    extensions: frozenset[str] | None = None
    """What the coordinator says it can do beyond the specification; None: not said."""

    def __repr__(self) -> str:
        return f"Registration(registered={self.registered}, token=***)"


@dataclass(frozen=True, kw_only=True)
class HeartbeatReply:
    """What the coordinator wants of the node."""

    known: bool = True
    """False (404): register again, or there are no heartbeats where there is no
    registration."""
    cancel: tuple[str, ...] = ()
    drain: bool = False
    refresh: frozenset[str] = frozenset()
    """`capabilities` and `token`."""


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as the coordinator sees it."""

    job_id: str
    state: str
    """queued, leased, acked, running, succeeded, failed, cancelled or expired."""
    node_id: str | None = None
    attempt: int = 1
    lease: Lease = field(default_factory=Lease)
    outcome: Any = None
    manifest: Any = None
    """As raw as a pulled one."""


class NodeApi(Coordinator, Protocol):
    """Both sides of a dialect; every call may raise CoordinatorError."""

    def register(
        self, descriptor: Mapping[str, Any], bootstrap_token: str
    ) -> Registration:
        """Present the node. Raises UnauthorizedError for a wrong bootstrap token."""
        ...

    def heartbeat(self, body: Mapping[str, Any]) -> HeartbeatReply:
        """Say that the node lives, and hear what is wanted of it."""
        ...

    def pull(
        self, node_id: str, filters: Mapping[str, Any], max_jobs: int, wait_s: float
    ) -> tuple[object, ...]:
        """Ask for at most `max_jobs`; raw manifests, as many as came, none checked."""
        ...

    def fail_raw(
        self,
        job_id: str,
        attempt: int,
        code: ErrorCode,
        message: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Report a job whose manifest cannot become one."""
        ...

    def query(self, job_id: str) -> JobView | None:
        """Ask after one job; None when it is unknown there or cannot be asked."""
        ...

    def active_jobs(self, node_id: str) -> tuple[JobView, ...] | None:
        """Give all jobs the coordinator counts on this node for; None: no such call."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
