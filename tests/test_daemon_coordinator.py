"""The real daemon and a coordinator in trouble: each job ends with one outcome."""

import functools
import itertools
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from miner_process import PATIENCE_S, PROGRAMS, Miner, task_manifest

JOB_S = 60


@pytest.fixture
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a coordinator."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture
def miner(coordinator: CoordinatorServer, tmp_path: Path) -> Iterator[Miner]:
    """Start a daemon."""
    with Miner(tmp_path / "miner", coordinator.base_url) as running:
        yield running


@pytest.fixture(scope="module")
def shaky() -> Iterator[CoordinatorServer]:
    """Start a coordinator whose calls break, now this one, now that one."""
    with CoordinatorServer(max_attempts=9) as server:
        yield server


@pytest.fixture(scope="module")
def patient(
    shaky: CoordinatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Miner]:
    """Start one daemon for all faults."""
    with Miner(
        tmp_path_factory.mktemp("miner"),
        shaky.base_url,
        coordinator={"timeout_s": 1},
        pull={"wait_s": 1},
    ) as running:
        yield running
        assert running.process.poll() is None


# Two in a row break a call and its one repetition at once; a stall of 1.5 s is longer
# than the miner's patience of one.
TWICE = {"count": 2}
FAULTS: dict[str, dict[str, Any]] = {
    "reply-dropped": {"kind": "drop_reply", **TWICE},
    "twice": {"kind": "answer_twice", "count": 1},
    "401": {"kind": "status", "status": 401, "count": 1},
    "429": {"kind": "status", "status": 429, "retry_after_s": 1, "count": 1},
    "500": {"kind": "status", "status": 500, **TWICE},
    "503": {"kind": "status", "status": 503, "count": 1},
    "stall": {"kind": "stall", "seconds": 1.5, "count": 1},
    "cut": {"kind": "cut", "bytes": 10, "count": 1},
    "cut-reply": {"kind": "cut_reply", "bytes": 10, "count": 1},
    "garbage": {"kind": "garbage", "count": 1},
    "huge": {"kind": "huge", "bytes": 64 << 20, "count": 1},
}
CALLS = ("pull", "ack", "progress", "heartbeat", "result", "fail")


@pytest.mark.parametrize("fault", FAULTS)
def test_jobs_end_with_one_outcome_whatever_breaks(
    patient: Miner, shaky: CoordinatorServer, fault: str
) -> None:
    """One success and one failure each, while every call breaks in this way once."""
    wrong = {"job_id": f"wrong-{fault}", "command": "false"}
    for call in CALLS:
        shaky.set_fault(call, **FAULTS[fault])
    shaky.submit(echo_manifest(f"right-{fault}"))
    shaky.submit({**echo_manifest(), **wrong, "args": []})
    shaky.submit(task_manifest(f"task-{fault}", "greet", name="you"))

    ends = {
        name: shaky.wait(f"{name}-{fault}", JOB_S)
        for name in ("right", "wrong", "task")
    }

    assert [job["state"] for job in ends.values()] == [
        *("succeeded", "failed", "succeeded")
    ]
    assert ends["wrong"]["outcome"]["error_code"] == "E_EXIT"
    assert shaky.artifact(f"right-{fault}", "output.txt") == b"hello world\n"
    for name, job in ends.items():
        # Nothing ran twice: an attempt more is a lease that ran out.
        assert job["attempt"] == 1, (name, job["history"])
        patient.wait_until(functools.partial(is_delivered, patient, job["job_id"]))
    struck = {each.call for each in shaky.faults.active if each.hits}
    shaky.clear_faults()
    assert struck >= {"pull", "ack", "result", "fail"}
    assert patient.process.poll() is None
    assert patient.events("job.defect", "library.message") == []


def is_delivered(miner: Miner, job_id: str) -> bool:
    """Whether the miner knows that the coordinator has the outcome."""
    return miner.state(job_id)["delivered_at"] is not None


