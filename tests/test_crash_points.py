"""Every crash point: a job's process is killed at each durable step, then all settles.

Each workload runs once to list its steps, and once for each of them with a SIGKILL
just before it. A new daemon's ticks then settle what is left, and what both sides say
in the end must be true. `make crash-test` tries every step of every workload, and
every step with the power cut; here a seeded sample stands for the longer ones.
"""

import contextlib
import json
import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer
from crash_nursery import Case
from crash_power import VARIANTS
from tick_site import registered

from aitbc_aps_miner.reference_coordinator.matching import Appetite
from aitbc_aps_miner.reference_coordinator.problems import ProblemError

EVERYTHING = os.environ.get("CRASH_ALL") == "1"
SEED = int(os.environ.get("CRASH_SEED", "1"))
LANES = 2
MAX_SETTLING_STEPS = 80
LONG = pytest.mark.timeout(1800 if EVERYTHING else 120)

# `$RUNS` lies outside the workspace: it counts runs over crashes. The process that
# each leaves behind has a session of its own; only a look for it finds it.
PROGRAMS = {
    "good": "printf hello > out.txt; echo ended >> $RUNS",
    "bad": "exit 3",
    "hang": "exec sleep 60",
    "big": "head -c 150000 /dev/zero | tr '\\\\0' x > out.txt; echo ended >> $RUNS",
}
BEFORE = "setsid sleep 60 > /dev/null 2>&1 & echo began >> $RUNS"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One way in which a job goes, and where that ends."""

    program: str
    state: str
    """Its final state at the coordinator when nobody dies."""
    code: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    refused_deliveries: int = 0
    sample: int | None = None
    """How many of its steps are tried in a short run; None for all."""

    @property
    def idempotent(self) -> bool:
        """Whether it may run twice."""
        return self.manifest.get("idempotent") is True


OUT = {"artifacts": [{"path": "out.txt", "type": "text/plain", "max_mb": 1}]}
WORKLOADS = {
    "success": Workload(program="good", state="succeeded", manifest=OUT),
    "idempotent": Workload(
        program="good",
        state="succeeded",
        manifest={**OUT, "idempotent": True},
        sample=20,
    ),
    "secret": Workload(
        program="good",
        state="succeeded",
        manifest={**OUT, "secrets": {"API_KEY": "sesame-7261"}},
        sample=10,
    ),
    "failure": Workload(program="bad", state="failed", code="E_EXIT", sample=15),
    "timeout": Workload(
        program="hang",
        state="failed",
        code="E_TIMEOUT",
        manifest={"timeout_s": 0.5},
        sample=12,
    ),
    "cancelled": Workload(
        program="hang",
        state="cancelled",
        code="E_CANCELLED",
        cancelled=True,
        sample=10,
    ),
    "input": Workload(
        program="good",
        state="failed",
        code="E_INPUT",
        settings={"network": {"inputs": ["127.0.0.1"], "private": True}},
        sample=12,
    ),
    "retry": Workload(
        program="good",
        state="succeeded",
        manifest=OUT,
        refused_deliveries=2,
        sample=12,
    ),
    "upload": Workload(
        program="big",
        state="succeeded",
        manifest=OUT,
        settings={"uploads": {"resumable_above_mb": 0.1}},
        sample=20,
    ),
}


class Lane:
    """One coordinator and one nursery; cases go through it one after the other."""

    def __init__(self, home: Path, server: CoordinatorServer) -> None:
        home.mkdir()
        self.server = server
        self._home = home
        self._commands = home / "commands"
        self._write_programs()
        self._token = registered(server)
        self._count = 0
        environ = {
            # Names come in the order of their hashes in some places.
            **{k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")},
            "PYTHONHASHSEED": "0",
        }
        self._nursery = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("crash_nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )

    def close(self) -> None:
        """End the nursery."""
        self._nursery.communicate(timeout=10)

    def case(self, workload: Workload) -> Case:
        """Let the coordinator hand a new job to a new place."""
        self._count += 1
        job_id = f"j{self._count}"
        home = self._home / f"n{self._count}"
        home.mkdir()
        raw = {
            "job_id": job_id,
            "runner": "cli",
            "command": workload.program,
            "timeout_s": 20,
            "env": {"RUNS": f"{home}.runs"},
            **workload.manifest,
        }
        if workload.code == "E_INPUT":
            url = f"http://127.0.0.1:{self.server.port}/"
            raw["input"] = {"urls": [{"url": url, "name": "in", "sha256": "0" * 64}]}
        self.server.clear_faults()
        if workload.refused_deliveries:
            count = workload.refused_deliveries
            self.server.set_fault("result", "status", status=503, count=count)
        self.server.submit(raw)
        self.server.call(lambda: self.server.state.pull("n1", Appetite()))
        if workload.cancelled:
            self.server.cancel(job_id)
        return Case(
            home=str(home),
            commands=str(self._commands),
            base_url=self.server.base_url,
            token=self._token,
            raw={**raw, "attempt": 1},
            settings={"resources": {"grace_s": 1}, **workload.settings},
            cancelled=workload.cancelled,
        )

    def fork(self, what: str, case: Case) -> dict[str, Any] | None:
        """Fork a child for `case`; give what it found, None when it was killed."""
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        case.found_at.unlink(missing_ok=True)
        asked = {"what": what, "case": json.loads(case.to_json())}
        print(json.dumps(asked), file=self._nursery.stdin, flush=True)
        status = os.waitstatus_to_exitcode(int(self._nursery.stdout.readline()))
        if status == -9:
            return None
        assert status == 0, f"{what} of {case.raw['job_id']} ended with {status}"
        found: dict[str, Any] = json.loads(case.found_at.read_text())
        return found

    def _write_programs(self) -> None:
        self._commands.mkdir()
        for name, body in PROGRAMS.items():
            program = self._home / name
            program.write_text(f"#!/bin/sh\n{BEFORE}\n{body}\n")
            program.chmod(0o755)
            allowed = self._commands / f"{name}.yaml"
            allowed.write_text(f"command: {{path: {program}}}\nargs: []\n")
            os.utime(allowed, (1e9, 1e9))  # what was just written is waited for


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    """Give lanes that work beside each other."""
    with contextlib.ExitStack() as stack:
        lanes = []
        for _ in range(LANES):
            server = stack.enter_context(CoordinatorServer(max_attempts=1))
            lanes.append(Lane(tmp_path_factory.mktemp("lane") / "home", server))
            stack.callback(lanes[-1].close)
        yield lanes


def complaints(
    lane: Lane, workload: Workload, case: Case, found: Mapping[str, Any]
) -> list[str]:
    """List what is not as it has to be, after all has settled."""
    before, after = found["before"], found["after"]
    job_id = case.job_id
    job = lane.server.call(lambda: lane.server.state.jobs[job_id])
    code = job.outcome.get("error_code") if job.outcome else None
    runs = after["runs"]
    expected = expectation(workload, before)
    state = "cancelled" if workload.cancelled else job.state
    checks = {
        f"is {job.state} {code} at the coordinator, expected {expected}": (
            job.state == ("succeeded" if expected is None else state)
            and job.state.is_final
            and code == expected
        ),
        f"has {len(job.accepted)} outcomes": len(job.accepted) == 1,
        f"ran before its spawn mark: {before}": (
            before["spawned"] or before["recorded"] or not before["runs"]
        ),
        f"ran {runs}": runs.count("began") <= 1 or workload.idempotent,
        "succeeded without a good run": (
            job.state != "succeeded" or runs[-1:] == ["ended"]
        ),
        f"is here as {after}": (
            after["delivered"] and after["state"] in ("DONE", "FAILED")
        )
        and not after["dropped"]
        and after["code"] == code,
        f"is locked: {after}": not after["locked"],
        f"left processes: {after['processes']}": not after["processes"],
        f"left files in the root: {after['root']}": (
            set(after["root"]) <= {job_id, ".trash", ".writable"}
        ),
        f"has a secret in {after['secret_in']}": not after["secret_in"],
        f"does not settle: {found['deeds']}": found["deeds"][-1] == {},
    }
    return [words for words, holds in checks.items() if not holds]


def expectation(workload: Workload, before: Mapping[str, Any]) -> str | None:
    """Say which code is the truth after a crash that left `before`; None: success."""
    if before["recorded"]:
        recorded: str | None = before["code"]
        return recorded
    may_rerun = not before["spawned"] or workload.idempotent
    # Secrets are on no disk: what had any can't be taken up again.
    if may_rerun and not (workload.manifest.get("secrets") and before["here"]):
        return workload.code
    return "E_LOST"


@dataclass(kw_only=True)
class Result:
    """What came of all points that were tried."""

    tried: int = 0
    missed: list[str] = field(default_factory=list)
    """Steps that did not come this time."""
    wrong: list[str] = field(default_factory=list)

    def check(self, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Show how much was tried; complain of all that was wrong."""
        with capsys.disabled():
            print(f" {said} at {self.tried} steps", end=" ")  # noqa: T201  for who watches
        assert self.wrong == []
        # A refusal may come before all is sent, sooner or later.
        missed = [step for step in self.missed if "'sent " not in step]
        assert len(missed) <= max(2, self.tried // 20), missed


def try_all(
    lanes: list[Lane], workload: Workload, crashes: list[dict[str, Any]]
) -> Result:
    """Crash in each of these ways: fields of Case."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for crash in crashes:
        waiting.put(crash)
    result = Result()

    def work(lane: Lane) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                crash = waiting.get_nowait()
                try:
                    words = try_one(lane, workload, crash)
                except Exception as error:  # noqa: BLE001  told with its crash
                    words = [repr(error)]
                if words is None:
                    result.missed.append(f"{crash}")
                    continue
                result.tried += 1
                result.wrong += [f"{crash}: {one}" for one in words]

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


def try_one(
    lane: Lane, workload: Workload, crash: Mapping[str, Any]
) -> list[str] | None:
    """Crash in one way and settle; None when the step was not reached."""
    case = replace(lane.case(workload), **crash)
    if lane.fork("run", case) is not None:
        return None
    try:
        found = lane.fork("settle", case)
        if found is None:  # it was killed, too
            found = lane.fork("settle", replace(case, power=None, then=None))
        assert found is not None
        return complaints(lane, workload, case, found)
    finally:
        # Nothing of this case may be left for the next one to settle.
        with contextlib.suppress(ProblemError):
            lane.server.cancel(case.job_id, force=True)


def steps_of(lane: Lane, workload: Workload) -> list[tuple[str, int]]:
    """Run the workload undisturbed; give its steps."""
    case = lane.case(workload)
    ran = lane.fork("run", case)
    found = lane.fork("settle", case)
    assert ran is not None
    assert found is not None
    job = lane.server.job(case.job_id)
    told = (job["state"], (job["outcome"] or {}).get("error_code"))
    assert told == (workload.state, workload.code)
    assert complaints(lane, workload, case, found) == []
    return [(what, number) for what, number in ran["steps"]]


def chosen(steps: list[tuple[str, int]], sample: int | None) -> list[tuple[str, int]]:
    """Give all steps, or as many as a short run has time for."""
    if EVERYTHING or sample is None or sample >= len(steps):
        return steps
    return random.Random(SEED).sample(steps, sample)


@LONG
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_job_killed_at_any_step_is_settled(
    name: str, lanes: list[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    """One outcome, and a true one; nothing runs twice, nothing is left."""
    workload = WORKLOADS[name]
    steps = steps_of(lanes[0], workload)
    crashes = [{"last": step} for step in chosen(steps, workload.sample)]
    result = try_all(lanes, workload, crashes)
    result.check(f"killed, of {len(steps)},", capsys)


@LONG
@pytest.mark.parametrize("name", WORKLOADS if EVERYTHING else ["idempotent", "retry"])
def test_a_recovery_that_is_killed_is_settled_by_the_next(
    name: str, lanes: list[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the sweep dies, its delivery, or the job that it ran again."""
    workload = WORKLOADS[name]
    steps = steps_of(lanes[0], workload)
    chance = random.Random(SEED)
    crashes = [
        {"last": step, "then": chance.randint(1, MAX_SETTLING_STEPS)}
        for step in chosen(steps, 10)
    ]
    result = try_all(lanes, workload, crashes)
    result.check(f"killed twice, of {len(steps)},", capsys)


@LONG
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", WORKLOADS if EVERYTHING else ["success", "upload"])
def test_a_power_cut_at_any_step_is_survived(
    name: str, variant: str, lanes: list[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not synced is gone; what was promised was synced."""
    workload = WORKLOADS[name]
    steps = steps_of(lanes[0], workload)
    crashes = [{"last": step, "power": variant} for step in chosen(steps, 10)]
    result = try_all(lanes, workload, crashes)
    result.check(f"power cut, of {len(steps)},", capsys)
