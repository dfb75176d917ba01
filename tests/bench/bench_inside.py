"""What runs in the forked processes: the package's own functions, looked at closely."""

import os
import sys
import time
from typing import Any

from aitbc_aps_miner import job
from aitbc_aps_miner.world import World


def echo_job(
    channel: Any, *, fsync: bool, began_boottime: float, **kwargs: Any
) -> dict[str, Any]:
    """Run a job as it is, or with an fsync that does nothing; tell what it cost."""
    entered, known = _boottime(), set(sys.modules)
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
        "imported": sorted(set(sys.modules) - known),
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
    known = set(sys.modules)
    module, _, name = ref.partition(":")
    getattr(sys.modules[module], name)(channel, **kwargs)
    return sorted(set(sys.modules) - known)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
