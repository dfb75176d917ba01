"""cgroup.py against real groups where the machine has them, and files where not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbc_aps_miner.sandbox import cgroup
from aitbc_aps_miner.sandbox.cgroup import Cgroup

DAEMONISE = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        break
else:
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """Give a fresh group; the test cannot say anything on a machine without any."""
    base = cgroup.find_base()
    if base is None:
        pytest.skip("no writable cgroup v2 here")
    group = base.child(f"aps-test-{os.getpid()}")
    yield group
    group.kill()
    assert group.wait_empty(5)
    assert group.remove()


def test_killing_a_group_kills_daemonised_descendants_below_it(group: Cgroup) -> None:
    """`kill` reaches processes that left session and parent, in nested groups too."""
    nested = group.child("payload")
    with subprocess.Popen(
        [sys.executable, "-c", DAEMONISE], stdout=subprocess.PIPE
    ) as process:
        # Moved before it can have forked: it is still starting its interpreter.
        nested.join(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        members = group.pids()
        assert process.pid in members
        assert not group.is_empty()
        assert not group.wait_empty(0.01)
        assert not group.remove()
        group.kill()
        assert group.wait_empty(5)
        assert process.wait() == -signal.SIGKILL
    assert group.pids() == []
    assert group.is_empty()


def test_a_process_joins_by_itself(group: Cgroup) -> None:
    """`join()` without a pid moves the caller."""
    pid = os.fork()
    if pid == 0:
        try:
            group.join()
            os._exit(0 if group.pids() == [os.getpid()] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_joining_with_a_dead_pid_says_so(group: Cgroup) -> None:
    """A pid that is gone is a ProcessLookupError."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        group.join(process.pid)


def test_enabling_gives_only_what_is_in_force(group: Cgroup) -> None:
    """Controllers that the parent does not hand down are not claimed."""
    wanted = frozenset({"memory", "pids", "nonsense"})
    assert group.enable(wanted) == wanted & group.controllers()


def test_making_a_group_twice_gives_the_same_group(group: Cgroup) -> None:
    """`child` tolerates a group that is there."""
    assert group.child("sup") == group.child("sup")


def test_a_group_that_is_gone_is_empty_and_harmless(tmp_path: Path) -> None:
    """Every question about a removed group has an answer."""
    gone = Cgroup(path=tmp_path / "gone")
    gone.kill()
    assert gone.is_empty()
    assert gone.wait_empty(0)
    assert gone.pids() == []
    assert gone.remove()
    assert gone.controllers() == frozenset()
    assert gone.enable(frozenset({"pids"})) == frozenset()


MOUNT = "41 31 0:38 {root} {point} rw,relatime - cgroup2 cgroup2 rw\n"
OTHER = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("mountinfo", "membership", "expected"),
    [
        (OTHER + MOUNT.format(root="/", point="/cg"), "1:cpu:/\n0::/a/b\n", "/cg/a/b"),
        (MOUNT.format(root="/docker/x", point="/cg"), "0::/docker/x/y\n", "/cg/y"),
        (MOUNT.format(root="/", point="/a\\040b"), "0::/\n", "/a b"),
        (MOUNT.format(root="/docker/x", point="/cg"), "0::/elsewhere\n", None),
        (OTHER, "0::/\n", None),
        (MOUNT.format(root="/", point="/cg"), "1:cpu:/\n", None),
    ],
)
def test_the_own_group_is_found_through_the_mounts(
    tmp_path: Path, mountinfo: str, membership: str, expected: str | None
) -> None:
    """Mount root and membership together name the directory."""
    mounts, member = tmp_path / "mountinfo", tmp_path / "cgroup"
    mounts.write_text(mountinfo)
    member.write_text(membership)
    wanted = Cgroup(path=Path(expected)) if expected else None
    assert cgroup.own_group(mounts, member) == wanted
    assert cgroup.own_group(tmp_path / "none", member) is None


def test_a_directory_that_is_no_cgroup_is_not_usable(tmp_path: Path) -> None:
    """The probe moves a process for real, so a plain directory does not pass."""
    assert not cgroup._is_usable(Cgroup(path=tmp_path))
    assert not cgroup._is_usable(Cgroup(path=tmp_path / "none"))
