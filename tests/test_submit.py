"""The submitter, and what it shares with the demo, against a node of our own making."""

import hashlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import httpx
import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from rich.console import Console
from scripted_server import says, serving

from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.reference_coordinator.batch import Row
from aitbc_aps_miner.reference_coordinator.children import Child, ChildError
from aitbc_aps_miner.reference_coordinator.client import Client, ClientError
from aitbc_aps_miner.reference_coordinator.display import (
    LiveDisplay,
    PlainDisplay,
    display_for,
)
from aitbc_aps_miner.reference_coordinator.samples import PRIMES_COUNT, PRIMES_LIMIT
from aitbc_aps_miner.reference_coordinator.submit import main
from aitbc_aps_miner.util.clock import SystemClock

Files = Mapping[str, bytes]

PRIMES: Files = {
    "result.json": json.dumps({"limit": PRIMES_LIMIT, "primes": PRIMES_COUNT}).encode(),
    "primes.csv": f"up_to,primes\n{PRIMES_LIMIT},{PRIMES_COUNT}\n".encode(),
}
RIGHT: dict[str, Files] = {
    "hello": {"output.txt": b"hello world\n"},
    "primes": PRIMES,
    "testvideo": {"test.mp4": b"\0\0\0\x20ftypisom"},
    "transcode": {"output.mp4": b"\0\0\0\x20ftypisom"},
}


