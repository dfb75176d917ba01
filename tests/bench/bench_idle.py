"""Rows about a daemon that has nothing to do: wake-ups, CPU, memory."""

import time
from pathlib import Path
from typing import Any

from bench_table import Row
from bench_tools import Activity, Scale, activity, pss_mb, wait_until
from bench_world import Daemon, Site

_QUIET: dict[str, dict[str, Any]] = {
    "heartbeat": {"interval_s": "1h"},
    "sweep": {"interval_s": "1h"},
    "probe": {"interval_s": "1h"},
    "pull": {"wait_s": 300},
}
_SETTLE_S = 2.5
"""How long its processes stay the same before it counts as idle: by then spares are
filled up, and the configuration is old enough to be trusted by its stat."""


def idle(scale: Scale, directory: Path) -> list[Row]:
    """Watch the real daemon wait at a long poll, with nothing due."""
    seconds = scale.of(60, 1)
    with Site(directory, **_QUIET) as site, Daemon(site) as daemon:
        job_id = site.submit()
        wait_until(lambda: site.state_of(job_id) == "succeeded", 60, "one job is done")
        family = _settled_family(daemon, scale.of(_SETTLE_S, 0.5))
        before = _activities(family)
        time.sleep(seconds)
        after = _activities(family)
        done = {name: after[name].since(before[name]) for name in family}
        spares = sorted(family["forks"], key=pss_mb)[:2]
        memory = {
            "daemon": pss_mb(daemon.pid),
            "zygote": sum(map(pss_mb, family["zygote"])),
            "two spares": sum(map(pss_mb, spares)),
        }
    cpu_s = sum(each.cpu_s for each in done.values())
    wakeups = sum(each.wakeups for each in done.values())
    return [
        Row(
            name=f"nothing due for {seconds:g} s, a long poll open",
            measured=f"{wakeups / seconds:.2f} wake-ups/s, "
            f"{cpu_s / seconds * 100:.4f} % of a core",
            rounds=1,
            notes=(
                "of these "
                + ", ".join(
                    f"{name} {each.wakeups} wake-ups and {each.cpu_s * 1e3:.1f} ms"
                    for name, each in done.items()
                ),
            ),
        ),
        Row(
            name="memory of daemon + zygote + two spares (PSS)",
            measured=f"{sum(memory.values()):.1f} MiB",
            rounds=1,
            notes=(", ".join(f"{name} {mb:.1f} MiB" for name, mb in memory.items()),),
        ),
    ]


def _settled_family(daemon: Daemon, settle_s: float) -> dict[str, list[int]]:
    until = time.monotonic() + 60
    family: dict[str, list[int]] = {}
    while (before := family) != (family := daemon.family()) or len(family["forks"]) < 3:
        if time.monotonic() > until:
            raise TimeoutError(f"its processes keep changing: {before}, {family}")
        time.sleep(settle_s)
    return family


def _activities(family: dict[str, list[int]]) -> dict[str, Activity]:
    return {name: activity(pids) for name, pids in family.items()}
