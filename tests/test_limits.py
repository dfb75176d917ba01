"""limits.py and memory.py: kernel limits, and the three ways to limit memory."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aitbc_aps_miner.models import PayloadLimits
from aitbc_aps_miner.sandbox import limits, memory
from aitbc_aps_miner.sandbox.cgroup import Cgroup

MIB = 1 << 20
NO_PROCESS = 2**22 + 1  # above the largest pid there is


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with a second thread."""
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-S", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def _threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


@pytest.mark.parametrize(
    ("io_class", "level", "expected"),
    [
        ("best-effort", 3, (psutil.IOPRIO_CLASS_BE, 3)),
        ("idle", 5, (psutil.IOPRIO_CLASS_IDLE, 0)),
        ("none", 5, (psutil.IOPRIO_CLASS_NONE, 0)),
    ],
)
def test_priorities_reach_every_thread(
    sleeper: subprocess.Popen[bytes],
    io_class: str,
    level: int,
    expected: tuple[int, int],
) -> None:
    """Nice and I/O class, in a process that runs already; a gone pid is no problem."""
    wanted = PayloadLimits(nice=7, io_class=io_class, io_level=level)
    assert limits.apply_live([sleeper.pid, NO_PROCESS], wanted) == ()
    threads = _threads(sleeper.pid)
    assert len(threads) == 2
    for thread in threads:
        assert os.getpriority(os.PRIO_PROCESS, thread) == 7
        assert tuple(psutil.Process(thread).ionice()) == expected


