"""The coordinators as programs: options, words, signals, what is left behind."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

PROGRAM = [sys.executable, "-m", "aitbc_aps_miner.reference_coordinator"]
MINIMAL = [
    sys.executable,
    str(Path(__file__).parent / "programs" / "minimal_coordinator.py"),
]
STARTS_S = 30


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a program; give it and the URL that it says it listens on."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], STARTS_S)
            line = process.stdout.readline() if ready else "nothing in time"
            url = re.search(r"listening on (https?://\S+)", line)
            assert url, line
            yield process, url.group(1)
        finally:
            # Not killed: it has to remove its spool.
            process.terminate()
            process.wait(STARTS_S)


def ended(*options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the coordinator to its end; give exit code and what it said."""
    done = subprocess.run(
        [*PROGRAM, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=STARTS_S,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_a_second(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Also while a long poll is open; the spool's directory goes with it."""
    options = ("--listen", "127.0.0.1:0", "--spool", str(tmp_path))
    auth = {"Authorization": "Bearer demo-token"}
    with (
        running(*PROGRAM, *options) as (process, url),
        httpx.Client(base_url=url) as client,
    ):
        answer = client.post("/nodes/register", json={"node_id": "n"}, headers=auth)
        auth = {"Authorization": f"Bearer {answer.json()['node_token']}"}
        assert len(list(tmp_path.iterdir())) == 1
        body = {"node_id": "n", "wait_s": 300}
        host = httpx.URL(url)
        request = client.build_request("POST", "/jobs/pull", json=body, headers=auth)
        with _sent(host.port or 0, request):
            # A second call is answered: the first one is being waited on by then.
            client.get("/nodes")
            begin = time.monotonic()
            process.send_signal(number)
            assert process.wait(10) == 0
            # The limit is one second; the rest is for a machine that is busy.
            assert time.monotonic() - begin < 3
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _sent(port: int, request: httpx.Request) -> Iterator[None]:
    """Send a request and wait for no answer."""
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode())
        sock.sendall(request.read())
        yield


def test_options_and_environment_reach_the_coordinator() -> None:
    """Token, dialect and the rest are taken from the command line."""
    options = ("--listen", "127.0.0.1:0", "--bootstrap-token", "t", "--spec-only")
    with running(*PROGRAM, *options) as (_, url):
        answer = httpx.post(
            f"{url}/nodes/register",
            json={"node_id": "n"},
            headers={"Authorization": "Bearer t"},
        )
    assert set(answer.json()) == {"node_token"}


def test_help_helps() -> None:
    """It says what the program is, what it is not for, and how to go on."""
    code, said = ended("--help")
    assert code == 0
    for words in ("NOT for production", "--lease-s", "/api/v1/faults", "--no-reg"):
        assert words in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "8470"], "expected HOST:PORT, given '8470'"),
        (["--listen", "127.0.0.1:99999"], "expected HOST:PORT"),
        (["--listen", "203.0.113.1:80"], "choose another one"),
        (["--tls-cert", __file__], "go together"),
        (["--log-level", "loud"], "expected error, warning, info or debug"),
        (["--spool", "/nonexistent"], "does not exist"),
    ],
)
def test_wrong_options_end_in_words(options: list[str], words: str) -> None:
    """Exit code 2, the option and what was expected."""
    code, said = ended(*options)
    assert (code, words in said) == (2, True), said


def test_a_missing_extra_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Whoever installed only the miner is told what to install."""
    (tmp_path / "fastapi.py").write_text(
        "raise ModuleNotFoundError('no', name='fastapi')\n"
    )
    code, said = ended(env={"PYTHONPATH": str(tmp_path)})
    assert code == 2
    assert said == (
        "reference coordinator: fastapi is not installed; the coordinator needs it: "
        "pip install 'aitbc-aps-miner[coordinator]'\n"
    )


def test_the_minimal_coordinator_is_minimal() -> None:
    """Pull, ack by query and result are all there is."""
    with (
        running(*MINIMAL, "--listen", "127.0.0.1:0") as (_, url),
        httpx.Client(base_url=url) as client,
    ):
        jobs = [client.post("/jobs/pull", json={"node_id": "n"}) for _ in range(2)]
        assert jobs[0].json() == jobs[1].json()
        job = jobs[0].json()["job"]
        assert (job["command"], job["args"]) == ("echo", ["hello", "world"])
        names = {"job_id": job["job_id"], "node_id": "n"}
        assert client.post("/jobs/ack", params=names).json() == {"ok": True}
        assert client.post("/jobs/ack", json=names).status_code == 422
        done = client.post(
            "/jobs/result",
            data={"job_id": job["job_id"], "metadata": "{}"},
            files={"artifact": ("artifacts/output.txt", b"hello world\n")},
        )
        assert done.json() == {"ok": True}
        for call in ("nodes/register", "nodes/heartbeat", "jobs/fail", "uploads"):
            assert client.post(f"/{call}", json={}).status_code == 404
