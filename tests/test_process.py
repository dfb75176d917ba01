"""process.py and what it is made of, by real programs, most of them bad ones."""

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_fakes import GRACE_S, FakeWatch, essence, program

from aitbc_aps_miner.channel import Channel
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import ExitCause, Progress
from aitbc_aps_miner.runners import launcher as launchers
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.disk import DiskWatch
from aitbc_aps_miner.runners.payload import Payload
from aitbc_aps_miner.runners.pump import CappedFile, Masker
from aitbc_aps_miner.sandbox import memory
from aitbc_aps_miner.sandbox.cgroup import Cgroup, find_base
from aitbc_aps_miner.sandbox.tree import KillLadder, ProcessTree
from aitbc_aps_miner.util import proc

MIB = 1 << 20
SLACK_S = 1.0  # how late a loaded machine may be


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Hold every test to leave no process behind."""
    before = set(proc.children(os.getpid()))
    yield
    assert set(proc.children(os.getpid())) - before == set()
    proc.adopt_orphans(adopt=False)  # as tests of other modules expect it


@pytest.fixture(params=["walk", "cgroup"])
def containment(request: pytest.FixtureRequest) -> Iterator[Containment]:
    """Contain by descent alone, and by a cgroup where there is one to be had."""
    base = find_base() if request.param == "cgroup" else None
    group = base.child(f"aps-payload-{os.getpid()}") if base is not None else None
    with Containment(group, prepare=True, open_guard=_watch_memory) as containment:
        yield containment
    if group is not None:
        assert group.is_empty()
        assert group.remove()


@pytest.fixture
def plain() -> Containment:
    """Contain without a cgroup and without a prepared fork."""
    return Containment(open_guard=_watch_memory)


def _watch_memory(_: Cgroup | None) -> memory.MemoryGuard:
    return memory.ResidentSetWatch()


def _log(directory: Path) -> str:
    return (directory / "exec.log").read_text()


class _Live(threading.Thread):
    """Does something to a payload once its log says that it is ready."""

    def __init__(self, log: Path, word: str, deed: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._log, self._word, self._deed = log, word, deed
        self.start()

    def run(self) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if self._log.exists() and self._word in self._log.read_text():
                self._deed()
                return
            time.sleep(0.01)


def test_a_payload_gets_what_is_meant_for_it_and_nothing_else(
    containment: Containment, tmp_path: Path
) -> None:
    """Descriptors, environment, limits, session and signals are made from nothing."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        payload = program(
            tmp_path, "show_self", "a b", "$HOME", env={"X": "1"}, stdin="given ä"
        )
        facts = containment.run(payload, FakeWatch(nice=3, nofile=64, output_mb=2))
    assert essence(facts) == (ExitCause.EXITED, 0, None, True)
    told = json.loads(_log(tmp_path))
    told["env"].pop("LC_CTYPE", None)  # Python's own doing in the C locale
    assert told == {
        "argv": ["a b", "$HOME"],
        "cwd": str(tmp_path),
        "env": {"X": "1"},
        "fds": [0, 1, 2],
        "stdin": "given ä",
        "nice": 3,
        "nofile": 64,
        "core": 0,
        "fsize": 2 * MIB + 1,
        "leads_session": True,
        "ignored": [],
        "blocked": 0,
        "umask": 0o077,
    }


@pytest.mark.parametrize(
    ("script", "code", "signum"),
    [("exit 0", 0, None), ("exit 3", 3, None), ("kill -9 $$", None, 9)],
)
def test_the_way_it_ended_is_told(
    plain: Containment, tmp_path: Path, script: str, code: int, signum: int
) -> None:
    """An exit code is a code, a signal is a signal."""
    payload = Payload(
        argv=("/bin/sh", "-c", script), env={}, cwd=tmp_path, logs=tmp_path
    )
    facts = plain.run(payload, FakeWatch())
    assert essence(facts) == (ExitCause.EXITED, code, signum, True)


