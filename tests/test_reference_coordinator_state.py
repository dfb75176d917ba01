"""The reference coordinator's rules: leases, attempts, outcomes, cancels, matching."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import echo_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from aitbc_aps_miner.reference_coordinator.faults import (
    Fault,
    FaultKind,
    Faults,
    call_name,
    parse_fault,
)
from aitbc_aps_miner.reference_coordinator.manifests import complaints
from aitbc_aps_miner.reference_coordinator.matching import Appetite, appetite
from aitbc_aps_miner.reference_coordinator.problems import ProblemError
from aitbc_aps_miner.reference_coordinator.records import (
    Job,
    JobState,
    StoredFile,
    Submission,
)
from aitbc_aps_miner.reference_coordinator.rules import Rules
from aitbc_aps_miner.reference_coordinator.state import State

ANY = Appetite()


class HandClock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def realtime(self) -> float:
        return self.now + 1e9

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> HandClock:
    """Give time by hand."""
    return HandClock()


@pytest.fixture
def state(clock: HandClock) -> State:
    """Give an empty coordinator."""
    return State(Rules(lease_s=60, max_attempts=3), clock)


def leased(state: State, job_id: str = "a", node_id: str = "n1") -> Job:
    """Submit a job and hand it out."""
    state.submit(echo_manifest(job_id))
    (job,) = state.pull(node_id, ANY)
    return job


def submission(
    job_id: str = "a",
    attempt: int = 1,
    told: str = "same",
    node_id: str | None = "n1",
    outcome: Mapping[str, Any] | None = None,
) -> Submission:
    """Tell an outcome."""
    return Submission(
        job_id=job_id,
        node_id=node_id,
        attempt=attempt,
        key=f"{job_id}:{attempt}",
        fingerprint=told,
        outcome=outcome or {"told": told},
    )


def refused(deed: Callable[[], object]) -> tuple[int, str | None]:
    """Give how a deed is refused."""
    with pytest.raises(ProblemError) as caught:
        deed()
    return caught.value.status, caught.value.error_code


def story(job: Job) -> list[tuple[str, int, str | None]]:
    """Give the history without its times."""
    return [(s["state"], s["attempt"], s["node_id"]) for s in job.history]


def test_a_job_goes_from_queued_to_succeeded(state: State) -> None:
    """The straight way of a job is told in its history, with times."""
    job = leased(state)
    state.clock.sleep(1)
    state.ack("a", "n1", 1)
    state.progress("a", "n1", {"job_id": "a", "pct": 10})
    state.progress("a", "n1", {"job_id": "a", "pct": 20})
    state.succeed(submission(), [])
    assert story(job) == [
        ("queued", 1, None),
        ("leased", 1, "n1"),
        ("acked", 1, "n1"),
        ("running", 1, "n1"),
        ("succeeded", 1, "n1"),
    ]
    assert job.progress == {"job_id": "a", "pct": 20}
    assert +state.counts == {JobState.SUCCEEDED: 1}
    assert state.node("n1").active == {}
    assert [round(s["at"] - job.history[0]["at"], 3) for s in job.history] == [
        0.0,
        0.0,
        1.0,
        1.0,
        1.0,
    ]


def test_a_second_ack_changes_nothing(state: State) -> None:
    """A node whose ack's answer was lost asks again and hears the same."""
    leased(state)
    state.ack("a", "n1", None)
    assert state.ack("a", "n1", 1).state is JobState.ACKED


@pytest.mark.parametrize(
    ("node_id", "attempt", "expected"),
    [("n2", 1, (409, "not_held")), ("n1", 2, (409, "not_held"))],
)
def test_only_the_holder_may_act(
    state: State, node_id: str, attempt: int, expected: tuple[int, str]
) -> None:
    """Ack, progress and outcomes of others are refused with 409."""
    leased(state)
    said = submission(node_id=node_id, attempt=attempt)
    assert refused(lambda: state.ack("a", node_id, attempt)) == expected
    assert refused(lambda: state.fail(said, retryable=False)) == expected
    assert (
        refused(lambda: state.progress("a", node_id, {"attempt": attempt})) == expected
    )


