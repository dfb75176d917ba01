"""A payload that fills the disk: its result is not lost, and the node works on."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from small_disk import fill, fill_with_names, small_disk
from tick_site import Site, outcome_of, quiet_log, registered

from aitbc_aps_miner.callbacks.jobs import JOB_REF
from aitbc_aps_miner.errors import WorkspaceError
from aitbc_aps_miner.executor import (
    Isolated,
    PoolSettings,
    ProcessExecutor,
    ZygoteSettings,
)
from aitbc_aps_miner.models import JobState
from aitbc_aps_miner.util import fs

# The payload's own words: a result, then junk until the disk takes no more, and a
# good end nevertheless.
FILLER = """\
#!/bin/sh
echo result > output.txt
/bin/cat /dev/zero > junk 2> /dev/null
exit 0
"""
FILLER_ALLOWED = "command: {path: %s}\nargs: []\nmax_runtime_s: 20\n"

FILLERS = pytest.mark.parametrize("filled", [fill, fill_with_names])
Fill = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with quiet_log():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[CoordinatorServer]:
    """Give one coordinator to the whole module."""
    with CoordinatorServer(max_attempts=1) as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of one MiB."""
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def site(tmp_path: Path, disk: Path, server: CoordinatorServer) -> Site:
    """Give a registered node whose workspaces are on that disk."""
    root = {"root": str(disk / "jobs")}
    return Site(tmp_path, server.base_url, registered(server), workspace=root)


def is_full(disk: Path) -> bool:
    """Whether the disk takes no file of one block more."""
    found = os.statvfs(disk)
    return found.f_bavail == 0 or found.f_favail == 0


def taken(site: Site, server: CoordinatorServer, job_id: str) -> Mapping[str, Any]:
    """Let the node have pulled and acked a job; give its manifest."""
    raw = echo_manifest(job_id)
    server.submit(raw)
    assert len(site.pull()["accepted"]) == 1
    server.call(lambda: server.state.ack(job_id, "n1", 1))
    return raw


def test_a_job_that_fills_the_disk_and_succeeds_is_delivered(
    tmp_path: Path, disk: Path, site: Site, server: CoordinatorServer
) -> None:
    """In its own process, and what it left is gone afterwards."""
    program = tmp_path / "fill.sh"
    program.write_text(FILLER)
    program.chmod(0o755)
    allowed = tmp_path / "allow" / "fill.yaml"
    allowed.write_text(FILLER_ALLOWED % program)
    os.utime(allowed, (1e9, 1e9))
    server.submit({**echo_manifest("greedy"), "command": "fill", "args": []})
    (job,) = site.pull()["accepted"]
    settings = PoolSettings(zygote=ZygoteSettings(preload=("aitbc_aps_miner.job",)))
    executor = ProcessExecutor(settings=settings)
    executor.open()
    try:
        kwargs = {**site.access, "job": job, "resume": False}
        call = Isolated(ref=JOB_REF, deadline_s=60, kwargs=kwargs)
        report = executor.call(call).unwrap()
    finally:
        executor.shutdown()
    assert (report["state"], report["code"]) == (JobState.DONE, None)
    assert server.artifact("greedy", "output.txt") == b"result\n"
    assert not is_full(disk)


@FILLERS
def test_a_lost_attempt_that_filled_the_disk_fails_and_frees_it(
    disk: Path, site: Site, server: CoordinatorServer, filled: Fill
) -> None:
    """Its process died of it; the sweep records E_LOST where there was no room."""
    job_id = f"lost-{filled.__name__}"
    site.spawned(taken(site, server, job_id))
    filled(site.root / job_id / "work")
    assert is_full(disk)
    report = site.sweep()
    assert (report["deliver"], report["unwritable"]) == ([job_id], None)
    assert site.deliver(job_id)["code"] == "E_LOST"


@FILLERS
def test_what_follows_the_outcome_finds_room_too(
    disk: Path, site: Site, filled: Fill
) -> None:
    """A result that took the last block is delivered and marked."""
    raw = echo_manifest("last-block")
    workspace = site.claim(raw)
    workspace.mark_spawn()
    workspace.record(outcome_of(raw))
    filled(workspace.root / "work")
    assert is_full(disk)
    workspace.enter(JobState.UPLOADING)
    filled(workspace.root / "output")
    filled(workspace.root / ".artifacts")
    workspace.close()
    assert site.state("last-block") is JobState.UPLOADING


@FILLERS
def test_a_full_disk_is_freed_of_settled_jobs(
    disk: Path, site: Site, filled: Fill
) -> None:
    """Burying needs room for its mark: the files go first then."""
    site.delivered(echo_manifest("old"))
    site.delivered(echo_manifest("older"))
    filled(site.root / "old" / "output")
    assert is_full(disk)
    workspace = site.workspaces.open("old")
    workspace.bury()
    workspace.close()
    assert sorted(entry.name for entry in (site.root / "old").iterdir()) == [
        "lock",
        "outcome.json",
        "state.json",
    ]
    record = site.found("old").record
    assert record is not None
    assert record.buried
    filled(site.root / "older" / "output")
    assert is_full(disk)
    assert site.workspaces.remove("older")
    assert not is_full(disk)
    assert site.names() == ["old"]


def test_a_payload_that_may_still_run_keeps_its_files(disk: Path, site: Site) -> None:
    """Before the outcome nothing of it is thrown away: the write is refused."""
    workspace = site.claim(echo_manifest("alive"))
    fill(workspace.root / "work")
    assert is_full(disk)
    with pytest.raises(WorkspaceError, match="ENOSPC"):
        workspace.mark_spawn()
    assert (workspace.root / "work" / "junk").exists()
    workspace.close()


def test_a_tree_on_a_full_disk_is_its_own_heap(disk: Path) -> None:
    """Where the trash is there; a directory more could not be made."""
    (disk / ".trash").mkdir()
    tree = disk / "tree"
    (tree / "inside").mkdir(parents=True)
    fill_with_names(tree / "inside")
    assert fs.remove_tree(tree)
    assert list((disk / ".trash").iterdir()) == []
