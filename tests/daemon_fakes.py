"""Stand-ins for what surrounds the daemon's reactions: clock, timetable, processes."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.source import ConfigSource, Snapshot
from aitbc_aps_miner.executor import Isolated, ProcessExecutor
from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.scheduler import Scheduler
from aitbc_aps_miner.status.metrics import Metrics
from aitbc_aps_miner.tokens import TokenBroker, place_of

URL = "http://127.0.0.1:9/api/v1"


@dataclass
class FakeClock:
    """Three clocks that a test moves."""

    now: float = 1000.0
    epoch: float = 1_700_000_000.0
    suspended_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now + self.suspended_s

    def realtime(self) -> float:
        return self.now + self.epoch

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class FakeScheduler:
    """A timetable that only remembers: seconds until due, None for paused."""

    due: dict[str, float | None] = field(default_factory=dict)
    jobs: dict[str, tuple[Isolated, float]] = field(default_factory=dict)
    retimed: list[tuple[Config, Config, float]] = field(default_factory=list)
    shifted: list[float] = field(default_factory=list)

    def run_in(self, name: str, in_s: float) -> None:
        self.due[name] = in_s

    def pause(self, name: str) -> None:
        self.due[name] = None

    def is_due(self, name: str) -> bool:
        return self.due.get(name) is not None or name in self.jobs

    def once(self, job_id: str, call: Isolated, in_s: float = 0) -> None:
        self.jobs[job_id] = (call, in_s)

    def retime(self, config: Config, before: Config, floor_s: float = 0) -> None:
        self.retimed.append((config, before, floor_s))

    def shift(self, step_s: float) -> None:
        self.shifted.append(step_s)

    def take(self) -> dict[str, float | None]:
        """Give and forget what was timed since."""
        taken, self.due = self.due, {}
        return taken


@dataclass
class FakeExecutor:
    """Processes that run as long as a test says."""

    active: set[str] = field(default_factory=set)
    killed: list[tuple[str, str]] = field(default_factory=list)
    generations: list[str] = field(default_factory=list)

    def running(self) -> Mapping[str, None]:
        return dict.fromkeys(self.active)

    def kill(self, job_id: str, reason: str = "") -> None:
        self.killed.append((job_id, reason))

    def new_generation(self, reason: str) -> None:
        self.generations.append(reason)


@dataclass
class FakeMetrics:
    """Counters that a test can read."""

    jobs: list[str | None] = field(default_factory=list)
    ticks: list[tuple[str, str, float]] = field(default_factory=list)

    def job_finished(self, code: str | None) -> None:
        self.jobs.append(code)

    def tick_ended(self, tick: str, outcome: str, took_s: float) -> None:
        self.ticks.append((tick, outcome, took_s))


class FakeSource:
    """A configuration that a test edits."""

    path = "/etc/miner.toml"

    def __init__(self, config: Config) -> None:
        self.current = Snapshot(
            config=config,
            json=config.model_dump_json(by_alias=True),
            digest="d1",
            problems=(),
            loaded_at_monotonic=0.0,
            generation=1,
        )
        self.next: Snapshot | None = None

    def edit(self, config: Config) -> None:
        """Bring another configuration into force at the next check."""
        self.next = replace(
            self.current,
            config=config,
            json=config.model_dump_json(by_alias=True),
            generation=self.current.generation + 1,
        )

    def check(self) -> Snapshot:
        if self.next is not None:
            self.current, self.next = self.next, None
        return self.current

    def next_check_s(self) -> float:
        return 0.01


class Bench:
    """Everything that reactions work with, as fakes, and as Parts."""

    def __init__(self, config: Config | None = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.scheduler = FakeScheduler()
        self.executor = FakeExecutor()
        self.metrics = FakeMetrics()
        self.source = FakeSource(config or config_of(**settings))
        self.registrations = 0
        self.node = Node(clock=self.clock, cpu_slots=2, gpu_slots=1)
        self.tokens = TokenBroker(
            self._register,
            self.clock,
            place=lambda: place_of(self.source.current.config),
        )
        self.parts = Parts(
            node=self.node,
            scheduler=cast("Scheduler", self.scheduler),
            executor=cast("ProcessExecutor", self.executor),
            source=cast("ConfigSource", self.source),
            tokens=self.tokens,
            metrics=cast("Metrics", self.metrics),
            clock=self.clock,
            rng=random.Random(1),
        )

    def _register(self) -> None:
        self.registrations += 1


def config_of(base_url: str = URL, **settings: Any) -> Config:
    """Give a configuration; `pull={"wait_s": 0}` sets keys of a section."""
    coordinator = {"base_url": base_url, **settings.pop("coordinator", {})}
    return Config.model_validate(
        {"node_id": "n1", "coordinator": coordinator, **settings}
    )


def gpu(index: int = 0, vram_mb: int = 8000) -> Gpu:
    """Give a GPU."""
    return Gpu(index=index, uuid=f"GPU-{index}", name="T", vram_mb=vram_mb)


def job_report(job_id: str = "j", **more: Any) -> dict[str, Any]:
    """Give a job as a pull or a sweep tells of it."""
    return {
        "job_id": job_id,
        "attempt": 1,
        "runner": "cli",
        "reservation": {
            "kind": "cpu",
            "cpu_threads": 1,
            "gpu_uuids": [],
            "vram_mb": 0,
        },
        "root": "/jobs",
        "net_s": 60.0,
        **more,
    }
