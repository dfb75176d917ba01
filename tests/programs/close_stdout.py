"""Closes its output, goes on for a while, and ends with its own exit code."""

import os
import time

os.close(1)
os.close(2)
time.sleep(0.4)
os._exit(5)
