"""What follows a heartbeat, a registration, a probe, a sweep; and who is heard."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from daemon_fakes import Bench, config_of, gpu, job_report
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aitbc_aps_miner.callbacks import HEARTBEAT_GAP_S, Callbacks
from aitbc_aps_miner.executor import TaskEnd, TaskFailedError, TaskOutcome
from aitbc_aps_miner.node import TickEnd
from aitbc_aps_miner.tokens import place_of


class Desk(Bench):
    """A bench with all reactions on it; what ran before it is counted already."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.freed = 0
        self.callbacks = Callbacks(self.parts, self._count)
        self.callbacks.pulls.recovered()
        self.scheduler.take()

    def _count(self) -> None:
        self.freed += 1

    def ends(self, job_id: str, report: object = None, /, **more: Any) -> None:
        """Let a tick return a report."""
        event = JobExecutionEvent(
            EVENT_JOB_EXECUTED, job_id, "default", None, retval=report or more
        )
        self.callbacks.on_event(event)

    def dies(self, job_id: str, end: TaskEnd = TaskEnd.DIED) -> None:
        """Let a tick end without one."""
        outcome = TaskOutcome(end=end, message="killed", traceback="where")
        event = JobExecutionEvent(
            EVENT_JOB_ERROR,
            job_id,
            "default",
            None,
            exception=TaskFailedError(outcome),
            traceback="where",
        )
        self.callbacks.on_event(event)

    def registers(self, token: str = "t1", **more: Any) -> None:
        """Let a registration succeed."""
        place = place_of(self.source.current.config)
        self.ends("register", token=token, place=place, **more)

    def gates(self) -> dict[str, str]:
        """Give the closed gates and their reasons."""
        return {gate.name: gate.reason for gate in self.node.gates()}


def test_the_end_of_the_daemon_is_no_failure_of_its_ticks() -> None:
    """What it kills or refuses is discarded quietly; what comes home is heard."""
    desk = Desk()
    desk.callbacks.end()
    with capture_logs() as events:
        desk.dies("probe", TaskEnd.REFUSED)
        desk.dies("heartbeat")
        desk.dies("pull")
        desk.ends("sweep", undelivered=3)
    assert events == []
    assert (desk.node.heartbeat_failures, list(desk.node.ticks)) == (0, ["sweep"])
    assert desk.node.undelivered == 3


# Heartbeat


@given(st.integers(1, 60), st.floats(1, 20), st.floats(1, 50))
def test_failed_heartbeats_back_off_within_their_bounds(
    failures: int, min_s: float, factor: float
) -> None:
    """Doubled up to the longest; the first success is back to normal."""
    bounds = {"min_s": min_s, "max_s": min_s * factor}
    desk = Desk(heartbeat={"backoff": bounds})
    pause_s = None
    for _ in range(failures):
        desk.ends("heartbeat", error="503")
        pause_s = desk.scheduler.take()["heartbeat"]
    assert pause_s is not None
    assert min_s <= pause_s <= min_s * factor
    assert (desk.node.heartbeat_failures, desk.node.coordinator_error) == (
        failures,
        "503",
    )
    desk.ends("heartbeat", cancel=[], drain=False, known=True, refresh=[])
    assert desk.scheduler.take() == {"sweep": 0}  # contact again: look at everything
    assert desk.node.heartbeat_failures == 0
    assert desk.node.heartbeat_ok_at == desk.clock.now
    assert desk.node.coordinator_error is None


def test_the_defaults_are_five_seconds_to_two_minutes() -> None:
    """As the specification has them."""
    desk = Desk()
    pauses = []
    for _ in range(10):
        desk.dies("heartbeat", TaskEnd.TIMED_OUT)
        pauses.append(desk.scheduler.take()["heartbeat"])
    assert all(pause_s is not None and 5 <= pause_s <= 120 for pause_s in pauses)
    assert cast("float", pauses[-1]) >= 60
    assert desk.node.coordinator_error == "timed_out: killed"


