"""The workspace roots of this daemon: one lock each, earlier ones until they are empty.

One daemon per root: flock on `<root>/.daemon.lock`, never inherited. When an edit
names another root, new jobs go there; the earlier one is written down in the new one
and swept until nothing of it is left to settle.
"""

import contextlib
import fcntl
import json
import os
from pathlib import Path

from aitbc_aps_miner.util import fs

_LOCK = ".daemon.lock"
_EARLIER = ".earlier-roots.json"


class Roots:
    """Today's root and the earlier ones, all locked."""

    def __init__(self, root: Path) -> None:
        self._today = root
        self._locks: dict[Path, int] = {}

    def take(self) -> bool:
        """Lock today's root and the earlier ones; False when a daemon has it already.

        Raises OSError when the root can't be made or written.
        """
        if not self._lock(self._today):
            return False
        for earlier in self._read_earlier():
            if earlier.is_dir():
                self._lock(earlier)
        return True

    def all(self) -> list[str]:
        """Name every root, today's first."""
        return [str(self._today), *map(str, self._earlier())]

    def keep(self, wanted: Path) -> str | None:
        """See that each lock is still ours; move to `wanted` once that can be had.

        A root that somebody removed took its lock along, and another daemon could
        start there: it is made and locked again. One stat a root, for every look at
        the configuration. Gives what is in the way of `wanted`, if anything is.
        """
        lost = [root for root, fd in self._locks.items() if not _names(root, fd)]
        for root in lost:
            os.close(self._locks[root])
            self._locks = {r: fd for r, fd in self._locks.items() if r != root}
            with contextlib.suppress(OSError):
                if root != self._today and root.is_dir():
                    self._lock(root)
        problem = None
        if self._today not in self._locks:
            problem = self.move_to(self._today)
        if wanted != self._today:
            problem = self.move_to(wanted)
        return problem

    def move_to(self, root: Path) -> str | None:
        """Take new jobs under another root from now on; the old one is remembered.

        Gives what is in the way, if anything is.
        """
        try:
            if not self._lock(root):
                return "another daemon holds it"
            earlier = [str(path) for path in self._locks if path != root]
            fs.write_durable(root / _EARLIER, json.dumps(earlier).encode())
        except OSError as error:
            return str(error)
        self._today = root
        return None

    def _earlier(self) -> list[Path]:
        return [path for path in self._locks if path != self._today]

    def _read_earlier(self) -> list[Path]:
        try:
            known = fs.read_json(self._today / _EARLIER)
        except (OSError, ValueError):
            return []
        if not isinstance(known, list):
            return []
        return [Path(path) for path in known if isinstance(path, str)]

    def _lock(self, root: Path) -> bool:
        if root in self._locks:
            return True
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        # Never changed in place: other threads read it.
        self._locks = {**self._locks, root: fd}
        return True


def _names(root: Path, fd: int) -> bool:
    """Whether the lock that we hold is the one that another daemon would find."""
    try:
        return os.path.samestat(os.fstat(fd), (root / _LOCK).stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it can't be seen just now; what we hold we still hold