def test_an_unknown_job_is_404_and_a_final_one_410(state: State) -> None:
    """A node can tell "never heard of it" from "over"."""
    leased(state)
    state.cancel("a", force=True)
    assert refused(lambda: state.ack("x", "n1", 1)) == (404, "not_found")
    assert refused(lambda: state.ack("a", "n1", 1)) == (410, "final")
    assert refused(lambda: state.succeed(submission(), [])) == (409, "final")


def test_a_job_id_is_taken_once(state: State) -> None:
    """Two jobs never share an id."""
    state.submit(echo_manifest("a"))
    assert refused(lambda: state.submit(echo_manifest("a"))) == (409, "job_exists")


def test_a_lease_runs_out_into_another_attempt_and_at_last_expires(
    state: State, clock: HandClock
) -> None:
    """Each lost lease costs an attempt; the last one ends the job."""
    job = leased(state)
    for _ in range(2):
        clock.sleep(60)
        state.expire()
        state.pull("n2", ANY)
    clock.sleep(60)
    assert state.job("a").state is JobState.EXPIRED
    assert story(job) == [
        ("queued", 1, None),
        ("leased", 1, "n1"),
        ("queued", 2, None),
        ("leased", 2, "n2"),
        ("queued", 3, None),
        ("leased", 3, "n2"),
        ("expired", 3, "n2"),
    ]


@pytest.mark.parametrize("deed", ["ack", "progress"])
def test_ack_and_progress_renew_the_lease(
    state: State, clock: HandClock, deed: str
) -> None:
    """A renewed lease counts from the renewal; the old end passes unnoticed."""
    job = leased(state)
    clock.sleep(40)
    if deed == "ack":
        state.ack("a", "n1", 1)
    else:
        state.progress("a", "n1", {})
    clock.sleep(59)
    assert state.job("a").state.is_active
    assert state.next_expiry_s() == 1
    clock.sleep(1)
    assert state.job("a").state is JobState.QUEUED
    assert job.attempt == 2


def test_the_reaper_never_oversleeps(state: State, clock: HandClock) -> None:
    """Without leases it looks again after one lease's length, with one when it ends."""
    assert state.next_expiry_s() == 60
    leased(state)
    clock.sleep(20)
    assert state.next_expiry_s() == 40
    clock.sleep(100)
    assert state.next_expiry_s() == 0


def test_the_same_outcome_again_is_known_and_another_is_refused(state: State) -> None:
    """One key, one outcome: that is what makes a lost answer harmless."""
    leased(state)
    assert not state.knows(submission())
    state.succeed(submission(), [])
    assert state.knows(submission())
    assert refused(lambda: state.knows(submission(told="other"))) == (
        409,
        "different_outcome",
    )
    assert refused(lambda: state.fail(submission(told="E_EXIT"), retryable=True)) == (
        409,
        "different_outcome",
    )


def test_a_retryable_failure_is_queued_again_until_no_attempt_is_left(
    state: State,
) -> None:
    """The failure of an earlier attempt stays known by its key."""
    job = leased(state)
    for attempt in (1, 2, 3):
        state.fail(submission(attempt=attempt), retryable=True)
        state.fail(submission(attempt=attempt), retryable=True)
        state.pull("n1", ANY)
    assert job.state is JobState.FAILED
    assert state.knows(submission(attempt=1))


def test_a_final_failure_ends_the_job(state: State) -> None:
    """What is not retryable is not tried again."""
    job = leased(state)
    state.fail(submission(), retryable=False)
    assert job.state is JobState.FAILED


def test_a_queued_job_is_cancelled_at_once(state: State) -> None:
    """Nobody has to be asked, and nobody gets it any more."""
    state.submit(echo_manifest("a"))
    assert state.cancel("a").state is JobState.CANCELLED
    assert state.pull("n1", ANY) == []
    assert refused(lambda: state.cancel("a")) == (409, "final")


def test_an_active_job_is_cancelled_through_its_node(state: State) -> None:
    """The heartbeat tells the node; its failure then ends the job as cancelled."""
    job = leased(state)
    state.cancel("a")
    assert state.heartbeat("n1", {}) == {"cancel": ["a"]}
    assert state.progress("a", "n1", {}).cancel_requested
    state.fail(submission(), retryable=True)
    assert job.state is JobState.CANCELLED


