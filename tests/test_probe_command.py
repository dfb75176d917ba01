"""A foreign program under a deadline: it may hang, flood or leak, the probe goes on."""

import os
import sys
import time
from pathlib import Path

import pytest

from aitbc_aps_miner.probe.command import CommandResult, run_command

FAKE = str(Path(__file__).parent / "programs" / "fake_nvidia_smi.py")


def fake(mode: str) -> tuple[str, ...]:
    """Give the command line of the fake program."""
    return (sys.executable, "-S", FAKE, mode)


def test_a_program_that_ends_gives_its_output() -> None:
    """Output of a program that ends with status 0 comes without a problem."""
    argv = (sys.executable, "-c", "import os; print('å', os.environ.get('X'))")
    result = run_command(argv, timeout_s=30, env={"X": "1", "PYTHONUTF8": "1"})
    assert result == CommandResult(output="å 1\n", problem=None)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (fake("failed"), "ended with status 9"),
        (("/nonexistent/program",), "cannot be started: [Errno 2] No such file"),
        (("nul\0",), "cannot be started: embedded null byte"),
        (("/bin/sh", "-c", "kill -9 $$"), "ended with status -9"),
        (("/bin/sh", "-c", "exec >&-; exit 3"), "ended with status 3"),
    ],
)
def test_a_program_that_fails_says_how(argv: tuple[str, ...], problem: str) -> None:
    """Status, signal or the reason why it could not be started are told."""
    result = run_command(argv, timeout_s=30)
    assert result.problem is not None
    assert result.problem.startswith(problem)


def test_a_program_that_hangs_ends_at_its_deadline() -> None:
    """A hang that ignores SIGTERM is over when the time is."""
    started = time.monotonic()
    result = run_command(fake("hang"), timeout_s=0.3)
    assert result == CommandResult(output="", problem="did not end within 0.3 s")
    assert time.monotonic() - started < 5


def test_a_program_that_closes_its_output_and_hangs_ends_at_its_deadline() -> None:
    """An early end of the output is not the end of the program."""
    argv = ("/bin/sh", "-c", "echo one; exec >&-; sleep 600")
    result = run_command(argv, timeout_s=0.3)
    assert result == CommandResult(output="one\n", problem="did not end within 0.3 s")


def test_a_program_that_floods_is_cut() -> None:
    """Endless output costs the cap at most."""
    result = run_command(fake("flood"), timeout_s=30, max_bytes=100_000)
    assert result.problem == "printed over 100000 bytes"
    assert result.output == "x" * 100_000


def test_a_grandchild_that_keeps_the_output_open_is_killed() -> None:
    """The program's own end counts, and nothing of its group stays."""
    argv = ("/bin/sh", "-c", "sleep 600 & echo $!")
    started = time.monotonic()
    result = run_command(argv, timeout_s=30)
    assert result.problem is None
    assert time.monotonic() - started < 10
    assert not is_running(int(result.output))


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    until = time.monotonic() + 5
    while time.monotonic() < until:  # SIGKILL is sent, its effect may take a moment
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        if text.rpartition(")")[2].split()[0] == "Z":
            return False
        os.sched_yield()
    return True
