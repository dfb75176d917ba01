"""proc.py, clock.py and loop.py with real processes and real timers."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from aitbc_aps_miner.util import proc
from aitbc_aps_miner.util.clock import ClockStepWatch, SystemClock, TimerFd
from aitbc_aps_miner.util.loop import Loop

TREE = """
import os, time
from aitbc_aps_miner.util import proc
proc.adopt_orphans()
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(60)
os.wait(), os.wait()
print("ready", flush=True)
time.sleep(60)
"""
HIDDEN = """
import os, signal
from aitbc_aps_miner.util import proc
PR_GET_DUMPABLE = 3
before = proc._libc.prctl(PR_GET_DUMPABLE)
proc.hide_memory()
print(before, proc._libc.prctl(PR_GET_DUMPABLE), proc.die_with_parent(1))
proc.outlive_parent()
"""


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process with two daemonised descendants that it adopted."""
    with subprocess.Popen(
        [sys.executable, "-c", TREE], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("has_children_file", [True, False])
def test_a_tree_is_seen_and_killed_below_its_root(
    tree: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    has_children_file: bool,
) -> None:
    """Daemonised descendants come up below the adopter, with either way of looking."""
    monkeypatch.setattr(proc, "_HAS_CHILDREN", has_children_file)
    found = proc.descendants(tree.pid)
    assert len(found) == 2
    assert proc.kill_descendants(tree.pid, 5)
    assert [pid for pid in found if proc.is_alive(pid)] == []
    assert proc.is_alive(tree.pid)


def test_killing_gives_up_in_time(
    tree: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree that won't die doesn't hold the caller."""
    monkeypatch.setattr(proc, "descendants", lambda _pid: [2**22 + 1])
    assert not proc.kill_descendants(tree.pid, 0.01)


def test_a_process_is_told_from_a_later_one_of_its_pid(
    tree: subprocess.Popen[bytes],
) -> None:
    """Start ticks are there while it lives, and None once it is gone."""
    pidfd = os.pidfd_open(tree.pid)
    ticks = proc.start_ticks(tree.pid)
    assert ticks is not None
    assert ticks >= (proc.start_ticks(os.getpid()) or 0)
    assert proc.send_signal(pidfd, signal.SIGKILL)
    tree.wait()
    assert not proc.send_signal(pidfd, signal.SIGKILL)
    assert proc.start_ticks(tree.pid) is None
    assert proc.children(tree.pid) == []
    assert not proc.is_alive(tree.pid)
    os.close(pidfd)


def test_memory_is_hidden_and_a_foreign_parent_is_noticed() -> None:
    """The process becomes undumpable; that pid 1 isn't its parent is told."""
    run = subprocess.run(
        [sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=True
    )
    assert run.stdout == "1 0 False\n"


def test_a_refused_prctl_is_an_oserror() -> None:
    """The kernel's no isn't swallowed."""
    with pytest.raises(OSError, match="Invalid argument"):
        proc._prctl(-1, 0)


@dataclass
class FakeClock:
    """Clocks that stand where they are put."""

    realtime_s: float = 1e9
    boottime_s: float = 50.0

    def realtime(self) -> float:
        """Give the wall clock."""
        return self.realtime_s

    def monotonic(self) -> float:
        """Give the boot clock, nothing was suspended."""
        return self.boottime_s

    def boottime(self) -> float:
        """Give the boot clock."""
        return self.boottime_s

    def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.realtime_s += seconds
        self.boottime_s += seconds


def test_a_step_is_what_the_wall_clock_did_alone() -> None:
    """Time that passes is no step; a set clock is, once, in either direction."""
    clock = FakeClock()
    watch = ClockStepWatch(clock)
    clock.sleep(100)
    assert watch.step() == 0
    clock.realtime_s += 3600
    assert watch.step() == 3600
    assert watch.step() == 0
    clock.realtime_s -= 7200
    assert watch.step() == -7200
    watch.close()


def test_setting_the_real_clock_makes_the_watch_readable() -> None:
    """The kernel tells it; the clock is set to what it shows already."""
    watch = ClockStepWatch(SystemClock())
    try:
        assert select.select([watch], [], [], 0)[0] == []
        try:
            time.clock_settime_ns(
                time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME)
            )
        except PermissionError:
            # Without CAP_SYS_TIME nobody here can set it: only quiet can be seen.
            assert abs(watch.step()) < 1
            return
        assert select.select([watch], [], [], 5)[0] == [watch]
        assert abs(watch.step()) < 1
        assert select.select([watch], [], [], 0)[0] == []
    finally:
        watch.close()


def test_the_system_clock_goes_on() -> None:
    """All clocks move with a sleep."""
    clock = SystemClock()
    before = (clock.realtime(), clock.monotonic(), clock.boottime())
    clock.sleep(0.001)
    after = (clock.realtime(), clock.monotonic(), clock.boottime())
    assert all(b < a for b, a in zip(before, after, strict=True))


def test_a_timer_is_due_when_it_is_told() -> None:
    """Due at once for the past, never when disarmed."""
    timer = TimerFd()
    timer.arm(0)
    assert select.select([timer], [], [], 5)[0] == [timer]
    timer.drain()
    timer.arm(time.monotonic() + 0.005)
    assert select.select([timer], [], [], 5)[0] == [timer]
    timer.disarm()
    assert select.select([timer], [], [], 0)[0] == []
    timer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        timer.arm(1)


def test_a_loop_handles_descriptors_timers_and_posts() -> None:
    """Each calls its handler in the loop's thread; `stop` ends it."""
    heard: list[object] = []
    loop = Loop(lambda: heard.append("timer"))
    read, write = os.pipe()

    def on_pipe() -> None:
        heard.append(os.read(read, 10))
        loop.unwatch(read)
        loop.unwatch(read)
        loop.after_batch(lambda: os.close(read))

    loop.watch(read, on_pipe)
    batch = threading.Event()
    thread = threading.Thread(target=loop.run, args=(batch.set,))
    thread.start()
    for act, expected in (
        (lambda: os.write(write, b"x"), b"x"),
        (lambda: loop.arm([time.monotonic() + 60, 0]), "timer"),
        (lambda: loop.post(lambda: heard.append("posted")), "posted"),
    ):
        batch.clear()
        act()
        assert batch.wait(10)
        assert heard.pop() == expected
    loop.arm([])
    loop.post(loop.stop)
    thread.join(10)
    loop.close()
    loop.post(lambda: heard.append("too late"))
    loop.arm([0])
    os.close(write)
    assert heard == []
