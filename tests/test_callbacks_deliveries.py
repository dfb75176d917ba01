"""Deliveries after their job's process ended: paced, bounded, never forgotten."""

from typing import Any

import pytest
from daemon_fakes import Bench
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.callbacks.deliveries import (
    AT_ONCE,
    DELIVERY_MAX_S,
    DELIVERY_MIN_S,
    Deliveries,
)


class Post(Bench):
    """A bench that only delivers."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = Deliveries(self.parts)

    def fails(self, job_id: str = "j", **report: Any) -> float:
        """Let a try fail; give and pass the pause before the next one."""
        self.deliveries.ended(job_id, report or None)
        pause_s = self.deliveries.due_in_s(job_id)
        assert pause_s is not None
        self.clock.now += pause_s
        self.deliveries.pump()
        assert self.started() == [job_id]
        return pause_s

    def started(self) -> list[str]:
        """Give and forget the deliveries that were started."""
        names = [name.partition(":")[2] for name in self.scheduler.jobs]
        self.scheduler.jobs.clear()
        return names


@given(st.integers(1, 40))
def test_a_delivery_that_failed_is_repeated_in_growing_pauses(tries: int) -> None:
    """Full jitter below a ceiling that doubles, up to ten minutes."""
    post = Post()
    pause_s = 0.0
    for _ in range(tries):
        pause_s = post.fails(state="RETRY_WAIT")
    ceiling_s = min(DELIVERY_MIN_S * 2.0**tries, DELIVERY_MAX_S)
    assert DELIVERY_MIN_S / 2 <= pause_s <= ceiling_s + 1e-6


def test_a_week_of_failed_deliveries_goes_on() -> None:
    """More tries than a float can be doubled."""
    post = Post()
    assert all(post.fails() <= DELIVERY_MAX_S for _ in range(1500))


def test_the_coordinators_own_wish_is_the_least_pause() -> None:
    """Retry-After of a 429 or 503 is obeyed, however short our own pause is."""
    post = Post()
    assert post.fails(state="RETRY_WAIT", retry_after_s=120) >= 120


@pytest.mark.parametrize("state", ["DONE", "FAILED"])
def test_a_delivered_outcome_is_done_with(state: str) -> None:
    """The sweep counts again; the next failure begins with a short pause."""
    post = Post()
    for _ in range(9):
        post.fails()
    post.deliveries.ended("j", {"job_id": "j", "state": state})
    assert (post.scheduler.take(), post.started()) == ({"sweep": 0}, [])
    assert post.deliveries.due_in_s("j") is None
    assert post.fails() <= 2


def test_nothing_to_deliver_is_nothing_to_do() -> None:
    """Somebody else did it, or the job is gone."""
    post = Post()
    post.deliveries.ended("j", {"job_id": "j", "state": "IDLE"})
    assert (post.scheduler.take(), post.started()) == ({}, [])
    assert post.deliveries.due_in_s("j") is None


def test_one_delivery_of_a_job_runs_at_a_time() -> None:
    """A second one would lock it out."""
    post = Post()
    post.deliveries.now("j")
    assert post.started() == ["j"]
    post.deliveries.now("j")
    post.deliveries.resend("j")
    assert (post.started(), post.deliveries.due_in_s("j")) == ([], 0.0)


def test_a_hundred_waiting_results_are_delivered_a_few_at_a_time() -> None:
    """In the order in which they became due, and all of them in the end."""
    post = Post()
    ids = [f"j{number:03}" for number in range(100)]
    for job_id in ids:
        post.deliveries.now(job_id)
    delivered = running = post.started()
    while running:
        assert len(running) <= AT_ONCE
        for job_id in running:
            post.deliveries.ended(job_id, {"job_id": job_id, "state": "DONE"})
        running = post.started()
        delivered = delivered + running
    assert delivered == ids


def test_a_job_handed_out_again_is_answered_in_growing_pauses() -> None:
    """At once the first time, then ever later, also when each answer was taken."""
    post = Post()
    pauses = []
    for _ in range(11):
        post.deliveries.resend("j")
        pauses.append(round(post.deliveries.due_in_s("j") or 0))
        post.clock.now += pauses[-1]
        post.deliveries.pump()
        (call, _) = post.scheduler.jobs["deliver:j"]
        assert call.kwargs == {"job_id": "j", "resend": True}
        post.started()
        post.deliveries.ended("j", {"state": "DONE", "resent": True})
    assert pauses == [0, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