@pytest.mark.parametrize(
    ("path", "mode", "number"),
    [("missing", None, errno.ENOENT), ("plain", 0o600, errno.EACCES)],
)
def test_what_cannot_be_executed_is_said_in_words(
    plain: Containment, tmp_path: Path, path: str, mode: int | None, number: int
) -> None:
    """A program that is missing or not executable ends as E_EXIT, nothing is left."""
    file = tmp_path / path
    if mode is not None:
        file.touch(mode)
    payload = Payload(argv=(str(file),), env={}, cwd=tmp_path, logs=tmp_path)
    with pytest.raises(JobError) as caught:
        plain.run(payload, FakeWatch())
    assert caught.value.code is ErrorCode.E_EXIT
    assert caught.value.message == (
        f"{file} could not be executed: {os.strerror(number)}"
    )
    assert caught.value.detail == {"path": str(file), "errno": number}


def test_arguments_beyond_the_kernel_are_said_in_words(
    plain: Containment, tmp_path: Path
) -> None:
    """A single argument over the kernel's 128 KiB is E_EXIT too."""
    payload = Payload(
        argv=("/bin/true", "x" * 200_000), env={}, cwd=tmp_path, logs=tmp_path
    )
    with pytest.raises(JobError, match="larger than the kernel takes"):
        plain.run(payload, FakeWatch())


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [
        (
            {"cwd": Path("/nonexistent")},
            ErrorCode.E_INTERNAL,
            "the payload could not be set up: working directory: No such file",
        ),
        (
            {"env": {"A": "\ud800"}},
            ErrorCode.E_EXIT,
            "/bin/true could not be executed: ",
        ),
    ],
)
def test_a_failure_before_the_exec_is_told_with_its_step(
    plain: Containment,
    tmp_path: Path,
    broken: dict[str, Any],
    code: ErrorCode,
    words: str,
) -> None:
    """What fails between fork and exec comes home in words."""
    basis = {"env": {}, "cwd": tmp_path, "logs": tmp_path, "argv": ("/bin/true",)}
    with pytest.raises(JobError) as caught:
        plain.run(Payload(**{**basis, **broken}), FakeWatch())
    assert caught.value.code is code
    assert caught.value.message.startswith(words)


def test_a_group_that_cannot_be_joined_stops_the_start(tmp_path: Path) -> None:
    """The payload never runs outside its group."""
    group = Cgroup(path=tmp_path / "gone")
    containment = Containment(group, open_guard=_watch_memory)
    payload = program(tmp_path, "show_self")
    with pytest.raises(JobError, match=r"set up: cgroup: No such file") as caught:
        containment.run(payload, FakeWatch())
    assert caught.value.code is ErrorCode.E_INTERNAL


def test_the_deadline_is_exact(containment: Containment, tmp_path: Path) -> None:
    """It is not rounded to the quarter seconds in which the rest is looked at."""
    payload = Payload(argv=("/bin/sleep", "60"), env={}, cwd=tmp_path, logs=tmp_path)
    began = time.monotonic()
    facts = containment.run(payload, FakeWatch(0.33))
    took_s = time.monotonic() - began
    assert essence(facts) == (ExitCause.DEADLINE, None, signal.SIGTERM, True)
    assert 0.33 <= took_s < 0.33 + 0.15


def test_a_program_may_say_goodbye(containment: Containment, tmp_path: Path) -> None:
    """What it prints after SIGTERM is kept, and its exit code too."""
    watch = FakeWatch(grace_s=5)
    watch.cause = lambda: ExitCause.CANCELLED if "hello" in _log(tmp_path) else None
    facts = containment.run(program(tmp_path, "say_goodbye"), watch)
    assert essence(facts) == (ExitCause.CANCELLED, 7, None, True)
    assert _log(tmp_path) == "hello\ngoodbye\n"