def test_a_401_registers_once_and_repeats_the_call(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Also when several calls meet the dead token."""
    registered = len(coordinator.calls("nodes/register"))
    coordinator.wait_for_polls()

    coordinator.forget_tokens()
    coordinator.submit(echo_manifest("new-token"))

    assert coordinator.wait("new-token", JOB_S)["state"] == "succeeded"
    assert len(coordinator.calls("nodes/register")) == registered + 1
    assert coordinator.calls("jobs/fail") == []


@pytest.mark.parametrize("forget", [False, True], ids=["with-memory", "without"])
def test_a_restarted_coordinator_gets_what_was_running(
    miner: Miner, coordinator: CoordinatorServer, tmp_path: Path, forget: bool
) -> None:
    """The job runs to its end; its result is delivered, or kept where nobody asks."""
    go = tmp_path / "go"
    coordinator.submit(task_manifest("running", "hold", until=str(go)))
    payload = miner.wait_payload("running")

    coordinator.restart(forget=forget)
    heartbeats = len(coordinator.calls("nodes/heartbeat"))
    coordinator.wait_until(
        lambda: len(coordinator.calls("nodes/heartbeat")) > heartbeats + 1, PATIENCE_S
    )
    assert payload.is_running()
    go.touch()

    if forget:
        miner.wait_event("job.finished", job_id="running")
        assert miner.json("running", "outcome.json")["succeeded"]
        assert miner.file("running", "output/result.json").exists() or list(
            miner.file("running", ".artifacts").iterdir()
        )
    else:
        assert coordinator.wait("running", JOB_S)["state"] == "succeeded"
    coordinator.submit(echo_manifest("afterwards"))
    assert coordinator.wait("afterwards", JOB_S)["state"] == "succeeded"


@pytest.mark.parametrize("restart", [False, True], ids=["same-daemon", "next-daemon"])
def test_a_result_waits_for_a_coordinator_that_is_away(
    miner: Miner, coordinator: CoordinatorServer, tmp_path: Path, restart: bool
) -> None:
    """RETRY_WAIT without a slot, then delivered once, by whichever daemon lives."""
    go = tmp_path / "go"
    coordinator.submit(task_manifest("waits", "hold", until=str(go)))
    miner.wait_payload("waits")
    coordinator.stop()
    go.touch()
    miner.wait_event("job.finished", job_id="waits", state="RETRY_WAIT")
    assert miner.wait_healthz(running=0)["slots"]["cpu"]["free"] == 4
    if restart:
        miner.restart()
        miner.wait_healthz(running=0)

    coordinator.start()

    assert coordinator.wait("waits", JOB_S)["state"] == "succeeded"
    miner.wait_until(lambda: miner.state("waits")["state"] == "DONE")
    states = [step["state"] for step in miner.state("waits")["history"]]
    assert "RETRY_WAIT" in states
    assert Counter(call[2] for call in coordinator.calls("jobs/result")) == {200: 1}


def test_heartbeats_back_off_and_come_back(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Growing pauses while it fails; the normal one after the first success."""
    coordinator.set_fault("heartbeat", kind="status", status=503)
    miner.wait_until(lambda: len(miner.events("tick.failed", tick="heartbeat")) >= 4)
    assert miner.healthz()["coordinator"]["last_error"]
    failed_at = [
        datetime.fromisoformat(line["ts"])
        for line in miner.events("tick.failed", tick="heartbeat")
    ]
    gaps_s = [(b - a).total_seconds() for a, b in itertools.pairwise(failed_at)]
    # From 0.2 s, doubled up to 1 s, the upper half of it at random; ts has 1 ms.
    assert gaps_s[1] > 0.39
    assert gaps_s[2] > 0.49

    coordinator.clear_faults()

    miner.wait_until(lambda: not miner.healthz()["coordinator"]["last_error"])
    assert miner.healthz()["healthy"]


@pytest.mark.parametrize("rules", ["spec_only", "no_registration"])
def test_a_coordinator_of_the_specification_alone_is_served(
    rules: str, tmp_path: Path
) -> None:
    """No leases, queries or long poll; or no register and heartbeat either."""
    with (
        CoordinatorServer(
            spec_only=True, no_registration=rules == "no_registration"
        ) as coordinator,
        Miner(tmp_path / "miner", coordinator.base_url) as miner,
    ):
        coordinator.submit(echo_manifest("plain"))
        coordinator.submit({**echo_manifest("fails"), "command": "false", "args": []})

        assert coordinator.wait("plain", JOB_S)["state"] == "succeeded"
        assert coordinator.wait("fails", JOB_S)["state"] == "failed"
        assert coordinator.artifact("plain", "output.txt") == b"hello world\n"
        assert miner.healthz()["healthy"]
        assert [call[2] for call in coordinator.calls("jobs/result")] == [200]


def test_the_least_coordinator_gets_its_job_once(tmp_path: Path) -> None:
    """Handed out again and again it is recognised: not run again, asked for rarely."""
    program = [sys.executable, str(PROGRAMS / "minimal_coordinator.py")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (base_url,) = re.findall(r"http://\S+", server.stdout.readline())
            with Miner(tmp_path / "miner", base_url) as miner:
                first = server.stdout.readline()
                assert "hello world" in first
                miner.wait_event("job.finished", job_id="demo-hello", state="DONE")
                began = time.monotonic()
                # The first repetition is answered at once, the next after a pause.
                second = server.stdout.readline()
                third = server.stdout.readline()
                assert time.monotonic() - began > 1
                counts = {
                    name: int(count)
                    for name, count in re.findall(r"'(\w+)': (\d+)", third)
                }
                assert counts["result"] == 3, (second, third)
                # Pauses from 0.1 s, doubled: never the tight loop of hundreds.
                assert counts["pull"] < 20
                assert len(miner.events("job.accepted")) == 1
                assert miner.healthz()["healthy"]
        finally:
            server.terminate()
