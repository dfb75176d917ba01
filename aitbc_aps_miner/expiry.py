"""When the files of settled jobs go: by age, and sooner when the disk is full."""

from contextlib import suppress
from pathlib import Path

import psutil

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import WorkspaceError
from aitbc_aps_miner.models import JobState
from aitbc_aps_miner.workspace import StoredJob, Workspaces
from aitbc_aps_miner.world import World

# Deleting 100 000 expired workspaces goes on in the next sweeps.
EXPIRE_BUDGET_S = 20.0


def expire(world: World, delivered: list[tuple[Workspaces, StoredJob]]) -> float:
    """Remove what is past its time, and more, oldest first, on a full disk.

    What stays for `results.keep_trying` is a tombstone that recognises a job handed
    out again. Gives the disk use in per cent.
    """
    config, now = world.config, world.clock.realtime()
    budget_ends = world.clock.monotonic() + EXPIRE_BUDGET_S
    used_pct = disk_used_pct(config.workspace.root)
    pressed = used_pct >= config.workspace.disk_high_pct
    delivered.sort(key=lambda pair: _ended_at(pair[1]))
    for workspaces, job in delivered:
        if world.clock.monotonic() > budget_ends:
            break
        age_s = now - _ended_at(job)
        keep_s = _keep_s(config, job)
        with suppress(WorkspaceError):
            if age_s > max(keep_s, config.results.keep_trying):
                workspaces.remove(job.job_id)
            elif (age_s > keep_s or pressed) and not _is_buried(job):
                _bury(workspaces, job.job_id)
                used_pct = disk_used_pct(config.workspace.root)
                pressed = pressed and used_pct >= config.workspace.disk_low_pct
    return used_pct


def _keep_s(config: Config, job: StoredJob) -> float:
    done = job.record is not None and job.record.state is JobState.DONE
    return config.workspace.keep_success if done else config.workspace.keep_failed


def _ended_at(job: StoredJob) -> float:
    record = job.record
    if record is None:
        return 0.0
    return record.delivered_at or record.history[-1].moment.realtime


def _is_buried(job: StoredJob) -> bool:
    return job.record is not None and job.record.buried


def _bury(workspaces: Workspaces, job_id: str) -> None:
    workspace = workspaces.open(job_id)
    try:
        workspace.bury()
    finally:
        workspace.close()


def disk_used_pct(root: Path) -> float:
    """Give how full the disk of `root` is, in per cent; 0 when it can't be asked."""
    while True:
        try:
            return float(psutil.disk_usage(str(root)).percent)
        except FileNotFoundError:
            root = root.parent
        except OSError:
            return 0.0
