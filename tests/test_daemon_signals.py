"""Ends of the daemon and of its processes: asked for, or by kill -9 at any moment."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from miner_process import PATIENCE_S, Miner, is_alive, task_manifest, zoo_manifest

from aitbc_aps_miner.exit_codes import ExitCode

JOB_S = 40


@pytest.fixture
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a coordinator."""
    with CoordinatorServer() as server:
        yield server


class Held:
    """A job that runs until it is let go, and says each time that it runs."""

    def __init__(self, coordinator: CoordinatorServer, directory: Path) -> None:
        self._coordinator = coordinator
        self._until = directory / "go"
        self._stamp = directory / "stamp"

    def submit(self, job_id: str, **more: Any) -> None:
        """Hand the job to the coordinator."""
        paths = {"until": str(self._until), "stamp": str(self._stamp)}
        self._coordinator.submit(task_manifest(job_id, "hold", **paths, **more))

    def let_go(self) -> None:
        """Let it end."""
        self._until.touch()

    @property
    def runs(self) -> int:
        """How often it was started."""
        return len(self._stamp.read_text().splitlines())


@pytest.fixture
def held(coordinator: CoordinatorServer, tmp_path: Path) -> Held:
    """Give a job that a test lets go."""
    return Held(coordinator, tmp_path)


@pytest.fixture
def miner(coordinator: CoordinatorServer, tmp_path: Path) -> Iterator[Miner]:
    """Start a daemon; at its end no process is left."""
    with Miner(tmp_path / "miner", coordinator.base_url) as running:
        yield running


def kill(process: psutil.Process) -> None:
    """End it as the kernel's out-of-memory killer would."""
    process.send_signal(signal.SIGKILL)


def final_calls(coordinator: CoordinatorServer) -> list[tuple[str, int | None]]:
    """List the outcomes that were sent, with their answers."""
    return [
        (name, status)
        for name in ("jobs/result", "jobs/fail")
        for _, _, status, _ in coordinator.calls(name)
    ]


def leave(miner: Miner) -> None:
    """SIGTERM: the daemon goes at once."""
    began = time.monotonic()
    assert miner.end() == ExitCode.OK
    assert time.monotonic() - began < 1.0
    assert miner.events("daemon.ending")[-1]["attrs"]["how"] == "leave"


def die(miner: Miner) -> None:
    """Kill -9: the daemon is gone without a word."""
    assert miner.end(signal.SIGKILL) == -signal.SIGKILL


WAYS = pytest.mark.parametrize("end", [leave, die])


@WAYS
def test_a_running_job_outlives_the_daemon_and_delivers_by_itself(
    miner: Miner,
    coordinator: CoordinatorServer,
    held: Held,
    end: Callable[[Miner], None],
) -> None:
    """One run, one outcome, no daemon; then nothing is left."""
    held.submit("goes-on")
    payload = miner.wait_payload("goes-on")

    end(miner)
    assert payload.is_running()
    held.let_go()

    assert coordinator.wait("goes-on", JOB_S)["state"] == "succeeded"
    assert held.runs == 1
    assert final_calls(coordinator) == [("jobs/result", 200)]
    miner.wait_until(lambda: not miner.processes())
    assert miner.state("goes-on")["state"] == "DONE"


@WAYS
def test_the_next_daemon_adopts_what_runs(
    miner: Miner,
    coordinator: CoordinatorServer,
    held: Held,
    end: Callable[[Miner], None],
) -> None:
    """It counts the slot, goes on pulling, and the coordinator gets one outcome."""
    held.submit("adopt-me")
    payload = miner.wait_payload("adopt-me")
    end(miner)

    miner.start()
    seen = miner.wait_healthz(running=1)
    assert seen["jobs"] == ["adopt-me"]
    assert seen["slots"]["cpu"] == {"total": 4, "free": 3}
    miner.wait_event("job.adopted", job_id="adopt-me")
    assert payload.is_running()
    coordinator.submit(echo_manifest("beside"))
    assert coordinator.wait("beside", JOB_S)["state"] == "succeeded"

    held.let_go()
    assert coordinator.wait("adopt-me", JOB_S)["state"] == "succeeded"
    miner.wait_healthz(running=0)
    assert held.runs == 1
    assert final_calls(coordinator) == [("jobs/result", 200)] * 2


