"""Prints something when it is asked to end, and ends with an exit code of its own."""

import os
import signal
import time


def end(*_: object) -> None:
    """End at once, with a word."""
    os.write(1, b"goodbye\n")
    os._exit(7)


signal.signal(signal.SIGTERM, end)
os.write(1, b"hello\n")
time.sleep(60)
