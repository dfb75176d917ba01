"""A job process, for real: from its claim to its delivered outcome."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from coordinator_server import CoordinatorServer, deadline, echo_manifest
from daemon_fakes import FakeClock
from tick_site import Site, quiet_log, registered

from aitbc_aps_miner import job as job_module
from aitbc_aps_miner.callbacks.jobs import JOB_REF
from aitbc_aps_miner.executor import (
    Isolated,
    PoolSettings,
    ProcessExecutor,
    ZygoteSettings,
)
from aitbc_aps_miner.job import limits_of
from aitbc_aps_miner.models import JobReport, JobState, Manifest, PayloadLimits
from aitbc_aps_miner.progress import ProgressSender
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.world import World


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with quiet_log():
        yield


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """Give what job processes are forked from."""
    settings = PoolSettings(zygote=ZygoteSettings(preload=("aitbc_aps_miner.job",)))
    executor = ProcessExecutor(settings=settings)
    executor.open()
    yield executor
    executor.shutdown()


@pytest.fixture(scope="module")
def shared() -> Iterator[CoordinatorServer]:
    """Give one coordinator to the whole module."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture
def server(shared: CoordinatorServer) -> Iterator[CoordinatorServer]:
    """Give a coordinator without faults."""
    yield shared
    shared.clear_faults()


@pytest.fixture
def site(tmp_path: Path, server: CoordinatorServer) -> Site:
    """Give a registered node."""
    return Site(tmp_path, server.base_url, registered(server))


def pulled(site: Site, server: CoordinatorServer, **more: Any) -> Mapping[str, Any]:
    """Let the node pull a job."""
    server.submit(echo_manifest(**more))
    (job,) = site.pull()["accepted"]
    return dict(job)


def run(
    executor: ProcessExecutor,
    site: Site,
    job: Mapping[str, Any],
    *,
    resume: bool = False,
) -> tuple[JobState, str | None, str]:
    """Run a job in its process; give state, code and message of its report."""
    kwargs = {**site.access, "job": job, "resume": resume}
    call = Isolated(ref=JOB_REF, deadline_s=60, kwargs=kwargs)
    report = executor.call(call).unwrap()
    assert report["job_id"] == job["job_id"]
    return JobState(report["state"]), report["code"], report["message"]


