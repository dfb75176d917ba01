"""What a dead job left is ended: its cgroup, and whoever names its directory."""

from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_server import echo_manifest
from tick_site import Site

from aitbc_aps_miner.leftovers import end_leftovers
from aitbc_aps_miner.sandbox.cgroup import find_base
from aitbc_aps_miner.workspace.record import Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Give the record of a job of this boot."""
    site = Site(tmp_path, "http://127.0.0.1:9/api/v1", None)
    site.spawned(echo_manifest("j"))
    found = site.found("j").record
    assert found is not None
    return found


def in_group(record: Record, group: Path | None) -> Record:
    """Let the job have run in `group`."""
    return replace(record, facts={**record.facts, "cgroup": group and str(group)})


def test_the_cgroup_of_a_dead_job_is_removed(tmp_path: Path, record: Record) -> None:
    """With those below it."""
    base = find_base()
    group = (tmp_path if base is None else base.path) / "aps-999999-1"
    (group / "payload").mkdir(parents=True)
    end_leftovers(tmp_path / "jobs" / "j", in_group(record, group))
    assert not group.exists()


def test_a_group_that_is_not_one_of_ours_is_left_alone(
    tmp_path: Path, record: Record
) -> None:
    """Whatever the file says."""
    other = tmp_path / "system.slice"
    other.mkdir()
    end_leftovers(tmp_path / "jobs" / "j", in_group(record, other))
    assert other.exists()


def test_a_job_without_a_cgroup_leaves_none(tmp_path: Path, record: Record) -> None:
    """There may be no cgroup2 here."""
    end_leftovers(tmp_path / "jobs" / "j", in_group(record, None))


def test_a_group_of_another_boot_is_another_jobs(
    tmp_path: Path, record: Record
) -> None:
    """Names come again after a reboot."""
    group = tmp_path / "aps-1-1"
    group.mkdir()
    before = in_group(record, group)
    before = replace(before, facts={**before.facts, "boot_id": "another"})
    end_leftovers(tmp_path / "jobs" / "j", before)
    assert group.exists()
