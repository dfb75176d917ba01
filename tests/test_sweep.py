"""The sweep's deeds on real workspaces, with the coordinator's view of each job."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from scripted_server import Connection, Seen, serving
from tick_site import Site, capacity, quiet_log, registered

from aitbc_aps_miner.coordinator import JobView
from aitbc_aps_miner.models import JobState, Origin
from aitbc_aps_miner.reconcile import Action, View
from aitbc_aps_miner.reference_coordinator.matching import Appetite
from aitbc_aps_miner.settling import Settling
from aitbc_aps_miner.tasks import capacity_of
from aitbc_aps_miner.views import view_of
from aitbc_aps_miner.workspace import read_control
from aitbc_aps_miner.world import World


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with quiet_log():
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[CoordinatorServer]:
    """Give one coordinator to the whole module."""
    with CoordinatorServer(max_attempts=2) as server:
        yield server


@pytest.fixture
def server(shared: CoordinatorServer) -> Iterator[CoordinatorServer]:
    """Give a coordinator that knows of no job."""
    yield shared
    shared.clear_faults()
    shared.call(lambda: _forget(shared))


def _forget(server: CoordinatorServer) -> None:
    for node in server.state.nodes.values():
        node.active.clear()
    server.state.jobs.clear()
    server.state._queue.clear()


@pytest.fixture
def site(tmp_path: Path, server: CoordinatorServer) -> Site:
    """Give a registered node."""
    return Site(tmp_path, server.base_url, registered(server))


def leased(server: CoordinatorServer, **more: Any) -> Mapping[str, Any]:
    """Let the coordinator hand a job to the node."""
    raw = echo_manifest("j", **more)
    server.submit(raw)
    server.call(lambda: server.state.pull("n1", Appetite()))
    return raw


def acked(server: CoordinatorServer, **more: Any) -> Mapping[str, Any]:
    """Let the node have taken a job."""
    raw = leased(server, **more)
    server.call(lambda: server.state.ack("j", "n1", 1))
    return raw


def settling(site: Site) -> Settling:
    """Give what settles single jobs."""
    world = World(site.line, site.access["config"], site.token)
    free = capacity_of(capacity())
    return Settling(world, free, frozenset(), root=str(site.root), evidence={})


def quiet(report: Mapping[str, Any]) -> dict[str, Any]:
    """Give what of a report is not empty, without the disk; of what ended the codes."""
    told = {
        key: value for key, value in report.items() if value and key != "disk_used_pct"
    }
    if "ended" in told:
        told["ended"] = [(job["job_id"], job["code"]) for job in told["ended"]]
    return told


def run_of(report: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """Give id, attempt and freshness of the jobs to run."""
    return [
        (job["job_id"], job["attempt"], job.get("fresh", False))
        for job in report["run"]
    ]


RUNNING = {
    "job_id": "j",
    "attempt": 1,
    "state": JobState.RUNNING,
    "reservation": {
        "kind": "cpu",
        "cpu_threads": 1,
        "gpu_uuids": (),
        "vram_mb": 0,
    },
}


def test_an_empty_node_has_nothing_to_settle(site: Site) -> None:
    """Its root is made, and could be written."""
    report = site.sweep()
    assert quiet(report) == {}
    assert 0 < report["disk_used_pct"] <= 100
    assert site.root.is_dir()


def test_a_root_that_stores_nothing_is_told(site: Site) -> None:
    """So that a gate can close."""
    site.root.write_text("in the way")
    assert "File exists" in site.sweep()["unwritable"]
    assert [event["root"] for event in site.line.events("root.unreadable")] == [
        str(site.root)
    ]


def test_a_root_that_can_not_be_read_does_not_hide_the_others(
    site: Site, server: CoordinatorServer
) -> None:
    """Nor one that is not there any more; what is missing may be under the bad one."""
    raw = acked(server)
    site.waiting(raw)
    server.submit({**raw, "job_id": "unseen"})
    server.call(lambda: server.state.pull("n1", Appetite()))
    (bad := site.home / "bad").write_text("in the way")
    roots = [str(site.home / "gone"), str(bad), str(site.root)]
    assert quiet(site.sweep(roots=roots)) == {"deliver": ["j"], "undelivered": 1}


def test_the_root_in_force_is_the_first_that_is_told(
    site: Site, server: CoordinatorServer
) -> None:
    """Not the one that an edit names and nobody may have."""
    leased(server)
    in_force = str(site.home / "in-force")
    report = site.sweep(orphans=["j"], roots=[in_force, str(site.root)])
    assert [job["root"] for job in report["run"]] == [in_force]
    assert (site.home / "in-force" / ".writable").exists()
    assert not site.root.exists()


# Running jobs


def test_a_running_job_is_reported_until_it_is_adopted_and_after(
    site: Site, server: CoordinatorServer
) -> None:
    """Logged once, when it is found."""
    workspace = site.claim(acked(server))
    workspace.mark_spawn()
    whose = {"root": str(site.root), "origin": asdict(site.origin)}
    found = {"running": [{**RUNNING, **whose}]}
    assert quiet(site.sweep()) == found
    assert len(site.line.events("job.settle")) == 1
    assert quiet(site.sweep(adopted=["j"])) == found
    assert len(site.line.events("job.settle")) == 1
    assert site.sweep(held=["j"])["running"] == []
    workspace.close()


def test_a_running_job_is_counted_also_when_nobody_answers(
    site: Site, server: CoordinatorServer
) -> None:
    """It does hold its slot."""
    workspace = site.claim(acked(server))
    server.set_fault("query", "status", status=503)
    assert len(site.sweep()["running"]) == 1
    assert read_control(workspace.root) == {}
    workspace.close()


def test_a_running_job_of_another_node_is_stopped(
    site: Site, server: CoordinatorServer
) -> None:
    """Its process hears it; until it ends it is counted."""
    workspace = site.claim(acked(server))
    server.cancel("j", force=True)
    assert len(site.sweep()["running"]) == 1
    assert read_control(workspace.root) == {"cancel": True}
    workspace.close()


def test_a_job_process_that_delivers_is_left_alone(
    site: Site, server: CoordinatorServer
) -> None:
    """Counted while it does; while it waits for another try it holds no slot."""
    workspace = site.recorded(acked(server))
    assert quiet(site.sweep()) == {"undelivered": 1}
    workspace.enter(JobState.UPLOADING)
    (job,) = site.sweep()["running"]
    assert (job["job_id"], job["state"]) == ("j", JobState.UPLOADING)
    workspace.close()
    assert site.line.events("job.settle") == []


def test_a_job_that_ended_during_the_sweep_is_not_adopted(
    site: Site, server: CoordinatorServer
) -> None:
    """The daemon started it after it told what it holds, and has heard its end."""
    raw = acked(server)
    with contextlib.closing(site.claim(raw)) as workspace:
        workspace.mark_spawn()
        look = settling(site)
        look.settle_root(site.workspaces, held=[])
        adopted = Settling(
            look._world, None, frozenset(["j"]), root=str(site.root), evidence={}
        )
        adopted.settle_root(site.workspaces, held=[])
        assert [job["job_id"] for job in look.still_running()] == ["j"]
    assert look.still_running() == []
    assert [job["job_id"] for job in adopted.still_running()] == ["j"]


# Outcomes


@pytest.mark.parametrize("known", [True, False])
def test_a_waiting_outcome_is_delivered(
    site: Site, server: CoordinatorServer, *, known: bool
) -> None:
    """Also to a coordinator that has forgotten the job: its key makes it one."""
    site.waiting(acked(server) if known else echo_manifest("j"))
    assert quiet(site.sweep()) == {"deliver": ["j"], "undelivered": 1}


def test_an_outcome_that_the_coordinator_has_is_marked_delivered(
    site: Site, server: CoordinatorServer
) -> None:
    """Only the answer was lost."""
    raw = acked(server)
    site.waiting(raw)
    site.deliver("j")
    root = {"root": f"{site.home}/b"}
    other = Site(site.home, server.base_url, site.token, workspace=root)
    other.waiting(raw)
    assert quiet(other.sweep()) == {"undelivered": 1}
    record = other.found("j").record
    assert record is not None
    assert (record.state, record.dropped) == (JobState.DONE, None)
    assert quiet(other.sweep()) == {}


def test_an_outcome_that_nobody_wants_is_kept_for_the_owner(
    site: Site, server: CoordinatorServer
) -> None:
    """Cancelled meanwhile, or another node's."""
    site.waiting(acked(server))
    server.cancel("j", force=True)
    site.sweep()
    record = site.found("j").record
    assert record is not None
    assert record.dropped == "the job is not ours any more"