@pytest.mark.parametrize("asked_s", [0.2, 300.0])
def test_the_coordinators_own_wish_only_makes_it_later(asked_s: float) -> None:
    """Retry-After beyond the backoff is obeyed; a shorter one is not needed."""
    desk = Desk()
    desk.ends("heartbeat", error="429", retry_after_s=asked_s)
    pause_s = desk.scheduler.take()["heartbeat"]
    assert pause_s is not None
    assert asked_s <= pause_s <= max(asked_s, 10)


def test_a_heartbeat_brings_the_coordinators_orders() -> None:
    """Jobs to cancel, once per job that holds a slot; registering again."""
    desk = Desk()
    desk.callbacks.jobs.start(job_report("a"))
    desk.ends("heartbeat", cancel=["a", "unknown"], refresh=["capabilities"])
    call, _ = desk.scheduler.jobs["control:a:cancel"]
    assert call.kwargs == {"root": "/jobs", "job_id": "a", "orders": {"cancel": True}}
    assert "register" in desk.scheduler.jobs
    assert len(desk.scheduler.jobs) == 3  # the job, its order, the registration


@pytest.mark.parametrize("word", ["token", "capabilities", "unheard-of"])
def test_only_what_is_understood_is_refreshed(word: str) -> None:
    """By registering anew."""
    desk = Desk()
    desk.ends("heartbeat", refresh=[word])
    assert ("register" in desk.scheduler.jobs) == (word != "unheard-of")


def test_a_coordinator_may_drain_the_node_and_withdraw() -> None:
    """Its gate is told in the next heartbeat, and opens with its word."""
    desk = Desk()
    desk.callbacks.pulls.opening()
    desk.ends("heartbeat", drain=True)
    assert desk.gates() == {"drain-request": "the coordinator asked this node to drain"}
    assert desk.executor.killed == [("pull", "the node takes no more work")]
    assert desk.scheduler.take() == {"heartbeat": HEARTBEAT_GAP_S}
    desk.ends("pull", accepted=[])
    desk.ends("heartbeat", drain=False)
    assert desk.gates() == {}
    assert desk.scheduler.take()["pull"] == 0


def test_a_burst_of_requests_is_one_heartbeat() -> None:
    """At most one a second beside the regular ones."""
    desk = Desk()
    desk.callbacks.request_heartbeat()
    assert desk.scheduler.take() == {"heartbeat": 0}
    desk.ends("heartbeat", drain=False)
    desk.clock.now += 0.25
    desk.callbacks.request_heartbeat()
    assert desk.scheduler.take() == {"heartbeat": 0.75}


def test_a_request_while_the_heartbeat_runs_is_remembered() -> None:
    """It may carry the old count: another one follows."""
    desk = Desk()
    desk.executor.active.add("heartbeat")
    desk.callbacks.request_heartbeat()
    assert desk.scheduler.take() == {}
    desk.executor.active.clear()
    desk.ends("heartbeat", drain=False)
    assert desk.scheduler.take() == {"heartbeat": HEARTBEAT_GAP_S}
    desk.ends("heartbeat", drain=False)
    assert desk.scheduler.take() == {}


def test_a_request_does_not_shorten_a_backoff() -> None:
    """Failing heartbeats keep their pauses."""
    desk = Desk()
    desk.ends("heartbeat", error="503")
    desk.scheduler.take()
    desk.callbacks.request_heartbeat()
    assert desk.scheduler.take() == {}


def test_a_coordinator_that_forgot_the_node_gets_a_registration() -> None:
    """Token forgotten, heartbeat at once; then in backoff, but never given up."""
    desk = Desk()
    desk.registers()
    desk.scheduler.take()
    desk.ends("heartbeat", known=False)
    assert desk.tokens.token is None
    assert desk.scheduler.take() == {"heartbeat": HEARTBEAT_GAP_S}
    for _ in range(20):
        desk.registers()
        desk.scheduler.take()
        desk.ends("heartbeat", known=False)
        pause_s = desk.scheduler.take()["heartbeat"]
        assert pause_s is not None
        assert 5 <= pause_s <= 120
    assert desk.node.heartbeats_offered
    desk.ends("heartbeat", known=True)
    desk.ends("heartbeat", known=False)
    assert desk.scheduler.take() == {"heartbeat": HEARTBEAT_GAP_S}


