"""Writes files of one MiB until it is stopped."""

import itertools
import time
from pathlib import Path

for number in itertools.count():
    Path(f"filler-{number}").write_bytes(bytes(1 << 20))
    time.sleep(0.01)