def test_an_outcome_that_vanished_is_not_closed(
    site: Site, server: CoordinatorServer
) -> None:
    """Between the look and the lock."""
    site.waiting(acked(server))
    (site.root / "j" / "outcome.json").unlink()
    settling(site)._close(site.workspaces, "j", Action.DROP)
    assert site.state("j") is JobState.RETRY_WAIT


# Attempts that died


def test_a_lost_attempt_fails_once(site: Site, server: CoordinatorServer) -> None:
    """E_LOST is recorded, then delivered like any outcome."""
    site.spawned(acked(server))
    lost = {"deliver": ["j"], "ended": [("j", "E_LOST")]}
    assert quiet(site.sweep()) == lost
    assert site.state("j") is JobState.RETRY_WAIT
    assert site.deliver("j")["state"] == JobState.FAILED
    assert quiet(site.sweep()) == {}
    fails = [call for call in server.calls("jobs/fail") if call[2] == 200]
    assert fails[-1][3]["idempotency-key"] == "j:1"
    assert server.job("j")["state"] == "queued"  # E_LOST may be tried elsewhere
    history = [step["state"] for step in server.job("j")["history"]]
    assert history == ["queued", "leased", "acked", "queued"]


def test_what_the_executors_net_ended_is_a_defect_and_not_rerun(
    site: Site, server: CoordinatorServer
) -> None:
    """E_INTERNAL with what the daemon saw: run again it would only end there again."""
    site.spawned(acked(server, idempotent=True))
    seen = {"end": "timed_out", "message": "deadline of 9 s", "traceback": "where"}
    report = site.sweep(evidence={"j": seen})
    (told,) = report["ended"]
    assert (told["code"], report["run"]) == ("E_INTERNAL", [])
    outcome = site.workspaces.open("j").load_outcome()
    assert outcome is not None
    assert outcome.detail == {**seen, "state": JobState.RUNNING}


