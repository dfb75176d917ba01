"""Standard descriptors that are closed or full, and the real daemon with such."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from coordinator_server import CoordinatorServer
from miner_process import PATIENCE_S, Miner

ALL_CLOSED = "<&- >&- 2>&-"


@pytest.fixture
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a coordinator."""
    with CoordinatorServer() as server:
        yield server


@contextmanager
def started(
    miner: Miner, shell: str = "", stdout: int | None = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the daemon with redirections of the shell; kill it if it doesn't end."""
    program = (sys.executable, "-m", "aitbc_aps_miner", str(miner.config))
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *program],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def beats(coordinator: CoordinatorServer) -> int:
    """Count the heartbeats so far."""
    return len(coordinator.calls("nodes/heartbeat"))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ALL_CLOSED])
def test_closed_descriptors_become_dev_null(tmp_path: Path, closed: str) -> None:
    """No other file takes their place, and what is printed harms nobody."""
    program = f"""
import os, pathlib, sys
from aitbc_aps_miner.util import stdio
stdio.fill()
stdio.fill()
print(sys.stdin.read(), file=sys.stderr)
fd = os.open({str(tmp_path)!r}, os.O_RDONLY)
names = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(3)]
pathlib.Path({str(tmp_path / "names")!r}).write_text(str((fd, names)))
"""
    null = subprocess.DEVNULL
    subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program],
        stdin=null,
        stdout=null,
        stderr=null,
        check=True,
        timeout=PATIENCE_S,
    )
    assert (tmp_path / "names").read_text() == str((3, ["/dev/null"] * 3))


def test_a_daemon_works_and_ends_with_all_of_them_closed(
    coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """There is no terminal that could decide how it ends."""
    miner = Miner(tmp_path, coordinator.base_url, daemon={"on_sigterm": "auto"})
    with started(miner, ALL_CLOSED) as process:
        coordinator.wait_until(lambda: beats(coordinator) > 0, PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_a_full_standard_output_stops_nothing(
    coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """Heartbeats go on, and SIGTERM ends it within a second and a half."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    miner = Miner(tmp_path, coordinator.base_url)
    with started(miner, stdout=writer) as process:
        coordinator.wait_until(lambda: beats(coordinator) > 1, PATIENCE_S)
        miner.wait_until(lambda: miner.healthz().get("healthy") is True)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert time.monotonic() - began < 1.5
    os.close(reader)
    os.close(writer)
