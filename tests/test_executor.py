"""executor.py with real zygotes, real processes and a real APScheduler."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import (
    EVENT_ALL,
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobExecutionEvent,
)
from apscheduler.schedulers.background import BackgroundScheduler

from aitbc_aps_miner.executor import (
    Isolated,
    OverlapFilter,
    PoolSettings,
    ProcessExecutor,
    TaskEnd,
    TaskFailedError,
    TaskOutcome,
    ZygoteSettings,
)
from aitbc_aps_miner.sandbox.cgroup import find_base
from aitbc_aps_miner.util import proc

PROGRAMS = str(Path(__file__).parent / "programs")
ZYGOTE = ZygoteSettings(
    preload=("ticks",),
    warm="ticks:warm",
    environ={**os.environ, "PYTHONPATH": PROGRAMS},
)
MODES = [True, False] if find_base() else [False]
"""With cgroups where the machine has them, and by walking trees everywhere."""


class Daemon:
    """An executor and what its functions told it."""

    def __init__(self, **settings: Any) -> None:
        self.messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.later: Future[str] = Future()
        self.executor = ProcessExecutor(
            on_message=self._on_message,
            settings=PoolSettings(**({"zygote": ZYGOTE} | settings)),
        )

    def _on_message(self, _job_id: str, name: str, payload: Any) -> Any:
        match name:
            case "double":
                return payload * 2
            case "later":
                self.messages.put((name, payload))
                return self.later
            case "unsayable":
                return object()
            case "giant":
                return "x" * (4 << 20)
            case "fail":
                raise LookupError(payload)
            case _:
                pass
        self.messages.put((name, payload))
        return None

    def call(
        self, name: str, deadline_s: float | None = 20, **kwargs: Any
    ) -> TaskOutcome:
        """Run one of the test functions."""
        return self.executor.call(
            Isolated(ref=f"ticks:{name}", deadline_s=deadline_s, kwargs=kwargs)
        )

    def start(self, name: str, **kwargs: Any) -> "Future[TaskOutcome]":
        """Run one in a thread."""
        ended: Future[TaskOutcome] = Future()
        threading.Thread(
            target=lambda: ended.set_result(self.call(name, **kwargs)), daemon=True
        ).start()
        return ended

    def zygote_pid(self) -> int:
        """Give the pid of the zygote in use."""
        current = self.executor._pool._generations._current
        assert current is not None
        return current.process.pid


def eventually(check: Callable[[], object], what: str, within_s: float = 10) -> None:
    """Wait until `check` is true."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.002)


def all_dead(pids: list[int]) -> bool:
    """Whether none of `pids` is alive."""
    return not any(map(proc.is_alive, pids))


@pytest.fixture(scope="module", params=MODES, ids=lambda m: "cgroup" if m else "walk")
def shared_daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Give an executor that many tests share, as it outlives many ticks."""
    daemon = Daemon(use_cgroups=request.param)
    daemon.executor.open()
    yield daemon
    daemon.executor.shutdown(wait=True)


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Daemon:
    """Give the shared executor without what it heard in another test."""
    shared_daemon.messages = queue.SimpleQueue()
    return shared_daemon


@pytest.fixture(params=MODES, ids=lambda m: "cgroup" if m else "walk")
def own_daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Give an executor of the test's own, to be broken."""
    daemon = Daemon(use_cgroups=request.param)
    daemon.executor.open()
    yield daemon
    daemon.executor.shutdown(wait=False)


def test_a_value_comes_back(daemon: Daemon) -> None:
    """With its duration; each call in a process of its own."""
    outcome = daemon.call("echo", a=[1, "ü", None])
    assert outcome.unwrap() == {"a": [1, "ü", None]}
    assert 0 < outcome.duration_s < 20
    pids = {daemon.call("who").unwrap()["pid"] for _ in range(5)}
    assert len(pids) == 5
    assert os.getpid() not in pids


def test_spares_are_clean_and_warm(daemon: Daemon) -> None:
    """Signals as at start, no stdio of ours, one thread, warmed, own randomness."""
    assert daemon.call("dispositions").unwrap() == [True, True, ["/dev/null"] * 3, 1]
    assert daemon.call("is_warm").unwrap() is True
    assert daemon.call("draws").unwrap() != daemon.call("draws").unwrap()


