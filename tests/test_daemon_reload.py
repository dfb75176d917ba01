"""Edits of the configuration while the real daemon runs: seen, judged, in force."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import yaml
from coordinator_server import CoordinatorServer, echo_manifest
from miner_process import (
    PATIENCE_S,
    Miner,
    cli_manifest,
    is_alive,
    merge,
    task_manifest,
    zoo_manifest,
)

from aitbc_aps_miner.reference_coordinator.demo_files import free_port

JOB_S = 40
SEEN_S = 2.0


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorServer]:
    """Start one coordinator for the daemon that is edited again and again."""
    with CoordinatorServer(max_attempts=1) as server:
        yield server


@pytest.fixture(scope="module")
def miner(
    coordinator: CoordinatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Miner]:
    """Start one daemon; each test edits keys of its own, or puts them back."""
    directory = tmp_path_factory.mktemp("miner")
    with Miner(directory, coordinator.base_url) as running:
        yield running


@pytest.fixture
def own_coordinator() -> Iterator[CoordinatorServer]:
    """Start a coordinator for one test."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture
def own_miner(own_coordinator: CoordinatorServer, tmp_path: Path) -> Iterator[Miner]:
    """Start a daemon for one test."""
    with Miner(tmp_path / "miner", own_coordinator.base_url) as running:
        yield running


def in_force(miner: Miner, key: str, how: str = "rename", **sections: Any) -> float:
    """Edit, wait until the daemon says that `key` changed; give the seconds."""
    mark, edited_at = miner.mark, miner.edit(how, **sections)
    miner.wait_event("config.changed", after=mark, key=key)
    return time.monotonic() - edited_at


@pytest.mark.parametrize("how", ["rename", "truncate", "symlink"])
def test_an_edit_is_in_force_within_two_seconds(miner: Miner, how: str) -> None:
    """Whichever way the file is written."""
    mark = miner.mark

    took_s = in_force(miner, "tags", how, tags=[how])

    assert took_s < SEEN_S
    (line,) = miner.events("config.changed", after=mark)
    assert (line["attrs"]["key"], line["attrs"]["new"]) == ("tags", f'["{how}"]')


def test_a_file_that_is_being_written_is_not_taken(miner: Miner) -> None:
    """A slow writer; every prefix is valid TOML and would change a lot."""
    mark, pace = miner.mark, threading.Event()
    document = {"tags": ["slowly"]}
    merge(miner.document, document)
    lines = tomli_w.dumps(miner.document).splitlines(keepends=True)
    ends = [end for end in range(1, len(lines)) if lines[end].startswith("[")]
    with miner.config.open("w") as file:
        for begin, end in zip([0, *ends], [*ends, len(lines)], strict=True):
            file.write("".join(lines[begin:end]))
            file.flush()
            pace.wait(0.15)  # that is what slow means, nothing is waited for

    miner.wait_event("config.changed", after=mark, new='["slowly"]')

    changed = [
        line["attrs"]["key"] for line in miner.events("config.changed", after=mark)
    ]
    assert changed == ["tags"]
    assert miner.events("config.problem", after=mark) == []


