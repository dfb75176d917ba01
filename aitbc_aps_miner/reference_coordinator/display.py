"""Shows jobs while they run: live bars on a terminal, plain lines anywhere else."""

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.reference_coordinator.batch import Row

_STEP_PCT = 25
"""A plain line per this much progress."""
_BAR_WIDTH = 16
_FACTS = 6
"""Columns that are never shortened; the last one, words, takes what is left."""
_STYLES = {"succeeded": "green", "running": "cyan", "waiting": "dim"}


class Display(Protocol):
    """Something that shows rows; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, rows: Iterable[Row]) -> None:
        """Show where the jobs stand now."""
        ...


def display_for(console: Console, clock: Clock) -> Display:
    """Choose the display that fits where the output goes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console, clock)


class PlainDisplay:
    """One line per change, for logs and pipes."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        self._shown: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, rows: Iterable[Row]) -> None:
        """Print a line for each row that changed its state or made some progress."""
        for row in rows:
            news = (row.state, int(row.pct // _STEP_PCT))
            if self._shown.get(row.job_id) != news:
                self._shown[row.job_id] = news
                age_s = self._clock.monotonic() - self._began
                words = (row.title, row.state, f"{row.pct:.0f} %", row.node_id)
                shown = (*words, row.problem)
                line = f"{age_s:6.1f} s  {' · '.join(filter(None, shown))}"
                self._console.print(Text(_printable(line)), soft_wrap=True)


class LiveDisplay:
    """One row per job, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, rows: Iterable[Row]) -> None:
        """Redraw all rows."""
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(_FACTS):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for row in rows:
            style = _STYLES.get(row.state, "red" if row.problem else "yellow")
            seconds = "" if row.duration_s is None else f"{row.duration_s:.1f} s"
            table.add_row(
                Text(row.title),
                Text(row.state, style=style),
                ProgressBar(total=100, completed=row.pct, width=_BAR_WIDTH),
                Text(f"{row.pct:3.0f} %"),
                Text(seconds, justify="right"),
                Text(row.node_id, style="dim"),
                # Words of a job may hold what a terminal would obey.
                Text(_printable(row.problem or row.note), style="dim"),
            )
        self._live.update(table)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