ENDS: list[tuple[str, dict[str, Any], TaskEnd, str]] = [
    ("raise_it", {"what": "value"}, TaskEnd.RAISED, "a value"),
    ("raise_it", {"what": "unpicklable"}, TaskEnd.RAISED, "__str__ raises"),
    ("raise_it", {"what": "hostile"}, TaskEnd.RAISED, "hostile"),
    ("raise_it", {"what": "exit"}, TaskEnd.RAISED, "4"),
    ("raise_it", {"what": "interrupt"}, TaskEnd.RAISED, ""),
    ("return_object", {}, TaskEnd.RAISED, "type object is not expressible as JSON"),
    ("giant", {"megabytes": 9}, TaskEnd.RAISED, "at most"),
    ("no_such_function", {}, TaskEnd.RAISED, "no_such_function"),
    ("echo", {"channel": 1}, TaskEnd.RAISED, "multiple values"),
    ("leave", {"code": 3}, TaskEnd.DIED, "code 3"),
    ("leave", {"code": 0}, TaskEnd.DIED, "code 0"),
    ("kill_itself", {"signum": 9}, TaskEnd.DIED, "SIGKILL"),
    ("kill_itself", {"signum": 40}, TaskEnd.DIED, "signal 40"),
    ("crash", {}, TaskEnd.DIED, "SIGSEGV"),
    ("close_everything", {}, TaskEnd.DIED, "without a result"),
    ("half_a_frame", {}, TaskEnd.GARBLED, "inside a frame"),
    ("write_junk", {"how": "length"}, TaskEnd.GARBLED, "4294967295 bytes"),
    ("write_junk", {"how": "json"}, TaskEnd.GARBLED, "not JSON"),
    ("write_junk", {"how": "list"}, TaskEnd.GARBLED, "not an object"),
    ("write_junk", {"how": "unknown"}, TaskEnd.GARBLED, "huh"),
    ("write_junk", {"how": "fields"}, TaskEnd.GARBLED, "value"),
]


@pytest.mark.parametrize(("name", "kwargs", "end", "words"), ENDS)
def test_every_misbehaviour_has_its_own_end(
    daemon: Daemon, name: str, kwargs: dict[str, Any], end: TaskEnd, words: str
) -> None:
    """It is told at once, in words; the executor goes on."""
    outcome = daemon.call(name, **kwargs)
    assert (outcome.end, words in outcome.message) == (end, True), outcome
    with pytest.raises(TaskFailedError, match=str(end)):
        outcome.unwrap()
    assert daemon.call("echo", still=True).unwrap() == {"still": True}


def test_evidence_is_the_childs_own(daemon: Daemon) -> None:
    """Type, traceback, code and signal say where it happened."""
    raised = daemon.call("raise_it", what="unpicklable")
    assert raised.type == "UnpicklableError"
    assert "in raise_it" in raised.traceback
    assert daemon.call("leave", code=3).exit_code == 3
    crashed = daemon.call("crash")
    assert crashed.signal == signal.SIGSEGV
    assert "in crash" in crashed.traceback


@pytest.mark.parametrize("name", ["spin", "sleep", "hang_in_c", "family"])
def test_a_hang_ends_at_its_deadline_with_a_traceback(
    daemon: Daemon, name: str
) -> None:
    """In Python, in a system call, in C under the lock, and with SIGTERM ignored."""
    outcome = daemon.call(name, deadline_s=0.1)
    assert outcome.end is TaskEnd.TIMED_OUT
    assert outcome.message == "not done after 0.1 s"
    assert f"in {name}" in outcome.traceback
    assert 0.1 <= outcome.duration_s < 1


@pytest.mark.parametrize(
    ("then", "end"),
    [
        ("hang", TaskEnd.TIMED_OUT),
        ("die", TaskEnd.DIED),
        ("return", TaskEnd.RETURNED),
    ],
)
def test_daemonised_descendants_die_with_their_tick(
    daemon: Daemon, then: str, end: TaskEnd
) -> None:
    """However it ends; where it didn't return, before its end is told."""
    # Enough for its forks also while coverage is measured.
    outcome = daemon.call("family", 1 if then == "hang" else 20, then=then)
    name, pids = daemon.messages.get(timeout=10)
    assert (outcome.end, name, len(pids)) == (end, "family", 3)
    # Where it didn't return they are dead by now, but for the last instant of an
    # exit, in which a process has left its group and isn't yet a zombie.
    within_s = 10 if then == "return" else 0.1
    eventually(lambda: all_dead(pids), "the end of the descendants", within_s)