class Node:
    """A node that delivers what it is told to, without running anything."""

    def __init__(self, base_url: str, token: str) -> None:
        self.answers: dict[str, Files | None] = dict(RIGHT)
        """Artifacts by the beginning of the job's id; None: fail the job."""
        self._base_url = base_url
        self._token = token
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with httpx.Client(base_url=self._base_url, trust_env=False) as http:
            me = {"node_id": "n"}
            auth = {"Authorization": f"Bearer {self._token}"}
            token = http.post("/nodes/register", json=me, headers=auth).json()
            http.headers["Authorization"] = f"Bearer {token['node_token']}"
            http.post("/nodes/heartbeat", json=me)
            while not self._stop.is_set():
                pull = http.post("/jobs/pull", json={**me, "wait_s": 0.1})
                if job := pull.json()["job"]:
                    self._deliver(http, job["job_id"])

    def _deliver(self, http: httpx.Client, job_id: str) -> None:
        http.post("/jobs/ack", json={"job_id": job_id, "node_id": "n"})
        name = job_id.partition("-")[0]
        if name not in self.answers:
            return  # for ever at work
        files = self.answers[name]
        if files is None:
            code = {"error_code": "E_EXIT", "error_msg": "exit code 3"}
            http.post("/jobs/fail", json={"job_id": job_id, "node_id": "n", **code})
            return
        entries = [
            {
                "path": path,
                "type": "application/octet-stream",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for path, data in files.items()
        ]
        http.post(
            "/jobs/result",
            data={"job_id": job_id, "metadata": json.dumps({"artifacts": entries})},
            files=[
                ("artifact", (f"artifacts/{path}", data))
                for path, data in files.items()
            ],
        )


@pytest.fixture
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a reference coordinator."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture
def node(coordinator: CoordinatorServer) -> Iterator[Node]:
    """Start a node."""
    with Node(coordinator.base_url, coordinator.token) as node:
        yield node


Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submit(
    coordinator: CoordinatorServer, capsys: pytest.CaptureFixture[str]
) -> Submit:
    """Run the submitter; give exit code, standard output and standard error."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        base = ["--base-url", coordinator.base_url.removesuffix("/api/v1")]
        code = main([*base, "--timeout-s", "10", *map(str, argv)])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.usefixtures("node")
def test_right_results_are_downloaded_and_give_zero(
    submit: Submit, tmp_path: Path
) -> None:
    """Every sample is verified, every artifact lies where --save says."""
    code, out, _ = submit("--samples", "--video", "--wait", "--save", tmp_path)

    assert code == ExitCode.OK, out
    assert [line[:12] for line in out.splitlines()[-4:]] == [
        "ok    hello-",
        "ok    primes",
        "ok    testvi",
        "ok    transc",
    ]
    stored = {
        (path.parent.name.partition("-")[0], path.name): path.read_bytes()
        for path in tmp_path.rglob("*.*")
        if path.is_file()
    }
    assert stored == {
        (job, path): data
        for job, files in RIGHT.items()
        for path, data in files.items()
    }


@pytest.mark.parametrize(
    ("job", "answer", "words"),
    [
        ("hello", {"output.txt": b"hello\n"}, "output.txt: its content is not what"),
        ("hello", {"other.txt": b"hello world\n"}, "output.txt: missing"),
        ("hello", {"../../x": b"", **RIGHT["hello"]}, "'../../x': no path to store"),
        ("primes", {**PRIMES, "result.json": b"{"}, "result.json: its content is not"),
        ("testvideo", None, "E_EXIT: exit code 3"),
        ("testvideo", None, "its input was not made"),
    ],
)
def test_a_wrong_result_gives_six_and_is_named(  # noqa: PLR0917 - a table and fixtures
    submit: Submit,
    node: Node,
    tmp_path: Path,
    job: str,
    answer: Files | None,
    words: str,
) -> None:
    """Wrong content, a missing or hostile artifact, a failure, and what follows."""
    node.answers[job] = answer

    code, out, _ = submit("--samples", "--video", "--wait", "--save", tmp_path / "in")

    assert code == ExitCode.JOBS_FAILED
    assert words in out
    assert f"FAIL  {job}-" in out
    assert not (tmp_path / "x").exists()


def test_a_job_that_does_not_end_in_time_gives_six(submit: Submit, node: Node) -> None:
    """The verdict says in which state it was."""
    del node.answers["hello"]

    code, out, _ = submit("--samples", "--no-video", "--wait", "--timeout-s", "1")

    assert code == ExitCode.JOBS_FAILED
    assert "not done in time, acked" in out


def test_without_wait_it_names_what_it_submitted(
    submit: Submit, coordinator: CoordinatorServer, node: Node, tmp_path: Path
) -> None:
    """A manifest from a file gets the file's name and a suffix for its id."""
    manifest = tmp_path / "hello.json"
    manifest.write_text(json.dumps(echo_manifest()))

    code, out, _ = submit(manifest)

    assert code == ExitCode.OK
    assert out.startswith("hello-")
    assert coordinator.wait(out.strip(), 10)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        (None, "No such file"),
    ],
)
@pytest.mark.usefixtures("node")
def test_a_file_that_is_no_manifest_gives_two(
    submit: Submit, tmp_path: Path, content: str | None, words: str
) -> None:
    """Nothing is submitted; the message names the file."""
    path = tmp_path / "job.json"
    if content is not None:
        path.write_text(content)

    code, _, err = submit(path)

    assert (code, words in err, str(path) in err) == (ExitCode.USAGE, True, True)


def test_nothing_to_submit_gives_two(submit: Submit) -> None:
    """It says what to name."""
    code, _, err = submit("--wait")

    assert (code, "name a FILE or say --samples" in err) == (ExitCode.USAGE, True)


@pytest.mark.usefixtures("node")
def test_a_manifest_that_the_coordinator_refuses_gives_five(
    submit: Submit, tmp_path: Path
) -> None:
    """The coordinator's own words are shown."""
    path = tmp_path / "job.json"
    path.write_text('{"runner": "cli"}')

    code, _, err = submit(path, "--wait")

    assert (code, "timeout_s: missing" in err) == (ExitCode.UNREACHABLE, True)


def test_no_node_gives_five(submit: Submit) -> None:
    """It gives up at its time limit and says what was missing."""
    code, _, err = submit("--samples", "--timeout-s", "0.3")

    assert (code, "no node has sent a heartbeat" in err) == (ExitCode.UNREACHABLE, True)


def test_no_coordinator_gives_five(
    submit: Submit, coordinator: CoordinatorServer
) -> None:
    """It tries until its time limit."""
    coordinator.stop()

    code, _, err = submit("--samples", "--timeout-s", "0.3")

    assert (code, coordinator.base_url[:-7] in err) == (ExitCode.UNREACHABLE, True)


