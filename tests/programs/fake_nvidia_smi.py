"""Stands in for nvidia-smi: `fake_nvidia_smi.py MODE [arguments of nvidia-smi]`."""

import os
import signal
import sys
import time

ROWS = """\
0, GPU-1111, NVIDIA GeForce RTX 4090, 24564, 1034, 3, 45, 21.37, 550.54.15
1, GPU-2222, Tesla, the V100, [N/A], [N/A], [Not Supported], 120, [N/A], 550.54.15
"""


def rows() -> int:
    """List two GPUs, if asked as it should be."""
    options = ["--format=csv,noheader,nounits"]
    if sys.argv[2].startswith("--query-gpu=") and sys.argv[3:] == options:
        sys.stdout.write(ROWS)
    return 0


def partly() -> int:
    """List one GPU and fail for the other."""
    sys.stdout.write(ROWS.splitlines()[0] + "\nUnable to determine the device\n")
    return 15


def failed() -> int:
    """Say what is said without a driver."""
    sys.stdout.write("NVIDIA-SMI has failed: no driver.\n")
    return 9


def hang() -> int:
    """Hang and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return 0


def flood() -> int:
    """Print for ever."""
    while True:
        os.write(1, b"x" * 65536)


def garbage() -> int:
    """Print what is no CSV and no UTF-8."""
    os.write(1, b"\xff\xfe,\x00,,,,,,,,\n-1, GPU-x, y, 1, 1, 1, 1, 1, 1\n")
    return 0


def leak() -> int:
    """Leave a grandchild that keeps standard output open."""
    if os.fork() == 0:
        time.sleep(600)
    return 0


MODES = {each.__name__: each for each in (rows, partly, failed, hang, flood, garbage)}
MODES["leak"] = leak

if __name__ == "__main__":
    sys.exit(MODES[sys.argv[1]]())