def test_a_cancelled_job_whose_node_is_silent_is_not_tried_again(
    state: State, clock: HandClock
) -> None:
    """The lease's end fulfils the cancel."""
    job = leased(state)
    state.cancel("a")
    clock.sleep(60)
    state.expire()
    assert job.state is JobState.CANCELLED


def test_a_heartbeat_hears_which_of_its_jobs_are_not_its_own(
    state: State, clock: HandClock
) -> None:
    """What was cancelled, or moved on, must stop; what is unknown goes on."""
    for name in ("mine", "forced", "moved"):
        leased(state, name)
    state.cancel("forced", force=True)
    clock.sleep(50)
    state.ack("mine", "n1", 1)
    clock.sleep(20)
    state.expire()
    state.submit(echo_manifest("queued"))
    assert [job.job_id for job in state.pull("n2", Appetite(max_jobs=1))] == ["moved"]
    running = ["mine", "forced", "moved", "unknown", "queued", 7]
    assert state.heartbeat("n1", {"running": running}) == {
        "cancel": ["forced", "moved"]
    }


def test_orders_wait_for_the_heartbeat(state: State) -> None:
    """Drain stands until it is lifted; refresh is told once."""
    node = state.node("n1")
    node.drain, node.refresh = True, ["token"]
    assert state.heartbeat("n1", {"running": "rubbish"}) == {
        "cancel": [],
        "drain": True,
        "refresh": ["token"],
    }
    node.drain = False
    assert state.heartbeat("n1", {}) == {"cancel": []}


def test_tokens_serve_until_they_expire(state: State, clock: HandClock) -> None:
    """Registering again does not revoke the token before."""
    first, _ = state.register({"node_id": "n1"})
    clock.sleep(3599)
    second, expires_at = state.register({"node_id": "n1"})
    assert expires_at == clock.realtime() + 3600
    assert state.tokens.node_of(first) == state.tokens.node_of(second) == "n1"
    clock.sleep(1)
    assert (state.tokens.node_of(first), state.tokens.node_of(second)) == (None, "n1")
    state.tokens.forget()
    assert state.tokens.node_of(second) is None
    assert state.tokens.node_of("") is None


def test_the_oldest_finished_jobs_are_forgotten_with_their_files(
    clock: HandClock, tmp_path: Path
) -> None:
    """Memory and spool have an end."""
    state = State(Rules(keep_jobs=1), clock)
    for name in ("a", "b"):
        leased(state, name)
        file = tmp_path / name
        file.write_bytes(b"x")
        stored = StoredFile(path="p", type="t", size_bytes=1, sha256="-", file=file)
        state.succeed(submission(name), [stored])
    assert list(state.jobs) == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert +state.counts == {JobState.SUCCEEDED: 1}


def test_without_extensions_there_are_no_leases(clock: HandClock) -> None:
    """The bare specification knows no end of a job that nobody reports."""
    state = State(Rules(spec_only=True), clock)
    job = leased(state)
    clock.sleep(1e6)
    state.expire()
    assert (job.state, job.lease_until) == (JobState.LEASED, None)


def test_a_manifest_may_be_any_json(state: State) -> None:
    """What is no manifest is handed out as it is: nodes have to cope."""
    handed: list[Any] = [[], "x", 7, None, {"job_id": 7}, {"job_id": "../x"}]
    for rubbish in handed:
        state.submit(rubbish)
    taken = state.pull("n1", Appetite(max_jobs=9))
    assert [job.handout for job in taken] == [
        [],
        "x",
        7,
        None,
        {"job_id": 7, "attempt": 1},
        {"job_id": "../x", "attempt": 1},
    ]
    assert taken[-1].job_id == "../x"


