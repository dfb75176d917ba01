"""Jobs through the real daemon: each is submitted, run, delivered and read back."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from miner_process import (
    FIELDS,
    PATIENCE_S,
    Miner,
    cli_manifest,
    is_alive,
    task_manifest,
    zoo_manifest,
)
from scripted_server import Connection, Seen, serving

from aitbc_aps_miner import receipt
from aitbc_aps_miner.identity import load_or_create

JOB_S = 60
DATA = b"some bytes\n" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorServer]:
    """Start one coordinator for all jobs here; no job gets a second attempt."""
    with CoordinatorServer(max_attempts=1) as server:
        yield server


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    """Serve inputs; give the server's address."""
    with serving(_give_input) as server:
        yield server.url.removesuffix("/api/v1")


def _give_input(request: Seen, connection: Connection) -> None:
    if request.target == "/data.txt":
        connection.reply(body=DATA)
    elif request.target == "/elsewhere":
        connection.reply(302, headers={"Location": "ftp://127.0.0.1/data.txt"})
    else:
        connection.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while connection.raw(bytes(65536)):
            pass
        connection.hang_up()


@pytest.fixture(scope="module")
def miner(
    coordinator: CoordinatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Miner]:
    """Start one daemon for all jobs here; at its end no process is left."""
    with Miner(
        tmp_path_factory.mktemp("miner"),
        coordinator.base_url,
        network={"inputs": ["127.0.0.1"], "max_input_mb": 1},
        resources={"mem_soft_mb": 64},
    ) as running:
        yield running


def artifact(path: str, **more: Any) -> dict[str, Any]:
    """Declare an artifact."""
    return {"path": path, "type": "application/octet-stream", "max_mb": 1, **more}


def with_input(job_id: str, url: str, **more: Any) -> dict[str, Any]:
    """Give a job that needs one input."""
    entry = {"url": url, "name": "data.txt", **more}
    return cli_manifest(job_id, "cat", "data.txt", input={"urls": [entry]})


def odd(kind: str) -> dict[str, Any]:
    """Give a job whose artifact is odd."""
    declared = [artifact("out.bin")]
    return task_manifest(f"odd-{kind}", "odd", kind=kind, artifacts=declared)


def failing(source: str) -> list[tuple[dict[str, Any], str, str]]:
    """List jobs with the code that they fail with, and words of the reason."""
    return [
        (cli_manifest("exit", "false"), "E_EXIT", "exit code 1"),
        (odd("missing"), "E_ARTIFACT", "is not there"),
        (odd("symlink"), "E_ARTIFACT", "a symbolic link"),
        (odd("fifo"), "E_ARTIFACT", "a FIFO"),
        (odd("hardlink"), "E_ARTIFACT", "has 2 names"),
        (odd("large"), "E_ARTIFACT", "larger than 1 MiB"),
        (
            with_input("host", source.replace("127.0.0.1", "localhost") + "/data.txt"),
            "E_DENY",
            "localhost",
        ),
        (
            with_input("digest", f"{source}/data.txt", sha256="0" * 64),
            "E_INPUT",
            DIGEST,
        ),
        (with_input("announced", f"{source}/data.txt", bytes=7), "E_INPUT", "7"),
        (with_input("endless", f"{source}/endless"), "E_INPUT", "1048576 bytes"),
        (with_input("scheme", "file:///etc/passwd"), "E_INPUT", "'file' URL"),
        (with_input("redirect", f"{source}/elsewhere"), "E_INPUT", "ftp"),
        (cli_manifest("command", "rm", "-rf"), "E_DENY", "rm"),
        (cli_manifest("argument", "echo", "hi", "--help;rm"), "E_DENY", "--help;rm"),
        (cli_manifest("newline", "echo", "a\nb"), "E_DENY", "control characters"),
        (cli_manifest("many", "echo", *["x"] * 10_000), "E_DENY", "10000 arguments"),
        (
            cli_manifest("reach", "echo", "x", network={"allow": ["example.org:443"]}),
            "E_DENY",
            "example.org:443",
        ),
        (task_manifest("task", "nowhere"), "E_DENY", "nowhere"),
        (task_manifest("params", "greet", nmae="x"), "E_MANIFEST", "nmae"),
        (task_manifest("raises", "odd", kind="huh"), "E_EXIT", "KeyError"),
        ({"job_id": "bad", "runner": "cli"}, "E_MANIFEST", "timeout_s"),
    ]


CODES = [(entry[0]["job_id"], *entry[1:]) for entry in failing("http://127.0.0.1:1")]


