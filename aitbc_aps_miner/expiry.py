"""When the files of settled jobs go: by age, and sooner when the disk is full."""

from contextlib import suppress
from pathlib import Path

import psutil

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import WorkspaceError
from aitbc_aps_miner.models import JobState
from aitbc_aps_miner.workspace import Glance, Workspaces
from aitbc_aps_miner.world import World

# Deleting 100 000 expired workspaces goes on in the next sweeps.
EXPIRE_BUDGET_S = 20.0


def expire(world: World, settled: list[tuple[Workspaces, Glance]], root: Path) -> float:
    """Remove what is past its time, and more, oldest first, on a full disk.

    What stays for another `results.keep_trying` is a tombstone that recognises a job
    handed out again. Gives the use of the disk that `root` is on, in per cent.
    """
    config, now = world.config, world.clock.realtime()
    budget_ends = world.clock.monotonic() + EXPIRE_BUDGET_S
    used_pct = disk_used_pct(root)
    pressed = used_pct >= config.workspace.disk_high_pct
    settled.sort(key=lambda pair: pair[1].written_at)
    for workspaces, job in settled:
        age_s = now - job.written_at
        if world.clock.monotonic() > budget_ends:
            break
        if not pressed and age_s <= _shortest_s(config):
            break  # oldest first: all that follow are younger
        with suppress(WorkspaceError):
            if _end(config, workspaces, job.job_id, age_s, pressed=pressed):
                used_pct = disk_used_pct(root)
                pressed = pressed and used_pct >= config.workspace.disk_low_pct
    return used_pct


def _end(
    config: Config, workspaces: Workspaces, job_id: str, age_s: float, *, pressed: bool
) -> bool:
    """Bury or remove one job if it is time; whether that freed anything."""
    if not (workspaces.root / job_id / "job.json").exists():  # buried before
        return age_s > config.results.keep_trying and workspaces.remove(job_id)
    found = workspaces.find(job_id)
    if found is None:
        return False
    if found.record is None:
        workspaces.set_aside(found)
        return False
    done = found.record.state is JobState.DONE
    keep = config.workspace.keep_success if done else config.workspace.keep_failed
    if age_s <= keep and not pressed:
        return False
    workspace = workspaces.open(job_id)
    try:
        workspace.bury()
    finally:
        workspace.close()
    return True


def _shortest_s(config: Config) -> float:
    keep = config.workspace
    return min(keep.keep_success, keep.keep_failed, config.results.keep_trying)


def disk_used_pct(root: Path) -> float:
    """Give how full the disk of `root` is, in per cent; 0 when it can't be asked."""
    while True:
        try:
            return float(psutil.disk_usage(str(root)).percent)
        except FileNotFoundError:
            root = root.parent
        except OSError:
            return 0.0