@pytest.mark.parametrize(
    ("filters", "max_jobs", "expected"),
    [
        ({}, None, ["cpu1"]),
        ({}, 9, ["cpu1", "cpu2", "gpu8", "task", "llm"]),
        ({"gpu": False}, 9, ["cpu1", "cpu2", "task", "llm"]),
        ({"cpu_slots_free": 0}, 9, ["gpu8"]),
        ({"cpu_slots_free": 2}, 9, ["cpu1", "cpu2", "gpu8"]),
        ({"cpu_slots_free": 0, "vram_mb_free": 7999}, 9, []),
        ({"cpu_slots_free": 0, "vram_mb_free": 8000, "gpu": True}, 9, ["gpu8"]),
        ({"runners": ["python"]}, 9, ["task"]),
        ({"models": ["other"]}, 9, ["cpu1", "cpu2", "gpu8", "task"]),
        ({"models": ["llama", 3], "runners": ["inference"]}, 9, ["llm"]),
        ({"runners": "cli", "gpu": 1, "cpu_slots_free": "x"}, 2, ["cpu1", "cpu2"]),
        ("rubbish", "rubbish", ["cpu1"]),
        (None, 0, ["cpu1"]),
        (None, True, ["cpu1"]),
    ],
)
def test_a_node_gets_what_fits(
    filters: object, max_jobs: object, expected: list[str]
) -> None:
    """Oldest first, as many as fit together, one GPU job per answer."""
    jobs = [
        _queued("cpu1"),
        _queued("cpu2"),
        _queued("gpu8", requirements={"gpu": True, "vram_mb": 8000}),
        _queued("gpu24", requirements={"gpu": True, "vram_mb": 24000}),
        _queued("task", runner="python"),
        _queued("llm", runner="inference", model="llama"),
    ]
    chosen = appetite(filters, max_jobs).choose(jobs)
    assert [job.job_id for job in chosen] == expected


def _queued(name: str, **more: Any) -> Job:
    return Job(job_id=name, manifest=echo_manifest(name, **more))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["submit", "pull", "ack", "fail", "retry", "done", "cancel", "time"]
            ),
            st.integers(0, 3),
            st.sampled_from(["n1", "n2"]),
        ),
        max_size=60,
    )
)
def test_no_order_of_calls_breaks_the_books(
    calls: list[tuple[str, int, str]],
) -> None:
    """Whatever comes when: each job is in one place, and counts and lists agree."""
    clock = HandClock()
    state = State(Rules(lease_s=10, max_attempts=2), clock)
    for deed, number, node_id in calls:
        _do(state, clock, deed, str(number), node_id)
        for job in state.jobs.values():
            holders = [n for n in state.nodes.values() if job.job_id in n.active]
            assert [n.node_id for n in holders] == (
                [job.node_id] if job.state.is_active else []
            )
            assert job.attempt <= 2
        states = [job.state for job in state.jobs.values()]
        assert +state.counts == {each: states.count(each) for each in set(states)}
    clock.sleep(100)
    state.expire()
    queued = [j.job_id for j in state.jobs.values() if j.state is JobState.QUEUED]
    taken = state.pull("n3", Appetite(max_jobs=99))
    assert sorted(job.job_id for job in taken) == sorted(queued)


def _do(state: State, clock: HandClock, deed: str, job_id: str, node_id: str) -> None:
    job = state.jobs.get(job_id)
    said = submission(job_id, job.attempt if job else 1, node_id=node_id)
    deeds: dict[str, Callable[[], object]] = {
        "submit": lambda: state.submit(echo_manifest(job_id)),
        "pull": lambda: state.pull(node_id, ANY),
        "ack": lambda: state.ack(job_id, node_id, None),
        "fail": lambda: state.fail(said, retryable=False),
        "retry": lambda: state.fail(said, retryable=True),
        "done": lambda: state.knows(said) or state.succeed(said, []),
        "cancel": lambda: state.cancel(job_id),
        "time": lambda: clock.sleep(6),
    }
    try:
        deeds[deed]()
    except ProblemError as problem:
        assert problem.status in {404, 409, 410}  # noqa: PT017 - any other is a defect


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job_id": "../x"}, "job_id: expected letters"),
        ({"job_id": "a..b"}, "job_id: expected letters"),
        ({"job_id": "x" * 129}, "job_id: expected letters"),
        ({"timeout_s": True}, "timeout_s: expected seconds above zero, given True"),
        ({"timeout_s": -1}, "timeout_s: expected seconds above zero, given -1"),
        ({"args": ["a", 1]}, "args: expected a list of strings, given ['a', 1]"),
        ({"artifacts": [{}]}, "artifacts: expected a list of objects with a path"),
        ({"runner": "python"}, "task: missing"),
        ({"input": []}, "input: expected an object, given []"),
    ],
)
def test_a_wrong_manifest_is_refused_in_words(
    change: dict[str, Any], words: str
) -> None:
    """The submitter hears the field, what was expected and what was given."""
    (complaint,) = complaints({**echo_manifest(), **change})
    assert complaint.startswith(words)


