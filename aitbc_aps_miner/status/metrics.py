"""The node in Prometheus' words: counters that the daemon raises, gauges of the view.

A registry of our own: nothing of the process's default registry leaks in, and several
nodes can live in one test.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aitbc_aps_miner.status.view import HealthView, is_healthy, not_ready_because

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a heartbeat in a warm process (2 ms) to a long poll (30 s).
_TICK_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 30, 60)


class Metrics:
    """Everything that /metrics serves."""

    def __init__(self, view: Callable[[], HealthView]) -> None:
        self._registry = CollectorRegistry()
        self._jobs = Counter(
            "aitbc_miner_jobs_finished",
            "Jobs whose outcome is recorded, by error code; OK for successes",
            ["code"],
            registry=self._registry,
        )
        self._ticks = Counter(
            "aitbc_miner_ticks",
            "Ticks that ended, by name and outcome",
            ["tick", "outcome"],
            registry=self._registry,
        )
        self._tick_s = Histogram(
            "aitbc_miner_tick_seconds",
            "How long ticks took, their process included",
            ["tick"],
            buckets=_TICK_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_ViewCollector(view))

    def job_finished(self, code: str | None) -> None:
        """Count a finished job; None is a success."""
        self._jobs.labels(code=code or "OK").inc()

    def tick_ended(self, tick: str, outcome: str, took_s: float) -> None:
        """Count a tick's end; `outcome` is a word of a small closed set."""
        self._ticks.labels(tick=tick, outcome=outcome).inc()
        self._tick_s.labels(tick=tick).observe(took_s)

    def render(self) -> bytes:
        """Give the text that /metrics serves."""
        return generate_latest(self._registry)


class _ViewCollector(Collector):
    """Gauges made from the view when they are asked for: none can be stale."""

    def __init__(self, view: Callable[[], HealthView]) -> None:
        self._view = view

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: the view may not be ready when registering."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give every gauge."""
        view = self._view()
        info = {"version": view.version, "node_id": view.node_id}
        yield InfoMetricFamily("aitbc_miner_build", "What runs here", value=info)
        for name, words, value in _gauges(view):
            if value is not None:
                yield GaugeMetricFamily(f"aitbc_miner_{name}", words, value=value)
        gates = GaugeMetricFamily(
            "aitbc_miner_gate_closed", "Gates that refuse new jobs", labels=["gate"]
        )
        for gate in view.gates:
            gates.add_metric([gate.gate], 1)
        yield gates
        yield _slots(view)


def _gauges(view: HealthView) -> tuple[tuple[str, str, float | None], ...]:
    vram_mb = view.vram_free_mb
    return (
        ("healthy", "1 while heartbeats are answered", is_healthy(view)),
        ("ready", "1 while a job would be taken", not not_ready_because(view)),
        ("running", "Jobs that hold a slot", len(view.jobs)),
        ("queued", "Jobs pulled and not yet started", view.queued),
        ("undelivered", "Results not yet delivered", view.undelivered),
        ("cpu_load", "Load average of one minute", view.cpu_load),
        ("memory_free_bytes", "Free memory", view.memory_free_mb * 2**20),
        ("disk_free_bytes", "Free disk of the workspaces", view.disk_free_mb * 2**20),
        (
            "vram_free_bytes",
            "Free VRAM of all GPUs",
            None if vram_mb is None else vram_mb * 2**20,
        ),
        (
            "last_heartbeat_age_seconds",
            "Since the last answered heartbeat",
            view.last_heartbeat_age_s,
        ),
        ("registered", "1 while the node is registered", view.registered),
        (
            "config_problems",
            "Problems of the configuration file that is not in force",
            len(view.config_problems),
        ),
        ("uptime_seconds", "Since the daemon started", view.uptime_s),
    )


def _slots(view: HealthView) -> Metric:
    slots = GaugeMetricFamily(
        "aitbc_miner_slots", "Places for jobs", labels=["kind", "state"]
    )
    for kind, each in view.slots.items():
        slots.add_metric([kind, "free"], each.free)
        slots.add_metric([kind, "held"], each.total - each.free)
    return slots