@pytest.mark.parametrize("cause", [ExitCause.CANCELLED, ExitCause.LEASE])
def test_one_that_ignores_sigterm_is_killed_after_its_grace(
    containment: Containment, tmp_path: Path, cause: ExitCause
) -> None:
    """SIGKILL follows exactly `grace_s` after SIGTERM."""
    since: list[float] = []

    def stop_cause() -> ExitCause | None:
        if "staying" not in _log(tmp_path):
            return None
        since.append(time.monotonic())
        return cause

    watch = FakeWatch()
    watch.cause = stop_cause
    facts = containment.run(program(tmp_path, "ignore_term"), watch)
    assert essence(facts) == (cause, None, signal.SIGKILL, True)
    assert GRACE_S <= time.monotonic() - since[0] < GRACE_S + SLACK_S


def test_a_stopped_program_takes_its_sigterm(
    plain: Containment, tmp_path: Path
) -> None:
    """SIGCONT goes with SIGTERM: nobody is killed for having been stopped."""
    payload = Payload(
        argv=("/bin/sh", "-c", "kill -STOP $$"), env={}, cwd=tmp_path, logs=tmp_path
    )
    facts = plain.run(payload, FakeWatch(0.1, grace_s=5))
    assert essence(facts) == (ExitCause.DEADLINE, None, signal.SIGTERM, True)


def test_a_daemon_that_holds_stdout_neither_hangs_us_nor_survives(
    containment: Containment, tmp_path: Path
) -> None:
    """The main process's end is the job's end; what it left is ended before."""
    pid_file = tmp_path / "pid"
    facts = containment.run(
        program(tmp_path, "double_fork", str(pid_file)), FakeWatch()
    )
    assert essence(facts) == (ExitCause.EXITED, 0, None, True)
    assert _log(tmp_path) == "main is done\n"
    assert not proc.is_alive(int(pid_file.read_text()))
    assert facts.wall_s < GRACE_S + SLACK_S


def test_one_that_closes_its_output_is_still_awaited(
    plain: Containment, tmp_path: Path
) -> None:
    """The end of the streams is not the end of the program."""
    facts = plain.run(program(tmp_path, "close_stdout"), FakeWatch())
    assert essence(facts) == (ExitCause.EXITED, 5, None, True)
    assert facts.wall_s >= 0.4


