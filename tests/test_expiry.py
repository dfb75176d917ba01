"""When files of settled jobs go: each by its age, and sooner on a full disk."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from coordinator_server import echo_manifest
from tick_site import Site, quiet_log

from aitbc_aps_miner import expiry
from aitbc_aps_miner.expiry import disk_used_pct, expire
from aitbc_aps_miner.world import World

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with quiet_log():
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Give a node with the specification's times."""
    return Site(tmp_path, "http://127.0.0.1:9/api/v1", None)


@pytest.fixture(autouse=True)
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the disk be so full, in turn; the last one for ever."""

    def set_to(*used: float) -> None:
        left = list(used)
        monkeypatch.setattr(
            expiry,
            "disk_used_pct",
            lambda _root: left.pop(0) if len(left) > 1 else left[0],
        )

    set_to(50)
    return set_to


def settled(site: Site, job_id: str, age_s: float, *, succeeded: bool = True) -> None:
    """Leave a delivered job of that age."""
    site.delivered(echo_manifest(job_id), succeeded=succeeded)
    age(site, job_id, age_s)


def age(site: Site, job_id: str, age_s: float) -> None:
    """Let a job's last transition be so long ago."""
    state = site.root / job_id / "state.json"
    at = state.stat().st_mtime - age_s
    os.utime(state, (at, at))


def run(site: Site) -> float:
    """Expire what is due."""
    world = World(site.line, site.access["config"], None)
    glances = [(site.workspaces, seen) for seen in site.workspaces.glance()]
    return expire(world, [pair for pair in glances if pair[1].settled], site.root)


def kept(site: Site) -> dict[str, str]:
    """Say of each job whether its files or only a tombstone are there."""
    return {
        name: "files" if (site.root / name / "job.json").exists() else "tombstone"
        for name in site.names()
    }


def test_each_kind_of_end_has_its_time(site: Site) -> None:
    """Successes a day, failures a week; then a tombstone is left."""
    settled(site, "young", DAY_S - 60)
    settled(site, "old", DAY_S + 60)
    settled(site, "failed", DAY_S + 60, succeeded=False)
    settled(site, "failed-old", 7 * DAY_S + 60, succeeded=False)
    assert run(site) == 50
    assert kept(site) == {
        "young": "files",
        "old": "tombstone",
        "failed": "files",
        "failed-old": "tombstone",
    }


def test_a_tombstone_recognises_the_job_for_a_while(site: Site) -> None:
    """As long as the results of others are kept trying, then it goes as well."""
    settled(site, "a", DAY_S + 60)
    run(site)
    assert sorted(path.name for path in (site.root / "a").iterdir()) == [
        "lock",
        "outcome.json",
        "state.json",
    ]
    age(site, "a", 7 * DAY_S - 60)
    run(site)
    assert kept(site) == {"a": "tombstone"}
    assert site.found("a").delivered
    age(site, "a", 60)
    run(site)
    assert site.names() == []


def test_a_full_disk_takes_the_oldest_first(
    site: Site, full: Callable[..., None]
) -> None:
    """Only as many as bring it below the low mark."""
    for number, job_id in enumerate(("c", "b", "a")):
        settled(site, job_id, 60.0 * number)
    full(91, 85, 79)
    assert run(site) == 79
    assert kept(site) == {"a": "tombstone", "b": "tombstone", "c": "files"}


def test_a_disk_between_its_marks_takes_nothing(
    site: Site, full: Callable[..., None]
) -> None:
    """It has to reach the high one first."""
    settled(site, "a", 60)
    full(89)
    assert run(site) == 89
    assert kept(site) == {"a": "files"}


def test_a_full_disk_takes_no_tombstone(site: Site, full: Callable[..., None]) -> None:
    """It would free next to nothing, and the job could be run again."""
    settled(site, "a", DAY_S + 60)
    run(site)
    full(99)
    run(site)
    assert kept(site) == {"a": "tombstone"}


def test_a_job_in_use_stays_for_the_next_sweep(site: Site) -> None:
    """Somebody answers with it just now."""
    settled(site, "busy", 8 * DAY_S)
    settled(site, "old", 2 * DAY_S)
    workspace = site.workspaces.open("busy")
    run(site)
    workspace.close()
    assert kept(site) == {"busy": "files", "old": "tombstone"}


def test_a_damaged_job_stays_for_the_owner(site: Site) -> None:
    """Nothing is thrown away that can't be judged."""
    settled(site, "bad", 8 * DAY_S)
    state = site.root / "bad" / "state.json"
    state.chmod(0o600)
    state.write_text("{")
    state.chmod(0o400)
    age(site, "bad", 8 * DAY_S)
    run(site)
    assert kept(site) == {}
    assert (site.root / ".damaged" / "bad" / "state.json").read_text() == "{"


def test_what_is_not_done_in_time_is_the_next_sweeps(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep has a deadline."""
    settled(site, "a", 2 * DAY_S)
    monkeypatch.setattr(expiry, "EXPIRE_BUDGET_S", -1)
    run(site)
    assert kept(site) == {"a": "files"}


def test_a_disk_is_known_before_its_root_is_made(tmp_path: Path) -> None:
    """By the directory that it will lie in."""
    here = psutil.disk_usage(str(tmp_path)).percent
    assert abs(disk_used_pct(tmp_path / "a" / "b") - here) < 1


def test_a_disk_that_does_not_answer_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is thrown away for it."""

    def fail(_path: str) -> SimpleNamespace:
        raise PermissionError

    monkeypatch.setattr(psutil, "disk_usage", fail)
    assert disk_used_pct(tmp_path) == 0
