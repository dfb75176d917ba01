"""The lock of a job's directory: flock on `lock`, held as long as its process lives.

The kernel frees it however the process ends: that, not a pid, says whether it lives.
"""

import fcntl
import os
from pathlib import Path

from aitbc_aps_miner.errors import WorkspaceBusyError
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util import fs

_TRIES = 5
"""`is_held` holds a lock for microseconds to see whether it is free."""


def take(path: Path, clock: Clock) -> int:
    """Lock the directory; give the descriptor that holds the lock until it is closed.

    Raises WorkspaceBusyError, also when the directory was replaced meanwhile, and
    OSError.
    """
    with fs.opened(path) as dir_fd:
        lock_fd = fs.open_beneath(dir_fd, "lock", os.O_RDWR)
        try:
            _flock(lock_fd, path.name, clock)
            _refuse_replaced(dir_fd, path)
        except BaseException:
            os.close(lock_fd)
            raise
    return lock_fd


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        with fs.opened(path / "lock", os.O_RDWR | os.O_NOFOLLOW) as lock_fd:
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flock(lock_fd: int, job_id: str, clock: Clock) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if not left:
                raise WorkspaceBusyError(f"{job_id} is in use") from exc
            clock.sleep(0.005)
        else:
            return


def _refuse_replaced(dir_fd: int, path: Path) -> None:
    """Raise when the directory lost its name before the lock was ours."""
    if not os.path.samestat(os.fstat(dir_fd), path.lstat()):
        raise WorkspaceBusyError(f"{path.name} was just replaced")
