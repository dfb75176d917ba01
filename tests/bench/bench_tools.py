"""Pairs measured in turn, their medians, and what /proc tells; knows no row."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GAP_S = 0.01
"""Between two rounds: as ticks come, one at a time and not back to back."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How thorough a run is; `quick` only shows that the bench itself works."""

    quick: bool = False

    def rounds(self, full: int) -> int:
        """Give the number of rounds in place of `full`."""
        return min(full, 3) if self.quick else full

    def of(self, full: float, quick: float) -> float:
        """Give one of two sizes."""
        return quick if self.quick else full


def in_turn(
    rounds: int, *works: Callable[[], float], gap_s: float = GAP_S
) -> list[list[float]]:
    """Run every work once a round, so that a busy machine slows all of them.

    Each gives the seconds it took; the first round is not counted.
    """
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, times in zip(works, taken, strict=True):
            time.sleep(gap_s)
            took_s = work()
            if number:
                times.append(took_s)
    return taken


def timed(work: Callable[[], object]) -> float:
    """Give the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ms(seconds: Sequence[float] | float) -> str:
    """Write the median of some seconds as milliseconds."""
    return f"{median(seconds) * 1e3:.2f} ms"


def median(seconds: Sequence[float] | float) -> float:
    """Give the median; of one number itself."""
    if isinstance(seconds, float | int):
        return seconds
    return statistics.median(seconds)


def wait_until(is_true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look every few milliseconds. Raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(GAP_S / 2)


@dataclass(frozen=True)
class Activity:
    """What some processes have done since they began."""

    wakeups: int
    cpu_s: float

    def since(self, before: "Activity") -> "Activity":
        """Give what was done in between."""
        return Activity(self.wakeups - before.wakeups, self.cpu_s - before.cpu_s)


def activity(pids: Iterable[int]) -> Activity:
    """Count how often all threads of `pids` slept and woke, and their time on a CPU.

    /proc/<pid>/stat counts in ticks of 10 ms and would show nothing here; schedstat
    counts nanoseconds.
    """
    wakeups, cpu_ns = 0, 0
    for pid in pids:
        for task in Path("/proc").glob(f"{pid}/task/*"):
            with suppress(FileNotFoundError):  # a thread that ended meanwhile
                cpu_ns += int((task / "schedstat").read_text().split()[0])
                wakeups += _number((task / "status").read_text(), "voluntary_ctxt_sw")
    return Activity(wakeups, cpu_ns / 1e9)


def pss_mb(pid: int) -> float:
    """Give a process's share of memory: shared pages count by their sharers."""
    return _number(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss:") / 1024


def peak_rss_mb(pid: int | str) -> float:
    """Give the peak of a process's resident memory."""
    return _number(Path(f"/proc/{pid}/status").read_text(), "VmHWM:") / 1024


def _number(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"no {name}")
