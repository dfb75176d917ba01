"""Ignores every polite signal and stays."""

import os
import signal
import time

for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, signal.SIG_IGN)
os.write(1, b"staying\n")
time.sleep(60)
