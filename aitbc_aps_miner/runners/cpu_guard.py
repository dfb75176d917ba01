"""Ends a computation that takes too much processor time; for patterns gone wild."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class TooSlowError(Exception):
    """The block took more processor time than it was given."""


@contextlib.contextmanager
def cpu_guard(limit_s: float) -> Iterator[None]:
    """Raise TooSlowError in the block after `limit_s` of processor time.

    Python's regular expressions look for signals while they backtrack, which is what
    makes this work. Only the main thread can have it; others go unguarded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _too_slow(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise TooSlowError