def test_an_adopted_job_still_hears_of_a_cancel(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """The new daemon's heartbeat is told, and the old job process obeys."""
    held.submit("cancel-later")
    payload = miner.wait_payload("cancel-later")
    miner.restart()
    miner.wait_healthz(running=1)

    coordinator.cancel("cancel-later")

    assert coordinator.wait("cancel-later", PATIENCE_S)["state"] == "cancelled"
    assert not payload.is_running()


def test_drain_waits_for_the_running_job_and_pulls_no_other(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """With on_sigterm = "drain" SIGTERM ends only when the work is done."""
    mark = miner.mark
    miner.edit(daemon={"on_sigterm": "drain", "drain_s": 30})
    miner.wait_event("config.changed", after=mark, key="daemon.on_sigterm")
    held.submit("finish-me")
    miner.wait_payload("finish-me")

    miner.process.send_signal(signal.SIGTERM)
    miner.wait_event("daemon.ending", how="drain", running=1)
    miner.wait_until(lambda: coordinator.polls == 0)
    coordinator.submit(echo_manifest("too-late"))
    miner.wait_healthz(state="draining")
    assert miner.process.poll() is None
    held.let_go()

    assert miner.ended() == ExitCode.OK
    assert coordinator.job("finish-me")["state"] == "succeeded"
    assert coordinator.job("too-late")["state"] == "queued"


def test_ctrl_c_drains_and_stops_what_does_not_end(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """After drain_s the job is stopped and given back; nothing is left to adopt."""
    mark = miner.mark
    miner.edit(daemon={"drain_s": 0.2})
    miner.wait_event("config.changed", after=mark, key="daemon.drain_s")
    held.submit("stop-me")
    payload = miner.wait_payload("stop-me")

    assert miner.end(signal.SIGINT) == ExitCode.OK

    assert miner.events("daemon.ending")[-1]["attrs"]["how"] == "drain"
    assert not payload.is_running()
    job = coordinator.job("stop-me")
    # Not failed for good: the node's end is not the customer's doing.
    assert (job["state"], job["attempt"]) == ("queued", 2)
    (line,) = miner.events("job.finished", job_id="stop-me")
    assert line["attrs"]["code"] == "E_LOST"
    assert miner.events("daemon.ended")[-1]["attrs"]["running"] == 0


def test_a_second_signal_ends_at_once(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """The drain is cut short; the job is the next daemon's to settle."""
    held.submit("leave-me")
    miner.wait_payload("leave-me")
    miner.process.send_signal(signal.SIGINT)
    miner.wait_event("daemon.ending", how="drain", running=1)

    began = time.monotonic()
    assert miner.end(signal.SIGINT) == ExitCode.OK

    assert time.monotonic() - began < 1.5
    held.let_go()
    assert coordinator.wait("leave-me", JOB_S)["state"] == "succeeded"


def test_a_tick_killed_is_reported_and_goes_on(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Kill -9 of the open long poll: said so, pulled again, the next job runs."""
    coordinator.wait_for_polls()
    mark, pulls = miner.mark, len(coordinator.calls("jobs/pull"))
    # Which of them has the poll cannot be seen from outside: the idle spares, too.
    for child in miner.zygote().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            kill(child)

    line = miner.wait_event("tick.failed", after=mark, tick="pull")
    assert "SIGKILL" in line["attrs"]["error"]
    coordinator.submit(echo_manifest("after-kill"))
    assert coordinator.wait("after-kill", JOB_S)["state"] == "succeeded"
    assert len(coordinator.calls("jobs/pull")) > pulls


def test_a_killed_zygote_is_replaced(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """Ticks go on from a new one; the running job does not notice."""
    held.submit("unharmed")
    payload = miner.wait_payload("unharmed")
    zygote, heartbeats = miner.zygote(), len(coordinator.calls("nodes/heartbeat"))

    kill(zygote)

    coordinator.wait_until(
        lambda: len(coordinator.calls("nodes/heartbeat")) > heartbeats + 1, PATIENCE_S
    )
    assert miner.zygote().pid != zygote.pid
    assert payload.is_running()
    coordinator.submit(echo_manifest("after-zygote"))
    assert coordinator.wait("after-zygote", JOB_S)["state"] == "succeeded"
    held.let_go()
    assert coordinator.wait("unharmed", JOB_S)["state"] == "succeeded"
    assert held.runs == 1
    miner.wait_healthz(running=0)


def test_a_killed_job_process_is_told_as_lost_once(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """E_LOST at the coordinator, retryable; no payload survives; a new attempt runs."""
    coordinator.submit(zoo_manifest("lost", "ignore_term"))
    payload = miner.wait_payload("lost")

    kill(miner.job_process("lost"))

    coordinator.wait_until(lambda: bool(final_calls(coordinator)), PATIENCE_S)
    assert not is_alive(payload.pid)
    assert coordinator.job("lost")["attempt"] == 2
    miner.wait_payload("lost")
    assert final_calls(coordinator) == [("jobs/fail", 200)]
    coordinator.cancel("lost")
    assert coordinator.wait("lost", PATIENCE_S)["state"] == "cancelled"


def test_a_killed_job_process_of_a_dead_daemon_is_settled_by_the_next(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Everything died at once, as in a power cut; the payload's tree is ended."""
    coordinator.submit(zoo_manifest("gone", "ignore_term", timeout_s=60))
    payload = miner.wait_payload("gone")
    job_process = miner.job_process("gone")
    kill(miner.zygote())
    die(miner)
    kill(job_process)

    miner.start()

    coordinator.wait_until(lambda: bool(final_calls(coordinator)), PATIENCE_S)
    assert final_calls(coordinator) == [("jobs/fail", 200)]
    assert not is_alive(payload.pid)
    assert coordinator.job("gone")["attempt"] == 2
    miner.wait_payload("gone")
    coordinator.cancel("gone")
    assert coordinator.wait("gone", PATIENCE_S)["state"] == "cancelled"


def test_an_idempotent_job_is_run_again_where_it_died(
    miner: Miner, coordinator: CoordinatorServer, held: Held
) -> None:
    """The same attempt, its leftovers ended, one outcome."""
    held.submit("again", idempotent=True)
    payload = miner.wait_payload("again")

    kill(miner.job_process("again"))

    miner.wait_until(lambda: held.runs == 2)
    assert not payload.is_running()
    held.let_go()
    job = coordinator.wait("again", JOB_S)
    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    assert final_calls(coordinator) == [("jobs/result", 200)]


def test_one_daemon_holds_a_workspace(miner: Miner, tmp_path: Path) -> None:
    """A second one ends with its own exit code and leaves the first alone."""
    second = Miner(tmp_path / "second", "http://127.0.0.1:9/api/v1")
    second.edit(workspace={"root": str(miner.root)})
    second.start()

    assert second.ended() == ExitCode.LOCKED

    assert "another daemon holds" in "".join(second.noise)
    assert second.processes() == []
    assert miner.healthz()["healthy"]