@pytest.fixture(scope="module")
def failures(coordinator: CoordinatorServer, miner: Miner, source: str) -> None:
    """Submit all jobs that fail: they run beside each other while tests look."""
    for manifest, _, _ in failing(source):
        coordinator.submit(manifest)


def test_echo_comes_back_with_its_whole_story(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """Artifact at the coordinator; states, outcome, log and receipt on disk."""
    coordinator.submit(echo_manifest("hello"))

    job = coordinator.wait("hello", JOB_S)

    assert job["state"] == "succeeded", job
    assert coordinator.artifact("hello", "output.txt") == b"hello world\n"
    line = miner.wait_event("job.finished", job_id="hello")
    state, outcome = miner.state("hello"), miner.json("hello", "outcome.json")
    assert [step["state"] for step in state["history"]] == [
        *("PULLING", "ACKED", "PREP", "RUNNING", "UPLOADING", "DONE"),
    ]
    assert state["delivered_at"] is not None
    assert miner.json("hello", "job.json")["origin"] == {
        "api": "node-v1",
        "base_url": coordinator.base_url,
        "node_id": "n1",
        "auth": None,  # a token that stands in the configuration stays there
    }
    assert outcome["succeeded"]
    assert outcome["cleanup"] == {"tree_empty": True}
    assert job["outcome"]["metadata"]["receipt"] == outcome["receipt"]
    key = load_or_create(miner.directory / "identity.key").public_key_b64url
    assert receipt.verify(outcome["receipt"], key)
    assert not receipt.verify({**outcome["receipt"], "exit_code": 7}, key)
    assert miner.file("hello", "logs/exec.log").read_text() == "hello world\n"
    # The canonical line: everything about the job in one place.
    known = {
        "attempt": 1,
        "state": "DONE",
        "exit_code": 0,
        "artifacts": 1,
        "artifact_bytes": 12,
    }
    assert known.items() <= line["attrs"].items()
    assert line["attrs"]["timings"].keys() >= {"PULLING", "ACKED", "PREP", "RUNNING"}
    assert len(miner.events("job.finished", job_id="hello")) == 1


def test_a_python_task_gives_its_value_and_its_files(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """`result.json` and every file of `output/`."""
    coordinator.submit(task_manifest("greet", "greet", name="you", times=2))

    job = coordinator.wait("greet", JOB_S)

    assert job["state"] == "succeeded", job
    paths = ["greeting.txt", "logs/exec.log", "result.json"]
    assert sorted(job["artifact_paths"]) == paths
    assert coordinator.artifact("greet", "greeting.txt") == b"hello you\n" * 2
    result = json.loads(coordinator.artifact("greet", "result.json"))
    assert result == {"greeted": "you"}


def test_inputs_come_by_url_and_inline(
    coordinator: CoordinatorServer, miner: Miner, source: str
) -> None:
    """Both are seen by name in the working directory; the digest is checked."""
    entry = {"url": f"{source}/data.txt", "sha256": DIGEST, "bytes": len(DATA)}
    inputs = {"urls": [entry], "inline": {"more.txt": "and this\n"}}
    coordinator.submit(
        cli_manifest(
            *("inputs", "cat", "data.txt", "more.txt"),
            input=inputs,
            artifacts=[artifact("all.txt", type="text/plain")],
        )
    )

    job = coordinator.wait("inputs", JOB_S)

    assert job["state"] == "succeeded", job
    assert coordinator.artifact("inputs", "all.txt") == DATA + b"and this\n"
    miner.wait_event("job.finished", job_id="inputs")
    assert not miner.file("inputs", "input/data.txt").exists()


@pytest.mark.usefixtures("failures")
@pytest.mark.parametrize(("job_id", "code", "words"), CODES)
def test_what_goes_wrong_is_told_with_its_code(
    coordinator: CoordinatorServer, miner: Miner, job_id: str, code: str, words: str
) -> None:
    """The coordinator hears the code and the reason, once."""
    job = coordinator.wait(job_id, JOB_S)

    assert job["state"] == "failed"
    assert job["outcome"]["error_code"] == code, job["outcome"]
    assert words in job["outcome"]["error_msg"]
    assert [step["state"] for step in job["history"]].count("failed") == 1


@pytest.mark.usefixtures("failures")
def test_nothing_of_a_foreign_file_is_collected(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """What a link pointed to is nowhere in the workspace."""
    coordinator.wait("odd-symlink", JOB_S)

    stored = miner.file("odd-symlink", ".artifacts")
    assert [path.read_bytes() for path in stored.iterdir()] == []


def test_bad_job_ids_make_no_path(coordinator: CoordinatorServer, miner: Miner) -> None:
    """Climbing, absolute, NUL, long and strange ids: E_MANIFEST, and the next job."""
    ids = ["../up", "/tmp/abs", "nul\0", "x" * 200, "äöü", "a..b"]
    for job_id in ids:
        coordinator.submit(echo_manifest(job_id))
    coordinator.submit(["no", "object"])
    coordinator.submit(echo_manifest("after-bad-ids"))

    for job_id in ids:
        job = coordinator.wait(job_id, JOB_S)
        assert job["outcome"]["error_code"] == "E_MANIFEST"
    assert coordinator.wait("after-bad-ids", JOB_S)["state"] == "succeeded"
    for job_id in [*ids, ""]:  # what is no object has no name
        miner.wait_event("job.refused", job_id=job_id, code="E_MANIFEST")
        assert len(miner.events("job.refused", job_id=job_id)) == 1
    assert not (miner.directory / "up").exists()
    assert not Path("/tmp/abs").exists()


def test_the_time_limit_ends_the_whole_tree(
    coordinator: CoordinatorServer, miner: Miner, tmp_path: Path
) -> None:
    """A payload that ignores SIGTERM and one that daemonised die at the deadline."""
    pid_file = tmp_path / "pid"
    coordinator.submit(zoo_manifest("ignores", "ignore_term", timeout_s=1))
    coordinator.submit(zoo_manifest("children", "fork_children", "3", timeout_s=1))
    coordinator.submit(zoo_manifest("forks", "double_fork", str(pid_file)))

    for job_id in ("ignores", "children"):
        job = coordinator.wait(job_id, JOB_S)
        outcome = miner.json(job_id, "outcome.json")
        assert job["outcome"]["error_code"] == "E_TIMEOUT", job["outcome"]
        assert outcome["cleanup"] == {"tree_empty": True}
        assert miner.payloads(job_id) == []
        # The limit, the grace of half a second, and time for a slow machine.
        assert outcome["resources"]["wall_s"] < 1 + 0.5 + 2
    assert coordinator.wait("forks", JOB_S)["state"] == "succeeded"
    assert not is_alive(int(pid_file.read_text()))


def test_too_much_memory_is_e_oom_with_evidence(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """Also where a child takes it; the limit and what was seen are told."""
    coordinator.submit(zoo_manifest("eats", "eat_memory", "200"))
    coordinator.submit(zoo_manifest("child-eats", "eat_memory", "200", "child"))

    for job_id in ("eats", "child-eats"):
        outcome = coordinator.wait(job_id, JOB_S)["outcome"]
        assert outcome["error_code"] == "E_OOM", outcome
        assert outcome["detail"]["limit_mb"] == 64
        assert outcome["detail"]["seen_mb"] >= 60
        assert outcome["detail"]["mechanism"]
        assert miner.payloads(job_id) == []


def test_a_flood_of_output_is_capped(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """The log stays under its cap; the payload is not held up by it."""
    coordinator.submit(zoo_manifest("flood", "flood_stdout", "200"))

    assert coordinator.wait("flood", JOB_S)["state"] == "succeeded"
    assert miner.file("flood", "logs/exec.log").stat().st_size <= 65 << 20
    detail = miner.json("flood", "outcome.json")["detail"]
    assert detail["log_dropped_bytes"] > 0


def test_a_cancelled_job_is_stopped(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """The coordinator's word reaches the running payload within seconds."""
    coordinator.submit(zoo_manifest("cancel-me", "ignore_term"))
    payload = miner.wait_payload("cancel-me")

    began = time.monotonic()
    coordinator.cancel("cancel-me")
    job = coordinator.wait("cancel-me", PATIENCE_S)

    assert job["state"] == "cancelled"
    assert job["outcome"]["error_code"] == "E_CANCELLED"
    assert not is_alive(payload.pid)
    # The next heartbeat or progress, a look at the control file, the grace.
    assert time.monotonic() - began < 8


def test_every_line_of_the_log_has_its_six_fields(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """No more, no less, and nothing else is on standard output."""
    assert miner.lines
    assert [line for line in miner.lines if line.keys() != FIELDS] == []
    assert {line["node_id"] for line in miner.lines} == {"n1"}
    assert miner.noise == []


def test_the_bootstrap_token_is_nowhere_but_in_the_configuration(
    coordinator: CoordinatorServer, miner: Miner
) -> None:
    """Neither in the log nor in a workspace."""
    token = coordinator.token
    assert [line for line in miner.lines if token in json.dumps(line)] == []
    found = subprocess.run(
        ["grep", "-rlF", "--", token, str(miner.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    # A file that goes away meanwhile is no match either.
    assert found.stdout == ""