def test_nothing_is_left_of_a_tick(daemon: Daemon) -> None:
    """Neither its group, nor a descriptor, nor an entry among the running."""

    def is_quiet() -> bool:
        pool = daemon.executor._pool
        return len(pool._spares) == len(pool._idle) == 2

    eventually(is_quiet, "two idle spares")
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(10):
        daemon.call("echo")
    daemon.call("spin", deadline_s=0.05)
    eventually(is_quiet, "two idle spares again")
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert daemon.executor.running() == {}
    base = find_base()
    if base is not None and daemon.executor._pool._generations._base is not None:
        groups = list(base.path.glob(f"aps-{daemon.zygote_pid()}-*"))
        assert len(groups) == 2


def test_functions_talk_and_ask(daemon: Daemon) -> None:
    """Messages come in order; answers come back, from many threads too."""
    assert daemon.call("chatter", names=["a", "b"]).unwrap() == "said"
    said = [daemon.messages.get(timeout=10) for _ in range(2)]
    assert said == [("a", {"n": "a"}), ("b", {"n": "b"})]
    assert daemon.call("ask_in_threads", count=5).unwrap() == [0, 2, 4, 6, 8]
    assert daemon.call("print_a_lot").unwrap() == "clean"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("fail", "AskRefusedError", "LookupError: why"),
        ("unsayable", "AskRefusedError", "not expressible as JSON"),
        ("giant", "AskRefusedError", "at most 65536"),
    ],
)
def test_an_ask_without_an_answer_is_an_error_of_the_asker(
    daemon: Daemon, name: str, error: str, words: str
) -> None:
    """Never of the executor."""
    answer = daemon.call("ask", question=name, payload="why").unwrap()
    assert answer["error"] == error
    assert words in answer["message"]


def test_an_answer_may_come_later(daemon: Daemon) -> None:
    """Another tick may run before the Future that answers is done."""
    daemon.later = Future()
    asking = daemon.start("ask", question="later")
    assert daemon.messages.get(timeout=10) == ("later", None)
    daemon.later.set_result(daemon.call("echo", token="t").unwrap()["token"])
    assert asking.result(10).unwrap() == {"answer": "t"}


def test_a_running_task_is_seen_and_killed(daemon: Daemon) -> None:
    """`running` tells what is there, `kill` ends it and says why."""
    ended = daemon.start("sleep", deadline_s=60)
    eventually(daemon.executor.running, "a running task")
    [(job_id, task)] = daemon.executor.running().items()
    assert proc.is_alive(task.pid)
    assert not task.detached
    assert task.deadline_at_monotonic == pytest.approx(task.started_at_monotonic + 60)
    daemon.executor.kill("another")
    daemon.executor.kill(job_id, "no longer wanted")
    outcome = ended.result(10)
    assert (outcome.end, outcome.message) == (
        TaskEnd.DIED,
        "killed: no longer wanted",
    )
    assert not proc.is_alive(task.pid)


def test_arguments_that_json_cannot_say_are_refused(daemon: Daemon) -> None:
    """Before any process is used up."""
    outcome = daemon.call("echo", a=object())
    assert outcome.end is TaskEnd.REFUSED
    assert "not expressible as JSON" in outcome.message


def test_a_detached_task_lives_on_its_own(daemon: Daemon, tmp_path: Path) -> None:
    """It has its own session and still tells its end; its leftovers die."""
    path = tmp_path / "go"
    ended = daemon.start("go_detached", path=str(path))
    assert daemon.messages.get(timeout=10)[0] == "detached"
    eventually(
        lambda: [task.detached for task in daemon.executor.running().values()],
        "a detached task",
    )
    path.touch()
    assert ended.result(10).unwrap() == "detached result"
    assert path.read_text() == "done closed=False sid=True"
    assert daemon.messages.get(timeout=10)[0] == "going"
    daemon.call("go_detached", then="family").unwrap()
    assert daemon.messages.get(timeout=10)[0] == "detached"
    _, pids = daemon.messages.get(timeout=10)
    eventually(lambda: all_dead(pids), "the end of its descendants")


