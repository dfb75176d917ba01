"""One registration at a time, whoever asks, and a child that has nobody to ask."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest
from daemon_fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.channel import AskRefusedError, ChannelClosedError
from aitbc_aps_miner.errors import UnauthorizedError, UnavailableError
from aitbc_aps_miner.tokens import ASK_TIMEOUT_S, ChannelTokens, TokenBroker


class Desk:
    """A broker whose registrations are counted."""

    def __init__(self) -> None:
        self.started = 0
        self.clock = FakeClock()
        self.broker = TokenBroker(self._start, self.clock)

    def _start(self) -> None:
        self.started += 1

    def ask(self, stale: str | None) -> "Future[Any]":
        """Ask a question that has to wait."""
        answer = self.broker.answer(stale)
        assert isinstance(answer, Future)
        return answer


def test_everyone_who_waits_gets_the_one_registration() -> None:
    """The first question starts it, the others wait for it."""
    desk = Desk()
    waiting = [desk.ask(None), desk.ask(None), desk.ask("older")]
    desk.broker.registered("t1")
    assert [future.result(0) for future in waiting] == [{"token": "t1"}] * 3
    assert desk.started == 1
    assert desk.broker.token == "t1"


def test_a_token_that_is_newer_than_the_stale_one_is_given_at_once() -> None:
    """Whoever comes late with an old token needs no registration."""
    desk = Desk()
    desk.broker.registered("t2")
    assert desk.broker.answer("t1") == {"token": "t2"}
    assert desk.broker.answer(None) == {"token": "t2"}
    assert desk.started == 0


def test_the_token_that_was_refused_is_not_given_again() -> None:
    """It is forgotten, and another one is asked for."""
    desk = Desk()
    desk.broker.registered("t1")
    future = desk.ask("t1")
    assert (desk.broker.token, desk.started, future.done()) == (None, 1, False)


def test_a_failed_registration_is_told_to_all_and_not_repeated_at_once() -> None:
    """For a second its failure is the answer; then the next question starts one."""
    desk = Desk()
    future = desk.ask(None)
    desk.broker.failed("no", unauthorized=True)
    refusal = {"error": "no", "unauthorized": True}
    assert future.result(0) == refusal
    assert desk.broker.answer(None) == refusal
    assert desk.started == 1
    desk.clock.now += 1
    desk.ask(None)
    assert desk.started == 2


def test_another_coordinator_starts_from_nothing() -> None:
    """Neither the token nor the failure of the former one counts."""
    desk = Desk()
    desk.broker.registered("t1")
    desk.broker.failed("no", unauthorized=False)
    desk.broker.reset()
    assert desk.broker.token is None
    desk.ask(None)
    assert desk.started == 1


@given(st.lists(st.sampled_from(["ask", "ok", "fail", "wait", "reset"]), max_size=30))
def test_no_more_than_one_registration_is_ever_under_way(steps: list[str]) -> None:
    """And nobody who waits is forgotten."""
    desk, asked, ended = Desk(), 0, 0
    waiting: list[Future[Any]] = []
    do: dict[str, Callable[[], object]] = {
        "ok": lambda: desk.broker.registered(f"t{desk.started}"),
        "fail": lambda: desk.broker.failed("no", unauthorized=False),
        "reset": desk.broker.reset,
    }
    for step in steps:
        if step == "wait":
            desk.clock.now += 2
        elif step == "ask":
            answer = desk.broker.answer(desk.broker.token)
            waiting += [answer] if isinstance(answer, Future) else []
        else:
            do[step]()
            ended = desk.started if step != "reset" else ended
        asked = desk.started
        assert asked - ended in (0, 1)
        assert all(future.done() for future in waiting) == (asked == ended)


class Line:
    """A channel that answers, or says why not."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any, float]] = []

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        self.asked.append((kind, payload, timeout_s))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def register() -> str:
    """Register without a daemon."""
    return "own"


def test_a_child_asks_the_daemon_and_keeps_the_answer() -> None:
    """With the token that was refused."""
    line = Line({"token": "t2"})
    tokens = ChannelTokens(line, "t1", register, place="here")
    assert tokens.current() == "t1"
    assert tokens.renew("t1") == "t2"
    assert tokens.current() == "t2"
    question = {"stale": "t1", "place": "here"}
    assert line.asked == [("token", question, ASK_TIMEOUT_S)]


def test_a_child_without_a_daemon_registers_by_itself() -> None:
    """The daemon may be gone for good; the job is not."""
    tokens = ChannelTokens(Line(ChannelClosedError("gone")), "t1", register)
    assert tokens.renew("t1") == "own"
    assert tokens.current() == "own"


def test_a_child_at_another_coordinator_registers_there_by_itself() -> None:
    """The daemon has no token of that one, and shows nobody another's."""
    tokens = ChannelTokens(Line({"alone": True}), None, register, place="elsewhere")
    assert (tokens.renew(None), tokens.current()) == ("own", "own")


def test_who_asked_before_an_edit_does_not_get_the_new_places_token() -> None:
    """The question was for the old coordinator, and so would the token go there."""
    place = "x"
    broker = TokenBroker(lambda: None, FakeClock(), place=lambda: place)
    before = cast("Any", broker.answer(None, "x"))
    place = "y"
    after = cast("Any", broker.answer(None, "y"))
    broker.registered("ty", "y")
    assert (before.result(0), after.result(0)) == ({"alone": True}, {"token": "ty"})


def test_a_token_is_shown_to_its_own_place_only() -> None:
    """An edit of base_url or node_id hands no token to another coordinator."""
    place = "x"
    broker = TokenBroker(lambda: None, FakeClock(), place=lambda: place)
    broker.registered("tx", "x")
    assert (broker.token, broker.token_for("y")) == ("tx", None)
    assert broker.answer("stale", "y") == {"alone": True}
    place = "y"
    assert broker.token is None
    assert broker.answer(None, "x") == {"alone": True}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": "401", "unauthorized": True}, UnauthorizedError),
        ({"error": "503", "unauthorized": False}, UnavailableError),
        (TimeoutError(), UnavailableError),
        (AskRefusedError("defect"), UnavailableError),
    ],
)
def test_a_child_hears_why_there_is_no_token(
    answer: object, error: type[Exception]
) -> None:
    """In words that say whether to try again; the old token stays known."""
    tokens = ChannelTokens(Line(answer), "t1", register)
    with pytest.raises(error):
        tokens.renew("t1")
    assert tokens.current() == "t1"