def test_the_end_of_an_adopted_job_is_told(
    site: Site, server: CoordinatorServer
) -> None:
    """Its process reported to a daemon that is gone."""
    site.waiting(acked(server))
    (told,) = site.sweep(adopted=["j"])["ended"]
    assert (told["job_id"], told["state"]) == ("j", JobState.RETRY_WAIT)


def test_a_lost_attempt_whose_manifest_is_damaged_fails_as_well(
    site: Site, server: CoordinatorServer
) -> None:
    """Its key is all that is needed."""
    site.spawned(acked(server))
    (site.root / "j" / "job.json").write_text("{")
    lost = {"deliver": ["j"], "ended": [("j", "E_LOST")]}
    assert quiet(site.sweep()) == lost
    assert site.deliver("j")["code"] == "E_LOST"


def test_a_lost_attempt_that_may_be_repeated_runs_again(
    site: Site, server: CoordinatorServer
) -> None:
    """Under its root, for its origin."""
    site.spawned(acked(server, idempotent=True))
    report = site.sweep()
    assert run_of(report) == [("j", 1, False)]
    assert report["run"][0]["root"] == str(site.root)
    assert report["deliver"] == []


def test_what_is_left_of_a_dead_job_is_killed_first(
    site: Site, server: CoordinatorServer
) -> None:
    """Known by the directory that its environment names."""
    site.spawned(acked(server))
    home = str(site.root / "j" / "work")
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env={"HOME": home},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
    site.sweep()
    assert child.wait(10) < 0


def test_an_attempt_of_another_boot_has_left_nothing(
    site: Site, server: CoordinatorServer
) -> None:
    """Its cgroup's name may be another job's by now."""
    site.spawned(acked(server))
    state = site.root / "j" / "state.json"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    state.write_text(state.read_text().replace(boot_id, "another-boot"))
    child = subprocess.Popen(
        ["/bin/sleep", "600"], env={"HOME": str(site.root / "j" / "work")}
    )
    try:
        assert site.sweep()["deliver"] == ["j"]
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("known", [True, False])
def test_a_dead_attempt_that_is_not_ours_is_abandoned(
    site: Site, server: CoordinatorServer, *, known: bool
) -> None:
    """Nothing is told to anyone."""
    site.spawned(acked(server) if known else echo_manifest("j"))
    if known:
        server.cancel("j", force=True)
    assert quiet(site.sweep()) == {}
    assert site.names() == []


