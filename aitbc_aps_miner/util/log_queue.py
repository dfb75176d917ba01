"""Lets a thread of its own write log lines, so that nobody who logs ever waits.

A pipe that nobody reads, a terminal stopped by Ctrl-S, a disk that hangs: a write to
any of them blocks for as long as it likes, and what must go on meanwhile are
heartbeats. Lines wait here, in order; what finds no room is counted and told.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from aitbc_aps_miner.util.log_sink import Sink

MAX_WAITING_BYTES = 4 << 20
"""Some ten thousand lines: hours of a quiet node, and nothing that memory feels."""

END_S = 0.5
"""How long the end of a process, or of a sink, waits for its last lines."""

S = TypeVar("S", bound=Sink)


class QueuedSink(Generic[S]):
    """A sink behind a bounded queue; its writes and its end never block for long.

    Rendered at once, so that a line has the form in force when it was said, and its
    size is known. When there is no room, lines are dropped until all that wait are
    written: so the place where `dropped(count)` is told is where they are missing.
    """

    def __init__(
        self,
        sink: S,
        *,
        dropped: Callable[[int], Mapping[str, Any]],
        failed: Callable[[str], None] = lambda _problem: None,
    ) -> None:
        self.sink = sink
        self._dropped_record = dropped
        self._failed = failed
        self._lines: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._begin()

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue one record's line."""
        line = self.sink.render(record)
        self._heal()
        with self._changed:
            is_full = self._waiting_bytes + len(line) > MAX_WAITING_BYTES
            if self._dropped or is_full:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._waiting_bytes += len(line)
            if self._thread is None or not self._thread.is_alive():
                # A daemon thread: one that blocks for ever must not keep the process.
                self._thread = threading.Thread(
                    target=self._work, name="log", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written; False when it isn't in time."""
        self._heal()
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_busy(), timeout_s)

    def close(self, timeout_s: float = END_S) -> None:
        """Write what waits and let go of the sink, in time or when it goes again."""
        self._heal()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self.sink.close()
        else:
            thread.join(timeout_s)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._lines = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_writing = False
        self._is_closing = False
        self._thread = None

    def _heal(self) -> None:
        """Start afresh in a forked child: the thread, and what waits, is its parent's.

        Its lock may have been held at the fork, too.
        """
        if self._pid != os.getpid():
            self._begin()

    def _is_busy(self) -> bool:
        return bool(self._lines or self._dropped or self._is_writing)

    def _work(self) -> None:
        while (line := self._next()) is not None:
            problem = self.sink.put(line)
            if problem is not None:
                self._failed(problem)
        self.sink.close()

    def _next(self) -> bytes | None:
        """Wait for a line; None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._lines or self._dropped or self._is_closing
            )
            if not self._is_busy():
                return None
            self._is_writing = True
            if self._lines:
                line = self._lines.popleft()
                self._waiting_bytes -= len(line)
                return line
            count, self._dropped = self._dropped, 0
        return self.sink.render(self._dropped_record(count))