@pytest.mark.parametrize("use_cgroups", MODES)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_mute_zygote_is_replaced(
    signum: int, use_cgroups: bool, tmp_path: Path
) -> None:
    """Its tick ends and is told; its detached job goes on and still tells its end."""
    daemon = Daemon(spare_timeout_s=0.3, use_cgroups=use_cgroups)
    daemon.executor.open()
    path = tmp_path / "go"
    job = daemon.start("go_detached", path=str(path))
    _, job_pid = daemon.messages.get(timeout=10)
    tick = daemon.start("family")
    _, pids = daemon.messages.get(timeout=10)
    eventually(lambda: len(daemon.executor._pool._idle) == 2, "two spares")
    before = daemon.zygote_pid()
    os.kill(before, signum)
    # A stopped zygote shows when the spares run out.
    for number in range(4):
        outcome = daemon.call("echo", n=number)
        assert outcome.end in {TaskEnd.RETURNED, TaskEnd.DIED}
    outcome = tick.result(10)
    assert outcome.end is TaskEnd.DIED
    assert "zygote is gone" in outcome.message or "SIGKILL" in outcome.message
    eventually(lambda: all_dead(pids), "the end of the tick's descendants")
    assert daemon.zygote_pid() != before
    assert proc.is_alive(job_pid)
    path.touch()
    assert job.result(10).unwrap() == "detached result"
    daemon.executor.shutdown(wait=False)


def test_a_new_generation_takes_over(own_daemon: Daemon) -> None:
    """Running ticks end on the old zygote, which ends with them."""
    own_daemon.call("echo")
    before = own_daemon.zygote_pid()
    ended = own_daemon.start("sleep", seconds=0.5)
    eventually(own_daemon.executor.running, "a running tick")
    own_daemon.executor.new_generation("another CA")
    assert own_daemon.call("who").unwrap()["ppid"] != before
    assert ended.result(10).end is TaskEnd.RETURNED
    eventually(lambda: not proc.is_alive(before), "the end of the old zygote")


def test_a_spare_that_dies_unused_is_replaced(own_daemon: Daemon) -> None:
    """No task is lost to it, whoever notices first."""
    pool = own_daemon.executor._pool
    for _ in range(3):
        eventually(lambda: len(pool._idle) == 2, "two idle spares")
        for spare in list(pool._idle):
            proc.send_signal(spare.pidfd, signal.SIGKILL)
        assert own_daemon.call("echo", ok=1).end in {TaskEnd.RETURNED, TaskEnd.DIED}
    eventually(lambda: len(pool._idle) == 2, "two idle spares")
    assert own_daemon.call("echo", ok=1).unwrap() == {"ok": 1}


def test_an_undelivered_task_is_given_to_another_spare(own_daemon: Daemon) -> None:
    """A write that fails means that it didn't run: it runs elsewhere, once."""
    pool = own_daemon.executor._pool
    eventually(lambda: len(pool._idle) == 2, "two idle spares")
    pool._idle[0].sock.shutdown(2)
    assert own_daemon.call("echo", ok=1).unwrap() == {"ok": 1}
    eventually(lambda: len(pool._idle) == 2, "two idle spares")
    for spare in pool._idle:
        spare.sock.shutdown(2)
    assert own_daemon.call("echo", ok=2).unwrap() == {"ok": 2}


@pytest.mark.parametrize(
    ("zygote", "words"),
    [
        (ZygoteSettings(preload=("no_such_module_",)), "No module named"),
        (ZygoteSettings(python="/no/such/python"), "No such file"),
    ],
)
def test_a_zygote_that_cannot_start_says_why(
    zygote: ZygoteSettings, words: str
) -> None:
    """Tasks are refused with the reason; it is tried again, ever less often."""
    daemon = Daemon(zygote=zygote, start_timeout_s=0.6)
    daemon.executor.open()
    outcome = daemon.call("echo")
    assert outcome.end is TaskEnd.REFUSED
    assert words in outcome.message
    assert 2 <= daemon.executor._pool._generations._failures <= 5
    daemon.executor.shutdown(wait=False)


