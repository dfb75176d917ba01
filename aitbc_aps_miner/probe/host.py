"""What the machine is and has free, as far as this process may use it."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from aitbc_aps_miner.probe.container import Limits, read_limits

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """CPU, memory and disk; limits of a container are respected."""

    cores: int
    """Logical CPUs that this process may keep busy."""
    arch: str
    os_id: str
    """`debian`, `ubuntu`…: the ID of os-release; `linux` where there is none."""
    memory_mb: int
    memory_free_mb: int
    swap_mb: int
    swap_free_mb: int
    disk_total_mb: int
    disk_free_mb: int
    disk_used_pct: float
    load1: float
    """Load average of the last minute, of the whole machine."""


def probe_host(
    workspace_root: Path, *, limits: Callable[[], Limits] = read_limits
) -> HostFacts:
    """Look at the machine and at the disk that holds `workspace_root`."""
    around = limits()
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    disk_total, disk_free, disk_used_pct = _disk(workspace_root)
    return HostFacts(
        cores=_cores(around),
        arch=platform.machine() or "unknown",
        os_id=_os_id(),
        memory_mb=_least(memory.total, around.memory_bytes) // _MIB,
        memory_free_mb=_least(memory.available, around.memory_free_bytes) // _MIB,
        swap_mb=swap.total // _MIB,
        swap_free_mb=swap.free // _MIB,
        disk_total_mb=disk_total // _MIB,
        disk_free_mb=disk_free // _MIB,
        disk_used_pct=disk_used_pct,
        load1=round(os.getloadavg()[0], 2),
    )


def _cores(around: Limits) -> int:
    # The affinity mask holds cpusets as well; a quota of 1.5 CPUs is one full one.
    usable = len(os.sched_getaffinity(0))
    return usable if around.cpus is None else max(1, min(usable, int(around.cpus)))


def _least(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


def _disk(path: Path) -> tuple[int, int, float]:
    """Give total and free bytes, and the used percentage as df(1) counts it."""
    while True:
        try:
            stat = os.statvfs(path)
        except OSError:
            if path == path.parent:
                return 0, 0, 0.0
            path = path.parent  # made by the first job; its parent's disk will hold it
            continue
        break
    free = stat.f_bavail * stat.f_frsize
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    # Blocks reserved for root are neither used nor ours to use.
    used_pct = round(100 * used / (used + free), 1) if used + free else 0.0
    return stat.f_blocks * stat.f_frsize, free, used_pct


def _os_id() -> str:
    try:
        return platform.freedesktop_os_release().get("ID", "linux")
    except OSError:
        return "linux"