def test_without_registration_a_404_means_no_heartbeats() -> None:
    """None is sent again, also not when a job ends, until there is a registration."""
    desk = Desk()
    desk.registers("bootstrap", registered=False)
    desk.scheduler.take()
    desk.ends("heartbeat", known=False)
    assert desk.scheduler.take() == {"heartbeat": None}
    assert not desk.node.heartbeats_offered
    desk.callbacks.request_heartbeat()
    desk.registers("bootstrap", registered=False)
    assert desk.scheduler.take() == {}
    desk.registers("t1", registered=True)
    assert desk.scheduler.take() == {"heartbeat": 0}
    assert desk.node.heartbeats_offered


# Registration


def test_a_registration_is_one_tick_with_time_for_its_call() -> None:
    """A second one replaces one that waits."""
    desk = Desk(coordinator={"timeout_s": 4})
    desk.callbacks.start_registration()
    call, in_s = desk.scheduler.jobs["register"]
    assert (call.ref, call.deadline_s, in_s) == (
        "aitbc_aps_miner.tasks:register",
        13,
        0,
    )


def test_a_registration_serves_everyone_who_waits() -> None:
    """The coordinator's pause slows heartbeats, its extensions are handed on."""
    desk = Desk()
    future = cast("Any", desk.tokens.answer(None, place_of(desk.parts.config)))
    desk.registers("t1", heartbeat_interval_s=40, extensions=["uploads"])
    assert future.result(0) == {"token": "t1"}
    assert desk.node.registered
    assert desk.node.heartbeat_floor_s == 40
    assert desk.tokens.extensions == ["uploads"]
    config = desk.parts.config
    assert desk.scheduler.retimed == [(config, config, 40)]


def test_a_token_of_a_former_coordinator_is_not_shown_to_another() -> None:
    """A registration that an edit overtook is repeated where it belongs."""
    desk = Desk()
    future = cast("Any", desk.tokens.answer(None, place_of(desk.parts.config)))
    desk.ends("register", token="old", place="node-v1 http://elsewhere n1")
    assert not future.done()
    assert desk.tokens.token is None
    assert "register" in desk.scheduler.jobs
    desk.registers("t1")
    assert future.result(0) == {"token": "t1"}


def test_a_refused_bootstrap_token_closes_a_gate() -> None:
    """It is the owner's to mend; a token that is taken opens it."""
    desk = Desk()
    future = cast("Any", desk.tokens.answer(None, place_of(desk.parts.config)))
    desk.ends("register", error="401", unauthorized=True)
    assert future.result(0) == {"error": "401", "unauthorized": True}
    assert desk.gates() == {"unauthorized": "the coordinator refused the token: 401"}
    assert desk.node.coordinator_error == "401"
    desk.registers()
    assert desk.gates() == {}
    assert desk.scheduler.take()["pull"] == 0


def test_a_registration_that_died_says_how() -> None:
    """And closes nothing: the next heartbeat tries again."""
    desk = Desk()
    future = cast("Any", desk.tokens.answer(None, place_of(desk.parts.config)))
    desk.dies("register")
    assert future.result(0) == {"error": "died: killed", "unauthorized": False}
    assert desk.node.coordinator_error == "died: killed"
    assert desk.gates() == {}


def test_a_registration_that_returned_rubbish_failed() -> None:
    """Whatever it is."""
    desk = Desk()
    desk.ends("register", ["no", "object"])
    assert desk.node.coordinator_error == "the registration did not end"


# Sweep


@pytest.mark.parametrize(
    ("used", "closed"),
    [
        ((89.9,), False),
        ((90.0,), True),
        ((95.0, 85.0), True),
        ((95.0, 80.0), True),
        ((95.0, 79.9), False),
        ((95.0, 79.0, 85.0), False),
    ],
)
def test_the_disk_gate_has_two_marks(used: tuple[float, ...], *, closed: bool) -> None:
    """Closed from the high one on, open below the low one, as it was in between."""
    desk = Desk()
    for pct in used:
        desk.ends("sweep", disk_used_pct=pct)
    assert ("disk" in desk.gates()) == closed
    assert desk.node.disk_used_pct == used[-1]


