"""The whole thing on one machine: a coordinator, a miner, some jobs, live.

python -m aitbc_aps_miner.reference_coordinator.demo [--once] [--dir .demo]
"""

import argparse
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aitbc_aps_miner.errors import MinerError
from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.reference_coordinator.batch import Batch
from aitbc_aps_miner.reference_coordinator.children import (
    Child,
    NoOrphans,
    read_from,
)
from aitbc_aps_miner.reference_coordinator.client import PREFIX, Client, ClientError
from aitbc_aps_miner.reference_coordinator.demo_files import (
    HOST,
    DemoError,
    DemoFiles,
    free_port,
)
from aitbc_aps_miner.reference_coordinator.display import display_for
from aitbc_aps_miner.reference_coordinator.samples import samples
from aitbc_aps_miner.util.clock import SystemClock

_PAUSE_S = 0.1
_START_S = 30.0
_DRAIN_S = 20.0
"""Longer than the demo's own `drain_s`."""
_END_S = 5.0
_COORDINATOR_PORT, _STATUS_PORT = 8470, 8479


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; give its exit code."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    files = DemoFiles(options.dir)
    try:
        lock = files.lock()
        try:
            with NoOrphans():
                return Demo(files, console, SystemClock()).run(once=options.once)
        finally:
            os.close(lock)
    except MinerError as exc:
        console.print(Text(str(exc), style="red"))
        return ExitCode.FAILURE


class Demo:
    """One run of the demo."""

    def __init__(self, files: DemoFiles, console: Console, clock: Clock) -> None:
        self._files = files
        self._console = console
        self._clock = clock
        self._interrupts = 0
        self._woken = threading.Event()
        self._children: list[Child] = []

    def run(self, *, once: bool) -> ExitCode:
        """Start everything, show the jobs, stop everything."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        coordinator = f"http://{HOST}:{free_port(_COORDINATOR_PORT)}"
        status = f"{HOST}:{free_port(_STATUS_PORT)}"
        try:
            with Client(coordinator) as client:
                self._start(client, status)
                batch = self._make_batch(client)
                self._follow(batch)
                if not self._interrupts:
                    self._conclude(batch, coordinator, status)
                if not once:
                    self._go_on()
        finally:
            self._stop()
        if not batch.is_over:
            return ExitCode.INTERRUPTED
        return ExitCode.OK if batch.succeeded else ExitCode.JOBS_FAILED

    def _start(self, client: Client, status: str) -> None:
        files = self._files
        address = client.base_url.removeprefix("http://")
        self._say(f"coordinator at {client.base_url}, log in {files.coordinator_log}")
        module = "aitbc_aps_miner.reference_coordinator"
        self._child("coordinator", [module, "--listen", address], files.coordinator_log)
        self._await("the coordinator to answer", lambda: client.nodes() is not None)
        files.write(base_url=client.base_url + PREFIX, status=status)
        self._say(f"miner with {files.config}, log in {files.miner_log}")
        self._child("miner", ["aitbc_aps_miner", str(files.config)], files.miner_log)
        self._await("the miner to register", lambda: bool(client.nodes()))

    def _child(self, name: str, command: list[str], log: Path) -> None:
        # The demo's own settings: those of the caller's environment are for a miner.
        env = {k: v for k, v in os.environ.items() if not k.startswith("AITBC_MINER__")}
        argv = [sys.executable, "-m", *command]
        self._children.append(Child(name, argv, log, env))

    def _await(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait for something; DemoError when it does not come or Ctrl-C does."""
        deadline = self._clock.monotonic() + _START_S
        while self._clock.monotonic() < deadline and not self._interrupts:
            self._check()
            try:
                if is_so():
                    return
            except ClientError:
                pass  # not yet
            self._woken.wait(_PAUSE_S)
        if self._interrupts:
            raise DemoError("stopped before any job was submitted")
        last = self._children[-1]
        raise DemoError(
            f"waited {_START_S:g} s in vain for {what}; "
            f"the last lines of {last.log}:\n{last.last_words()}"
        )

    def _make_batch(self, client: Client) -> Batch:
        video = shutil.which("ffmpeg") is not None
        if not video:
            self._say("ffmpeg is not installed: its two jobs are left out")
        jobs = samples(secrets.token_hex(3), client.artifact_url, video=video)
        return Batch(client, jobs, self._files.results)

    def _follow(self, batch: Batch) -> None:
        self._console.print()
        with display_for(self._console, self._clock) as display:
            while not self._interrupts:
                self._check()
                batch.poll()
                display.show(batch.rows.values())
                if batch.is_over:
                    return
                self._woken.wait(_PAUSE_S)

    def _conclude(self, batch: Batch, coordinator: str, status: str) -> None:
        """Say where the results lie and what the coordinator holds."""
        table = Table("job", "artifact", "bytes", box=None, padding=(0, 2))
        table.columns[2].justify = "right"
        for row in batch.rows.values():
            for path in row.files:
                name = path.relative_to(self._files.results / row.job_id)
                table.add_row(row.job_id, str(name), f"{path.stat().st_size:,}")
        self._console.print("\nThe coordinator holds, and the digests are right:\n")
        self._console.print(table)
        for row in batch.rows.values():
            if not row.succeeded:
                self._say(f"{row.job_id} did not succeed: {row.problem}", style="red")
        self._console.print()
        for what, where in (
            ("artifacts, downloaded", self._files.results),
            ("the miner's workspaces", self._files.jobs),
            ("the coordinator's page", f"{coordinator}/"),
            ("the miner's health", f"http://{status}/healthz"),
        ):
            self._say(f"{what:24}{where}")

    def _go_on(self) -> None:
        """Show the miner's log until Ctrl-C."""
        if not self._interrupts:
            self._console.print(
                f"\nCtrl-C to stop. Edit {self._files.config} and watch it reload;\n"
                "from here on this is the miner's log:\n"
            )
        offset = self._files.miner_log.stat().st_size
        while not self._interrupts:
            self._check()
            news = read_from(self._files.miner_log, offset)
            offset += len(news.encode())
            self._console.print(Text.from_ansi(news), end="")
            self._woken.wait(_PAUSE_S)

    def _stop(self) -> None:
        """End the miner, then the coordinator that it reports to; Ctrl-C hurries."""
        self._woken.clear()
        if self._interrupts:
            self._say("\nstopping; once more Ctrl-C to hurry")
        hurried = self._interrupts
        for child in reversed(self._children):
            child.ask_to_end()
            deadline = self._clock.monotonic() + _DRAIN_S
            while not child.wait(_PAUSE_S):
                if self._interrupts > hurried:
                    hurried = self._interrupts
                    child.ask_to_end()
                    deadline = self._clock.monotonic() + _END_S
                if self._clock.monotonic() >= deadline:
                    self._say(f"the {child.name} does not end: killed", style="red")
                    child.kill()
        self._say("everything is stopped")

    def _check(self) -> None:
        for child in self._children:
            child.check()

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        self._woken.set()

    def _say(self, words: str, style: str = "") -> None:
        self._console.print(Text(words, style=style))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aitbc_aps_miner.reference_coordinator.demo",
        description="Run a coordinator, a miner and sample jobs on this machine.",
        epilog="Exit codes: 0 every job succeeded, 6 one did not, 130 interrupted "
        "before they ended, 1 anything else.",
    )
    parser.add_argument(
        "--once", action="store_true", help="end when the jobs have ended"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="where it writes (.demo)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
