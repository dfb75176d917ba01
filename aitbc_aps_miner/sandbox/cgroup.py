"""One cgroup v2 directory: make it, join it, kill it, see it empty, remove it.

Needs no controllers: membership and `cgroup.kill` are what it is for. Limits are
written by others into the files of `Cgroup.path`. Source of every rule:
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SPARE_PREFIX = "aps-"
"""The groups of the executor's children are named so."""
SUPERVISOR, PAYLOAD = "sup", "payload"
"""The two groups in each of these: the child itself, and what a job starts."""

_FIRST_PAUSE_S = 0.0002
_LONGEST_PAUSE_S = 0.005
_GROWTH = 1.1
"""So that the last pause is a tenth of the whole wait and not half of it."""


@dataclass(frozen=True, kw_only=True)
class Cgroup:
    """A directory of the cgroup v2 tree. Methods raise OSError where they say so."""

    path: Path

    def child(self, name: str) -> "Cgroup":
        """Make the group `name` below this one; fine when it is there already.

        Raises OSError when it may not be made.
        """
        group = Cgroup(path=self.path / name)
        group.path.mkdir(exist_ok=True)
        return group

    def join(self, pid: int = 0) -> None:
        """Move the process `pid`, by default the caller, with all of its threads.

        Raises OSError: ProcessLookupError when it is gone, PermissionError, EBUSY
        when this group hands controllers to its children and so holds none itself.
        """
        _write(self.path / "cgroup.procs", str(pid))

    def kill(self) -> None:
        """Kill every process at or below this group; a group that is gone has none."""
        with contextlib.suppress(OSError):
            # ENOENT, or ENODEV: it comes from a group removed between open and write.
            _write(self.path / "cgroup.kill", "1")

    def pids(self) -> list[int]:
        """List the live processes at or below this group; zombies don't count."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            # Groups vanish while they are walked.
            with contextlib.suppress(OSError):
                found += map(int, Path(directory, "cgroup.procs").read_text().split())
        return found

    def is_empty(self) -> bool:
        """Whether no process is left at or below this group."""
        try:
            events = (self.path / "cgroup.events").read_text()
        except FileNotFoundError:
            # Gone, or the root of the tree, which has no such file.
            return not self.pids()
        except OSError:
            return True  # ENODEV: removed between open and read
        return "populated 0" in events

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no process is left; False when `timeout_s` passed first.

        Looks again and again: the kernel sends at most one change notice of
        `cgroup.events` per 10 ms, and a killed tree is gone within one.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while not self.is_empty():
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(pause_s * _GROWTH, _LONGEST_PAUSE_S)
        return True

    def remove(self) -> bool:
        """Remove this group and those below it; False while something lives in one."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        return not self.path.exists()

    def controllers(self) -> frozenset[str]:
        """Name the controllers this group may hand to its children."""
        try:
            return frozenset((self.path / "cgroup.controllers").read_text().split())
        except OSError:
            return frozenset()

    def enable(self, controllers: frozenset[str]) -> frozenset[str]:
        """Hand `controllers` to the children; give those that are in force now.

        One by one, since the kernel refuses all when it refuses one. It refuses
        while this group, unless it is the root, holds processes itself.
        """
        control = self.path / "cgroup.subtree_control"
        for name in sorted(controllers & self.controllers()):
            with contextlib.suppress(OSError):
                _write(control, f"+{name}")
        try:
            return controllers & frozenset(control.read_text().split())
        except OSError:
            return frozenset()


def find_base() -> Cgroup | None:
    """Find the caller's own group, if groups can really be made and used in it.

    None without a cgroup2 mount, where it is read-only or another's, and on kernels
    before 5.14, which lack `cgroup.kill`.
    """
    own = own_group()
    return own if own is not None and _is_usable(own) else None


def own_group(
    mountinfo: Path = Path("/proc/self/mountinfo"),
    membership: Path = Path("/proc/self/cgroup"),
) -> Cgroup | None:
    """Find the cgroup v2 directory that the caller is in; None without one."""
    try:
        mounts, memberships = mountinfo.read_text(), membership.read_text()
    except OSError:
        return None
    own = next(
        (line[3:] for line in memberships.splitlines() if line.startswith("0::")), None
    )
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if own is None or not rest.startswith("cgroup2 "):
            continue
        root, mount_point = (_unescape(field) for field in fields.split()[3:5])
        # A container without a cgroup namespace sees its host path as the root.
        if Path(own).is_relative_to(root):
            return Cgroup(path=Path(mount_point) / Path(own).relative_to(root))
    return None


def _write(control: Path, text: str) -> None:
    """Write to a kernel file; never make one where there is no cgroup."""
    fd = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes (proc(5))."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def _is_usable(base: Cgroup) -> bool:
    """Whether a process can be moved into a new group below `base` and killed there."""
    try:
        group = base.child(f"aps-probe-{os.getpid()}-{secrets.token_hex(4)}")
    except OSError:
        return False
    # Reads its pipe until it is killed, or until the pipe is closed below.
    wait = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    try:
        with subprocess.Popen(wait, stdin=subprocess.PIPE) as probe:
            try:
                group.join(probe.pid)
                _write(group.path / "cgroup.kill", "1")
            finally:
                probe.kill()
                probe.wait()
                group.wait_empty(1)
    except OSError:
        return False
    finally:
        group.remove()
    return True