def test_a_job_is_run_and_delivered(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """Its standard output is the declared artifact."""
    job = pulled(site, server)
    assert run(executor, site, job) == (JobState.DONE, None, "")
    assert server.job(job["job_id"])["state"] == "succeeded"
    assert server.artifact(job["job_id"], "output.txt") == b"hello world\n"
    assert site.state(job["job_id"]) is JobState.DONE


def test_a_claim_that_never_ran_is_resumed(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """With folders of its own."""
    job = pulled(site, server)
    workspace = site.claim(job["raw"])
    (workspace.root / "work" / "output.txt").write_text("of another try")
    workspace.close()
    assert run(executor, site, job, resume=True)[0] is JobState.DONE
    assert server.artifact(job["job_id"], "output.txt") == b"hello world\n"


def test_a_job_that_is_not_ours_any_more_leaves_nothing(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """Its ack is refused before anything of it starts."""
    job = pulled(site, server)
    server.cancel(job["job_id"], force=True)
    assert run(executor, site, job)[:2] == (JobState.IDLE, None)
    assert site.names() == []


def test_a_claim_whose_ack_has_no_answer_stays(
    tmp_path: Path, executor: ProcessExecutor, server: CoordinatorServer
) -> None:
    """The sweep settles it; nothing of it ran."""
    site = Site(
        tmp_path,
        server.base_url,
        registered(server),
        coordinator={"timeout_s": 0.5},
    )
    job = pulled(site, server)
    server.set_fault("ack", "status", status=503)
    state, code, message = run(executor, site, job)
    assert (state, code) == (JobState.IDLE, None)
    assert message.startswith("not acked: ")
    assert site.state(job["job_id"]) is JobState.PULLING


def test_an_attempt_that_is_here_is_not_run_twice(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """Whoever started the other one; nor is one whose lock is taken."""
    job = pulled(site, server)
    workspace = site.claim(job["raw"])
    assert run(executor, site, job)[0] is JobState.IDLE
    assert run(executor, site, job, resume=True)[0] is JobState.IDLE
    workspace.close()
    assert site.state(job["job_id"]) is JobState.PULLING


def test_a_job_whose_workspace_was_removed_may_be_tried_elsewhere(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """Nothing durable is left of it, so its end is told at once and in true words."""
    program = site.home / "clean.sh"
    program.write_text(f"#!/bin/sh\nexec /bin/rm -rf {site.root}\n")
    program.chmod(0o755)
    allowed = site.home / "allow" / "clean.yaml"
    allowed.write_text(f"command: {{path: {program}}}\nargs: []\nmax_runtime_s: 20\n")
    os.utime(allowed, (1e9, 1e9))
    job = pulled(site, server, command="clean", args=[])
    state, code, message = run(executor, site, job)
    assert (state, code) == (JobState.FAILED, "E_NORES")
    assert message == "cannot record the outcome: its workspace was removed"
    told = [call for call in server.calls("jobs/fail") if call[2] == 200]
    assert told[-1][3]["idempotency-key"] == f"{job['job_id']}:1"


def test_a_job_that_can_not_be_stored_promises_nothing(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """Its report says so; the coordinator was not asked."""
    job = pulled(site, server)
    site.root.write_text("in the way")
    state, _, message = run(executor, site, job)
    assert (state, "cannot claim" in message) == (JobState.PULLING, True)
    assert server.job(job["job_id"])["state"] == "leased"


def test_a_runner_that_was_switched_off_is_refused(
    tmp_path: Path, executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """E_DENY, as an outcome like any other."""
    job = pulled(site, server)
    off = Site(tmp_path, server.base_url, site.token, runners={})
    assert run(executor, off, job)[:2] == (JobState.FAILED, "E_DENY")
    outcome = server.job(job["job_id"])["outcome"]
    assert "not offered here" in outcome["error_msg"]


def test_an_outcome_that_can_not_be_delivered_now_waits(
    executor: ProcessExecutor, site: Site, server: CoordinatorServer
) -> None:
    """A daemon is there to try again: the process ends and holds no slot."""
    job = pulled(site, server)
    server.set_fault("result", "status", status=503)
    assert run(executor, site, job)[0] is JobState.RETRY_WAIT
    assert site.found(job["job_id"]).outcome_recorded
    server.clear_faults()
    left_s = deadline(10)
    while site.found(job["job_id"]).lock_held:  # told a moment before it has ended
        left_s()
    assert site.deliver(job["job_id"])["state"] == JobState.DONE


def test_a_job_whose_daemon_is_gone_delivers_alone(
    site: Site, server: CoordinatorServer
) -> None:
    """It keeps trying, in its own backoff, until the coordinator is back."""
    job = pulled(site, server)
    raw = job["raw"]
    server.call(lambda: server.state.ack(raw["job_id"], "n1", 1))
    world = World(site.line, site.access["config"], site.token)
    clock = FakeClock()
    world.clock = cast("SystemClock", clock)
    process_job = job_module._pulled(job)
    with world.coordinator() as coordinator:
        process = job_module._Process(
            world,
            process_job,
            coordinator,
            job_module._NotOffered(),
            root=str(site.root),
            cgroup=None,
        )
        process._workspace = site.recorded(raw)
        server.set_fault("result", "status", status=503, count=4)
        waits = JobReport(job_id=raw["job_id"], attempt=1, state=JobState.RETRY_WAIT)
        report = process._keep_delivering(waits)
    assert report.state is JobState.DONE
    assert len([slept for slept in clock.slept if slept >= 1]) >= 2
    assert server.job(raw["job_id"])["state"] == "succeeded"


def test_a_defect_is_logged_under_its_id(site: Site) -> None:
    """The coordinator gets the id, the log the traceback."""
    world = World(site.line, site.access["config"], site.token)
    observer = job_module._Observer(world, cast("ProgressSender", None))
    manifest = Manifest(job_id="j", runner="cli", timeout_s=1)
    error_id = observer.defect(manifest, RuntimeError("a defect"))
    (event,) = site.line.events("job.defect")
    assert (event["job_id"], event["error_id"]) == ("j", error_id)


def test_the_owners_limits_are_the_payloads(site: Site) -> None:
    """No memory limit is none, not a limit of nothing."""
    resources = site.config.resources
    assert limits_of(site.config) == PayloadLimits(
        nice=10,
        io_class="best-effort",
        io_level=6,
        memory_mb=16384,
        nofile=4096,
        log_mb=64,
        grace_s=10,
    )
    free = resources.model_copy(update={"mem_soft_mb": 0})
    unlimited = site.config.model_copy(update={"resources": free})
    assert limits_of(unlimited).memory_mb is None
