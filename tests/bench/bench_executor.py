"""Measures the executor against its targets; each function gives a dict of numbers.

Run it: `python tests/bench/bench_executor.py`. Pairs are interleaved in one run, so
that a busy machine slows both sides.
"""

import json
import os
import queue
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aitbc_aps_miner.executor import (
    Isolated,
    PoolSettings,
    ProcessExecutor,
    TaskEnd,
    ZygoteSettings,
)
from aitbc_aps_miner.util import proc

PROGRAMS = str(Path(__file__).parents[1] / "programs")
GAP_S = 0.01
_PRELOADED = (
    "ticks",
    "httpx",
    "pydantic",
    "structlog",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "aitbc_aps_miner.config.model",
)
"""As much as the daemon's own zygote imports, where those modules are not asked for."""


class Bench:
    """An executor like the daemon's, and the messages of its functions."""

    def __init__(self, *, use_cgroups: bool = True) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        environ = {**os.environ, "PYTHONPATH": PROGRAMS}
        self.executor = ProcessExecutor(
            on_message=lambda _job_id, _name, payload: self.messages.put(payload),
            settings=PoolSettings(
                zygote=ZygoteSettings(preload=_PRELOADED, environ=environ),
                use_cgroups=use_cgroups,
            ),
        )

    def __enter__(self) -> Self:
        self.executor.open()
        self.call("nothing")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.executor.shutdown(wait=False)

    def call(self, name: str, deadline_s: float = 20, **kwargs: Any) -> TaskEnd:
        """Run one of the test functions."""
        isolated = Isolated(ref=f"ticks:{name}", deadline_s=deadline_s, kwargs=kwargs)
        return self.executor.call(isolated).end


def trivial_tick(rounds: int = 200) -> dict[str, float]:
    """Time a tick that does nothing against starting and awaiting /bin/true."""
    with Bench() as bench:
        ticks, spawns = [], []
        for _ in range(rounds):
            ticks.append(_timed(lambda: bench.call("nothing")))
            spawns.append(_timed(_spawn_true))
    return {
        "tick_ms": statistics.median(ticks) * 1e3,
        "tick_p90_ms": statistics.quantiles(ticks, n=10)[-1] * 1e3,
        "spawn_ms": statistics.median(spawns) * 1e3,
        "ratio": statistics.median(ticks) / statistics.median(spawns),
        "target_ratio": 0.5,
    }


def deadline_to_dead(
    rounds: int = 50, *, use_cgroups: bool = True, deadline_s: float = 0.08
) -> dict[str, float]:
    """Time from the deadline to the death of eight daemonised, stubborn descendants."""
    overshoots = []
    with Bench(use_cgroups=use_cgroups) as bench:
        for _ in range(rounds):
            time.sleep(GAP_S)
            started = time.monotonic()
            end = bench.call("family", deadline_s=deadline_s, count=8)
            pids = bench.messages.get(timeout=10)
            while any(map(proc.is_alive, pids)):
                pass
            overshoots.append(time.monotonic() - started - deadline_s)
            if end is not TaskEnd.TIMED_OUT:
                raise RuntimeError(f"ended as {end} and not at its deadline")
    return {
        "overshoot_ms": statistics.median(overshoots) * 1e3,
        "overshoot_max_ms": max(overshoots) * 1e3,
        "target_ms": 10.0,
    }


def memory() -> dict[str, float]:
    """Sum the PSS of daemon, zygote and two spares, in MiB."""
    with Bench() as bench:
        pool = bench.executor._pool
        deadline = time.monotonic() + 10
        while len(pool._idle) < 2 and time.monotonic() < deadline:
            time.sleep(GAP_S)
        zygote = pool._generations._current
        if zygote is None:
            raise RuntimeError("no zygote")
        daemon_mb, zygote_mb = _pss_mb(os.getpid()), _pss_mb(zygote.process.pid)
        spares_mb = sum(_pss_mb(spare.pid) for spare in pool._idle)
    return {
        "daemon_mb": daemon_mb,
        "zygote_mb": zygote_mb,
        "spares_mb": spares_mb,
        "total_mb": daemon_mb + zygote_mb + spares_mb,
    }


def idle(seconds: float = 5) -> dict[str, float]:
    """Count wake-ups and CPU of this process while nothing is due."""
    with Bench():
        time.sleep(0.5)
        before = _switches(), time.process_time()
        time.sleep(seconds)
        after = _switches(), time.process_time()
    return {
        "wakeups_per_s": (after[0] - before[0]) / seconds,
        "cpu_pct": (after[1] - before[1]) / seconds * 100,
    }


def _timed(work: Callable[[], object]) -> float:
    time.sleep(GAP_S)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spawn_true() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss of {pid}")


def _switches() -> int:
    """Count how often the threads of this process went to sleep and woke again."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


if __name__ == "__main__":
    measured = {
        "trivial_tick": trivial_tick(),
        "deadline_to_dead": deadline_to_dead(),
        "deadline_to_dead_walk": deadline_to_dead(use_cgroups=False),
        "memory": memory(),
        "idle": idle(),
    }
    json.dump(measured, sys.stdout, indent=2)
