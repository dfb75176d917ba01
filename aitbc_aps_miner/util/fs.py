"""Files that survive a crash, and trees that cannot lead us astray; no jobs here.

Names that come from elsewhere are opened beneath a directory descriptor, one
component at a time and never through a link. Since neither a link nor `..` is ever
taken, that is as safe as openat2's RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS and needs
no newer kernel.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRASH = ".trash"

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a disk without room for another byte or name says."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_durable(
    path: Path | str, data: bytes, *, dir_fd: int | None = None, mode: int = 0o600
) -> None:
    """Replace `path` by `data` so that both survive a power cut."""
    replace(path, data, dir_fd=dir_fd, sync=True, mode=mode)
    fsync_dir(Path(path).parent, dir_fd=dir_fd)


def replace(
    path: Path | str,
    data: bytes,
    *,
    dir_fd: int | None = None,
    sync: bool = False,
    mode: int = 0o600,
) -> None:
    """Replace `path` atomically: a reader sees the old bytes or the new ones.

    With `sync` the bytes are on disk before the rename, so that a power cut leaves
    the old file or the new one, never an empty one; which of them is not promised.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode, dir_fd=dir_fd)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(fd)
        os.rename(temporary, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise


def fsync_dir(path: Path | str, *, dir_fd: int | None = None) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(
    path: Path | str, flags: int = _DIRECTORY, *, dir_fd: int | None = None
) -> Iterator[int]:
    """Open a descriptor, by default of a directory, for the length of a block."""
    fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def plain_parts(relpath: str) -> tuple[str, ...]:
    """Split a relative path; ValueError for one that could lead anywhere else."""
    parts = tuple(relpath.split("/"))
    if "\0" in relpath or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"not a plain relative path: {relpath!r}")
    return parts


def open_beneath(dir_fd: int, relpath: str, flags: int, mode: int = 0o600) -> int:
    """Open `relpath` beneath `dir_fd` without following a link anywhere.

    Raises ValueError for a path that isn't plain, OSError (ELOOP or ENOTDIR at a
    link, ENOENT, …) otherwise. Readers are never blocked by a FIFO.
    """
    *folders, name = plain_parts(relpath)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            dir_fd = stack.enter_context(opened(folder, dir_fd=dir_fd))
        always = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags | always, mode, dir_fd=dir_fd)


def read_capped(
    path: Path | str, *, max_bytes: int, dir_fd: int | None = None
) -> bytes:
    """Read a regular file whole; ValueError when it is larger or no regular file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with opened(path, flags, dir_fd=dir_fd) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is not a regular file")
        data = b""
        while chunk := os.read(fd, max_bytes + 1 - len(data)):
            data += chunk
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return data


def read_json(
    path: Path | str, *, max_bytes: int = 16 << 20, dir_fd: int | None = None
) -> Any:
    """Parse a JSON file; OSError when unreadable, ValueError when not JSON."""
    data = read_capped(path, max_bytes=max_bytes, dir_fd=dir_fd)
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError(f"{path} is nested too deeply") from exc


def remove_tree(
    path: Path,
    *,
    trash: Path | None = None,
    budget_s: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
) -> bool:
    """Take `path` away at once and delete it; whether nothing of it is left.

    A tree is renamed into `trash` (default: `.trash` beside it) first: the name is
    free when this returns, also when the budget was too small. What is left is for
    `empty_trash`. Links are removed, never followed; a mounted file system is left
    alone. Where `trash` is there already, a full disk is no obstacle.
    """
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return True
    except FileNotFoundError:
        return True
    trash = trash or path.with_name(TRASH)
    trash.mkdir(mode=0o700, parents=True, exist_ok=True)
    heap = trash / secrets.token_hex(8)
    target = heap / "0"
    try:
        heap.mkdir(mode=0o700)
    except OSError as exc:
        if exc.errno not in FULL:
            raise
        target = heap  # no room for a directory more: the tree is its own heap
    try:
        path.rename(target)
    except OSError as exc:
        with contextlib.suppress(FileNotFoundError):
            heap.rmdir()
        if exc.errno == errno.ENOENT:
            return True
        raise
    return _empty(heap, monotonic() + budget_s, monotonic)


def empty_trash(
    trash: Path,
    *,
    budget_s: float = math.inf,
    monotonic: Callable[[], float] = time.monotonic,
) -> bool:
    """Delete what earlier removals left in `trash`; whether nothing is left."""
    until = monotonic() + budget_s
    try:
        heaps = sorted(trash.iterdir())
    except FileNotFoundError:
        return True
    emptied = [_empty(heap, until, monotonic) for heap in heaps]
    return all(emptied)


def _empty(heap: Path, until: float, monotonic: Callable[[], float]) -> bool:
    """Delete a heap of trees and the heap itself.

    Directories met on the way are first moved to the top of the heap: two open
    descriptors are enough for any depth, where recursion and paths have limits.
    """

    def late() -> bool:
        return monotonic() > until

    try:
        with opened(heap) as top:
            stuck: set[str] = set()
            while names := _names(top) - stuck:
                for name in names:
                    if late():
                        return False
                    if not _flatten(top, name, late):
                        stuck.add(name)
        heap.rmdir()
    except FileNotFoundError:
        return True  # another process emptied it meanwhile
    except OSError:
        return False
    return True


def _names(dir_fd: int) -> set[str]:
    return set(os.listdir(dir_fd))


def _flatten(top: int, name: str, late: Callable[[], bool]) -> bool:
    """Delete one entry at the top of the heap; False when something resists."""
    try:
        if not _unlink(top, name):
            _make_ours(top, name)
            with opened(name, dir_fd=top) as fd:
                for entry in _names(fd):
                    if late():
                        return False
                    _lift(fd, entry, top)
            os.rmdir(name, dir_fd=top)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _unlink(dir_fd: int, name: str) -> bool:
    """Unlink what is no directory; False for a directory."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except (IsADirectoryError, PermissionError):
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            raise
        return False
    return True


def _lift(dir_fd: int, name: str, top: int) -> None:
    if _unlink(dir_fd, name):
        return
    # Moving a directory rewrites its `..`: it must be writable for us.
    _make_ours(dir_fd, name)
    os.rename(name, secrets.token_hex(8), src_dir_fd=dir_fd, dst_dir_fd=top)


def _make_ours(dir_fd: int, name: str) -> None:
    """Allow ourselves everything in a directory, without following a link to it."""
    with opened(
        name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd
    ) as handle:
        Path(f"/proc/self/fd/{handle}").chmod(0o700)