def test_a_gate_that_opens_asks_for_work() -> None:
    """At once."""
    desk = Desk()
    desk.ends("sweep", disk_used_pct=95)
    assert desk.gates() == {"disk": "the workspace's disk is 95 % full"}
    desk.scheduler.run_in("pull", 60)
    desk.ends("sweep", disk_used_pct=10)
    assert desk.scheduler.take()["pull"] == 0


@pytest.mark.parametrize(("waiting", "closed"), [(2, False), (3, True)])
def test_too_many_undelivered_results_stop_pulls(waiting: int, *, closed: bool) -> None:
    """Work that can't be handed in earns nothing."""
    desk = Desk(results={"max_undelivered": 3})
    desk.ends("sweep", undelivered=waiting)
    assert ("undelivered" in desk.gates()) == closed
    assert desk.node.undelivered == waiting
    desk.ends("sweep", undelivered=0)
    assert desk.gates() == {}


def test_a_workspace_that_stores_nothing_closes_a_gate() -> None:
    """Until a sweep could write there."""
    desk = Desk()
    desk.ends("sweep", unwritable="Read-only file system")
    reason = "nothing can be stored under the workspace root: Read-only file system"
    assert desk.gates() == {"workspace": reason}
    desk.ends("sweep", unwritable=None)
    assert desk.gates() == {}


def test_a_failed_sweep_judges_nothing_and_stops_nothing() -> None:
    """Gates stay as they are; new work is still taken."""
    desk = Desk()
    desk.ends("sweep", disk_used_pct=95)
    desk.dies("sweep")
    assert list(desk.gates()) == ["disk"]
    fresh = Bench()
    Callbacks(fresh.parts).on_event(
        JobExecutionEvent(EVENT_JOB_EXECUTED, "sweep", "default", None, retval="?")
    )
    assert fresh.scheduler.take() == {"pull": 0}


# Probe

HOST = {"cores": 4, "memory_mb": 100, "load1": 0.5}


def probed(**more: Any) -> dict[str, Any]:
    """Give a probe's report."""
    facts = {"index": 0, "uuid": "GPU-0", "name": "T", "vram_mb": 8000}
    return {"host": HOST, "gpus": [facts], "source": "nvml", **more}


def test_the_first_probe_is_followed_by_a_heartbeat() -> None:
    """With true facts; later ones only renew them."""
    desk = Desk()
    desk.ends("probe", probed())
    assert desk.scheduler.take() == {"heartbeat": 0}
    assert (desk.node.host, desk.node.gpus) == (HOST, (gpu(),))
    assert desk.node.gpu_source == "nvml"
    desk.ends("probe", probed(host={**HOST, "load1": 2.0}))
    assert desk.scheduler.take() == {}
    assert desk.node.host["load1"] == 2.0


@pytest.mark.parametrize("token", [None, "t1"])
def test_a_machine_that_changed_registers_anew(token: str | None) -> None:
    """Where it was registered: the coordinator has to know what it can do."""
    desk = Desk()
    desk.ends("probe", probed())
    if token is not None:
        desk.tokens.registered(token, place_of(desk.parts.config))
    desk.scheduler.take()
    desk.ends("probe", probed(gpus=[], source="none"))
    assert desk.node.gpus == ()
    registers = token is not None
    assert ("register" in desk.scheduler.jobs) == registers
    assert desk.scheduler.take() == ({"pull": 0} if registers else {})


def test_a_failed_probe_keeps_what_was_known() -> None:
    """A hung driver silences nothing."""
    desk = Desk()
    desk.ends("probe", probed())
    desk.dies("probe", TaskEnd.TIMED_OUT)
    assert desk.node.host == HOST


# Owner, messages, bookkeeping


def test_the_owner_pauses_and_resumes() -> None:
    """As the configuration says."""
    desk = Desk()
    desk.callbacks.owner_decided(config_of(owner={"paused": True}))
    assert desk.gates() == {"paused": "owner.paused is true"}
    desk.callbacks.owner_decided(config_of(owner={"paused": True}))
    desk.scheduler.take()
    desk.callbacks.owner_decided(config_of())
    assert desk.gates() == {}
    assert desk.scheduler.take() == {"pull": 0}


