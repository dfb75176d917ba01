"""The status server's view of the daemon's memory."""

import pytest
from daemon_fakes import URL, Bench, gpu

from aitbc_aps_miner import __version__
from aitbc_aps_miner.health import health_view
from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.node import Running, TickEnd
from aitbc_aps_miner.status.view import (
    Gate,
    HealthView,
    NodeState,
    RunningJob,
    Slots,
    TickView,
)
from aitbc_aps_miner.tokens import place_of


def test_a_fresh_daemon_knows_nothing_yet() -> None:
    """And says so, instead of inventing it."""
    node = Bench()
    assert health_view(node.parts, uptime_s=1) == HealthView(
        node_id="n1",
        version=__version__,
        uptime_s=1,
        heartbeat_interval_s=15,
        slots={"cpu": Slots(total=2, free=2), "gpu": Slots(total=0, free=0)},
        coordinator_url=URL,
        config_hash="d1",
        config_path="/etc/miner.toml",
    )


def test_everything_in_memory_is_shown() -> None:
    """Ages from the monotonic clock, wall-clock times only for people."""
    node = Bench()
    memory = node.node
    memory.host = {
        "load1": 0.5,
        "cores": 8,
        "memory_mb": 100,
        "memory_free_mb": 50,
        "disk_free_mb": 10,
        "disk_used_pct": 42.0,
    }
    memory.gpus, memory.gpu_source = (gpu(),), "nvml"
    memory.undelivered, memory.heartbeat_floor_s = 3, 40
    memory.coordinator_error, memory.heartbeats_offered = "503", False
    node.tokens.registered("t1", place_of(node.source.current.config))
    for job_id, state in (("a", "RUNNING"), ("b", "PULLING")):
        memory.hold(
            Running(
                job_id=job_id,
                attempt=1,
                reservation=Reservation(kind="gpu" if job_id == "a" else "cpu"),
                since_monotonic=990,
                runner="cli",
                state=state,
                pct=5,
                note="x",
            )
        )
    memory.heartbeat_ok_at = 980
    memory.ticks["pull"] = TickEnd(
        outcome="failed", at_monotonic=995, took_s=2, error="503"
    )
    memory.close("disk", "90 % full", "free space")
    node.clock.now += 10
    view = health_view(node.parts, uptime_s=60)
    assert view.jobs == (
        RunningJob(
            job_id="a",
            runner="cli",
            state="RUNNING",
            slot="gpu",
            age_s=20,
            pct=5,
            note="x",
        ),
        RunningJob(
            job_id="b", runner="cli", state="PULLING", age_s=20, pct=5, note="x"
        ),
    )
    assert (view.queued, view.undelivered) == (1, 3)
    assert view.slots == {
        "cpu": Slots(total=2, free=1),
        "gpu": Slots(total=1, free=0),
    }
    assert view.last_heartbeat_age_s == 30
    assert view.heartbeat_interval_s == 40
    assert (view.cpu_load, view.cores, view.disk_used_pct) == (0.5, 8, 42)
    assert (view.registered, view.heartbeats_offered) == (True, False)
    assert view.coordinator_error == "503"
    since = 1000 + node.clock.epoch
    assert view.gates == (
        Gate(gate="disk", since=since, remedy="90 % full: free space"),
    )
    assert view.ticks == (
        TickView(tick="pull", outcome="failed", age_s=15, took_s=2, error="503"),
    )


@pytest.mark.parametrize(
    ("gates", "state"),
    [
        ((), NodeState.RUNNING),
        (("disk",), NodeState.RUNNING),
        (("paused",), NodeState.PAUSED),
        (("paused", "drain-request"), NodeState.DRAINING),
        (("draining",), NodeState.DRAINING),
    ],
)
def test_the_state_follows_from_the_gates(
    gates: tuple[str, ...], state: NodeState
) -> None:
    """Ending is more than pausing."""
    node = Bench()
    for gate in gates:
        node.node.close(gate, "", "")
    assert health_view(node.parts, uptime_s=0).state is state
