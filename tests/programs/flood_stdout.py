"""Prints as many MiB as it is told, as fast as it can."""

import os
import sys

chunk = b"flood, flood, 15" * 65536
for _ in range(int(sys.argv[1])):
    left = memoryview(chunk)
    while left:
        left = left[os.write(1, left) :]
