"""Starts children and a thread in each process, says so, and waits for their end."""

import os
import sys
import threading
import time

for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        os.write(1, b"child\n")
        time.sleep(60)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
os.write(1, b"ready\n")
time.sleep(60)