# Attempts that never ran


@pytest.mark.parametrize("state", [None, JobState.ACKED, JobState.PREP])
def test_a_claim_that_never_ran_is_run(
    site: Site, server: CoordinatorServer, state: JobState | None
) -> None:
    """From where it stands: its ack is repeated first."""
    workspace = site.claim(leased(server))
    if state is not None:
        workspace.enter(state)
    workspace.close()
    assert run_of(site.sweep()) == [("j", 1, False)]
    assert site.sweep(slots=0)["run"] == []
    assert site.names() == ["j"]


def test_a_claim_that_is_not_ours_is_forgotten(site: Site) -> None:
    """Its lease ran out before the ack."""
    site.claim(echo_manifest("j")).close()
    assert quiet(site.sweep()) == {}
    assert site.names() == []


@pytest.mark.parametrize("damage", ["secrets", "manifest", "claim"])
def test_a_claim_that_can_not_be_run_from_here_is_lost(
    site: Site, server: CoordinatorServer, damage: str
) -> None:
    """Its secrets are never on disk, or its manifest can't be read."""
    raw = leased(server, secrets={"KEY": "x"} if damage == "secrets" else {})
    site.claim(raw).close()
    claim = site.root / "j" / "job.json"
    if damage == "manifest":
        claim.write_text(claim.read_text().replace('"timeout_s":120', '"timeout_s":-1'))
    if damage == "claim":
        claim.write_text("[]")
    report = site.sweep()
    assert (report["run"], report["deliver"]) == ([], ["j"])


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_node_that_takes_no_work_starts_nothing(
    site: Site, server: CoordinatorServer, *, idempotent: bool
) -> None:
    """Drained, paused or full: what ran and what waits is settled nevertheless."""
    raw = acked(server, idempotent=idempotent)
    site.spawned(raw)
    for job_id in ("new", "orphan", "owed"):
        server.submit({**raw, "job_id": job_id})
    server.call(lambda: server.state.pull("n1", Appetite(max_jobs=3)))
    site.claim({**raw, "job_id": "new"}).close()
    site.waiting({**raw, "job_id": "owed"})
    report = site.sweep(orphans=["orphan"], takes_work=False)
    assert report["run"] == []
    assert report["orphans"] == ["orphan"]
    lost = [] if idempotent else ["j"]
    assert sorted(report["deliver"]) == [*lost, "owed"]
    ready = [("new", 1, False), ("orphan", 1, True)]
    ready += [("j", 1, False)] if idempotent else []
    assert sorted(run_of(site.sweep(orphans=["orphan"]))) == sorted(ready)


# What must not be touched


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 401}, {"status": 400}])
def test_an_unknown_view_touches_nothing(
    site: Site, server: CoordinatorServer, fault: dict[str, Any]
) -> None:
    """Unknown is never "none"; the next sweep asks again."""
    raw = acked(server)
    states: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "claimed": lambda raw: site.claim(raw).close(),
        "spawned": site.spawned,
        "waiting": site.waiting,
    }
    for name, make in states.items():
        make({**raw, "job_id": name})
    server.set_fault("query", "status", **fault)
    report = site.sweep(orphans=["j"])
    assert quiet(report) == {"undelivered": 1}
    assert site.names() == sorted(states)
    assert len(site.line.events("job.view_unknown")) == 3


def test_a_job_that_is_in_use_waits(site: Site, server: CoordinatorServer) -> None:
    """Somebody took its lock since it was looked at."""
    site.waiting(acked(server))
    server.cancel("j", force=True)
    stored = site.found("j")
    with contextlib.closing(site.workspaces.open("j")):
        settling(site).settle(site.workspaces, stored)
    assert site.state("j") is JobState.RETRY_WAIT


def test_a_damaged_workspace_does_not_keep_the_others_from_being_settled(
    site: Site, server: CoordinatorServer
) -> None:
    """It is named, once in the report and the log, and set aside."""
    site.waiting(acked(server))
    site.spawned(echo_manifest("bad"))
    (site.root / "bad" / "state.json").write_text("{")
    report = site.sweep()
    assert quiet(report) == {"deliver": ["j"], "undelivered": 1, "damaged": ["bad"]}
    (event,) = site.line.events("job.damaged")
    aside = site.root / ".damaged" / "bad"
    assert (event["job_id"], event["moved_to"]) == ("bad", str(aside))
    assert (aside / "state.json").read_text() == "{"
    assert quiet(site.sweep()) == {"deliver": ["j"], "undelivered": 1}
    assert len(site.line.events("job.damaged")) == 1


