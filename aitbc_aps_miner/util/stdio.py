"""Standard descriptors that are there: a program may be started with them closed.

The next file that is opened would take their place, the lock of a workspace root say,
and whatever is printed would go into it.
"""

import os
import sys
from typing import Literal, TextIO


def fill() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free descriptor is this one, as those below it are taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # What the interpreter found closed at its start it left out.
    sys.stdin = sys.stdin or _null(0, "r")
    sys.stdout = sys.stdout or _null(1, "w")
    sys.stderr = sys.stderr or _null(2, "w")


def _null(fd: int, mode: Literal["r", "w"]) -> TextIO:
    return os.fdopen(fd, mode, closefd=False)
