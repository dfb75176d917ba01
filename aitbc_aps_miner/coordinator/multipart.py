"""multipart/form-data with files that are streamed and an exact Content-Length.

Each file must still have the size it was announced with; a file that shrank or grew
ends the request as an error, never as a silently different body. RFC 7578.
"""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from aitbc_aps_miner.errors import WorkspaceError

READ_BYTES = 1024 * 1024
"""One read: large enough that system calls don't count, small enough for any node."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """One file of the form."""

    field: str
    filename: str
    content_type: str
    path: Path
    size_bytes: int


class Multipart:
    """Fields and files as one body; iterated anew for every try."""

    def __init__(self, fields: Mapping[str, str], files: Iterable[FilePart]) -> None:
        self._boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={self._boundary}"
        self._fields = b"".join(
            self._head(name) + value.encode("utf-8", "replace") + b"\r\n"
            for name, value in fields.items()
        )
        self._files = [(self._file_head(part), part) for part in files]
        self._end = f"--{self._boundary}--\r\n".encode()
        self.length = len(self._fields) + len(self._end)
        for head, part in self._files:
            self.length += len(head) + part.size_bytes + 2

    def __iter__(self) -> Iterator[bytes]:
        yield self._fields
        for head, part in self._files:
            yield head
            yield from read_exactly(part.path, part.size_bytes)
            yield b"\r\n"
        yield self._end

    def _head(self, name: str, more: str = "") -> bytes:
        return (
            f"--{self._boundary}\r\n"
            f'Content-Disposition: form-data; name="{_quoted(name)}"{more}\r\n\r\n'
        ).encode()

    def _file_head(self, part: FilePart) -> bytes:
        known = part.content_type.isascii() and part.content_type.isprintable()
        kind = part.content_type if known else "application/octet-stream"
        name = _quoted(part.filename)
        return self._head(part.field, f'; filename="{name}"\r\nContent-Type: {kind}')


def read_exactly(path: Path, size_bytes: int, start: int = 0) -> Iterator[bytes]:
    """Give a file's bytes from `start`.

    Raises WorkspaceError unless they are as many as announced.
    """
    try:
        with path.open("rb", buffering=0) as file:
            _check_size(path, os.fstat(file.fileno()).st_size, size_bytes)
            file.seek(start)
            left = size_bytes - start
            while left:
                piece = file.read(min(left, READ_BYTES))
                if not piece:
                    break
                left -= len(piece)
                yield piece
            _check_size(path, os.fstat(file.fileno()).st_size, size_bytes)
            _check_size(path, size_bytes - left, size_bytes)
    except OSError as error:
        raise WorkspaceError(f"{path.name} cannot be read: {error}") from error


def _check_size(path: Path, now: int, announced: int) -> None:
    if now != announced:
        raise WorkspaceError(
            f"{path.name} changed after it was collected: {announced} bytes announced, "
            f"{now} there now"
        )


def _quoted(name: str) -> str:
    """Escape as browsers do (WHATWG): quotes and line ends, nothing else."""
    safe = name.encode("utf-8", "replace").decode()
    return "".join(quote(char) if char in '"\r\n\0' else char for char in safe)
