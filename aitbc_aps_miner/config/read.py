"""Reads one small text file of the owner's without ever hanging on it.

A path in a configuration may name anything: a FIFO nobody writes to, a device, a
directory, a file of many gigabytes. Each ends as a sentence, none in a wait.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_WORDS = {
    errno.ENOENT: "no such file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "a circle of symbolic links",
    errno.ENOTDIR: "a path that leads through a file",
    errno.ENXIO: "a socket or a device without a driver",
    errno.ENAMETOOLONG: "a name that is too long",
}


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Why a file could not be read, in words that follow "given"."""

    reason: str


def read_small(path: Path | str, max_bytes: int) -> bytes | Unreadable:
    """Give the content of a regular file of at most `max_bytes`; never block."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError as exc:
        return Unreadable(reason=words(exc))
    except ValueError:
        return Unreadable(reason="a path with a NUL character")
    try:
        return _read(fd, max_bytes)
    except OSError as exc:
        return Unreadable(reason=words(exc))
    finally:
        os.close(fd)


def words(exc: OSError) -> str:
    """Put an operating system's refusal in words."""
    known = _WORDS.get(exc.errno or 0)
    return known or (exc.strerror or str(exc)).lower()


def _read(fd: int, max_bytes: int) -> bytes | Unreadable:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        return Unreadable(reason=_kind(mode))
    pieces, left = [], max_bytes + 1
    while left > 0 and (piece := os.read(fd, left)):
        pieces.append(piece)
        left -= len(piece)
    if left <= 0:
        return Unreadable(reason=f"more than {max_bytes} bytes")
    return b"".join(pieces)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a device"
