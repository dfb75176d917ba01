"""The daemon's memory: slots, jobs, gates."""

from daemon_fakes import FakeClock, gpu

from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.node import Gate, Node, Running


def node() -> Node:
    """Give a node with two CPU slots and a GPU."""
    return Node(
        clock=FakeClock(),
        cpu_slots=2,
        gpu_slots=1,
        host={"cores": 8, "memory_mb": 1000, "disk_free_mb": 500},
        gpus=(gpu(),),
    )


def running(job_id: str, kind: str = "cpu") -> Running:
    """Give a job that holds a slot."""
    return Running(
        job_id=job_id,
        attempt=1,
        reservation=Reservation(kind=kind),
        since_monotonic=0,
    )


def test_a_held_job_takes_its_slot_until_it_is_released() -> None:
    """The capacity is made from what is held at this moment."""
    mine = node()
    mine.hold(running("a"))
    mine.hold(running("g", "gpu"))
    capacity = mine.capacity()
    assert (capacity.cpu_free, capacity.gpu_free) == (1, 0)
    assert (capacity.cpu_threads, capacity.memory_mb, capacity.disk_free_mb) == (
        8,
        1000,
        500,
    )
    assert mine.release("a") == running("a")
    assert mine.release("a") is None
    assert [job.job_id for job in mine.jobs()] == ["g"]
    assert mine.capacity().cpu_free == 2


def test_a_job_is_known_by_what_it_says_last() -> None:
    """News of a job that holds nothing any more are nobody's."""
    mine = node()
    mine.hold(running("a"))
    mine.moved("a", state="RUNNING", pct=5.0)
    mine.moved("gone", state="RUNNING")
    (job,) = mine.jobs()
    assert (job.state, job.pct, job.note) == ("RUNNING", 5.0, "")


def test_a_gate_keeps_the_time_since_which_it_is_closed() -> None:
    """Closing it again renews the reason only."""
    clock = FakeClock(now=5)
    mine = Node(clock=clock, cpu_slots=1, gpu_slots=0)
    assert mine.close("disk", "90 %", "free space") is True
    clock.now = 6
    assert mine.close("paused", "owner", "resume") is True
    clock.now = 7
    assert mine.close("disk", "95 %", "free space") is False
    assert mine.gates() == (
        Gate(name="disk", since_monotonic=5, reason="95 %", remedy="free space"),
        Gate(name="paused", since_monotonic=6, reason="owner", remedy="resume"),
    )
    assert mine.is_closed("disk")
    assert mine.open("disk") is True
    assert mine.open("disk") is False
    assert not mine.is_closed("disk")


def test_work_is_taken_only_with_open_gates_and_a_free_slot() -> None:
    """Either refuses."""
    mine = Node(clock=FakeClock(), cpu_slots=1, gpu_slots=1)
    told = [mine.takes_work]
    mine.close("paused", "", "")
    told.append(mine.takes_work)
    mine.open("paused")
    mine.hold(running("a"))  # its GPU slot counts only with a GPU
    assert [*told, mine.takes_work] == [True, False, False]
