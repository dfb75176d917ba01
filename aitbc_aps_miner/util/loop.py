"""A thread's epoll loop: descriptors, one timer, and calls posted by other threads.

Wakes for nothing else. Handlers run in the loop's thread and must not block.
"""

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable

from aitbc_aps_miner.util.clock import TimerFd


class Loop:
    """Calls the handlers of descriptors that became readable."""

    def __init__(self, on_timer: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._on_timer = on_timer
        self._timer = TimerFd()
        self._posted: deque[Callable[[], None]] = deque()
        self._later: list[Callable[[], None]] = []
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_stopped = False
        self.watch(self._timer.fileno(), self._take_timer)
        self.watch(self._wake_fd, self._take_posted)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop that; fine for one that isn't watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop's thread; from any thread, forgotten after the end."""
        self._posted.append(call)
        if not self._is_stopped:
            os.eventfd_write(self._wake_fd, 1)

    def after_batch(self, call: Callable[[], None]) -> None:
        """Run `call` after the events at hand: it may close descriptors.

        Closed earlier, a number could be in use again when its old event's turn comes.
        """
        self._later.append(call)

    def arm(self, due: list[float]) -> None:
        """Call `on_timer` at the first of `due` (CLOCK_MONOTONIC); from any thread."""
        if self._is_stopped:
            return
        if due:
            self._timer.arm(min(due))
        else:
            self._timer.disarm()

    def run(self, after_each: Callable[[], None]) -> None:
        """Handle events until `stop`, calling `after_each` after every batch."""
        while not self._is_stopped:
            for fd, _ in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            while self._later:
                self._later.pop()()
            after_each()

    def stop(self) -> None:
        """Let `run` return after this batch."""
        self._is_stopped = True

    def close(self) -> None:
        """Give the descriptors back, after `run` has returned."""
        self._is_stopped = True
        self._epoll.close()
        self._timer.close()
        os.close(self._wake_fd)

    def _take_timer(self) -> None:
        self._timer.drain()
        self._on_timer()

    def _take_posted(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._posted:
            self._posted.popleft()()