def test_shutting_down_is_quick_and_leaves_detached_jobs(
    own_daemon: Daemon, tmp_path: Path
) -> None:
    """Within a second the ticks are dead and told; the job goes on and ends alone."""
    path = tmp_path / "go"
    own_daemon.start("go_detached", path=str(path))
    _, job_pid = own_daemon.messages.get(timeout=10)
    tick = own_daemon.start("family", deadline_s=None)
    _, pids = own_daemon.messages.get(timeout=10)
    zygote = own_daemon.zygote_pid()
    started = time.monotonic()
    own_daemon.executor.shutdown(wait=False)
    assert time.monotonic() - started < 1
    assert tick.result(10).message == "killed: the executor was shut down"
    eventually(lambda: all_dead([*pids, zygote]), "the end of the tick", 0.1)
    assert own_daemon.call("echo").end is TaskEnd.REFUSED
    assert proc.is_alive(job_pid)
    path.touch()
    eventually(lambda: not proc.is_alive(job_pid), "the end of the job")
    assert path.read_text() == "done closed=True sid=True"


@pytest.mark.parametrize("mode", ["cgroups", "walk"])
def test_a_killed_daemon_takes_its_ticks_along(mode: str, tmp_path: Path) -> None:
    """Zygote, spares, ticks and all below them die; the job goes on."""
    path = tmp_path / "go"
    program = [sys.executable, f"{PROGRAMS}/ticks.py", mode, str(path)]
    environ = {**os.environ, "PYTHONPATH": PROGRAMS}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environ) as daemon:
        assert daemon.stdout is not None
        told: dict[str, list[int]] = {}
        for line in iter(daemon.stdout.readline, b"ready\n"):
            name, _, value = line.decode().partition(" ")
            if name in {"family", "detached", "zygote", "task"}:
                pids = json.loads(value)
                told.setdefault(name, []).extend(
                    pids if isinstance(pids, list) else [pids]
                )
        daemon.kill()
    mortal = {pid for pids in told.values() for pid in pids} - {*told["detached"]}
    assert len(mortal) == 4
    eventually(lambda: all_dead([*mortal]), "the end of the daemon's processes")
    assert proc.is_alive(told["detached"][0])
    path.touch()
    eventually(lambda: all_dead(told["detached"]), "the end of the job")
    assert path.read_text() == "done closed=True sid=True"


class Scheduled:
    """An APScheduler with our executor; its events as they come."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.scheduler = BackgroundScheduler(
            timezone=UTC, executors={"default": executor}
        )
        self.scheduler.add_listener(self.events.put, EVENT_ALL)
        self.scheduler.start()

    def ended(self, mask: int = EVENT_JOB_EXECUTED | EVENT_JOB_ERROR) -> Any:
        """Give the next event of `mask`."""
        while True:
            event = self.events.get(timeout=10)
            if event.code & mask:
                return event

    def add(self, name: str, **options: Any) -> None:
        """Schedule a one-shot job for now."""
        isolated = Isolated(ref=f"ticks:{name}", deadline_s=0.2)
        self.scheduler.add_job(
            isolated, **({"id": name, "misfire_grace_time": None} | options)
        )


@pytest.fixture
def scheduled() -> Iterator[Scheduled]:
    """Give a running scheduler."""
    scheduled = Scheduled(
        ProcessExecutor(
            prepare=lambda job_id, _isolated: {"config": job_id},
            settings=PoolSettings(zygote=ZYGOTE),
        )
    )
    yield scheduled
    scheduled.scheduler.shutdown(wait=False)


def test_listeners_hear_every_end(scheduled: Scheduled) -> None:
    """One event per submission, with the value or with everything about the failure."""
    scheduled.add("echo", kwargs={"more": 1})
    event = scheduled.ended()
    assert (event.code, event.job_id, event.retval) == (
        EVENT_JOB_EXECUTED,
        "echo",
        {"config": "echo", "more": 1},
    )
    scheduled.add("no_such_function")
    event = scheduled.ended()
    assert isinstance(event, JobExecutionEvent)
    assert event.code == EVENT_JOB_ERROR
    assert event.exception.outcome.end is TaskEnd.RAISED
    assert "Traceback" in event.traceback


def test_what_is_no_isolated_function_is_refused_aloud(scheduled: Scheduled) -> None:
    """A plain callable would run in the daemon; APScheduler would lose the error."""
    scheduled.scheduler.add_job(print, id="plain", misfire_grace_time=None)
    event = scheduled.ended()
    assert event.exception.outcome.end is TaskEnd.REFUSED
    assert "must be an Isolated" in event.exception.outcome.message


def test_a_late_job_is_missed_only_when_it_says_so(scheduled: Scheduled) -> None:
    """APScheduler's grace is kept; without one, late jobs run."""
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    scheduled.add("echo", run_date=an_hour_ago, trigger="date", misfire_grace_time=1)
    assert scheduled.ended(EVENT_JOB_MISSED | EVENT_JOB_EXECUTED).code == (
        EVENT_JOB_MISSED
    )
    scheduled.add("echo", run_date=an_hour_ago, trigger="date")
    assert scheduled.ended().code == EVENT_JOB_EXECUTED


