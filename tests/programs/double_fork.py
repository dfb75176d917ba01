"""Daemonises a child that keeps standard output open and ignores SIGTERM, then ends."""

import os
import signal
import sys
import time
from pathlib import Path

read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(sys.argv[1]).write_text(str(os.getpid()))
    os.close(read)
    os.close(write)
    time.sleep(60)
os.close(write)
os.read(read, 1)
os.write(1, b"main is done\n")
