"""Rows about large files: an artifact of 1 GiB on its way out, and the memory it takes.

The file is random bytes written once; the sink reads and drops what comes.
"""

import hashlib
import multiprocessing
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from bench_table import Row
from bench_tools import Scale, in_turn, median, peak_rss_mb, timed

from aitbc_aps_miner.coordinator import FixedToken, NodeV1, Transport
from aitbc_aps_miner.models import ArtifactFile, Outcome
from aitbc_aps_miner.util.clock import SystemClock

RATE_LIMIT = 0.95
GROWTH_LIMIT_MB = 16

_WHY_IN_TURN = (
    "one after the other: the digest is part of the outcome, which is signed and "
    "durable before the first byte goes out"
)
_MIB = 1 << 20


def upload(scale: Scale, directory: Path) -> list[Row]:
    """Time NodeV1.deliver of one large artifact against sha256 over the same file."""
    size_mb = int(scale.of(1024, 32))
    rounds = scale.rounds(5)
    directory.mkdir(parents=True, exist_ok=True)
    path, log = directory / "artifact", directory / "exec.log"
    _fill(path, size_mb)
    log.write_text("done\n")
    with _sink() as port, closing(_node(port)) as node:
        outcome = _outcome(path)
        _send_small(node, log)  # what a first call costs is not this row's
        before_mb = _forget_peak()
        uploads, hashes = in_turn(
            rounds,
            lambda: timed(lambda: node.deliver(outcome, lambda _: path, log)),
            lambda: timed(lambda: _sha256(path)),
        )
        growth_mb = peak_rss_mb("self") - before_mb
    sent_s, hashed_s = median(uploads), median(hashes)
    rate, both = hashed_s / sent_s, hashed_s / (sent_s + hashed_s)
    alone = f"sha256 alone: {size_mb / hashed_s:.0f} MiB/s"
    return [
        Row(
            name=f"upload of {size_mb} MiB, its digest known",
            measured=f"{size_mb / sent_s:.0f} MiB/s",
            reference=alone,
            ratio=rate,
            target=f"≥ {RATE_LIMIT}",
            met=rate >= RATE_LIMIT,
            rounds=rounds,
        ),
        Row(
            name=f"hashing and uploading {size_mb} MiB, as a job does",
            measured=f"{size_mb / (sent_s + hashed_s):.0f} MiB/s",
            reference=alone,
            ratio=both,
            target=f"≥ {RATE_LIMIT}",
            met=both >= RATE_LIMIT,
            rounds=rounds,
            notes=(_WHY_IN_TURN,),
        ),
        Row(
            name="memory that this upload takes",
            measured=f"{growth_mb:.1f} MiB",
            target=f"< {GROWTH_LIMIT_MB} MiB",
            met=growth_mb < GROWTH_LIMIT_MB,
            rounds=rounds,
        ),
    ]


def _node(port: int) -> NodeV1:
    transport = Transport(
        f"http://127.0.0.1:{port}/api/v1",
        FixedToken("t"),
        clock=SystemClock(),
        ssl_context=ssl.create_default_context(),
    )
    return NodeV1(transport, "bench", extensions=frozenset())


def _outcome(path: Path) -> Outcome:
    artifact = ArtifactFile(
        path="artifact",
        type="application/octet-stream",
        size_bytes=path.stat().st_size,
        sha256=_sha256(path),
        stored="artifact",
    )
    return Outcome(
        job_id="bench", attempt=1, succeeded=True, exit_code=0, artifacts=(artifact,)
    )


def _send_small(node: NodeV1, log: Path) -> None:
    small = Outcome(job_id="bench", attempt=1, succeeded=True, exit_code=0)
    node.deliver(small, lambda _: log, log)


def _fill(path: Path, size_mb: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(size_mb):
            file.write(os.urandom(_MIB))


def _sha256(path: Path) -> str:
    """Hash in the pieces in which the collector does."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_MIB):
            digest.update(chunk)
    return digest.hexdigest()


def _forget_peak() -> float:
    """Set the peak of resident memory to what is resident now, and give that."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_mb("self")


@contextmanager
def _sink() -> Iterator[int]:
    """Run a server that takes any body and says 200; in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection) -> None:
    buffer = bytearray(_MIB)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection:
                while _drop_request(connection, buffer):
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
                    )


def _drop_request(connection: socket.socket, buffer: bytearray) -> bool:
    """Read one request and forget it; False at the end of the connection."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65536)
        if not piece:
            return False
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(line for line in lines if line.startswith(b"content-length:"))
    left = int(length.partition(b":")[2]) - len(body)
    while left:
        left -= connection.recv_into(buffer, min(left, len(buffer)))
    return True
