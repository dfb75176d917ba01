"""What a disk keeps when the power goes: a model of fsync, in two extremes.

`forgetful`: a file has the bytes of its last fsync, a directory the names of its last
fsync; all else never happened. `eager`: every name is kept as it was last, and only
bytes wait for an fsync: a file is torn to half, in whole blocks, so a small one is
empty. Real file systems keep something between the two; reordering of single names,
bit rot and a disk that lies about flushing are not modelled. The directory at the top
counts as durable.
"""

import os
import shutil
import stat
from pathlib import Path
from typing import Any

VARIANTS = ("forgetful", "eager")
_BLOCK_BYTES = 4096


class Disk:
    """Remembers what was synced below `top`; runs in the process that writes."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        # Open descriptors: an inode's number isn't given to another file meanwhile.
        self._pins: dict[int, int] = {}

    def synced(self, fd: int) -> None:
        """Take note of what became durable."""
        found = os.fstat(fd)
        handle = Path(f"/proc/self/fd/{fd}")
        self._pin(handle)
        if stat.S_ISREG(found.st_mode):
            self._files[found.st_ino] = handle.read_bytes()
        elif stat.S_ISDIR(found.st_mode):
            self._folders[found.st_ino] = self._names(handle)

    def keep(self, variant: str, target: Path) -> None:
        """Write into `target` what is left after a power cut now."""
        self._folder(self._top, target, eager=variant == "eager")

    def _names(self, folder: Path) -> dict[str, int]:
        return {path.name: self._pin(path, os.O_NOFOLLOW) for path in folder.iterdir()}

    def _pin(self, path: Path, flags: int = 0) -> int:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        inode = os.fstat(fd).st_ino
        if self._pins.setdefault(inode, fd) != fd:
            os.close(fd)
        return inode

    def _folder(self, source: Path | int, target: Path, *, eager: bool) -> None:
        inode = source if isinstance(source, int) else source.stat().st_ino
        target.mkdir(mode=0o700)
        if eager:
            assert isinstance(source, Path)
            names = self._names(source)
        else:
            names = self._folders.get(inode, {})
        for name, child in names.items():
            self._entry(child, target / name, eager=eager)

    def _entry(self, inode: int, target: Path, *, eager: bool) -> None:
        handle = Path(f"/proc/self/fd/{self._pins[inode]}")
        found = os.fstat(self._pins[inode])
        if stat.S_ISDIR(found.st_mode):
            self._folder(handle if eager else inode, target, eager=eager)
        elif stat.S_ISREG(found.st_mode):
            data = self._files.get(inode)
            target.write_bytes(_torn(handle) if data is None else data)
            target.chmod(stat.S_IMODE(found.st_mode))
        elif stat.S_ISLNK(found.st_mode):
            link = os.readlink("", dir_fd=self._pins[inode])
            target.symlink_to(link)


def _torn(handle: Path) -> bytes:
    data = handle.read_bytes()
    return data[: len(data) // 2 // _BLOCK_BYTES * _BLOCK_BYTES]


def cut(top: Path, kept: Path) -> None:
    """Put what a power cut left in the place of what was there."""
    shutil.rmtree(top, ignore_errors=True)
    kept.rename(top)


def forget_boot(jobdir: Any) -> None:
    """Let this process believe that the machine has started anew."""
    jobdir._boot_id = lambda: "00000000-0000-4000-8000-000000000000"
