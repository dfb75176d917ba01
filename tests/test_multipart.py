"""Forms with files: exact, streamed, and of files that hold still."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from python_multipart.multipart import parse_options_header
from scripted_server import Connection, Seen, serving
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from aitbc_aps_miner.coordinator.multipart import (
    READ_BYTES,
    FilePart,
    Multipart,
    read_exactly,
)
from aitbc_aps_miner.errors import WorkspaceError


def part(path: Path, filename: str = "a", kind: str = "text/plain") -> FilePart:
    """Describe a file as it is now."""
    return FilePart(
        field="artifact",
        filename=filename,
        content_type=kind,
        path=path,
        size_bytes=path.stat().st_size,
    )


def parsed(form: Multipart) -> list[tuple[str, str | None, bytes]]:
    """Read a form with the parser that FastAPI uses: (field, filename, content)."""

    async def stream() -> AsyncGenerator[bytes, None]:
        for piece in form:
            yield piece

    async def read() -> list[tuple[str, str | None, bytes]]:
        headers = Headers({"content-type": form.content_type})
        found = await MultiPartParser(headers, stream()).parse()
        items: list[tuple[str, str | None, bytes]] = []
        for name, value in found.multi_items():
            if isinstance(value, UploadFile):
                items.append((name, value.filename, await value.read()))
                await value.close()
            else:
                items.append((name, None, value.encode()))
        return items

    return asyncio.run(read())


def test_fields_come_first_and_files_in_order(tmp_path: Path) -> None:
    """A server that keeps one file only keeps the last."""
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"log")
    two.write_bytes(b"\r\n--\r\n\0" * 10)
    form = Multipart(
        {"job_id": "j", "metadata": '{"ü": 1}'},
        [part(one, "artifacts/logs/exec.log"), part(two, "artifacts/ü.bin")],
    )
    assert parsed(form) == [
        ("job_id", None, b"j"),
        ("metadata", None, '{"ü": 1}'.encode()),
        ("artifact", "artifacts/logs/exec.log", b"log"),
        ("artifact", "artifacts/ü.bin", b"\r\n--\r\n\0" * 10),
    ]
    assert len(b"".join(form)) == form.length


@given(
    name=st.text(st.characters(codec=None), min_size=1, max_size=30),
    kind=st.text(max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_no_name_breaks_out_of_its_header(name: str, kind: str) -> None:
    """Quotes and line ends are escaped, other types than plain ASCII replaced."""
    path = Path("/dev/null")
    form = Multipart({}, [part(path, name, kind)])
    body = b"".join(form)
    assert len(body) == form.length
    head, _, rest = body.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert len(lines) == 3
    assert b"\n" not in b"".join(lines)
    assert rest.startswith(b"\r\n--")
    _, options = parse_options_header(lines[1].split(b": ", 1)[1])
    assert options[b"name"] == b"artifact"


@pytest.mark.parametrize("size", [0, 1, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES])
@pytest.mark.parametrize("start", [0, 1])
def test_a_file_is_read_to_its_last_byte(tmp_path: Path, size: int, start: int) -> None:
    """From any byte on, in pieces of one read at most."""
    path, data = tmp_path / "f", bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    path.write_bytes(data)
    start = min(start, size)
    pieces = list(read_exactly(path, size, start))
    assert b"".join(pieces) == data[start:]
    assert all(len(piece) <= READ_BYTES for piece in pieces)


def shrink(path: Path) -> None:
    """Cut the file."""
    with path.open("r+b") as file:
        file.truncate(READ_BYTES + 5)


def grow(path: Path) -> None:
    """Lengthen the file."""
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [shrink, grow, Path.unlink])
def test_a_file_that_changed_before_is_not_sent(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """It would not fit its announced length."""
    path = tmp_path / "f"
    path.write_bytes(bytes(2 * READ_BYTES))
    form = Multipart({}, [part(path)])
    change(path)
    with pytest.raises(WorkspaceError):
        list(form)


@pytest.mark.parametrize("change", [shrink, grow])
def test_a_file_that_changes_while_it_is_sent(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The request ends as an error, not as another body."""
    path = tmp_path / "f"
    path.write_bytes(bytes(2 * READ_BYTES))
    pieces = iter(Multipart({}, [part(path)]))
    sent = [next(pieces) for _ in range(3)]
    assert len(sent[-1]) == READ_BYTES
    change(path)
    with pytest.raises(
        WorkspaceError, match=r"changed after it was collected: 2097152"
    ):
        list(pieces)


GROWTH = """
import resource, sys
from pathlib import Path
from aitbc_aps_miner.coordinator import FixedToken, NodeV1, Transport
from aitbc_aps_miner.models import ArtifactFile, Outcome
from aitbc_aps_miner.util.clock import SystemClock

url, small, large = sys.argv[1:]
node = NodeV1(
    Transport(url, FixedToken("t"), clock=SystemClock()),
    "node",
    extensions=frozenset(),
)

def deliver(path):
    file = ArtifactFile(
        path="a", type="text/plain", size_bytes=path.stat().st_size, sha256="0" * 64,
        stored="a",
    )
    outcome = Outcome(job_id="j", attempt=1, succeeded=True, artifacts=(file,))
    node.deliver(outcome, lambda _: path, Path("/none"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = deliver(Path(small))
print(deliver(Path(large)) - before)
"""


def test_a_large_artifact_takes_no_memory(tmp_path: Path) -> None:
    """256 MiB grow the process by less than 16 MiB, and all of it arrives."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    size = 256 * 2**20
    with large.open("wb") as file:
        file.truncate(size)
    arrived: list[int] = []

    def sink(request: Seen, connection: Connection) -> None:
        arrived.append(connection.drain(request))
        connection.reply(200, {})

    with serving(sink, read_body=False) as server:
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, server.url, str(small), str(large)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert arrived[1] > size
    assert int(done.stdout) < 16 * 1024