def test_one_instance_at_a_time_frees_its_place(
    scheduled: Scheduled, caplog: pytest.LogCaptureFixture
) -> None:
    """A hanging tick blocks only itself, only until its deadline, and logs no noise."""
    caplog.handler.addFilter(OverlapFilter())
    scheduled.scheduler.add_job(
        Isolated(ref="ticks:sleep_with_config", deadline_s=0.2),
        "interval",
        seconds=0.05,
        id="tick",
        misfire_grace_time=None,
        coalesce=True,
        max_instances=1,
    )
    ends = [scheduled.ended(), scheduled.ended(EVENT_JOB_MAX_INSTANCES)]
    ends.append(scheduled.ended())
    assert [event.code for event in ends] == [
        EVENT_JOB_ERROR,
        EVENT_JOB_MAX_INSTANCES,
        EVENT_JOB_ERROR,
    ]
    assert ends[0].exception.outcome.end is TaskEnd.TIMED_OUT
    assert "maximum number" not in caplog.text


def test_shutting_the_scheduler_down_waits_for_its_jobs() -> None:
    """With `wait`, what was submitted ends first, and is heard."""
    executor = ProcessExecutor(settings=PoolSettings(zygote=ZYGOTE))
    executor.shutdown(wait=True)  # never started: nothing to do
    scheduled = Scheduled(executor)
    scheduled.add("echo")
    eventually(lambda: executor._unfinished, "the submission")
    scheduled.scheduler.shutdown(wait=True)
    assert scheduled.ended().code == EVENT_JOB_EXECUTED


def test_a_hanging_preparation_falls_back_on_the_last_one() -> None:
    """The tick goes on with what it had; one that never had anything is refused."""
    release = threading.Event()
    answers = iter(["first", "hang"])

    def prepare(_job_id: str, _isolated: Isolated) -> dict[str, Any]:
        answer = next(answers, "later")
        if answer == "hang":
            release.wait(20)
        if answer == "later":
            raise OSError("the disk is gone")
        return {"config": answer}

    executor = ProcessExecutor(prepare=prepare, settings=PoolSettings(zygote=ZYGOTE))
    executor._feeder._patience_s = 0.05
    scheduled = Scheduled(executor)
    try:
        for _ in range(3):
            scheduled.add("echo")
            assert scheduled.ended().retval == {"config": "first"}
        scheduled.add("who")
        refused = scheduled.ended().exception.outcome
        assert (refused.end, refused.message) == (
            TaskEnd.REFUSED,
            "it could not be prepared",
        )
        release.set()
        eventually(executor._feeder._pending.done, "the answer")
        scheduled.add("echo")
        assert scheduled.ended().retval == {"config": "first"}
    finally:
        release.set()
        scheduled.scheduler.shutdown(wait=False)


def test_an_isolated_function_runs_in_process_for_debugging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calling it needs no executor."""
    monkeypatch.syspath_prepend(PROGRAMS)
    assert Isolated(ref="ticks:echo", kwargs={"a": 1})(b=2) == {"a": 1, "b": 2}
