"""Moves what a payload prints into its logs, live and in constant memory.

`logs/exec.log` gets standard output and error in the order of their arrival, up to a
cap; the rest is read and counted, so that a flood never stops the payload. Standard
output alone is kept in `logs/stdout.bin` where an artifact may be filled from it.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

EXEC_LOG = "exec.log"
STDOUT_FILE = "stdout.bin"
STDOUT_MAX_BYTES = 64 << 20
_CHUNK_BYTES = 256 << 10
# What a pipe can hold after its last writer has gone (launcher._PIPE_BYTES).
_DRAIN_BYTES = 1 << 20
_SECRET_MIN = 4  # shorter ones would mask half of every line


class CappedFile:
    """Takes bytes up to a cap and counts the rest; a full disk counts as the cap."""

    def __init__(self, path: Path, max_bytes: int, mode: int = os.O_APPEND) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | mode
        self._fd = os.open(path, flags, 0o600)
        self._room = max_bytes
        self.dropped_bytes = 0

    def write(self, data: memoryview) -> None:
        """Write what fits."""
        taken = data[: self._room]
        written = 0
        try:
            while written < len(taken):
                written += os.write(self._fd, taken[written:])
        except OSError:
            self._room = written  # nothing more goes in, also when room comes back
        self._room -= written
        self.dropped_bytes += len(data) - written

    def close(self, note: str = "") -> None:
        """Close the file, with a last line beyond the cap."""
        with contextlib.suppress(OSError):
            os.write(self._fd, note.encode())
        os.close(self._fd)


class Masker:
    """Replaces secrets in one stream by `***`, also across the borders of reads."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {secret.encode() for secret in secrets if len(secret) >= _SECRET_MIN}
        # Longest first: a secret may begin with another one.
        self._secrets = sorted(known, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._held = b""

    def feed(self, data: memoryview) -> memoryview:
        """Give what can be shown by now; the start of a secret is held back."""
        if not self._secrets:
            return data
        masked = self._pattern.sub(b"***", self._held + data)
        cut = len(masked) - self._beginning(masked)
        self._held = masked[cut:]
        return memoryview(masked)[:cut]

    def flush(self) -> memoryview:
        """Give what was held back and did not become a secret."""
        held, self._held = self._held, b""
        return memoryview(held)

    def _beginning(self, data: bytes) -> int:
        """Give the length of the longest end of `data` that begins a secret."""
        longest = min(len(self._secrets[0]) - 1, len(data))
        for length in range(longest, 0, -1):
            end = data[-length:]
            if any(secret.startswith(end) for secret in self._secrets):
                return length
        return 0


class OutputPump:
    """Both output pipes of one payload; a context manager that closes its files."""

    def __init__(
        self,
        stdout: int,
        stderr: int,
        logs: Path,
        *,
        log_bytes: int,
        keep_stdout: bool = False,
        secrets: Iterable[str] = (),
        on_output: Callable[[memoryview], None] = lambda _data: None,
    ) -> None:
        """Take two non-blocking descriptors; they stay the caller's."""
        secrets = tuple(secrets)
        self._stdout = stdout
        self._maskers = {stdout: Masker(secrets), stderr: Masker(secrets)}
        self._on_output = on_output
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._log = CappedFile(logs / EXEC_LOG, log_bytes)
        self._kept: CappedFile | None = None
        if keep_stdout:
            self._kept = CappedFile(logs / STDOUT_FILE, STDOUT_MAX_BYTES, os.O_TRUNC)
        self.stdout_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd, masker in self._maskers.items():
            self._write(fd, masker.flush())
        dropped = self.log_dropped_bytes
        note = f"\n[{dropped} more bytes were printed and dropped]\n" if dropped else ""
        self._log.close(note)
        if self._kept is not None:
            self._kept.close()

    @property
    def log_dropped_bytes(self) -> int:
        """What did not go into exec.log."""
        return self._log.dropped_bytes

    @property
    def stdout_truncated(self) -> bool:
        """Whether stdout.bin is not all of standard output."""
        return self._kept is not None and self._kept.dropped_bytes > 0

    def read(self, fd: int) -> int:
        """Move one piece; 0 at the end of the stream, -1 when nothing is there now."""
        try:
            size = os.readv(fd, [self._buffer])
        except BlockingIOError:
            return -1
        if fd == self._stdout:
            self.stdout_bytes += size
        self._write(fd, self._maskers[fd].feed(self._buffer[:size]))
        return size

    def drain(self, fds: Iterable[int]) -> None:
        """Take what is left in the pipes of a tree that has ended.

        Bounded: a stranger who got hold of the pipe may go on writing.
        """
        for fd in fds:
            left = _DRAIN_BYTES
            while left > 0 and (size := self.read(fd)) > 0:
                left -= size

    def _write(self, fd: int, data: memoryview) -> None:
        if not data:
            return
        self._log.write(data)
        if self._kept is not None and fd == self._stdout:
            self._kept.write(data)
        self._on_output(data)