def test_a_damaged_workspace_does_not_block_its_job(
    site: Site, server: CoordinatorServer
) -> None:
    """A bare directory of its name is set aside; the job is settled like an orphan."""
    leased(server)
    (site.root / "j" / "work").mkdir(parents=True)
    assert quiet(site.sweep()) == {"damaged": ["j"], "orphans": ["j"]}
    assert run_of(site.sweep(orphans=["j"])) == [("j", 1, True)]


def test_a_damaged_workspace_of_a_live_process_is_left_alone(
    site: Site, server: CoordinatorServer
) -> None:
    """Its job may still deliver, and is not missing."""
    workspace = site.claim(acked(server))
    (workspace.root / "state.json").write_text("{")
    assert quiet(site.sweep(orphans=["j"])) == {"damaged": ["j"]}
    assert site.names() == ["j"]
    workspace.close()


def test_what_is_damaged_goes_like_a_failed_job(tmp_path: Path) -> None:
    """After workspace.keep_failed."""
    url = "http://127.0.0.1:9/api/v1"
    for keep_failed, kept in (("1h", ["bad"]), ("0s", [])):
        site = Site(tmp_path, url, None, workspace={"keep_failed": keep_failed})
        (site.root / "bad").mkdir(parents=True, exist_ok=True)
        site.sweep()
        aside = site.root / ".damaged"
        assert [entry.name for entry in aside.iterdir()] == kept


def test_a_deed_that_fails_is_told_and_the_rest_done(
    site: Site, server: CoordinatorServer
) -> None:
    """An outcome that can't be read is not marked as anything."""
    raw = acked(server)
    for job_id in ("a", "z"):
        other = {**raw, "job_id": job_id}
        server.submit(other)
        server.cancel(job_id)
        site.waiting(other)
    (site.root / "a" / "outcome.json").write_text("{")
    site.sweep()
    assert [event["job_id"] for event in site.line.events("job.unsettled")] == ["a"]
    assert site.state("a") is JobState.RETRY_WAIT
    assert site.state("z") is JobState.DONE


# What only the coordinator knows of


def test_an_orphan_is_settled_only_when_seen_twice(
    site: Site, server: CoordinatorServer
) -> None:
    """It may belong to a pull that is open: then it is here the next time."""
    leased(server)
    assert quiet(site.sweep()) == {"orphans": ["j"]}
    report = site.sweep(orphans=["j"])
    assert (report["orphans"], run_of(report)) == (["j"], [("j", 1, True)])
    assert quiet(site.sweep(orphans=["j"], held=["j"])) == {}


def test_an_orphan_without_a_slot_waits(site: Site, server: CoordinatorServer) -> None:
    """For one, or for the end of its lease."""
    leased(server)
    report = site.sweep(orphans=["j"], slots=0)
    assert (report["run"], server.job("j")["state"]) == ([], "leased")


def test_an_orphan_that_may_have_run_is_lost(
    site: Site, server: CoordinatorServer
) -> None:
    """Its disk is gone: E_LOST reaches the coordinator, from the node that took it."""
    acked(server)
    assert site.sweep(orphans=["j"])["run"] == []
    assert server.job("j")["attempt"] == 2
    assert len([c for c in server.calls("jobs/fail") if c[2] == 200]) >= 1


def test_an_orphan_that_may_be_repeated_runs(
    site: Site, server: CoordinatorServer
) -> None:
    """With all that it came with."""
    acked(server, idempotent=True)
    assert run_of(site.sweep(orphans=["j"])) == [("j", 1, True)]


def test_a_malformed_orphan_is_refused(site: Site, server: CoordinatorServer) -> None:
    """As a pull would have refused it."""
    leased(server, timeout_s=-1)
    assert site.sweep(orphans=["j"])["run"] == []
    assert server.job("j")["outcome"]["error_code"] == "E_MANIFEST"


def test_a_delivered_job_that_is_expected_again_is_resent(
    site: Site, server: CoordinatorServer
) -> None:
    """The coordinator lost the outcome, or never got its own words down."""
    site.delivered(leased(server))
    assert quiet(site.sweep()) == {"resend": ["j"]}


