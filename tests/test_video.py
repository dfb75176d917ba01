"""Real input: a video goes through coordinator, daemon and ffmpeg, and comes back."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from coordinator_server import CoordinatorServer

from aitbc_aps_miner.reference_coordinator.client import Client
from aitbc_aps_miner.reference_coordinator.samples import DATA

VIDEO_S = 10.0
TOLERANCE_S = 0.2
JOB_S = 60


@pytest.fixture(scope="module", autouse=True)
def _needs_ffmpeg() -> None:
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI must have {missing}: this test proves the main job")
    if missing:
        pytest.skip(f"{missing} not installed")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make ten seconds of a test picture with a tone."""
    path = tmp_path_factory.mktemp("video") / "holiday.mp4"
    source = f"duration={VIDEO_S:g}"
    subprocess.run(
        [
            *("ffmpeg", "-loglevel", "error", "-nostdin", "-y"),
            *("-f", "lavfi", "-i", f"testsrc={source}:size=320x240:rate=25"),
            *("-f", "lavfi", "-i", f"sine=frequency=440:{source}"),
            *("-c:v", "mpeg4", "-c:a", "aac", "-shortest", str(path)),
        ],
        check=True,
        timeout=60,
    )
    return path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass


@pytest.fixture
def video_url(video: Path) -> Iterator[str]:
    """Serve the video; give its address."""
    handler = functools.partial(_Quiet, directory=str(video.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{video.name}"
        server.shutdown()
        thread.join()


@pytest.fixture
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a reference coordinator."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture
def miner(coordinator: CoordinatorServer, tmp_path: Path) -> Iterator[None]:
    """Run the real daemon with the shipped allowlists."""
    allowlists = tmp_path / "allowlist.d"
    shutil.copytree(DATA / "allowlist.d", allowlists)
    for path in allowlists.iterdir():
        path.chmod(0o644)  # a checkout that its group may write is not trusted by root
    config = tmp_path / "config.toml"
    document = {
        "node_id": "video-node",
        "daemon": {"on_sigterm": "drain", "drain_s": 5},
        "coordinator": {
            "base_url": coordinator.base_url,
            "auth_token": coordinator.token,
        },
        "runners": {"cli": {"allowlist_dir": str(allowlists)}},
        "workspace": {"root": str(tmp_path / "jobs")},
        "status": {"listen": ""},
        "network": {"private": True},
    }
    config.write_text(tomli_w.dumps(document))
    log = tmp_path / "miner.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "aitbc_aps_miner", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(20) == 0, log.read_text()


@pytest.mark.usefixtures("miner")
def test_a_video_is_transcoded_and_comes_back(
    coordinator: CoordinatorServer, video_url: str, tmp_path: Path
) -> None:
    """Fetched, transcoded by the allowlisted ffmpeg, delivered, downloaded, right."""
    manifest = {
        "job_id": "transcode-1",
        "runner": "cli",
        "requirements": {"gpu": False, "vram_mb": 0, "cpu_threads": 1},
        "timeout_s": JOB_S,
        "input": {"urls": [{"url": video_url, "name": "input1.mp4"}]},
        "command": "ffmpeg",
        "args": [
            *("-y", "-i", "input1.mp4", "-c:v", "libx264"),
            *("-c:a", "aac", "-b:v", "400k", "output.mp4"),
        ],
        "artifacts": [{"path": "output.mp4", "type": "video/mp4", "max_mb": 5000}],
    }
    with Client(coordinator.base_url) as client:
        client.submit(manifest)
        job = coordinator.wait("transcode-1", JOB_S)
        assert job["state"] == "succeeded", job["outcome"]
        received = tmp_path / "received.mp4"
        digest = client.download("transcode-1", "output.mp4", received)

    assert digest == next(
        each["sha256"] for each in job["artifacts"] if each["path"] == "output.mp4"
    )
    found = _probe(received)
    assert {stream["codec_name"] for stream in found["streams"]} == {"h264", "aac"}
    assert float(found["format"]["duration"]) == pytest.approx(VIDEO_S, abs=TOLERANCE_S)


def _probe(path: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [
            *("ffprobe", "-v", "error", "-of", "json"),
            *("-show_format", "-show_streams", str(path)),
        ],
        check=True,
        capture_output=True,
        timeout=20,
    )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found
