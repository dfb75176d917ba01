"""Submits jobs, waits for them, verifies their results; the exit code is the verdict.

python -m aitbc_aps_miner.reference_coordinator.submit --base-url URL --samples --wait
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.reference_coordinator.batch import Batch, Row
from aitbc_aps_miner.reference_coordinator.client import Client, ClientError
from aitbc_aps_miner.reference_coordinator.display import PlainDisplay
from aitbc_aps_miner.reference_coordinator.samples import Sample, samples
from aitbc_aps_miner.util.clock import SystemClock

_PAUSE_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; give its exit code."""
    options = _parser().parse_args(argv)
    clock, console = SystemClock(), Console(highlight=False, soft_wrap=True)
    complain = Console(stderr=True, highlight=False, soft_wrap=True).print
    deadline = clock.monotonic() + options.timeout_s
    try:
        with (
            Client(options.base_url) as client,
            tempfile.TemporaryDirectory() as spare,
        ):
            chosen = _chosen(options, client)
            wait_for_node(client, clock, deadline)
            batch = Batch(client, chosen, options.save or Path(spare))
            if options.wait:
                return _follow(batch, console, clock, deadline)
            batch.poll()
            for row in batch.rows.values():
                console.print(Text(row.job_id))
    except (ClientError, TimeoutError) as exc:
        complain(Text(str(exc)))
        return ExitCode.UNREACHABLE
    except (OSError, ValueError) as exc:
        complain(Text(str(exc)))
        return ExitCode.USAGE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def wait_for_node(client: Client, clock: Clock, deadline: float) -> str:
    """Wait until a node calls regularly; give its id. Raises TimeoutError."""
    problem = "no node has registered"
    while clock.monotonic() < deadline:
        try:
            nodes = client.nodes()
        except ClientError as exc:
            problem = str(exc)
        else:
            alive = [n for n in nodes if n.get("heartbeat_age_s") is not None]
            if alive:
                return str(alive[0]["node_id"])
            problem = "no node has sent a heartbeat"
        clock.sleep(_PAUSE_S)
    raise TimeoutError(f"gave up: {problem}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aitbc_aps_miner.reference_coordinator.submit",
        description="Submit jobs to a reference coordinator.",
        epilog="Exit codes: 0 all jobs succeeded and their results are right, 2 usage, "
        "5 no coordinator or no node, 6 a job failed or is not done in time.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="a manifest as JSON"
    )
    parser.add_argument("--base-url", required=True, help="the coordinator's URL")
    parser.add_argument(
        "--samples", action="store_true", help="submit the demo's sample jobs"
    )
    parser.add_argument(
        "--video",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("ffmpeg") is not None,
        help="with ffmpeg's samples (default: if ffmpeg is found here)",
    )
    parser.add_argument("--wait", action="store_true", help="follow them to their end")
    parser.add_argument(
        "--timeout-s", type=float, default=300, help="for all of it (default 300)"
    )
    parser.add_argument("--save", type=Path, help="directory for the artifacts")
    return parser


def _chosen(options: argparse.Namespace, client: Client) -> list[Sample]:
    run = secrets.token_hex(3)
    chosen = [_from_file(path, run) for path in options.files]
    if options.samples:
        chosen += samples(run, client.artifact_url, video=options.video)
    if not chosen:
        raise ValueError("nothing to submit: name a FILE or say --samples")
    return chosen


def _from_file(path: Path, run: str) -> Sample:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as exc:
        raise ValueError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: expected a JSON object")  # noqa: TRY004 - the file's content is wrong, not our types
    return Sample(
        title=path.name, manifest={"job_id": f"{path.stem}-{run}", **manifest}
    )


def _follow(batch: Batch, console: Console, clock: Clock, deadline: float) -> ExitCode:
    display = PlainDisplay(console, clock)
    batch.poll()
    while not batch.is_over and clock.monotonic() < deadline:
        display.show(batch.rows.values())
        clock.sleep(_PAUSE_S)
        batch.poll()
    display.show(batch.rows.values())
    for row in batch.rows.values():
        console.print(Text(_verdict(row)))
    return ExitCode.OK if batch.succeeded else ExitCode.JOBS_FAILED


def _verdict(row: Row) -> str:
    if row.succeeded:
        return f"ok    {row.job_id}: {len(row.files)} artifacts verified"
    return f"FAIL  {row.job_id}: {row.problem or f'not done in time, {row.state}'}"


if __name__ == "__main__":
    sys.exit(main())
