"""Measures what the project promises and prints one table: `python tests/bench`.

Each row is one run of pairs in turn: what is measured and what stands beside it share
the same busy or quiet seconds. A target that was missed is printed as missed.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import bench_idle
import bench_jobs
import bench_table
import bench_ticks
import bench_upload
import bench_workspaces
from bench_table import Row
from bench_tools import Scale
from rich.console import Console

from aitbc_aps_miner.sandbox.cgroup import find_base

ROWS: dict[str, Callable[[Scale, Path], list[Row]]] = {
    "trivial": bench_ticks.trivial_tick,
    "heartbeat": bench_ticks.heartbeat_tick,
    "deadline": bench_ticks.deadline,
    "echo": bench_jobs.echo_job,
    "slots": bench_jobs.jobs_per_second,
    "pickup": bench_jobs.pick_up,
    "config": bench_ticks.unchanged_config,
    "upload": bench_upload.upload,
    "leftovers": bench_workspaces.leftovers,
    "idle": bench_idle.idle,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows that are asked for; print them as a table."""
    args = _parse(argv)
    said = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="aps-bench-", dir=args.dir) as directory:
        for name in args.rows or ROWS:
            began = time.monotonic()
            try:
                rows += ROWS[name](Scale(quick=args.quick), Path(directory, name))
            except Exception:  # noqa: BLE001  the other rows are still worth having
                said.print_exception()
                failed.append(name)
            said.print(f"{name}: {time.monotonic() - began:.1f} s", style="dim")
    if args.markdown:
        sys.stdout.write(f"{_machine()}\n\n{bench_table.markdown(rows)}\n")
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(_machine(), highlight=False)
        bench_table.show(rows, console)
    return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: shows only that it works"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="as it stands in the README"
    )
    parser.add_argument(
        "--dir", help="where to work; on the disk whose fsyncs are to be measured"
    )
    args = parser.parse_args(argv)
    unknown = sorted(set(args.rows) - set(ROWS))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return args


def _machine() -> str:
    groups = "with" if find_base() is not None else "without"
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {groups} cgroup v2; medians."
    )


if __name__ == "__main__":
    raise SystemExit(main())
