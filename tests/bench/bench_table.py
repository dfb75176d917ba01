"""What a row of the bench is, and how the table of them is printed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

_HEADS = ("what", "measured", "beside it", "ratio", "target", "", "n")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: what was measured, what beside it in the same run, and the verdict."""

    name: str
    measured: str
    reference: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    """None where no target is set."""
    rounds: int
    notes: tuple[str, ...] = field(default=())
    """Where the time goes, in lines below the table."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Give the words of each column."""
        return (
            self.name,
            self.measured,
            self.reference,
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.target,
            {True: "met", False: "MISSED", None: ""}[self.met],
            str(self.rounds),
        )


def markdown(rows: Sequence[Row]) -> str:
    """Give the table and its notes as they stand in the README."""
    lines = [_line(_HEADS), _line("---" for _ in _HEADS)]
    lines += [_line(row.cells) for row in rows]
    notes = [f"- **{row.name}**: {'; '.join(row.notes)}." for row in rows if row.notes]
    return "\n".join([*lines, "", *notes] if notes else lines)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table for a terminal."""
    table = Table(*_HEADS)
    for row in rows:
        style = "red" if row.met is False else None
        table.add_row(*row.cells, style=style)
    console.print(table)
    for row in rows:
        for note in row.notes:
            console.print(f"{row.name}: {note}", style="dim", highlight=False)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
