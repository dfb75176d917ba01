"""Rows about ticks: a trivial one, a heartbeat, a hang at its deadline, the config."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_executor
from bench_table import Row
from bench_tools import Scale, in_turn, median, ms, timed
from bench_world import LikeTheDaemon, Site

from aitbc_aps_miner import tasks, world
from aitbc_aps_miner.config.source import DOUBT_S, ConfigSource

TRIVIAL_LIMIT = 0.5
HEARTBEAT_LIMIT = 2.5
DEAD_MS = 10.0
UNCHANGED_US = 10.0

_CHECKS = 1000
_BORN_S = 0.2
"""Time for the descendants to be born in, also on a busy machine."""


def trivial_tick(scale: Scale, _directory: Path) -> list[Row]:
    """Time a tick that does nothing against starting and awaiting /bin/true."""
    rounds = scale.rounds(200)
    found = bench_executor.trivial_tick(rounds)
    return [
        Row(
            name="trivial tick in a fresh, imported process",
            measured=f"{found['tick_ms']:.2f} ms",
            reference=f'posix_spawn("/bin/true") + wait: {found["spawn_ms"]:.2f} ms',
            ratio=found["ratio"],
            target=f"≤ {TRIVIAL_LIMIT}",
            met=found["ratio"] <= TRIVIAL_LIMIT,
            rounds=rounds,
        )
    ]


def heartbeat_tick(scale: Scale, directory: Path) -> list[Row]:
    """Time a whole heartbeat in a process of its own against the same in a thread."""
    rounds = scale.rounds(100)
    with Site(directory) as site, LikeTheDaemon(site) as node:
        world.warm()
        site.post("/nodes/heartbeat", node_id="bench-node")
        with ThreadPoolExecutor(1) as threads:
            inside = node.call(
                "bench_inside:imports_of",
                ref="aitbc_aps_miner.tasks:heartbeat",
                kwargs=site.heartbeat_kwargs(),
            )
            ticks, calls, trips = in_turn(
                rounds,
                _checked(
                    lambda: node.call(
                        "aitbc_aps_miner.tasks:heartbeat", **site.heartbeat_kwargs()
                    )
                ),
                _checked(
                    lambda: threads.submit(
                        tasks.heartbeat, NoLine(), **site.heartbeat_kwargs()
                    ).result()
                ),
                lambda: timed(
                    lambda: site.post("/nodes/heartbeat", node_id="bench-node")
                ),
            )
    ratio = median(ticks) / median(calls)
    return [
        Row(
            name="whole heartbeat tick, over HTTP",
            measured=ms(ticks),
            reference=f"the same code in a thread: {ms(calls)}",
            ratio=ratio,
            target=f"≤ {HEARTBEAT_LIMIT}",
            met=ratio <= HEARTBEAT_LIMIT,
            rounds=rounds,
            notes=(
                f"one heartbeat on a kept connection takes {ms(trips)}",
                f"modules imported after the fork: {', '.join(inside) or 'none'}",
            ),
        )
    ]


def deadline(scale: Scale, _directory: Path) -> list[Row]:
    """Time from the deadline until eight stubborn, daemonised descendants are dead."""
    rounds = scale.rounds(50)
    rows = []
    for how, use_cgroups in (("cgroup.kill", True), ("walking the tree", False)):
        found = bench_executor.deadline_to_dead(
            rounds, use_cgroups=use_cgroups, deadline_s=_BORN_S
        )
        rows.append(
            Row(
                name=f"deadline → a hang that ignores SIGTERM and 8 daemonised "
                f"descendants dead, by {how}",
                measured=f"{found['overshoot_ms']:.2f} ms",
                reference=f"slowest {found['overshoot_max_ms']:.2f} ms",
                target=f"≤ {DEAD_MS:g} ms",
                met=found["overshoot_ms"] <= DEAD_MS,
                rounds=rounds,
            )
        )
    return rows


def unchanged_config(scale: Scale, directory: Path) -> list[Row]:
    """Time the look at a configuration file that nobody edited."""
    path = directory / "config.toml"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(
        'node_id = "bench"\n[coordinator]\nbase_url = "http://127.0.0.1:1/api/v1"\n'
        f'[workspace]\nroot = "{directory / "jobs"}"\n'
    )
    path.chmod(0o600)
    clock = _Later()
    source = ConfigSource(path, {}, clock)
    clock.ahead_s = DOUBT_S + 1  # the bytes of a file this young are compared, too
    source.check()
    rounds = scale.rounds(50)
    checks, stats = in_turn(rounds, _each(source.check), _each(path.stat), gap_s=0.0)
    took_us = median(checks) * 1e6
    return [
        Row(
            name="unchanged configuration, per tick",
            measured=f"{took_us:.1f} µs",
            reference=f"one stat with pathlib: {median(stats) * 1e6:.1f} µs",
            ratio=median(checks) / median(stats),
            target=f"≤ {UNCHANGED_US:g} µs",
            met=took_us <= UNCHANGED_US,
            rounds=rounds,
        )
    ]


class NoLine:
    """A line to a daemon that hears nothing, for ticks outside its processes."""

    closed = False

    def send(self, kind: str, payload: Any = None) -> None:
        """Say nothing."""

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        """Refuse to answer."""
        raise TimeoutError(kind)


class _Later:
    """A monotonic clock that can be put forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def _checked(tick: Callable[[], Any]) -> Callable[[], float]:
    """Time a tick whose report must not tell of an error."""

    def work() -> float:
        started = time.perf_counter()
        report = tick()
        took_s = time.perf_counter() - started
        if "error" in report:
            raise RuntimeError(report["error"])
        return took_s

    return work


def _each(work: Callable[[], object]) -> Callable[[], float]:
    def many() -> float:
        started = time.perf_counter()
        for _ in range(_CHECKS):
            work()
        return (time.perf_counter() - started) / _CHECKS

    return many