def test_what_the_kernel_refuses_is_named(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user can't lower a nice value nor take the realtime class."""

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(limits, "set_io_priority", refuse)
    assert limits.apply_live([sleeper.pid], PayloadLimits()) == ("io", "nice")


def test_a_thread_that_ends_meanwhile_is_no_refusal(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads come and go between the look and the deed."""

    def gone(*_: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(limits, "set_io_priority", gone)
    assert limits.apply_live([sleeper.pid], PayloadLimits(nice=1)) == ()
    monkeypatch.setattr(os, "setpriority", gone)
    assert limits.apply_live([sleeper.pid], PayloadLimits(nice=1)) == ()


def test_an_io_priority_that_cannot_be_set_is_an_error() -> None:
    """The kernel's answer becomes an OSError."""
    with pytest.raises(ProcessLookupError):
        limits.set_io_priority(NO_PROCESS, "best-effort", 4)


def test_a_process_limits_itself() -> None:
    """In a child, since limits can't be taken back."""
    code = (
        "import os, resource, sys\n"
        "from aitbc_aps_miner.models import PayloadLimits\n"
        "from aitbc_aps_miner.sandbox.limits import limit_self\n"
        "limit_self(PayloadLimits(nice=5, nofile=10**9, output_mb=1.5))\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), soft == hard,\n"
        "      resource.getrlimit(resource.RLIMIT_CORE),\n"
        "      resource.getrlimit(resource.RLIMIT_FSIZE)[0],\n"
        "      open('/proc/self/oom_score_adj').read().strip())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"5 True (0, 0) {MIB * 3 // 2 + 1} 500\n"


def test_the_best_mechanism_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A v2 group with a memory controller, else v1, else the watch."""
    (tmp_path / "memory.max").touch()
    assert memory.open_guard(Cgroup(path=tmp_path)).mechanism == "cgroup-v2"
    monkeypatch.setattr(memory, "find_v1_memory", lambda: None)
    nothing = Cgroup(path=tmp_path / "without")
    assert memory.open_guard(nothing).mechanism == "resident-set"
    # A directory that takes groups but no limits, as without a controller.
    (tmp_path / "v1").mkdir()
    monkeypatch.setattr(memory, "find_v1_memory", lambda: tmp_path / "v1")
    assert memory.open_guard(None).mechanism == "resident-set"
    assert list((tmp_path / "v1").iterdir()) == []


def test_a_v2_group_is_limited_and_asked(tmp_path: Path) -> None:
    """By the kernel's files; the evidence names limit, peak and kills."""
    for name in ("memory.max", "memory.oom.group", "memory.swap.max"):
        (tmp_path / name).touch()
    guard = memory.CgroupV2Memory(tmp_path)
    assert guard.limit(64)
    assert (tmp_path / "memory.max").read_text() == str(64 * MIB)
    assert (tmp_path / "memory.oom.group").read_text() == "1"
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert guard.breach([]) is None
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert guard.breach([]) is None
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    old_kernel = guard.breach([])
    assert old_kernel is not None
    evidence = {"mechanism": "cgroup-v2", "limit_mb": 64, "oom_kills": 2}
    assert old_kernel.evidence() == evidence | {"seen_mb": 64}
    (tmp_path / "memory.peak").write_text(f"{63 * MIB}\n")
    breach = guard.breach([])
    assert breach is not None
    assert breach.evidence() == evidence | {"seen_mb": 63}
    guard.close()
    assert guard.procs is None


def test_no_limit_is_a_limit_too(tmp_path: Path) -> None:
    """It can be lifted; a kernel that refuses is believed."""
    (tmp_path / "memory.max").touch()
    guard = memory.CgroupV2Memory(tmp_path)
    assert guard.limit(None)
    assert (tmp_path / "memory.max").read_text() == "max"
    (tmp_path / "memory.max").unlink()
    assert not guard.limit(5)
    (tmp_path / "memory.max").symlink_to("/dev/full")
    assert not guard.limit(5)


def test_a_v1_group_comes_and_goes(tmp_path: Path) -> None:
    """Made for one payload, limited live, removed; those of the dead as well."""
    parent = memory.find_v1_memory()
    if parent is None or os.geteuid() != 0:
        pytest.skip("no v1 memory controller that we may use")
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    abandoned = parent / f"aps-mem-{dead.pid}-test"
    abandoned.mkdir()
    guard = memory.CgroupV1Memory(parent)
    assert not abandoned.exists()
    assert guard.procs is not None
    limit = guard.procs.with_name("memory.limit_in_bytes")
    values = []
    for memory_mb in (64, 16, 128):
        assert guard.limit(memory_mb)
        values.append(int(limit.read_text()) // MIB)
    assert values == [64, 16, 128]
    assert guard.limit(None)
    assert int(limit.read_text()) > 1 << 60
    assert guard.breach([]) is None
    guard.close()
    assert not guard.procs.parent.exists()
    assert guard.breach([]) is None


MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
    "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    ("mounts", "membership", "found"),
    [
        (MOUNTS, "4:memory:/a/b\n0::/\n", "/sys/fs/cgroup/memory/a/b"),
        (MOUNTS, "4:cpu,memory:/\n", "/sys/fs/cgroup/memory"),
        (MOUNTS, "0::/\n", None),
        (MOUNTS.replace(",memory", ",cpu"), "4:memory:/a\n", None),
        (
            MOUNTS.replace("0:32 / ", "0:32 /docker/x "),
            "4:memory:/docker/x/y\n",
            "/sys/fs/cgroup/memory/y",
        ),
        (MOUNTS.replace("0:32 / ", "0:32 /other "), "4:memory:/a\n", None),
    ],
)
def test_the_v1_group_is_found_by_mount_and_membership(
    tmp_path: Path, mounts: str, membership: str, found: str | None
) -> None:
    """As /proc says, also in a container that sees the host's path."""
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "own").write_text(membership)
    path = memory.find_v1_memory(tmp_path / "mounts", tmp_path / "own")
    assert path == (None if found is None else Path(found))


def test_resident_memory_is_measured_without_counting_shared_pages_twice() -> None:
    """Ten forks of a large process are not ten times as large."""
    code = (
        "import os, time\n"
        "data = b'x' * (30 << 20)\n"
        "for _ in range(9):\n"
        "    if os.fork() == 0: os.write(1, b'.'); time.sleep(60)\n"
        "os.write(1, b'.'); time.sleep(60)\n"
    )
    guard = memory.ResidentSetWatch()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        pids = [process.pid, *(c.pid for c in psutil.Process(process.pid).children())]
        assert memory.resident_mb(pids) > 200
        assert guard.breach(pids) is None  # no limit yet
        assert guard.limit(150)
        assert guard.breach(pids) is None
        assert guard.limit(20)
        breach = guard.breach(pids)
        for pid in pids:
            os.kill(pid, 9)
    guard.close()
    assert breach is not None
    assert 30 < breach.seen_mb < 150
    assert breach.evidence() == {
        "mechanism": "resident-set",
        "limit_mb": 20,
        "seen_mb": round(breach.seen_mb, 1),
    }
    assert memory.resident_mb(pids[:1]) == 0
