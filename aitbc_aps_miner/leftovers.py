"""Ends what is left of a job whose process died; decides nothing."""

from contextlib import suppress
from pathlib import Path

import psutil

from aitbc_aps_miner.sandbox.cgroup import SPARE_PREFIX, Cgroup
from aitbc_aps_miner.util import proc
from aitbc_aps_miner.workspace.jobdir import process_facts
from aitbc_aps_miner.workspace.record import Record

KILL_WAIT_S = 5.0


def end_leftovers(path: Path, record: Record) -> None:
    """Kill what is left of a job whose process died; its lock is free."""
    if record.facts.get("boot_id") != process_facts()["boot_id"]:
        return  # nothing outlives a boot, but its cgroup's name may be another's now
    cgroup = record.facts.get("cgroup")
    if isinstance(cgroup, str) and Path(cgroup).name.startswith(SPARE_PREFIX):
        group = Cgroup(path=Path(cgroup))
        group.kill()
        group.wait_empty(KILL_WAIT_S)
        group.remove()
    home = str(path / "work")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            # The payload's environment names its job and its directory.
            if process.environ().get("HOME") == home:
                proc.kill_descendants(process.pid, KILL_WAIT_S)
                process.kill()