def test_ctrl_c_gives_130(submit: Submit) -> None:
    """No traceback."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()

    code, _, err = submit("--samples")

    timer.join()
    assert (code, err) == (ExitCode.INTERRUPTED, "")


# The client ---------------------------------------------------------------------------


def test_refusals_become_words(coordinator: CoordinatorServer, tmp_path: Path) -> None:
    """Unknown jobs and artifacts."""
    with Client(coordinator.base_url) as client:
        with pytest.raises(ClientError, match="404: no such job: 'nowhere'"):
            client.job("nowhere")
        with pytest.raises(ClientError, match="404: no such job: 'nowhere'"):
            client.download("nowhere", "a", tmp_path / "a")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "the answer is not JSON"),
        (200, b"[]", "the answer is not an object"),
        (503, b"<html>", "503: x"),
    ],
)
def test_answers_of_something_else_become_words(
    status: int, body: bytes, words: str
) -> None:
    """Whatever listens there."""
    with (
        serving(says(status, body=body)) as server,
        Client(server.url) as client,
        pytest.raises(ClientError, match=words),
    ):
        client.nodes()


def test_a_job_can_be_cancelled(coordinator: CoordinatorServer) -> None:
    """A queued one ends at once."""
    with Client(coordinator.base_url) as client:
        client.submit(echo_manifest("a"))

        assert client.cancel("a")["state"] == "cancelled"


# Displays -----------------------------------------------------------------------------


def test_plain_lines_tell_each_change_once() -> None:
    """A state or a quarter of the way is a line; control characters are not obeyed."""
    output = io.StringIO()
    console = Console(file=output, width=60)
    with display_for(console, SystemClock()) as display:
        assert isinstance(display, PlainDisplay)
        for pct in (0, 10, 30, 40):
            row = Row(
                title="t", job_id="j", state="running", pct=pct, problem="\x1b[2J"
            )
            display.show([row])

    lines = [line[10:] for line in output.getvalue().splitlines()]
    assert lines == ["t · running · 0 % ·  [2J", "t · running · 30 % ·  [2J"]


def test_live_rows_show_titles_bars_and_problems() -> None:
    """Redrawn in place; what a job says cannot steer the terminal."""
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    with display_for(console, SystemClock()) as display:
        assert isinstance(display, LiveDisplay)
        display.show(
            [
                Row(
                    title="one", job_id="1", state="succeeded", pct=100, duration_s=1.25
                ),
                Row(title="two", job_id="2", state="failed", problem="E_EXIT\x1b[2J"),
            ]
        )

    shown = output.getvalue()
    assert "one" in shown
    assert "1.2 s" in shown
    assert "E_EXIT [2J" in shown
    assert "\x1b[2J" not in shown


# Child programs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('last words'); raise SystemExit(3)", "with exit code 3"),
        ("import os; print('last words', flush=True); os.abort()", "by signal SIGABRT"),
    ],
)
def test_a_child_that_ends_is_told_with_its_last_words(
    tmp_path: Path, code: str, words: str
) -> None:
    """How it ended, and what it said last."""
    child = Child("clock", [sys.executable, "-c", code], tmp_path / "log", {})

    assert child.wait(10)
    with pytest.raises(ChildError, match=f"the clock has ended {words};") as caught:
        child.check()
    assert str(caught.value).endswith("    last words")
    child.ask_to_end()  # nobody there: no error


def test_a_child_that_ignores_sigterm_can_be_killed(tmp_path: Path) -> None:
    """It says nothing, and is gone."""
    code = (
        "import signal as s; s.signal(15, s.SIG_IGN); print(1, flush=True); s.pause()"
    )
    child = Child("rock", [sys.executable, "-c", code], tmp_path / "log", {})
    child.check()
    while not child.last_words():
        assert not child.wait(0.01)

    child.ask_to_end()

    assert not child.wait(0.1)
    child.kill()
    assert child.wait(0)