def test_a_new_interval_counts_from_now(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Heartbeats come faster, and slower again."""

    def heartbeats() -> int:
        return len(coordinator.calls("nodes/heartbeat"))

    in_force(miner, "heartbeat.interval_s", heartbeat={"interval_s": 0.1})
    began, count = time.monotonic(), heartbeats()
    coordinator.wait_until(lambda: heartbeats() >= count + 20, PATIENCE_S)
    assert time.monotonic() - began < 10  # it would take 20 s at the old pace

    in_force(miner, "heartbeat.interval_s", heartbeat={"interval_s": 1})


def test_running_jobs_get_new_priorities(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Every thread of every process of the tree, without a restart of the job."""
    coordinator.submit(zoo_manifest("tree", "fork_children", "2"))
    miner.wait_payload("tree")
    miner.wait_until(lambda: len(miner.payloads("tree")) == 3)
    before = miner.payloads("tree")

    in_force(
        miner, "resources.cpu_nice", resources={"cpu_nice": 15, "io_class": "idle"}
    )

    miner.wait_until(lambda: all(nices(each) == {15} for each in before))
    miner.wait_until(
        lambda: all(
            each.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE for each in before
        )
    )
    assert miner.payloads("tree") == before
    coordinator.cancel("tree")
    assert coordinator.wait("tree", JOB_S)["state"] == "cancelled"


def nices(process: psutil.Process) -> set[int]:
    """Give the niceness of each thread."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    # The 19th field of stat(5); the name before it, in brackets, may hold spaces.
    texts = [(task / "stat").read_text().rpartition(")")[2] for task in tasks]
    return {int(text.split()[16]) for text in texts}


def test_a_running_job_gets_a_new_memory_limit(
    miner: Miner, coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """What the kernel can't take back at once it gives no second time."""
    go = tmp_path / "go"
    coordinator.submit(task_manifest("grows", "grow", until=str(go), megabytes=150))
    payload = miner.wait_payload("grows")

    edit = {"mem_soft_mb": 64, "cpu_nice": 17}
    in_force(miner, "resources.mem_soft_mb", resources=edit)
    # Where the kernel ends it for this, it is gone; else the rest is in force now.
    miner.wait_until(lambda: not is_alive(payload.pid) or payload.nice() == 17)
    go.touch()  # now it frees all, rests a while, and takes it again

    outcome = coordinator.wait("grows", JOB_S)["outcome"]
    assert outcome["error_code"] == "E_OOM", outcome
    assert outcome["detail"]["limit_mb"] == 64
    in_force(miner, "resources.mem_soft_mb", resources={"mem_soft_mb": 512})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node_id = \n", "line 1"),
        ('nodeid = "n1"\n', "node_id"),
        ("", "node_id"),
    ],
)
def test_a_bad_configuration_is_shown_and_the_last_good_one_kept(
    miner: Miner, coordinator: CoordinatorServer, text: str, words: str
) -> None:
    """In the log and in /healthz, until it is good again; work goes on."""
    mark = miner.mark
    miner.write(text)

    miner.wait_event("config.kept", after=mark)
    told = [
        line["attrs"]["problem"] for line in miner.events("config.problem", after=mark)
    ]
    shown = miner.healthz()["config"]
    assert not shown["ok"]
    assert shown["problems"] == told
    assert any(words in problem for problem in told), told
    job_id = coordinator.submit(echo_manifest())
    assert coordinator.wait(job_id, JOB_S)["state"] == "succeeded"

    miner.edit()
    miner.wait_event("config.good_again", after=mark)
    assert miner.healthz()["config"]["ok"]
    assert miner.events("config.changed", after=mark) == []


def test_a_wrong_token_closes_a_gate_and_a_right_one_opens_it(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """The daemon lives, says why it takes no work, and neither token is logged."""
    mark = miner.mark
    miner.edit(coordinator={"auth_token": "not-the-token"})
    miner.wait_event("gate.closed", after=mark, gate="unauthorized")
    assert "unauthorized" in [gate["gate"] for gate in miner.healthz()["gates"]]

    mark = miner.mark
    miner.edit(coordinator={"auth_token": coordinator.token})
    miner.wait_event("gate.opened", after=mark, gate="unauthorized")

    job_id = coordinator.submit(echo_manifest())
    assert coordinator.wait(job_id, JOB_S)["state"] == "succeeded"
    said = str(miner.lines)
    assert "not-the-token" not in said
    assert coordinator.token not in said


def test_the_status_server_moves(miner: Miner) -> None:
    """The new address answers, the old one does not."""
    old = miner.document["status"]["listen"]
    port = free_port(0)

    in_force(miner, "status.listen", status={"listen": f"127.0.0.1:{port}"})

    miner.wait_until(lambda: miner.healthz() != {})
    assert miner.healthz()["healthy"]
    host, _, old_port = old.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(old_port)), timeout=PATIENCE_S)


