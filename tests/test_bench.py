"""The bench's driver works; what it measures is never judged here."""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent / "bench"


def bench(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run it as `make bench` does."""
    return subprocess.run(
        [sys.executable, str(BENCH), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_cheap_rows_make_a_table(tmp_path: Path) -> None:
    """A few rows, one of them over HTTP, come as Markdown with a verdict each."""
    done = bench(
        *("--quick", "--markdown", "--dir", str(tmp_path)),
        *("config", "heartbeat", "echo"),
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0].split(",")[0] for row in cells[2:]] == [
        "unchanged configuration",
        "whole heartbeat tick",
        "echo job from pulled to delivered",
    ]
    assert {len(row) for row in cells} == {7}
    assert [bool(row[5]) for row in cells[2:]] == [True, True, False]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_row_is_named() -> None:
    """A row that does not exist ends with the names of those that do."""
    done = bench("trivial", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such row: nonsense; there are trivial, heartbeat" in done.stderr
