"""The demo's child programs: started so that nothing of them can outlive the demo."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aitbc_aps_miner.errors import MinerError
from aitbc_aps_miner.util import proc

_LAST_LINES = 20
_TAIL_BYTES = 16384
_KILL_S = 5.0


class ChildError(MinerError):
    """A child program ended by itself."""


class Child:
    """One program of ours with its output in a file."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: dict[str, str]
    ) -> None:
        self.name = name
        self.log = log
        demo = os.getpid()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                # A group of its own: Ctrl-C is the demo's to pass on, in order.
                process_group=0,
                # The demo has one thread here.
                preexec_fn=lambda: proc.die_with_parent(demo, signal.SIGTERM),  # noqa: PLW1509 - see above; nothing else ends it when the demo is killed
            )

    def check(self) -> None:
        """Raise ChildError when the program has ended."""
        code = self._process.poll()
        if code is not None:
            raise ChildError(
                f"the {self.name} has ended {_how(code)}; "
                f"the last lines of {self.log}:\n{self.last_words()}"
            )

    def last_words(self) -> str:
        """Give the end of its output, indented."""
        tail = read_from(self.log, max(0, self.log.stat().st_size - _TAIL_BYTES))
        return "\n".join(f"    {line}" for line in tail.splitlines()[-_LAST_LINES:])

    def ask_to_end(self) -> None:
        """Send SIGTERM; a miner drains, a second one ends the draining."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


class NoOrphans:
    """Ends every process below the demo when the demo ends; a context manager."""

    def __enter__(self) -> Self:
        # Whatever our children leave behind becomes ours, and so can be found.
        proc.adopt_orphans()
        return self

    def __exit__(self, *exc: object) -> None:
        proc.kill_descendants(os.getpid(), _KILL_S)


def read_from(path: Path, offset: int) -> str:
    """Give a log file's text from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def _how(code: int) -> str:
    if code < 0:
        return f"by signal {signal.Signals(-code).name}"
    return f"with exit code {code}"