def test_a_later_attempt_of_a_delivered_job_is_a_new_job(
    site: Site, server: CoordinatorServer
) -> None:
    """What is here is of an earlier one."""
    raw = leased(server)
    site.delivered(raw, succeeded=False)
    server.call(lambda: server.state._requeue(server.state.jobs["j"]))
    server.call(lambda: server.state.pull("n1", Appetite()))
    assert quiet(site.sweep()) == {"orphans": ["j"]}
    assert run_of(site.sweep(orphans=["j"])) == [("j", 2, True)]


def listing(*jobs: Mapping[str, Any]) -> Callable[[Seen, Connection], None]:
    """Answer the list call with `jobs`, everything else with 404."""

    def answer(seen: Seen, connection: Connection) -> None:
        if seen.target.startswith("/api/v1/jobs?"):
            connection.reply(200, {"jobs": list(jobs)})
        else:
            connection.reply(404)

    return answer


@pytest.mark.parametrize(
    "row",
    [
        {"state": "succeeded"},
        {"state": "queued"},
        {"state": "leased", "node_id": "other"},
        {"state": "leased"},
    ],
)
def test_a_list_that_holds_too_much_harms_nobody(
    tmp_path: Path, row: Mapping[str, Any]
) -> None:
    """Final jobs, other nodes' jobs, jobs without a manifest: none is run or failed."""
    with serving(listing({"job_id": "j", "attempt": 1, **row})) as script:
        report = Site(tmp_path, script.url, "t").sweep(orphans=["j"])
    assert report["run"] == []
    assert [seen.method for seen in script.seen] == ["GET"]


def test_a_coordinator_without_queries_is_told_again(tmp_path: Path) -> None:
    """Unsupported is not absent: what never ran runs, what is owed is sent."""
    with serving(listing_absent) as script:
        site = Site(tmp_path, script.url, "t")
        site.claim(echo_manifest("new")).close()
        site.waiting(echo_manifest("owed"))
        report = site.sweep()
    assert run_of(report) == [("new", 1, False)]
    assert report["deliver"] == ["owed"]


def listing_absent(_seen: Seen, connection: Connection) -> None:
    """Answer nothing but 404."""
    connection.reply(404)


def test_each_coordinator_is_asked_for_its_own_jobs(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """Once a sweep, under the name that the job was taken by."""
    site = Site(tmp_path, server.base_url, registered(server))
    with serving(listing()) as script:
        token = tmp_path / "token-of-the-old-one"
        token.write_text("secret")
        old = Origin(
            api="node-v1",
            base_url=script.url,
            node_id="old-name",
            auth=f"file:{token}",
        )
        for job_id in ("a", "b"):
            site.claim(echo_manifest(job_id), old).close()
        site.sweep()
    lists = [seen.target for seen in script.seen if seen.target.endswith("active")]
    assert lists == ["/api/v1/jobs?node_id=old-name&state=active"]
    assert site.names() == []


# Views


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (None, View.ABSENT),
        ({"state": "leased"}, View.LEASED),
        ({"state": "acked"}, View.RUNNING),
        ({"state": "running", "node_id": "n1"}, View.RUNNING),
        ({"state": "succeeded"}, View.FINAL_OURS),
        ({"state": "failed"}, View.FINAL_OURS),
        ({"state": "cancelled"}, View.OTHER),
        ({"state": "cancelled", "outcome": {"error_code": "X"}}, View.FINAL_OURS),
        ({"state": "expired"}, View.OTHER),
        ({"state": "queued"}, View.OTHER),
        ({"state": "unheard-of"}, View.OTHER),
        ({"state": "running", "node_id": "n2"}, View.OTHER),
        ({"state": "running", "attempt": 2}, View.OTHER),
        ({"state": "succeeded", "attempt": 2}, View.OTHER),
    ],
)
def test_what_a_coordinators_answer_means(
    tmp_path: Path, view: Mapping[str, Any] | None, expected: View
) -> None:
    """For our attempt of the job."""
    site = Site(tmp_path, "http://127.0.0.1:9/api/v1", None)
    site.claim(echo_manifest("j")).close()
    record = site.found("j").record
    assert record is not None
    heard = None if view is None else JobView(job_id="j", **view)
    assert view_of(heard, record) is expected
