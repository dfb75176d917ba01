"""runners/progress.py: percentages from output and files, reported with moderation."""

import re
from pathlib import Path

import pytest

from aitbc_aps_miner.models import Progress
from aitbc_aps_miner.runners.progress import (
    FfmpegProgress,
    FileProgress,
    ProgressMeter,
    ProgressSource,
    TextProgress,
)

HEAD = b"  Duration: 00:01:40.00, start: 0.0\n"
LINE = b"frame=1 time=%b bitrate=1\r"


def _ffmpeg(*pieces: bytes) -> FfmpegProgress:
    source = FfmpegProgress()
    for piece in pieces:
        source.feed(memoryview(piece))
    return source


@pytest.mark.parametrize(
    ("source", "tail", "found"),
    [
        (_ffmpeg(HEAD), LINE % b"00:00:25.00" + LINE % b"00:00:50.00", (50, "")),
        (_ffmpeg(HEAD[:14], HEAD[14:], HEAD), LINE % b"00:00:25.00", (25, "")),
        (_ffmpeg(HEAD), LINE % b"N/A", None),
        (_ffmpeg(), LINE % b"00:00:25.00", None),
        (_ffmpeg(b"Duration: 00:00:00.00,"), LINE % b"00:00:25.00", None),
        (_ffmpeg(b"x" * 65536, HEAD), LINE % b"00:00:25.00", None),
        (TextProgress(), b"3% ... 99.5 %", (99.5, "")),
        (TextProgress(), b"1234567%", None),
        (TextProgress(), b"none", None),
        (TextProgress(re.compile(rb"at (?P<pct>\w+)?")), b"at x", None),
        (TextProgress(re.compile(rb"at (?P<pct>\d+)?")), b"at ", None),
    ],
)
def test_the_newest_percentage_is_found(
    source: ProgressSource, tail: bytes, found: tuple[float, str] | None
) -> None:
    """Or none, for whatever else is printed."""
    source.feed(memoryview(tail))
    assert source.read(tail) == found


def test_reports_are_moderate(tmp_path: Path) -> None:
    """At most one a second, only with news; percentages stay in their range."""
    file = tmp_path / "progress"
    now = [0.0]
    heard: list[Progress] = []
    meter = ProgressMeter(FileProgress(file), heard.append, lambda: now[0])
    meter.tick()
    assert heard == []
    file.write_text('{"pct": -5, "note": "begun"}')
    meter.tick()
    file.write_text('{"pct": 50}')
    now[0] = 0.9
    meter.tick()
    now[0] = 1.0
    meter.tick()
    now[0] = 2.0
    meter.tick()
    meter.feed(memoryview(b"x" * 3000 + b"\xff"))
    file.write_text('{"pct": 500}')
    meter.tick()
    assert heard == [
        Progress(pct=0, note="begun"),
        Progress(pct=50),
        Progress(pct=100, bytes_out=3001, tail="x" * 2047 + "\ufffd"),
    ]
