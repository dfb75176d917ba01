"""Fills the status server's view from the daemon's memory."""

from aitbc_aps_miner import __version__
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.status.view import (
    Gate,
    HealthView,
    NodeState,
    RunningJob,
    Slots,
    TickView,
)


def health_view(parts: Parts, *, uptime_s: float) -> HealthView:
    """Give the node as it is at this moment."""
    node, snapshot = parts.node, parts.source.current
    config, host = snapshot.config, node.host
    now, capacity = parts.clock.monotonic(), node.capacity()
    ok_at = node.heartbeat_ok_at
    return HealthView(
        node_id=config.node_id,
        version=__version__,
        uptime_s=uptime_s,
        heartbeat_interval_s=max(config.heartbeat.interval_s, node.heartbeat_floor_s),
        state=_state(node),
        jobs=tuple(
            RunningJob(
                job_id=job.job_id,
                runner=job.runner,
                state=job.state,
                slot=job.reservation.kind,
                age_s=now - job.since_monotonic,
                pct=job.pct,
                note=job.note,
            )
            for job in node.jobs()
        ),
        queued=sum(job.state == "PULLING" for job in node.jobs()),
        undelivered=node.undelivered,
        cpu_load=float(host.get("load1", 0)),
        cores=int(host.get("cores", 0)),
        memory_mb=int(host.get("memory_mb", 0)),
        memory_free_mb=int(host.get("memory_free_mb", 0)),
        disk_free_mb=int(host.get("disk_free_mb", 0)),
        disk_used_pct=float(host.get("disk_used_pct", 0)),
        gpus=node.gpus,
        gpu_source=node.gpu_source,
        slots={
            "cpu": Slots(total=capacity.cpu_slots, free=capacity.cpu_free),
            "gpu": Slots(
                total=capacity.gpu_slots if node.gpus else 0, free=capacity.gpu_free
            ),
        },
        last_heartbeat_age_s=None if ok_at is None else now - ok_at,
        heartbeats_offered=node.heartbeats_offered,
        coordinator_url=config.coordinator.base_url,
        registered=parts.tokens.token is not None,
        coordinator_error=node.coordinator_error,
        config_hash=snapshot.digest,
        config_path=str(parts.source.path),
        config_problems=(*map(str, snapshot.problems), *node.problems),
        gates=_gates(parts),
        ticks=tuple(
            TickView(
                tick=name,
                outcome=end.outcome,
                age_s=now - end.at_monotonic,
                took_s=end.took_s,
                error=end.error,
            )
            for name, end in sorted(node.ticks.items())
        ),
    )


def _state(node: Node) -> NodeState:
    names = {gate.name for gate in node.gates()}
    if names & {"draining", "drain-request"}:
        return NodeState.DRAINING
    return NodeState.PAUSED if "paused" in names else NodeState.RUNNING


def _gates(parts: Parts) -> tuple[Gate, ...]:
    # Monotonic times become wall-clock times only where people read them.
    offset = parts.clock.realtime() - parts.clock.monotonic()
    return tuple(
        Gate(
            gate=gate.name,
            since=gate.since_monotonic + offset,
            remedy=f"{gate.reason}: {gate.remedy}",
        )
        for gate in parts.node.gates()
    )
