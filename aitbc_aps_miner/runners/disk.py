"""Measures what a payload has written, a few entries at a time; deletes nothing.

By size, not by blocks: an artifact counts by its size, and a sparse file of a
terabyte is no result. Bytes of deleted files that are still open are not seen.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_STEP_S = 0.005
# Pauses are this many times the duration of a walk, at least the shortest.
_PAUSE_FACTOR = 20
_SHORTEST_PAUSE_S = 0.5
_CLOCK_EVERY = 64


class DiskWatch:
    """The bytes in some directories over what was there before the payload."""

    def __init__(
        self,
        roots: Sequence[Path],
        limit_bytes: float | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._roots = roots
        self._limit_bytes = limit_bytes
        self._monotonic = monotonic
        self._walk: Iterator[int] | None = None
        self._seen_bytes = 0
        self._next_walk = 0.0
        self._walk_s = 0.0
        self._before_bytes = 0 if limit_bytes is None else self._measure()

    @property
    def walking(self) -> bool:
        """Whether a walk waits for its next step."""
        return self._walk is not None

    def step(self) -> int | None:
        """Go on measuring for some milliseconds; give the bytes once over the limit."""
        began = self._monotonic()
        if self._limit_bytes is None or (
            self._walk is None and began < self._next_walk
        ):
            return None
        if self._walk is None:
            self._walk, self._seen_bytes, self._walk_s = _sizes(self._roots), 0, 0.0
        for count, size in enumerate(self._walk):
            self._seen_bytes += size
            if count % _CLOCK_EVERY == 0 and self._monotonic() - began > _STEP_S:
                break
        else:
            self._walk = None
        now = self._monotonic()
        self._walk_s += now - began
        self._next_walk = now + max(_SHORTEST_PAUSE_S, _PAUSE_FACTOR * self._walk_s)
        return self._over(self._seen_bytes)

    def final(self) -> int | None:
        """Measure all of it; give the bytes if they are over the limit."""
        return None if self._limit_bytes is None else self._over(self._measure())

    def _measure(self) -> int:
        return sum(_sizes(self._roots))

    def _over(self, seen_bytes: int) -> int | None:
        written = seen_bytes - self._before_bytes
        over = self._limit_bytes is not None and written > self._limit_bytes
        return written if over else None


def _sizes(roots: Sequence[Path]) -> Iterator[int]:
    """Give the size of every regular file, never following a link."""
    waiting = [str(root) for root in roots]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # deleted meanwhile
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
                    yield status.st_size if stat.S_ISREG(status.st_mode) else 0
        except OSError:
            continue
