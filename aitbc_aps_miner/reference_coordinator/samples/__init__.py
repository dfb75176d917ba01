"""The demo's jobs, and how to tell that their results are right.

Beside this file lie what a node needs to take them: `allowlist.d/` and `tasks/`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent
"""The directory that holds `allowlist.d` and the package `tasks`."""

PRIMES_LIMIT = 1_000_000_000
PRIMES_COUNT = 50_847_534  # https://oeis.org/A006880, n = 9
"""The number of primes up to PRIMES_LIMIT: proof that the task did its work."""

_TABLE_END = f"\n{PRIMES_LIMIT},{PRIMES_COUNT}\n".encode()
_MP4_MARK = slice(4, 8)  # the type of an MP4 file's first box, ISO/IEC 14496-12
_VIDEO_S = 20

ArtifactUrl = Callable[[str, str], str]
"""Gives the address of an artifact by job id and path."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One job to submit and what has to come of it."""

    title: str
    manifest: Mapping[str, Any]
    after: str | None = None
    """Id of the job whose artifact is this one's input: submit when it succeeded."""
    expect: Mapping[str, Callable[[bytes], bool]] = field(default_factory=dict)
    """What each artifact's bytes must be like; all others only need their digest."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.manifest["job_id"])


def samples(run: str, artifact_url: ArtifactUrl, *, video: bool) -> tuple[Sample, ...]:
    """Give the sample jobs, their ids ending in `run`; `video` needs ffmpeg."""
    jobs = (_hello(run), _primes(run))
    return (*jobs, *_video(run, artifact_url)) if video else jobs


def _hello(run: str) -> Sample:
    return Sample(
        title="command: echo",
        manifest={
            "job_id": f"hello-{run}",
            "runner": "cli",
            "command": "echo",
            "args": ["hello", "world"],
            "timeout_s": 10,
            "artifacts": [{"path": "output.txt", "type": "text/plain", "max_mb": 1}],
        },
        expect={"output.txt": lambda data: data == b"hello world\n"},
    )


def _primes(run: str) -> Sample:
    return Sample(
        title="Python task: primes",
        manifest={
            "job_id": f"primes-{run}",
            "runner": "python",
            "task": "tasks.primes",
            "params": {"limit": PRIMES_LIMIT},
            "timeout_s": 120,
            "idempotent": True,
        },
        expect={
            "result.json": _is_primes_result,
            "primes.csv": lambda data: data.endswith(_TABLE_END),
        },
    )


def _is_primes_result(data: bytes) -> bool:
    try:
        result = json.loads(data)
    except ValueError:
        return False
    return bool(result == {"limit": PRIMES_LIMIT, "primes": PRIMES_COUNT})


def _video(run: str, artifact_url: ArtifactUrl) -> tuple[Sample, Sample]:
    source = f"testvideo-{run}"
    make = Sample(
        title="ffmpeg: make a video",
        manifest={
            "job_id": source,
            "runner": "cli",
            "command": "testvideo",
            "args": [
                *("-y", "-f", "lavfi"),
                *("-i", f"testsrc=duration={_VIDEO_S}:size=640x360:rate=25"),
                *("-f", "lavfi", "-i", f"sine=frequency=440:duration={_VIDEO_S}"),
                *("-c:v", "libx264", "-c:a", "aac", "-shortest", "test.mp4"),
            ],
            "timeout_s": 60,
            "artifacts": [{"path": "test.mp4", "type": "video/mp4", "max_mb": 50}],
        },
        expect={"test.mp4": _is_mp4},
    )
    transcode = Sample(
        title="ffmpeg: transcode it",
        after=source,
        manifest={
            "job_id": f"transcode-{run}",
            "runner": "cli",
            "command": "ffmpeg",
            "args": [
                *("-y", "-i", "input1.mp4", "-c:v", "libx264", "-c:a", "aac"),
                *("-b:v", "400k", "output.mp4"),
            ],
            "input": {
                "urls": [
                    {"url": artifact_url(source, "test.mp4"), "name": "input1.mp4"}
                ]
            },
            "timeout_s": 120,
            "artifacts": [{"path": "output.mp4", "type": "video/mp4", "max_mb": 50}],
        },
        expect={"output.mp4": _is_mp4},
    )
    return make, transcode


def _is_mp4(data: bytes) -> bool:
    return data[_MP4_MARK] == b"ftyp"