def test_all_complaints_come_at_once() -> None:
    """Nobody has to submit five times to learn five mistakes."""
    assert complaints({"args": 3}) == [
        "args: expected a list of strings, given 3",
        "runner: missing",
        "timeout_s: missing",
    ]
    assert complaints([]) == ["expected a JSON object, given a list"]
    assert complaints(echo_manifest("a.B-c_9")) == []


@pytest.mark.parametrize(
    ("method", "path", "is_node", "name"),
    [
        ("POST", "jobs/pull", True, "pull"),
        ("POST", "nodes/register", True, "register"),
        ("GET", "jobs/x", True, "query"),
        ("GET", "jobs", True, "query"),
        ("GET", "jobs/x", False, None),
        ("POST", "jobs", False, None),
        ("PATCH", "uploads/x", True, "uploads"),
        ("POST", "uploads", True, "uploads"),
        ("GET", "faults", False, None),
    ],
)
def test_faults_know_the_nodes_calls(
    method: str, path: str, is_node: bool, name: str | None
) -> None:
    """Clients' calls never suffer a fault: a test has to be able to look."""
    assert call_name(method, path, is_node=is_node) == name


def test_a_fault_strikes_as_often_as_told() -> None:
    """A count is used up; a rate strikes the same calls for the same seed."""
    faults = Faults(chance=random.Random(7))
    faults.active += [
        parse_fault({"call": "pull", "kind": "stall", "count": 2}),
        parse_fault({"call": "*", "kind": "cut", "rate": 0.25, "method": "POST"}),
    ]
    first, _, third = (faults.take("pull", "POST") for _ in range(3))
    assert first is faults.active[0]
    assert third is not first
    assert faults.take("ack", "GET") is None
    for _ in range(400):
        faults.take("ack", "POST")
    assert faults.active[0].view() == {
        "call": "pull",
        "kind": "stall",
        "count": 0,
        "rate": 1.0,
        "status": 503,
        "seconds": 1.0,
        "hits": 2,
    }
    assert 60 < faults.active[1].hits < 140
    faults.give_back(faults.active[0])
    faults.give_back(faults.active[1])
    assert faults.take("pull", "POST") is faults.active[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "call: missing; kind: missing"),
        ({"call": "pul", "kind": "cut"}, "call: expected one of"),
        ({"call": "pull", "kind": []}, "kind: expected one of"),
        ({"call": "pull", "kind": "cut", "byte": 1}, "byte: unknown"),
        ({"call": "pull", "kind": "cut", "bytes": 1.5}, "bytes: expected a number"),
        ({"call": "pull", "kind": "status", "status": 200}, "status: expected 400"),
        ({"call": "pull", "kind": "cut", "rate": True}, "rate: expected 0 to 1"),
        ({"call": "pull", "kind": "stall", "seconds": "x"}, "seconds: expected"),
        ({"call": "pull", "kind": "cut", "method": 1}, "method: expected an HTTP"),
        ({"call": "pull", "kind": "cut", "count": -1}, "count: expected a whole"),
        (
            {"call": "pull", "kind": "status", "retry_after_s": None},
            "retry_after_s: expected seconds",
        ),
    ],
)
def test_a_wrong_fault_is_refused_in_words(body: dict[str, Any], words: str) -> None:
    """A test with a typing mistake must not pass for lack of a fault."""
    with pytest.raises(ProblemError) as caught:
        parse_fault(body)
    assert caught.value.status == 422
    assert caught.value.detail.startswith(words)


def test_a_fault_is_what_was_asked_for() -> None:
    """Every setting has its place."""
    body = {"call": "result", "kind": "status", "status": 429, "retry_after_s": 2}
    assert parse_fault(body) == Fault(
        call="result", kind=FaultKind.STATUS, status=429, retry_after_s=2
    )
