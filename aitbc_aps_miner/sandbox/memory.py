"""The memory limit of a payload's tree, by the best mechanism there is.

cgroup v2 `memory.max`, else a v1 memory group of our own, else a watch on resident
memory. Each says with evidence when the limit ended something; MB are MiB.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aitbc_aps_miner.sandbox.cgroup import Cgroup

MIB = 1 << 20
_V1_PREFIX = "aps-mem-"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED_V2 = "max"
_UNLIMITED_V1 = "-1"


@dataclass(frozen=True, kw_only=True)
class Breach:
    """The limit was hit: what the mechanism saw."""

    mechanism: str
    limit_mb: int | None
    seen_mb: float
    kills: int | None = None
    """Processes that the kernel killed; None where we are the ones who kill."""

    def evidence(self) -> Mapping[str, Any]:
        """Give the breach in an outcome's words."""
        words = {
            "mechanism": self.mechanism,
            "limit_mb": self.limit_mb,
            "seen_mb": round(self.seen_mb, 1),
        }
        return words if self.kills is None else words | {"oom_kills": self.kills}


class MemoryGuard(Protocol):
    """Limits the memory of one tree."""

    @property
    def mechanism(self) -> str:
        """`cgroup-v2`, `cgroup-v1` or `resident-set`."""
        ...

    @property
    def procs(self) -> Path | None:
        """The file into which the payload writes itself before its exec."""
        ...

    def limit(self, memory_mb: int | None) -> bool:
        """Put a limit, or none, in force; False when the kernel refuses."""
        ...

    def breach(self, pids: Iterable[int]) -> Breach | None:
        """Say whether the tree of `pids` went over its limit."""
        ...

    def close(self) -> None:
        """Take away what was made for the guard; the tree is empty by now."""
        ...


def open_guard(payload: Cgroup | None) -> MemoryGuard:
    """Choose the best mechanism that works here for the group `payload`."""
    if payload is not None and os.access(payload.path / "memory.max", os.W_OK):
        return CgroupV2Memory(payload.path)
    with contextlib.suppress(OSError):
        parent = find_v1_memory()
        if parent is not None:
            return CgroupV1Memory(parent)
    return ResidentSetWatch()


class CgroupV2Memory:
    """memory.max of the payload's own group."""

    mechanism = "cgroup-v2"
    # It joins its v2 group anyway.
    procs: Path | None = None

    def __init__(self, group: Path) -> None:
        self._group = group
        self._limit_mb: int | None = None
        # All of the tree goes at once, never one process whose loss goes unnoticed.
        _put(group / "memory.oom.group", "1")
        # Swapped memory isn't resident, but a machine that swaps helps nobody.
        _put(group / "memory.swap.max", "0")

    def limit(self, memory_mb: int | None) -> bool:
        """Write memory.max."""
        value = _UNLIMITED_V2 if memory_mb is None else str(memory_mb * MIB)
        if not _put(self._group / "memory.max", value):
            return False
        self._limit_mb = memory_mb
        return True

    def breach(self, pids: Iterable[int]) -> Breach | None:
        """Ask memory.events for kills of the kernel."""
        del pids
        kills = _counter(self._group / "memory.events", "oom_kill")
        if not kills:
            return None
        peak = _number(self._group / "memory.peak")  # Linux 5.19
        return Breach(
            mechanism=self.mechanism,
            limit_mb=self._limit_mb,
            seen_mb=(self._limit_mb or 0) if peak is None else peak / MIB,
            kills=kills,
        )

    def close(self) -> None:
        """Leave the group to its owner."""


class CgroupV1Memory:
    """A v1 memory group of our own below the one that we are in."""

    mechanism = "cgroup-v1"

    def __init__(self, parent: Path) -> None:
        _remove_abandoned(parent)
        name = f"{_V1_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._group = parent / name
        self._group.mkdir()
        self.procs: Path | None = self._group / "cgroup.procs"
        self._limit_mb: int | None = None
        if not self.limit(None):
            self.close()
            raise PermissionError(f"{self._group} takes no limit")

    def limit(self, memory_mb: int | None) -> bool:
        """Write the limit of memory and of memory + swap.

        The second may never be below the first: which comes first depends on the
        direction, so it is tried on both sides. Refused (EBUSY) when more is in use
        than can be taken back.
        """
        value = _UNLIMITED_V1 if memory_mb is None else str(memory_mb * MIB)
        _put(self._group / "memory.memsw.limit_in_bytes", value)
        if not _put(self._group / "memory.limit_in_bytes", value):
            return False
        _put(self._group / "memory.memsw.limit_in_bytes", value)
        self._limit_mb = memory_mb
        return True

    def breach(self, pids: Iterable[int]) -> Breach | None:
        """Ask memory.oom_control for kills of the kernel (Linux 4.13)."""
        del pids
        kills = _counter(self._group / "memory.oom_control", "oom_kill")
        if not kills:
            return None
        peak = _number(self._group / "memory.max_usage_in_bytes")
        return Breach(
            mechanism=self.mechanism,
            limit_mb=self._limit_mb,
            seen_mb=(peak or 0) / MIB,
            kills=kills,
        )

    def close(self) -> None:
        """Remove the group; one that something still lives in stays, for later."""
        with contextlib.suppress(OSError):
            self._group.rmdir()


class ResidentSetWatch:
    """Sums up the resident memory of the tree; whoever asks does the killing."""

    mechanism = "resident-set"
    procs: Path | None = None

    def __init__(self) -> None:
        self._limit_mb: int | None = None

    def limit(self, memory_mb: int | None) -> bool:
        """Remember the limit."""
        self._limit_mb = memory_mb
        return True

    def breach(self, pids: Iterable[int]) -> Breach | None:
        """Measure the tree.

        Pages shared by forks count once for each in the cheap sum, so a sum over the
        limit is checked against the proportional one, which costs a page-table walk.
        """
        if self._limit_mb is None:
            return None
        members = tuple(pids)
        limit_bytes = self._limit_mb * MIB
        if sum(map(_resident, members)) <= limit_bytes:
            return None
        seen = sum(map(_proportional, members))
        if seen <= limit_bytes:
            return None
        return Breach(
            mechanism=self.mechanism, limit_mb=self._limit_mb, seen_mb=seen / MIB
        )

    def close(self) -> None:
        """Nothing was made."""


def resident_mb(pids: Iterable[int]) -> float:
    """Sum up the resident memory of `pids`; pages that they share count for each."""
    return sum(map(_resident, pids)) / MIB


def find_v1_memory(
    mountinfo: Path = Path("/proc/self/mountinfo"),
    membership: Path = Path("/proc/self/cgroup"),
) -> Path | None:
    """Find the v1 memory group that the caller is in; None where there is none."""
    own: str | None = None
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = path
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if own is None or kind != "cgroup" or "memory" not in options.split(","):
            continue
        root, mount_point = fields.split()[3:5]
        # A container without a cgroup namespace sees its host path as the root.
        if Path(own).is_relative_to(root):
            return Path(mount_point) / Path(own).relative_to(root)
    return None


def _remove_abandoned(parent: Path) -> None:
    """Remove groups of job processes that were killed before they could."""
    for group in parent.glob(f"{_V1_PREFIX}*"):
        pid = group.name.removeprefix(_V1_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _proportional(pid: int) -> int:
    """Give the proportional set size; the resident one where it isn't readable."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return _resident(pid)
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _put(control: Path, value: str) -> bool:
    """Write a kernel file that exists already; whether the kernel took it."""
    try:
        fd = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    pairs = (line.split() for line in lines)
    return next((int(value) for key, value in pairs if key == name), 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