def test_a_flood_is_counted_and_capped(plain: Containment, tmp_path: Path) -> None:
    """The log keeps its cap and says what is missing; our memory stays as it was."""
    before_kib = _peak_kib()
    facts = plain.run(
        program(tmp_path, "flood_stdout", "200", keep_stdout=True),
        FakeWatch(log_mb=0.5),
    )
    assert essence(facts) == (ExitCause.EXITED, 0, None, True)
    assert facts.stdout_bytes == 200 * MIB
    dropped = 200 * MIB - MIB // 2
    assert facts.detail == {"log_dropped_bytes": dropped, "stdout_truncated": True}
    note = f"\n[{dropped} more bytes were printed and dropped]\n"
    log = (tmp_path / "exec.log").read_bytes()
    assert log[MIB // 2 :].decode() == note
    assert (tmp_path / "stdout.bin").stat().st_size == 64 * MIB
    assert _peak_kib() - before_kib < 16 * 1024


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_both_streams_go_to_the_log_and_stdout_alone_is_kept(
    plain: Containment, tmp_path: Path
) -> None:
    """An artifact can be filled from standard output alone; secrets are masked."""
    script = "echo one; echo two >&2; sleep 0.05; echo s3cret-value; exit 4"
    payload = Payload(
        argv=("/bin/sh", "-c", script),
        env={},
        cwd=tmp_path,
        logs=tmp_path,
        keep_stdout=True,
        secrets=("s3cret-value",),
    )
    facts = plain.run(payload, FakeWatch())
    assert sorted(_log(tmp_path).splitlines()) == ["***", "one", "two"]
    assert (tmp_path / "stdout.bin").read_text() == "one\n***\n"
    assert (facts.stdout_bytes, facts.detail) == (17, {"stdout_truncated": False})


def test_progress_is_reported_with_the_tail(plain: Containment, tmp_path: Path) -> None:
    """Percent from the output, its last 2 KiB, and how much there was."""
    heard: list[Progress] = []
    payload = Payload(
        argv=("/bin/sh", "-c", "echo 40 %; sleep 0.3"),
        env={},
        cwd=tmp_path,
        logs=tmp_path,
    )
    plain.run(payload, FakeWatch(), heard.append)
    assert heard == [Progress(pct=40, bytes_out=5, tail="40 %\n")]


def test_a_daemon_that_does_not_read_delays_no_deadline(
    plain: Containment, tmp_path: Path
) -> None:
    """The buffer to it is full, and the payload has news each second."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(theirs)
        for _ in range(10_000):
            channel.send("job", {"pct": 0})
        script = "for i in 1 2 3; do echo $i %; sleep 1; done; sleep 60"
        payload = Payload(
            argv=("/bin/sh", "-c", script), env={}, cwd=tmp_path, logs=tmp_path
        )
        began = time.monotonic()
        facts = plain.run(
            payload,
            FakeWatch(timeout_s=0.5),
            lambda news: channel.send("job", {"pct": news.pct}),
        )
    assert facts.cause is ExitCause.DEADLINE
    assert time.monotonic() - began < 0.5 + GRACE_S + SLACK_S


def test_memory_over_the_limit_ends_it_with_evidence(
    plain: Containment, tmp_path: Path
) -> None:
    """The resident-set watch kills, and says what it saw."""
    facts = plain.run(program(tmp_path, "eat_memory", "120"), FakeWatch(memory_mb=64))
    assert essence(facts) == (ExitCause.OOM, None, signal.SIGKILL, True)
    seen_mb = facts.detail["seen_mb"]
    assert facts.detail == {
        "mechanism": "resident-set",
        "limit_mb": 64,
        "seen_mb": seen_mb,
    }
    assert 64 < seen_mb < 200
    assert facts.max_rss_mb >= 64


@pytest.mark.parametrize("where", ["main", "child"])
def test_a_memory_group_ends_it_with_its_own_evidence(
    tmp_path: Path, where: str
) -> None:
    """The kernel's kill is E_OOM, also when it hit a child and the parent shrugged."""
    if memory.find_v1_memory() is None or os.geteuid() != 0:
        pytest.skip("no v1 memory controller that we may use")
    payload = program(tmp_path, "eat_memory", "300", where)
    with Containment(prepare=True) as containment:
        facts = containment.run(payload, FakeWatch(memory_mb=64))
    assert (facts.cause, facts.tree_empty) == (ExitCause.OOM, True)
    assert facts.detail == {
        "mechanism": "cgroup-v1",
        "limit_mb": 64,
        "seen_mb": facts.detail["seen_mb"],
        "oom_kills": 1,
    }
    assert 60 < facts.detail["seen_mb"] <= 64
    parent = memory.find_v1_memory()
    assert parent is not None
    assert list(parent.glob(f"aps-mem-{os.getpid()}-*")) == []


def test_too_much_on_disk_ends_it(plain: Containment, tmp_path: Path) -> None:
    """Many files together count; what was there before does not."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "input").write_bytes(bytes(3 * MIB))
    payload = program(tmp_path, "fill_disk", measured=(work,))
    payload = Payload(**{**vars(payload), "cwd": work})
    facts = plain.run(payload, FakeWatch(output_mb=2))
    assert essence(facts) == (ExitCause.OUTPUT, None, signal.SIGKILL, True)
    assert facts.detail["mechanism"] == "disk watch"
    assert facts.detail["limit_mb"] == 2
    assert facts.detail["seen_mb"] > 2


@pytest.mark.parametrize(
    "script",
    ["head -c 9000000 /dev/zero > big", "exec head -c 9000000 /dev/zero > big"],
)
def test_one_file_over_the_limit_ends_it_at_once(
    plain: Containment, tmp_path: Path, script: str
) -> None:
    """RLIMIT_FSIZE stops the write; it is told as too much output, not as a crash."""
    work = tmp_path / "work"
    work.mkdir()
    payload = Payload(
        argv=("/bin/sh", "-c", script),
        env={},
        cwd=work,
        logs=tmp_path,
        measured=(work,),
    )
    facts = plain.run(payload, FakeWatch(output_mb=2))
    assert facts.cause is ExitCause.OUTPUT
    assert (work / "big").stat().st_size == 2 * MIB + 1


def test_a_file_outside_the_measured_directories_is_limited_too(
    plain: Containment, tmp_path: Path
) -> None:
    """The signal is evidence enough."""
    payload = Payload(
        argv=("/bin/sh", "-c", "exec head -c 9000000 /dev/zero > big"),
        env={},
        cwd=tmp_path,
        logs=tmp_path,
    )
    facts = plain.run(payload, FakeWatch(output_mb=2))
    assert essence(facts) == (ExitCause.OUTPUT, None, signal.SIGXFSZ, True)


def test_limits_are_changed_in_every_thread_of_a_running_tree(
    containment: Containment, tmp_path: Path
) -> None:
    """An edit reaches processes and threads that were there before it."""
    watch = FakeWatch(grace_s=0)
    seen: list[set[int]] = []

    def nices() -> set[int]:
        # This process may have other children, from other tests.
        tree = [
            pid
            for child in proc.children(os.getpid())
            for pid in (child, *proc.descendants(child))
            if b"fork_children" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return {
            os.getpriority(os.PRIO_PROCESS, int(task.name))
            for pid in tree
            for task in Path(f"/proc/{pid}/task").iterdir()
        }

    def deed() -> None:
        watch.change(nice=9, memory_mb=4096)
        until = time.monotonic() + 5
        while nices() != {9} and time.monotonic() < until:
            time.sleep(0.02)
        seen.append(nices())
        watch.cause = lambda: ExitCause.CANCELLED

    _Live(tmp_path / "exec.log", "ready", deed)
    facts = containment.run(program(tmp_path, "fork_children", "3"), watch)
    assert seen == [{9}]
    assert essence(facts) == (ExitCause.CANCELLED, None, signal.SIGKILL, True)
    assert facts.detail == {}


def test_a_program_that_leaves_its_process_group_is_killed_too(
    containment: Containment, tmp_path: Path
) -> None:
    """Twenty daemonised descendants are gone when the run returns."""
    script = "for i in $(seq 20); do setsid sleep 61 & done; echo ready; sleep 60"
    payload = Payload(
        argv=("/bin/sh", "-c", script),
        env={"PATH": os.defpath},
        cwd=tmp_path,
        logs=tmp_path,
    )
    watch = FakeWatch()
    watch.cause = lambda: ExitCause.CANCELLED if _log(tmp_path) else None
    facts = containment.run(payload, watch)
    assert facts.tree_empty


def test_an_error_in_the_run_leaves_no_process(
    plain: Containment, tmp_path: Path
) -> None:
    """A watch that raises is a defect; the payload dies with it all the same."""

    def raise_something() -> ExitCause | None:
        raise RuntimeError("defect")

    watch = FakeWatch()
    watch.cause = raise_something
    payload = Payload(argv=("/bin/sleep", "60"), env={}, cwd=tmp_path, logs=tmp_path)
    with pytest.raises(RuntimeError, match="defect"):
        plain.run(payload, watch)


def test_a_prepared_fork_ends_with_its_owner(tmp_path: Path) -> None:
    """A job that ends without a payload leaves nothing, killed or not."""
    before = set(proc.children(os.getpid()))
    with Containment(prepare=True, open_guard=_watch_memory):
        assert len(set(proc.children(os.getpid())) - before) == 1
    assert set(proc.children(os.getpid())) == before


def test_the_payload_dies_when_the_job_process_is_killed(tmp_path: Path) -> None:
    """A job process killed by SIGKILL ends its direct payload through PDEATHSIG."""
    read, write = os.pipe()
    if (job := os.fork()) == 0:
        os.close(read)
        launcher = launchers.Launcher()
        launcher.start(
            launchers.Orders(
                argv=("/bin/sleep", "60"),
                env={},
                cwd=tmp_path,
                limits=FakeWatch().in_force,
            )
        )
        os.write(write, str(launcher.pid).encode())
        signal.pause()
        os._exit(1)
    os.close(write)
    payload = int(os.read(read, 20))
    os.close(read)
    assert proc.is_alive(payload)
    proc.adopt_orphans()  # to hear of its end
    os.kill(job, signal.SIGKILL)
    os.waitpid(job, 0)
    _, status = os.waitpid(payload, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_child_that_never_executes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hung file system under the program doesn't hang the job."""
    monkeypatch.setattr(launchers, "_START_S", 0.1)
    hung = tmp_path / "hung"
    os.mkfifo(hung)
    containment = Containment(open_guard=lambda _: _HungGuard(hung))
    with pytest.raises(JobError) as caught:
        containment.run(program(tmp_path, "show_self"), FakeWatch())
    assert str(caught.value) == (
        "E_INTERNAL: the payload could not be set up: start: not done in 0.1 s"
    )


class _HungGuard(memory.ResidentSetWatch):
    """A memory group whose joining never returns: a FIFO without a reader."""

    def __init__(self, procs: Path) -> None:
        super().__init__()
        self.procs = procs


def test_what_survives_sigkill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder gives up after a while and says so, rather than hang."""

    class Undead(ProcessTree):
        def is_empty(self) -> bool:
            return False

    now = [0.0]
    tree = Undead(None, main=os.getpid())
    monkeypatch.setattr(tree, "members", list)
    ladder = KillLadder(tree, lambda: now[0])
    assert not ladder.step()
    ladder.begin(1)
    ladder.begin(3)  # a later, longer grace changes nothing
    states = []
    for now[0] in (0.5, 1.0, 5.9, 6.0):
        states.append((ladder.step(), ladder.killed, ladder.stuck))
    assert states == [
        (False, False, False),
        (False, True, False),
        (False, True, False),
        (True, True, True),
    ]


def test_a_full_disk_costs_the_log_not_the_job() -> None:
    """What can't be written is counted as dropped."""
    full = CappedFile(Path("/dev/full"), 100)
    full.write(memoryview(b"x" * 40))
    full.write(memoryview(b"y" * 40))
    assert full.dropped_bytes == 80
    full.close("note")


@pytest.mark.parametrize(
    ("secrets", "pieces", "shown"),
    [
        ((), [b"plain"], [b"plain"]),
        (("abc",), [b"abcabc"], [b"abcabc"]),
        (("token",), [b"a to", b"ken b"], [b"a ", b"*** b"]),
        (("token", "token-2"), [b"token-", b"2!"], [b"***-", b"2!"]),
        (("aaab",), [b"aaa", b"aab"], [b"", b"aa***"]),
        (("token",), [b"to", b"day"], [b"", b"today"]),
    ],
)
def test_secrets_are_masked_across_reads(
    secrets: tuple[str, ...], pieces: list[bytes], shown: list[bytes]
) -> None:
    """Only what may yet become a secret is held back."""
    masker = Masker(secrets)
    assert [bytes(masker.feed(memoryview(each))) for each in pieces] == shown
    assert bytes(masker.flush()) == b""


def test_a_held_back_end_is_written_at_last() -> None:
    """The beginning of a secret is no secret."""
    masker = Masker(["token"])
    assert bytes(masker.feed(memoryview(b"tok"))) == b""
    assert bytes(masker.flush()) == b"tok"


def test_a_large_tree_is_measured_in_steps(tmp_path: Path) -> None:
    """A walk takes a few milliseconds at a time and goes on where it stopped."""
    for number in range(300):
        (tmp_path / str(number)).write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to("/usr")
    now = [0.0]

    def slow() -> float:
        now[0] += 0.004
        return now[0]

    empty = tmp_path / "sub"
    empty.mkdir()
    watch = DiskWatch([tmp_path, tmp_path / "gone"], 100, slow)
    (empty / "more").write_bytes(b"x" * 101)
    assert watch.step() is None
    assert watch.walking
    steps = [watch.step() for _ in range(10)]
    assert (steps[-1], watch.walking) == (None, False)
    assert 101 in steps
    assert watch.final() == 101
    assert DiskWatch([tmp_path], None, slow).final() is None
