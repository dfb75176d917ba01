"""The sweep tick: looks at every workspace, asks the coordinator, puts things right.

What is decided about each job, and done, is in settling.py; the files of settled jobs
expire in expiry.py.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aitbc_aps_miner.errors import (
    WorkspaceError,
)
from aitbc_aps_miner.expiry import EXPIRE_BUDGET_S, expire
from aitbc_aps_miner.settling import Settling
from aitbc_aps_miner.tasks import Report, capacity_of
from aitbc_aps_miner.util import fs, log
from aitbc_aps_miner.world import Line, World

LOST_DISK = "this node has no trace of the attempt; it may have run and may not rerun"

_log = log.get_logger()


def sweep(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    roots: list[str],
    held: list[str],
    adopted: list[str],
    orphans: list[str],
    capacity: Mapping[str, Any],
    takes_work: bool,
    evidence: Mapping[str, Mapping[str, Any]],
) -> Report:
    """Settle every workspace under `roots`; `held` are the daemon's own jobs.

    The first root is where new jobs go. `adopted` are those that the daemon counts
    and did not start: they are looked at. `orphans` are the jobs that the last sweep
    found at the coordinator and not here: one seen twice did not belong to a pull
    that was open meanwhile. Without `takes_work` nothing is started: what could run
    waits until the node takes work again. `evidence` says of jobs whose process the
    daemon saw failing how it ended.
    """
    world = World(channel, config, token, extensions, roots[0])
    settling = Settling(
        world,
        capacity_of(capacity) if takes_work else None,
        frozenset(adopted),
        root=roots[0],
        evidence=evidence,
    )
    settling.here.update(held)
    for root in roots:
        settling.settle_root(world.workspaces(root), held)
    settling.settle_the_rest(orphans)
    settling.tell_ended(roots)
    used_pct = expire(world, settling.settled, Path(roots[0]))
    for root in roots:
        with suppress(WorkspaceError):
            world.workspaces(root).expire_damaged(world.config.workspace.keep_failed)
            world.workspaces(root).tidy(budget_s=EXPIRE_BUDGET_S)
    return {
        **settling.report,
        "running": settling.still_running(),
        "disk_used_pct": used_pct,
        "unwritable": _unwritable(Path(roots[0])),
    }


def _unwritable(root: Path) -> str | None:
    """Say why nothing can be stored under `root`; None when something can."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fs.write_durable(root / ".writable", b"")
    except OSError as error:
        return str(error)
    return None
