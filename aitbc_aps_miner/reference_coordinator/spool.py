"""The directory where uploaded bytes lie; they are written as they come.

File names are made here: no name from the wire ever becomes a path.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self


class SpoolFile:
    """A file that grows, and the digest of what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        # Unbuffered: pieces come in tens of KiB, and an abort loses none of them.
        self._stream = path.open("wb", buffering=0)

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes so far."""
        return self._digest.hexdigest()

    def write(self, piece: bytes | memoryview) -> None:
        """Append."""
        self._stream.write(piece)
        self._digest.update(piece)
        self.size_bytes += len(piece)

    def mark(self) -> "Mark":
        """Remember the present end, to come back to it."""
        return Mark(self)

    def close(self) -> None:
        """End writing."""
        self._stream.close()

    def discard(self) -> None:
        """End writing and remove the bytes."""
        self.close()
        self.path.unlink(missing_ok=True)


class Mark:
    """An earlier end of a SpoolFile."""

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._size_bytes = file.size_bytes
        self._digest = file._digest.copy()  # noqa: SLF001 - one thing in two classes

    def restore(self) -> None:
        """Forget what came since."""
        file = self._file
        file._stream.truncate(self._size_bytes)  # noqa: SLF001 - as above
        file._stream.seek(self._size_bytes)  # noqa: SLF001 - as above
        file.size_bytes = self._size_bytes
        file._digest = self._digest.copy()  # noqa: SLF001 - as above


class Spool:
    """A directory of its own below `parent`; removed with all it holds on exit."""

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="reference-coordinator-", dir=parent))
        self._count = 0

    def new(self) -> SpoolFile:
        """Start a file."""
        self._count += 1
        return SpoolFile(self.path / str(self._count))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An upload that is cut at the end may still add a file.
        shutil.rmtree(self.path, ignore_errors=True)
