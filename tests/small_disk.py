"""A disk that a test can fill: a small file system in memory, mounted for real."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(at: Path, *, size_kb: int = 1024, inodes: int = 128) -> Iterator[Path]:
    """Mount a file system of that size at `at` for the length of a block."""
    at.mkdir()
    options = f"size={size_kb}k,nr_inodes={inodes},mode=755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        # What a full disk says is also tested without one, in test_workspace.py.
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        # Lazily: what a failed test left open must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(folder: Path) -> None:
    """Write into `folder` until not one more byte goes."""
    with contextlib.suppress(OSError), (folder / "junk").open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass


def fill_with_names(folder: Path) -> None:
    """Make files in `folder` until not one more can be made."""
    with contextlib.suppress(OSError):
        for number in range(1_000_000):
            (folder / f"junk-{number}").touch()
