"""Takes memory, a MiB at a time, as much as it is told; in a child if told so."""

import os
import sys
import time

if sys.argv[2:] == ["child"] and os.fork():
    os.wait()
    sys.exit(0)
hoard = [b"x" * (1 << 20) for _ in range(int(sys.argv[1]))]
os.write(1, b"fed\n")
time.sleep(60)
