"""What runs in the forked processes: the package's own functions, looked at closely."""

import os
import sys
import time
from typing import Any

from aitbc_aps_miner import job
from aitbc_aps_miner.world import World

_MODULES = frozenset(sys.modules)
"""What the zygote has imported; whatever comes later is paid for by each child."""


def echo_job(
    channel: Any, *, fsync: bool, began_boottime: float, **kwargs: Any
) -> dict[str, Any]:
    """Run a job as it is, or with an fsync that does nothing; tell what it cost."""
    entered = _boottime()
    synced: list[float] = []
    kept = os.fsync

    def watching(fd: Any) -> None:
        started = time.perf_counter()
        if fsync:
            kept(fd)
        synced.append(time.perf_counter() - started)

    os.fsync = watching
    report = job.run(channel, **kwargs)
    return {
        "report": report,
        "fsyncs": len(synced),
        "fsync_s": sum(synced),
        "handed_s": entered - began_boottime,
        "imported": sorted(set(sys.modules) - _MODULES - {__name__}),
    }


def long_poll(
    channel: Any, *, config: str, token: str, extensions: None, body: dict[str, Any]
) -> dict[str, Any]:
    """Pull as the pull tick does; say when the answer was parsed."""
    world = World(channel, config, token, extensions)
    with world.coordinator() as coordinator:
        channel.send("polling")
        jobs = coordinator.pull(
            body["node_id"], body["filters"], body["max_jobs"], wait_s=30
        )
    return {"at": time.monotonic(), "jobs": jobs}


def imports_of(channel: Any, *, ref: str, kwargs: dict[str, Any]) -> list[str]:
    """Run a tick and name the modules that it imported on its own account."""
    module, _, name = ref.partition(":")
    getattr(sys.modules[module], name)(channel, **kwargs)
    return sorted(set(sys.modules) - _MODULES - {__name__})


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
