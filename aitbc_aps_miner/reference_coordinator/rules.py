"""What an operator may choose about a coordinator."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One coordinator's choices; frozen for its life."""

    bootstrap_token: str = "demo-token"  # noqa: S105 - a default to be seen, no secret
    lease_s: float = 60
    token_ttl_s: float = 3600
    heartbeat_interval_s: float | None = None
    max_attempts: int = 3
    keep_jobs: int = 20_000
    """Finished jobs that are remembered; the oldest go first."""
    spec_only: bool = False
    """None of the extensions: no leases, queries, long poll, idempotency."""
    no_registration: bool = False
    """No register and no heartbeat; the bootstrap token serves for every call."""
