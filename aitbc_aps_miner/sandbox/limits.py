"""Kernel limits of a payload: set once before its exec, changed live in each thread.

Memory is not here (see memory.py): the kernel has no limit for a tree without a
cgroup. RLIMIT_AS is not used, because it breaks CUDA, and RLIMIT_NPROC is not,
because it does not bind root.
"""

import contextlib
import ctypes
import os
import platform
import resource
from collections.abc import Iterable
from pathlib import Path

from aitbc_aps_miner.models import PayloadLimits

MIB = 1 << 20

# Above every ordinary process: when the machine runs out of memory, the payload goes
# before the daemon. Raising one's own score needs no right.
_OOM_SCORE_ADJ = "500"
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
# linux/ioprio.h
_IO_CLASSES = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
# Numbers of ioprio_set; glibc has no wrapper. 30 is asm-generic/unistd.h (aarch64,
# riscv64, loongarch64).
_IOPRIO_SET = {"x86_64": 251, "i686": 289, "ppc64le": 273, "s390x": 282, "armv7l": 314}
_IOPRIO_SET_GENERIC = 30

_libc = ctypes.CDLL(None, use_errno=True)


def limit_self(limits: PayloadLimits) -> None:
    """Limit the calling process, which is to become the payload.

    Priorities that the kernel refuses are left as they are: `apply_live` tells which.
    Raises OSError when an rlimit cannot be set.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    _prioritise(0, limits)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limits.nofile
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.output_mb is not None:
        # One byte more than allowed, so that a file that hit it measures as too large.
        size = int(limits.output_mb * MIB) + 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def apply_live(pids: Iterable[int], limits: PayloadLimits) -> tuple[str, ...]:
    """Set the priorities of every thread of `pids`; name what the kernel refused.

    By thread, because setpriority and ioprio_set move one thread, whatever their
    manual pages say of processes.
    """
    refused: set[str] = set()
    for pid in pids:
        try:
            threads = [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - names are all that is needed
        except OSError:
            continue  # it ended meanwhile
        for thread in threads:
            refused.update(_prioritise(thread, limits))
    return tuple(sorted(refused))


def set_io_priority(thread: int, io_class: str, io_level: int) -> None:
    """Set the I/O class and level of one thread, 0 for the caller. Raises OSError."""
    io_number = _IO_CLASSES[io_class]
    # "none" and "idle" have no levels; the kernel refuses one with "none".
    level = io_level if io_class in {"realtime", "best-effort"} else 0
    priority = io_number << _IOPRIO_CLASS_SHIFT | level
    number = _IOPRIO_SET.get(platform.machine(), _IOPRIO_SET_GENERIC)
    if _libc.syscall(number, _IOPRIO_WHO_PROCESS, thread, priority) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _prioritise(thread: int, limits: PayloadLimits) -> list[str]:
    """Set nice and I/O priority of a thread; name what was refused."""
    refused = []
    try:
        os.setpriority(os.PRIO_PROCESS, thread, limits.nice)
    except ProcessLookupError:
        return []
    except OSError:
        refused.append("nice")
    try:
        set_io_priority(thread, limits.io_class, limits.io_level)
    except ProcessLookupError:
        return []
    except OSError:
        refused.append("io")
    return refused
