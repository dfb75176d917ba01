"""How far a payload is, read from what it prints or from a file it writes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aitbc_aps_miner.models import Progress
from aitbc_aps_miner.util import fs

MIN_PAUSE_S = 1.0
_TAIL_BYTES = 2048
_FILE_MAX_BYTES = 16384
_NOTE_MAX = 500
# ffmpeg says the duration once, before it starts.
_HEAD_BYTES = 64 << 10
_FFMPEG_DURATION = re.compile(rb"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
_FFMPEG_TIME = re.compile(rb"time=\s*(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_PERCENT = re.compile(rb"(?<![\d.])(?P<pct>\d{1,3}(?:\.\d+)?) ?%")


class ProgressSource(Protocol):
    """Where the percentage comes from."""

    def feed(self, data: memoryview) -> None:
        """Look at a piece of output."""
        ...

    def read(self, tail: bytes) -> tuple[float, str] | None:
        """Give percent and note, None when unknown; `tail` is the last output."""
        ...


class TextProgress:
    """The last percentage in the output, by a pattern with a group `pct`."""

    def __init__(self, pattern: re.Pattern[bytes] = _PERCENT) -> None:
        self._pattern = pattern

    def feed(self, data: memoryview) -> None:
        """Need nothing but the tail."""

    def read(self, tail: bytes) -> tuple[float, str] | None:
        """Find the last match."""
        matches = list(self._pattern.finditer(tail))
        try:
            return float(matches[-1]["pct"]), ""
        except (IndexError, ValueError, TypeError):
            return None


class FfmpegProgress:
    """`time=` of ffmpeg's status line over the `Duration:` of its first input."""

    def __init__(self) -> None:
        self._head = b""
        self._duration_s: float | None = None
        self._head_open = True

    def feed(self, data: memoryview) -> None:
        """Look for the duration near the start."""
        if not self._head_open:
            return
        self._head += bytes(data[: _HEAD_BYTES - len(self._head)])
        found = _FFMPEG_DURATION.search(self._head)
        if found is not None:
            self._duration_s = _seconds(found)
        if found is not None or len(self._head) >= _HEAD_BYTES:
            self._head_open, self._head = False, b""

    def read(self, tail: bytes) -> tuple[float, str] | None:
        """Divide the newest time by the duration."""
        times = list(_FFMPEG_TIME.finditer(tail))
        if not times or not self._duration_s:
            return None
        return 100 * _seconds(times[-1]) / self._duration_s, ""


class FileProgress:
    """A JSON file `{pct, note}` that the payload replaces."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def feed(self, data: memoryview) -> None:
        """Need no output."""

    def read(self, tail: bytes) -> tuple[float, str] | None:
        """Read the file; whatever is wrong with it is the payload's affair."""
        del tail
        try:
            report: Any = fs.read_json(self._path, max_bytes=_FILE_MAX_BYTES)
            return float(report["pct"]), str(report.get("note", ""))[:_NOTE_MAX]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


class ProgressMeter:
    """Reports progress when it changed, not more often than once a second."""

    def __init__(
        self,
        source: ProgressSource,
        report: Callable[[Progress], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._source = source
        self._report = report
        self._monotonic = monotonic
        self._tail = b""
        self._bytes_out = 0
        self._last = Progress(pct=0)
        self._not_before = float("-inf")

    def feed(self, data: memoryview) -> None:
        """Take a piece of output."""
        self._bytes_out += len(data)
        self._tail = (self._tail + bytes(data[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
        self._source.feed(data)

    def tick(self) -> None:
        """Report if there is news and it is time."""
        now = self._monotonic()
        if now < self._not_before:
            return
        found = self._source.read(self._tail)
        pct, note = (self._last.pct, self._last.note) if found is None else found
        news = Progress(
            pct=min(max(pct, 0.0), 100.0) if pct == pct else 0.0,  # noqa: PLR0124 - NaN is the one number that is not itself
            note=note,
            bytes_out=self._bytes_out,
            tail=self._tail.decode(errors="replace"),
        )
        if news != self._last:
            self._last = news
            self._not_before = now + MIN_PAUSE_S
            self._report(news)


def _seconds(found: re.Match[bytes]) -> float:
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
