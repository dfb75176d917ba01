"""When the node pulls, and what becomes of what a pull brought."""

from collections.abc import Mapping
from typing import Any

import pytest
from daemon_fakes import Bench, gpu, job_report
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.callbacks.pulls import DUPLICATE_PAUSE_MAX_S, Pulls, kinds
from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.node import Running


class Room(Bench):
    """A bench with pulls on it."""

    def __init__(self, *, recovered: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.started: list[str] = []
        self.resent: list[str] = []
        self.pulls = Pulls(self.parts, self._start, self.resent.append)
        if recovered:
            self.pulls.recovered()
            self.scheduler.take()

    def _start(self, job: Mapping[str, Any]) -> None:
        self.started.append(job["job_id"])
        self.fill(job["job_id"])

    def fill(self, job_id: str, kind: str = "cpu") -> None:
        """Give a slot away."""
        slot = Reservation(kind=kind)
        self.node.hold(
            Running(job_id=job_id, attempt=1, reservation=slot, since_monotonic=0)
        )

    def open(self) -> Mapping[str, Any]:
        """Open a pull, as the executor does."""
        told = self.pulls.opening()
        self.pulls.polling()
        return told

    def end(self, **report: Any) -> float | None:
        """End the pull with a report; give the pause until the next, None for none."""
        self.scheduler.take()
        self.pulls.ended(report)
        return self.scheduler.take()["pull"]


def test_nothing_is_pulled_before_the_first_sweep() -> None:
    """What ran before this daemon has to be counted first."""
    room = Room(recovered=False)
    room.pulls.request()
    assert room.scheduler.take() == {"pull": None}
    room.pulls.recovered()
    assert room.scheduler.take() == {"pull": 0}


def test_later_sweeps_leave_a_pull_that_is_timed_alone() -> None:
    """Its backoff goes first; a pull that was forgotten is brought back."""
    room = Room()
    room.scheduler.run_in("pull", 60)
    room.pulls.recovered()
    assert room.scheduler.take() == {"pull": 60}
    room.pulls.recovered()
    assert room.scheduler.take() == {"pull": 0}


def test_a_request_pulls_at_once_while_there_is_room() -> None:
    """And waits while there is none, or a gate is closed."""
    room = Room()
    room.pulls.request()
    assert room.scheduler.take() == {"pull": 0}
    room.node.close("disk", "", "")
    room.pulls.request()
    assert room.scheduler.take() == {"pull": None}


def test_the_pull_is_told_the_capacity_it_may_ask_for() -> None:
    """As plain JSON."""
    room = Room()
    room.fill("a")
    told = room.open()
    assert told["capacity"]["cpu_slots"] == 2
    assert list(told["capacity"]["held"]) == ["a"]


def test_a_request_while_the_pull_runs_is_remembered() -> None:
    """The open poll asks for the right kinds: it goes on, the next follows at once."""
    room = Room(pull={"interval_s": 3})
    room.open()
    room.pulls.request()
    assert (room.executor.killed, room.scheduler.take()) == ([], {})
    assert room.end(held_s=0) == 0
    room.open()
    assert room.end(held_s=0) == 3


def test_a_request_that_found_no_room_is_not_remembered() -> None:
    """When the pull ends there may be room again, but nobody asked."""
    room = Room(pull={"interval_s": 3})
    room.open()
    room.pulls.was_ended = True  # whatever else happens to it
    room.node.close("paused", "", "")
    room.pulls.request()
    room.pulls.was_ended = False
    room.node.open("paused")
    assert room.end(held_s=0) == 3


def test_an_open_poll_is_ended_when_another_kind_of_slot_is_free() -> None:
    """Its filters ask for too little; the next pull follows at once."""
    room = Room()
    room.node.gpus = (gpu(),)
    room.fill("g", "gpu")
    room.open()
    room.node.release("g")
    room.pulls.request()
    room.pulls.request()
    assert room.executor.killed == [("pull", "its filters are stale")]
    assert room.pulls.was_ended
    assert room.end(error="died: killed") == 0
    assert not room.pulls.was_ended


def test_an_open_poll_is_ended_when_its_kind_of_slot_is_gone() -> None:
    """An adopted job took it: what the poll brings could not be run."""
    room = Room()
    room.node.gpus = (gpu(),)
    room.open()
    room.fill("a")
    room.fill("b")
    room.scheduler.run_in("pull", 60)  # as a running tick has its next time
    room.pulls.recovered()
    assert [job_id for job_id, _ in room.executor.killed] == ["pull"]


def test_an_open_poll_is_ended_when_a_gate_closes() -> None:
    """A paused node takes no job that is handed out meanwhile; nothing failed."""
    room = Room()
    room.open()
    room.node.close("paused", "", "")
    room.pulls.check_open()
    assert room.executor.killed == [("pull", "the node takes no more work")]
    assert room.end(error="died: killed") is None
    room.node.open("paused")
    room.pulls.request()
    assert room.scheduler.take() == {"pull": 0}


def test_a_poll_without_a_process_yet_is_ended_when_it_has_one() -> None:
    """Killing what does not run has no effect."""
    room = Room()
    room.node.gpus = (gpu(),)
    room.fill("g", "gpu")
    room.pulls.opening()
    room.node.release("g")
    room.pulls.request()
    room.pulls.polling()
    assert len(room.executor.killed) == 2


def test_a_poll_looks_at_the_slots_again_when_it_has_a_process() -> None:
    """What changed without a request counts as well."""
    room = Room()
    room.pulls.opening()
    room.node.gpus = (gpu(),)
    room.pulls.polling()
    assert room.executor.killed == [("pull", "its filters are stale")]


def test_a_poll_that_is_not_open_is_not_ended() -> None:
    """Nothing is killed that does not run."""
    room = Room()
    room.node.close("paused", "", "")
    room.pulls.check_open()
    assert room.executor.killed == []


def test_accepted_jobs_start_and_the_rest_is_asked_for_at_once() -> None:
    """Until the slots are full."""
    room = Room(pull={"interval_s": 5})
    room.open()
    assert room.end(accepted=[job_report("a")], held_s=0) == 0
    room.open()
    assert room.end(accepted=[job_report("b")], held_s=0) is None
    assert room.started == ["a", "b"]


@pytest.mark.parametrize(("held_s", "pause_s"), [(0.1, 2), (25.0, 0)])
def test_an_empty_answer_is_asked_again_when_it_waited(
    held_s: float, pause_s: float
) -> None:
    """A coordinator that ignores long polls is asked at the interval."""
    room = Room(pull={"interval_s": 2})
    room.open()
    assert room.end(accepted=[], duplicates=[], held_s=held_s) == pause_s


def test_duplicates_only_are_answered_in_growing_pauses() -> None:
    """Doubled each time, up to five minutes; another answer begins anew."""
    room = Room(pull={"interval_s": 2})
    pauses = []
    for _ in range(9):
        room.open()
        pauses.append(room.end(duplicates=["old"], held_s=30))
    assert pauses == [4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert room.resent == ["old"] * 9
    room.open()
    room.end(held_s=30)
    room.open()
    assert room.end(duplicates=["old"], held_s=0) == 4
    room.open()
    assert room.end(duplicates=["old"], accepted=[job_report()], held_s=0) == 0


def test_duplicates_for_weeks_are_still_answered() -> None:
    """A doubled pause outgrows every float within days."""
    room = Room()
    pause_s: float | None = None
    for _ in range(1100):
        room.open()
        pause_s = room.end(duplicates=["old"])
    assert pause_s == DUPLICATE_PAUSE_MAX_S


@given(failures=st.integers(1, 40), retry_after_s=st.sampled_from([None, 0.5, 900.0]))
def test_failed_pulls_are_repeated_in_backoff(
    failures: int, retry_after_s: float | None
) -> None:
    """Within the heartbeat's bounds, but never before the coordinator's own wish."""
    room = Room()
    pause_s: float | None = 0
    for _ in range(failures):
        room.open()
        pause_s = room.end(error="503", retry_after_s=retry_after_s)
    assert pause_s is not None
    wish_s = retry_after_s or 0
    assert max(min(2, 2**failures / 2), wish_s) <= pause_s <= max(120, wish_s)
    room.open()
    room.end(held_s=30)
    room.open()
    pause_s = room.end(error="503")
    assert pause_s is not None
    assert pause_s <= 4


def test_a_pull_without_a_report_failed() -> None:
    """It died, hung or returned rubbish."""
    room = Room()
    room.open()
    room.pulls.ended(None)
    pause_s = room.scheduler.take()["pull"]
    assert pause_s is not None
    assert 2 <= pause_s <= 4


def test_a_failed_pull_waits_for_an_open_gate() -> None:
    """A refused token closes a gate: the heartbeat tries it, not the pull."""
    room = Room()
    room.open()
    room.node.close("unauthorized", "", "")
    assert room.end(error="401", unauthorized=True) is None


def test_stopping_ends_the_open_poll_and_runs_nothing_it_brings() -> None:
    """The daemon goes: a job that comes now is its coordinator's again."""
    room = Room()
    room.open()
    room.pulls.stop()
    assert room.executor.killed == [("pull", "the daemon ends")]
    assert room.scheduler.take() == {"pull": None}
    room.pulls.ended({"accepted": [job_report()]})
    assert (room.started, room.scheduler.take()) == ([], {})


def test_kinds_are_those_with_a_free_slot() -> None:
    """A GPU slot needs a GPU."""
    room = Room()
    assert kinds(room.node) == {"cpu"}
    room.node.gpus = (gpu(),)
    assert kinds(room.node) == {"cpu", "gpu"}


def test_refusals_are_told_by_a_tick_of_their_own() -> None:
    """A coordinator slow to hear of a bad job keeps no good one from starting."""
    room = Room()
    room.open()
    bad = {"job_id": "bad", "attempt": 1, "code": "E_MANIFEST"}
    nameless = {**bad, "job_id": None}
    room.end(accepted=[job_report("good")], refused=[bad, nameless])
    assert room.started == ["good"]
    call, in_s = room.scheduler.jobs["refuse:1"]
    assert (call.ref, call.kwargs, in_s) == (
        "aitbc_aps_miner.tasks:refuse",
        {"refused": [bad]},
        0,
    )


def test_nothing_is_told_of_jobs_without_an_id() -> None:
    """Nobody could say which one is meant."""
    room = Room()
    room.open()
    room.end(accepted=[], refused=[{"job_id": None, "code": "E_MANIFEST"}])
    assert not [name for name in room.scheduler.jobs if name.startswith("refuse")]
