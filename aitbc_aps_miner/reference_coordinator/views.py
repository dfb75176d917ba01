"""Jobs and nodes as JSON for clients, nodes and the page."""

from datetime import UTC, datetime
from typing import Any

from aitbc_aps_miner.reference_coordinator.records import Job, Node
from aitbc_aps_miner.reference_coordinator.state import State


def rfc3339(at_realtime: float) -> str:
    """Give seconds since the epoch as RFC 3339 in UTC with `Z`."""
    moment = datetime.fromtimestamp(at_realtime, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_view(state: State, job: Job, prefix: str) -> dict[str, Any]:
    """Give all about a job, the contract's fields among them; secrets are left out."""
    manifest = job.manifest
    if isinstance(manifest, dict):
        manifest = {key: value for key, value in manifest.items() if key != "secrets"}
    return {
        **job_line(state, job),
        "lease_expires_at": lease_expires_at(state, job),
        "outcome": job.outcome,
        "artifacts": [
            {
                "path": stored.path,
                "type": stored.type,
                "bytes": stored.size_bytes,
                "sha256": stored.sha256,
                "url": f"{prefix}/jobs/{job.job_id}/artifacts/{stored.path}",
            }
            for stored in job.artifacts.values()
        ],
        "history": [{**step, "at": rfc3339(step["at"])} for step in job.history],
        "manifest": manifest,
    }


def job_line(state: State, job: Job) -> dict[str, Any]:
    """Give a job in brief: one row of a list."""
    manifest = job.manifest if isinstance(job.manifest, dict) else {}
    first, last = job.history[0]["at"], job.history[-1]["at"]
    leased = [step["at"] for step in job.history if step["state"] == "leased"]
    ended = last if job.state.is_final else state.clock.realtime()
    return {
        "job_id": job.job_id,
        "state": job.state,
        "attempt": job.attempt,
        "node_id": job.node_id,
        "runner": manifest.get("runner"),
        "what": manifest.get("command") or manifest.get("task"),
        "submitted_at": rfc3339(first),
        "age_s": round(state.clock.realtime() - first, 3),
        "duration_s": round(ended - leased[-1], 3) if leased else None,
        "cancel_requested": job.cancel_requested,
        "progress": job.progress,
        "error_code": (job.outcome or {}).get("error_code"),
        "artifact_paths": list(job.artifacts),
    }


def recovery_line(state: State, job: Job) -> dict[str, Any]:
    """Give a node what it needs to go on with a job that it holds."""
    return {
        "job_id": job.job_id,
        "state": job.state,
        "node_id": job.node_id,
        "attempt": job.attempt,
        "lease_expires_at": lease_expires_at(state, job),
        "manifest": job.handout,
    }


def node_view(state: State, node: Node) -> dict[str, Any]:
    """Give all about a node."""
    now = state.clock.monotonic()
    seen = node.heartbeat_at
    return {
        "node_id": node.node_id,
        "descriptor": node.descriptor,
        "heartbeat": node.heartbeat,
        "heartbeat_age_s": None if seen is None else round(now - seen, 3),
        "active": list(node.active),
        "drain": node.drain,
    }


def lease_expires_at(state: State, job: Job) -> str | None:
    """Give the end of the job's lease; None when it has none."""
    if job.lease_until is None:
        return None
    return rfc3339(state.realtime(job.lease_until))
