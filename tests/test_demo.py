"""The demo as a newcomer runs it: the real program with real children."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from aitbc_aps_miner.config.load import load_file
from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.reference_coordinator.demo import main
from aitbc_aps_miner.reference_coordinator.demo_files import DemoFiles, free_port

MARK = "DEMO_TEST_MARK"
START_S = 40


class Run:
    """One demo under way, its output in a file."""

    def __init__(self, directory: Path, *argv: str, path: str | None = None) -> None:
        self.files = DemoFiles(directory)
        self.mark = f"{MARK}={directory}"
        self._output = directory.parent / "output"
        env = {**os.environ, MARK: str(directory), "PATH": path or os.environ["PATH"]}
        # What the caller has set for a miner of his own is not the demo's business.
        env["AITBC_MINER__NODE_ID"] = "somebody-else"
        program = "aitbc_aps_miner.reference_coordinator.demo"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, "--dir", str(directory), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
            )

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return self._output.read_text()

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> None:
        """Wait until it has printed something."""
        until = time.monotonic() + timeout_s
        while not re.search(pattern, self.output):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, f"no {pattern!r} in {self.output}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def end(self, timeout_s: float = START_S) -> int:
        """Give its exit code when it has ended; nothing may be left of it."""
        code = self.process.wait(timeout_s)
        assert processes_with(self.mark) == [], self.output
        return code

    def miner(self) -> int:
        """Give the pid of the miner."""
        (pid,) = (
            pid
            for pid in processes_with(self.mark)
            if words_of(pid)[-2:] == ["aitbc_aps_miner", str(self.files.config)]
        )
        return pid


def processes_with(mark: str) -> list[int]:
    """List the processes that have `mark` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in _items(entry / "environ"):
                found.append(int(entry.name))
    return found


def words_of(pid: int) -> list[str]:
    """Give a process's command line; none for a zombie."""
    return _items(Path(f"/proc/{pid}/cmdline"))


def _items(file: Path) -> list[str]:
    return file.read_bytes().decode(errors="replace").split("\0")[:-1]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Give a directory for a demo; end what a failed test has left there."""
    directory = tmp_path / "demo"
    directory.mkdir()
    yield directory
    for pid in processes_with(f"{MARK}={directory}"):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def path_without_ffmpeg(tmp_path: Path) -> str:
    """Give a PATH with all of the usual programs but this one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for path in Path("/usr/bin").iterdir():
        if not path.name.startswith("ff"):
            (programs / path.name).symlink_to(path)
    return str(programs)


def test_once_ends_by_itself_with_every_job_succeeded(directory: Path) -> None:
    """Zero; the results lie where it says, and nothing runs any more."""
    run = Run(directory, "--once")

    assert run.end() == ExitCode.OK, run.output
    (hello,) = run.files.results.glob("hello-*")
    assert (hello / "output.txt").read_text() == "hello world\n"
    (primes,) = run.files.results.glob("primes-*")
    assert (primes / "result.json").read_text().strip().startswith("{")
    for words in (
        str(run.files.results),
        str(run.files.jobs),
        "/healthz",
        "primes.csv",
    ):
        assert words in run.output
    videos = {path.name for path in run.files.results.glob("*/*.mp4")}
    ffmpeg = shutil.which("ffmpeg") is not None
    assert videos == ({"test.mp4", "output.mp4"} if ffmpeg else set())


def test_it_goes_on_shows_a_reload_and_stops_at_ctrl_c(
    directory: Path, path_without_ffmpeg: str
) -> None:
    """An edit of the configuration shows in what it prints; then all ends in order."""
    run = Run(directory, path=path_without_ffmpeg)
    run.wait_for("Ctrl-C to stop")
    assert "ffmpeg is not installed" in run.output

    document = tomlkit.parse(run.files.config.read_text())
    assert document["node_id"] == "demo-node"
    document["resources"]["cpu_nice"] = 7
    run.files.config.write_text(tomlkit.dumps(document))

    run.wait_for(r"config.changed.*resources.cpu_nice", 10)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == ExitCode.OK
    assert "everything is stopped" in run.output


def test_ctrl_c_during_the_jobs_gives_130(
    directory: Path, path_without_ffmpeg: str
) -> None:
    """A second one does not wait for the running job; no process survives."""
    run = Run(directory, path=path_without_ffmpeg)
    run.wait_for(r"primes.*acked")

    run.process.send_signal(signal.SIGINT)
    run.wait_for("once more Ctrl-C")
    run.process.send_signal(signal.SIGINT)

    assert run.end() == ExitCode.INTERRUPTED
    assert "Traceback" not in run.output


def test_a_miner_that_dies_ends_the_demo_with_its_last_words(
    directory: Path, path_without_ffmpeg: str
) -> None:
    """Exit code 1, how it ended, the end of its log, and no process left."""
    run = Run(directory, path=path_without_ffmpeg)
    run.wait_for(r"primes.*acked")

    os.kill(run.miner(), signal.SIGKILL)

    assert run.end() == ExitCode.FAILURE
    assert "the miner has ended by signal SIGKILL" in run.output
    assert "daemon.started" in run.output


def test_one_directory_serves_one_demo(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one says what to do."""
    lock = DemoFiles(directory).lock()

    code = main(["--once", "--dir", str(directory)])

    os.close(lock)
    assert code == ExitCode.FAILURE
    assert "another demo runs in" in capsys.readouterr().out


def test_a_directory_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands in the way."""
    (tmp_path / "file").write_text("")

    code = main(["--dir", str(tmp_path / "file" / "demo")])

    assert code == ExitCode.FAILURE
    assert "cannot be used" in capsys.readouterr().out


def test_its_configuration_is_valid(tmp_path: Path) -> None:
    """The miner's own reader takes it; allowlists name programs of this machine."""
    files = DemoFiles(tmp_path)
    files.write(base_url="http://127.0.0.1:1/api/v1", status="127.0.0.1:2")

    config = load_file(files.config, environ={})

    assert config.workspace.root == files.jobs
    assert config.runners.python.task_paths == (files.root,)
    echo = (files.allowlists / "echo.yaml").read_text()
    assert f"path: {shutil.which('echo')}\n" in echo


def test_a_taken_port_is_avoided() -> None:
    """The preferred one if it is free, else any other."""
    taken = free_port(0)
    assert free_port(taken) == taken
    with socket.create_server(("127.0.0.1", taken)):
        assert free_port(taken) != taken
