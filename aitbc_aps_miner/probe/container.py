"""What the control groups around this process leave of the machine's memory and CPUs.

Reads cgroup v2 and v1 alike, at our own group and every group above it: the tightest
limit counts. Mounts are found through mountinfo, for they lie anywhere in containers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")
# v1 says "unlimited" by 2^63 rounded down to a page; no machine has an exbibyte.
_UNLIMITED = 2**60


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The tightest limits found; None where there is none."""

    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Names:
    """How one cgroup version calls its files."""

    limit: str
    usage: str
    cache: str
    """Key of memory.stat: page cache that the kernel gives back before it kills."""


_V1 = _Names(
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    cache="total_inactive_file",
)
_V2 = _Names(limit="memory.max", usage="memory.current", cache="inactive_file")


def read_limits(root: Path = Path("/")) -> Limits:
    """Give the limits in force; `root` stands in for / in tests. Never raises."""
    memory: list[int] = []
    free: list[int] = []
    cpus: list[float] = []
    for names, group in _groups(root):
        limit = _number(group / names.limit)
        if limit is not None and limit < _UNLIMITED:
            memory.append(limit)
            used = (_number(group / names.usage) or 0) - _cache(group, names)
            free.append(max(0, limit - max(0, used)))
        if (quota := _cpus(group)) is not None:
            cpus.append(quota)
    return Limits(
        memory_bytes=min(memory, default=None),
        memory_free_bytes=min(free, default=None),
        cpus=min(cpus, default=None),
    )


def _groups(root: Path) -> Iterator[tuple[_Names, Path]]:
    """Give our group and its ancestors in every hierarchy that holds limits."""
    own = _own_groups(root)
    for names, controllers, fs_root, mount_point in _mounts(root):
        path = next((own[key] for key in controllers if key in own), None)
        if path is None:
            continue
        mount = root / mount_point.lstrip("/")
        # Inside a cgroup namespace or a bind mount our path may not lie below it.
        inside = Path(path).is_relative_to(fs_root) and ".." not in Path(path).parts
        group = mount / Path(path).relative_to(fs_root) if inside else mount
        while group != mount:
            yield names, group
            group = group.parent
        yield names, mount


def _own_groups(root: Path) -> dict[str, str]:
    """Give controller → path of our group; "" is the one of v2."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounts(root: Path) -> Iterator[tuple[_Names, tuple[str, ...], str, str]]:
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:  # noqa: PLR2004 - proc(5), mountinfo
            continue
        fs_root, mount_point = (_unescape(field) for field in fields[3:5])
        if kind[0] == "cgroup2":
            yield _V2, ("",), fs_root, mount_point
        elif kind[0] == "cgroup":
            controllers = {"memory", "cpu"}.intersection(kind[2].split(","))
            yield _V1, tuple(controllers), fs_root, mount_point


def _cpus(group: Path) -> float | None:
    quota: int | None
    period: int | None
    words = next(_lines(group / "cpu.max"), "").split()
    if len(words) == 2:  # noqa: PLR2004 - "quota period"
        quota, period = _int(words[0]), _int(words[1])
    else:
        quota = _number(group / "cpu.cfs_quota_us")
        period = _number(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _cache(group: Path, names: _Names) -> int:
    for line in _lines(group / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == names.cache:
            return _int(value) or 0
    return 0


def _number(path: Path) -> int | None:
    return _int(next(_lines(path), ""))


def _int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None  # "max", or nothing


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