def test_a_paused_node_takes_no_work(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """An open long poll is ended; what is submitted waits until the owner goes on."""
    coordinator.wait_for_polls()
    in_force(miner, "owner.paused", owner={"paused": True})
    miner.wait_until(lambda: coordinator.polls == 0)
    job_id = coordinator.submit(echo_manifest())
    assert miner.wait_healthz(state="paused")["running"] == 0
    assert coordinator.job(job_id)["state"] == "queued"

    in_force(miner, "owner.paused", owner={"paused": False})

    assert coordinator.wait(job_id, JOB_S)["state"] == "succeeded"
    miner.wait_healthz(state="running")


def test_the_number_of_slots_changes(
    miner: Miner, coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """With one slot the second job waits for the first."""
    in_force(miner, "resources.max_concurrent_cpu", resources={"max_concurrent_cpu": 1})
    go = tmp_path / "go"
    coordinator.submit(task_manifest("first", "hold", until=str(go)))
    miner.wait_payload("first")
    coordinator.submit(echo_manifest("second"))
    seen = miner.wait_healthz(running=1)
    assert seen["slots"]["cpu"] == {"total": 1, "free": 0}
    assert coordinator.job("second")["state"] == "queued"

    in_force(miner, "resources.max_concurrent_cpu", resources={"max_concurrent_cpu": 4})

    assert coordinator.wait("second", JOB_S)["state"] == "succeeded"
    go.touch()
    assert coordinator.wait("first", JOB_S)["state"] == "succeeded"


def test_private_addresses_are_refused_from_now_on(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """The next job's input from this very machine is E_DENY; nothing is fetched."""
    in_force(miner, "network.private", network={"private": False})
    url = f"http://127.0.0.1:{coordinator.port}/"
    entry = {"url": url, "name": "data.txt"}
    coordinator.submit(
        cli_manifest("private", "cat", "data.txt", input={"urls": [entry]})
    )

    outcome = coordinator.wait("private", JOB_S)["outcome"]

    assert outcome["error_code"] == "E_DENY"
    assert [call for call in coordinator.requests if call[1] == "/"] == []
    in_force(miner, "network.private", network={"private": True})


def test_a_new_allowlist_file_counts_for_the_next_job(
    miner: Miner, coordinator: CoordinatorServer
) -> None:
    """Denied before, allowed after; the configuration itself is not touched."""
    coordinator.submit(cli_manifest("denied", "true"))
    assert coordinator.wait("denied", JOB_S)["outcome"]["error_code"] == "E_DENY"

    file = miner.directory / "allowlist.d" / "true.yaml"
    file.write_text(yaml.safe_dump({"command": {"path": shutil.which("true")}}))
    file.chmod(0o644)

    coordinator.submit(cli_manifest("allowed", "true"))
    assert coordinator.wait("allowed", JOB_S)["state"] == "succeeded"


def test_another_node_id_registers_anew(
    own_miner: Miner, own_coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """What runs goes on and is delivered under the name that took it."""
    go = tmp_path / "go"
    own_coordinator.submit(task_manifest("old-name", "hold", until=str(go)))
    own_miner.wait_payload("old-name")

    in_force(own_miner, "node_id", node_id="n2")

    own_coordinator.wait_until(lambda: "n2" in own_coordinator.state.nodes, PATIENCE_S)
    own_coordinator.submit(echo_manifest("new-name"))
    new = own_coordinator.wait("new-name", JOB_S)
    go.touch()
    old = own_coordinator.wait("old-name", JOB_S)
    assert (new["state"], new["node_id"]) == ("succeeded", "n2")
    assert (old["state"], old["node_id"]) == ("succeeded", "n1")
    assert own_miner.healthz()["node_id"] == "n2"
    line = own_miner.wait_event("job.finished", job_id="new-name")
    assert line["node_id"] == "n2"


def test_another_coordinator_gets_the_next_jobs_and_none_of_the_old(
    own_miner: Miner,
    own_coordinator: CoordinatorServer,
    tmp_path: Path,
) -> None:
    """A job is bound to where it came from: acked, renewed and delivered there."""
    go = tmp_path / "go"
    own_coordinator.submit(task_manifest("bound", "hold", until=str(go)))
    own_miner.wait_payload("bound")
    with CoordinatorServer() as other:
        in_force(
            own_miner, "coordinator.base_url", coordinator={"base_url": other.base_url}
        )
        other.submit(echo_manifest("next"))
        assert other.wait("next", JOB_S)["state"] == "succeeded"
        go.touch()

        assert own_coordinator.wait("bound", JOB_S)["state"] == "succeeded"
        assert own_coordinator.calls("jobs/result")[-1][2] == 200
        assert [call[2] for call in other.calls("jobs/result")] == [200]
        assert other.calls("jobs/fail") == []
        own_miner.wait_healthz(running=0)


def test_another_workspace_takes_the_next_jobs(
    own_miner: Miner, own_coordinator: CoordinatorServer, tmp_path: Path
) -> None:
    """The running one stays where it is; the old root is remembered over a restart."""
    old, new, go = own_miner.root, own_miner.directory / "elsewhere", tmp_path / "go"
    own_coordinator.submit(task_manifest("stays", "hold", until=str(go)))
    own_miner.wait_payload("stays")

    # A poll that was open is ended; the next one knows where its jobs go.
    own_coordinator.wait_for_polls()
    in_force(own_miner, "workspace.root", workspace={"root": str(new)})
    own_coordinator.wait_until(
        lambda: None in [call[2] for call in own_coordinator.calls("jobs/pull")],
        PATIENCE_S,
    )

    own_coordinator.submit(echo_manifest("moves"))
    assert own_coordinator.wait("moves", JOB_S)["state"] == "succeeded"
    assert (new / "moves" / "outcome.json").exists()
    own_miner.restart()
    assert own_miner.wait_healthz(running=1)["jobs"] == ["stays"]
    go.touch()
    assert own_coordinator.wait("stays", JOB_S)["state"] == "succeeded"
    assert (old / "stays" / "outcome.json").exists()
    own_miner.wait_healthz(running=0)
