"""Prepares submissions one after another, off every other thread's way.

`prepare` reads the configuration, from a disk that may hang: after a second the last
answer for the same job is taken instead, so that the heartbeat goes on.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from aitbc_aps_miner.executor.task import Isolated, Log, OnEnd, refused

Prepare = Callable[[str, Isolated], Mapping[str, Any]]
"""(job id, what is to run) → more keyword arguments for the function."""

_PATIENCE_S = 1.0
_FIRST_PATIENCE_S = 10.0
"""The same when there is no earlier answer to fall back on."""
_REMEMBERED = 64
"""Answers kept; the ids of pulled jobs never come again."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One thing to run, and what to do when its extra arguments are there, or not."""

    job_id: str
    isolated: Isolated
    deliver: Callable[[Mapping[str, Any]], None]
    refuse: OnEnd
    problem: str = ""
    """Why it is refused whatever `prepare` says."""


class Feeder:
    """Two threads: one asks `prepare`, one doesn't wait for it for ever."""

    def __init__(
        self, prepare: Prepare, log: Log, patience_s: float = _PATIENCE_S
    ) -> None:
        self._prepare = prepare
        self._log = log
        self._patience_s = patience_s
        self._submissions: SimpleQueue[Submission | None] = SimpleQueue()
        self._questions: SimpleQueue[tuple[Submission, Future[Any]] | None] = (
            SimpleQueue()
        )
        self._pending: Future[Any] = Future()
        self._pending.set_result(None)
        self._known: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._is_closed = threading.Event()

    def start(self) -> None:
        """Start both threads; neither keeps the interpreter from ending."""
        for target in (self._feed, self._answer):
            threading.Thread(target=target, name="feeder", daemon=True).start()

    def put(self, submission: Submission) -> None:
        """Queue `submission`; never waits."""
        self._submissions.put(submission)

    def close(self) -> None:
        """Refuse what is queued and end the threads, once `prepare` returns."""
        self._is_closed.set()
        self._submissions.put(None)
        self._questions.put(None)

    def _feed(self) -> None:
        while (submission := self._submissions.get()) is not None:
            problem = submission.problem
            if self._is_closed.is_set():
                problem = "the executor was shut down"
            extra = None if problem else self._ask(submission)
            if extra is None:
                submission.refuse(refused(problem or "it could not be prepared"))
            else:
                submission.deliver(extra)

    def _ask(self, submission: Submission) -> Mapping[str, Any] | None:
        """Give the extra arguments; None when there are neither new nor old ones."""
        known = self._known.get(submission.job_id)
        if self._pending.done():
            self._pending = Future()
            self._questions.put((submission, self._pending))
        elif known is not None:
            return known  # it still hangs in an earlier question
        else:
            return None
        try:
            answer: Mapping[str, Any] = self._pending.result(
                _FIRST_PATIENCE_S if known is None else self._patience_s
            )
        except Exception as exc:  # noqa: BLE001  a hook may raise what it likes
            self._log.warning("prepare.failed", job_id=submission.job_id, error=exc)
            return known
        self._remember(submission.job_id, answer)
        return answer

    def _remember(self, job_id: str, answer: Mapping[str, Any]) -> None:
        self._known[job_id] = answer
        self._known.move_to_end(job_id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _answer(self) -> None:
        while (question := self._questions.get()) is not None:
            submission, future = question
            try:
                future.set_result(self._prepare(submission.job_id, submission.isolated))
            except Exception as exc:  # noqa: BLE001  the hook's failure, told by _ask
                future.set_exception(exc)