def test_children_are_heard() -> None:
    """Questions for a token, news of jobs, that a pull is on its way; nothing else."""
    desk = Desk()
    desk.tokens.registered("t1", place_of(desk.parts.config))
    hear = desk.callbacks.on_message
    question = {"stale": None, "place": place_of(desk.parts.config)}
    assert hear("heartbeat", "token", question) == {"token": "t1"}
    desk.callbacks.jobs.start(job_report("a"))
    hear("job:a:1", "job", {"job_id": "a", "state": "RUNNING", "pct": 3})
    hear("pull", "job", {"job_id": "a", "state": "FAILED"})
    hear("sweep", "polling", None)
    hear("pull", "unheard-of", None)
    hear("pull", "log", {"event": "probe.note", "level": "debug", "attrs": {}})
    (job,) = desk.node.jobs()
    assert (job.state, job.pct) == ("RUNNING", 3)
    desk.callbacks.pulls.opening()
    desk.node.close("paused", "", "")
    hear("pull", "polling", None)
    assert desk.executor.killed == [("pull", "the node takes no more work")]


@pytest.mark.parametrize(
    ("end", "tick"),
    [
        (None, TickEnd(outcome="ok", at_monotonic=1002, took_s=2)),
        (
            {"error": "503"},
            TickEnd(outcome="failed", at_monotonic=1002, took_s=2, error="503"),
        ),
        (
            TaskEnd.TIMED_OUT,
            TickEnd(
                outcome="timed_out",
                at_monotonic=1002,
                took_s=2,
                error="timed_out: killed",
            ),
        ),
    ],
)
def test_how_a_tick_ended_is_shown_and_counted(
    end: TaskEnd | Mapping[str, Any] | None, tick: TickEnd
) -> None:
    """By name, outcome and length."""
    desk = Desk()
    desk.callbacks.started("probe")
    desk.clock.now += 2
    if isinstance(end, TaskEnd):
        desk.dies("probe", end)
    else:
        desk.ends("probe", end or probed())
    assert desk.node.ticks == {"probe": tick}
    assert desk.metrics.ticks == [("probe", tick.outcome, 2)]


def test_a_poll_that_was_ended_on_purpose_did_not_fail() -> None:
    """It is no warning in the log, and no failure on the page."""
    desk = Desk()
    desk.callbacks.pulls.opening()
    desk.node.close("paused", "", "")
    desk.callbacks.pulls.check_open()
    desk.dies("pull")
    assert desk.node.ticks["pull"].outcome == "ok"


def test_one_shot_jobs_are_counted_but_not_shown_as_ticks() -> None:
    """Hooks and orders come and go; nothing follows them."""
    desk = Desk()
    desk.ends("hook:on_job_started:x:1", called=True)
    assert desk.node.ticks == {}
    assert desk.metrics.ticks == [("hook", "ok", 0)]
    assert desk.scheduler.take() == {}


def test_an_ended_job_frees_its_slot_pulls_and_heartbeats() -> None:
    """Now, with the true count."""
    desk = Desk()
    desk.callbacks.jobs.start(job_report("a"))
    desk.ends(
        "job:a:1",
        job_id="a",
        attempt=1,
        state="DONE",
        code=None,
        message="",
        timings={},
    )
    assert desk.node.jobs() == ()
    assert desk.freed == 1
    assert desk.scheduler.take() == {"pull": 0, "heartbeat": 0}


def test_problems_of_allowlists_are_said_once() -> None:
    """A broken allowlist shows in the health view as long as it is broken."""
    desk = Desk()
    desk.ends("probe", probed(problems=["ffmpeg.yaml: unknown key"]))
    desk.ends("probe", probed(problems=["ffmpeg.yaml: unknown key"]))
    assert desk.node.problems == ("ffmpeg.yaml: unknown key",)
    desk.ends("probe", probed())
    assert len(desk.node.problems) == 0
