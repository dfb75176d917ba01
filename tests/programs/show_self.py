"""Prints, as JSON, what the process was given."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

ignored = [
    signum.name
    for signum in signal.Signals
    if signum not in (signal.SIGKILL, signal.SIGSTOP)
    # Python itself ignores these two.
    and signum not in (signal.SIGPIPE, signal.SIGXFSZ)
    and signal.getsignal(signum) is signal.SIG_IGN
]
facts = {
    "argv": sys.argv[1:],
    "cwd": str(Path.cwd()),
    "env": dict(os.environ),
    "fds": [fd for fd in range(100) if Path(f"/proc/self/fd/{fd}").exists()],
    "stdin": sys.stdin.read(),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "fsize": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
    "leads_session": os.getsid(0) == os.getpid(),
    "ignored": ignored,
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "umask": os.umask(0),
}
json.dump(facts, sys.stdout)
