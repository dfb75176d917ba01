"""The command line: every command, every exit code, ticks by hand."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from tick_site import quiet_log

from aitbc_aps_miner import __version__, cli
from aitbc_aps_miner.cli import main
from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.roots import Roots


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a directory of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINER_AUTH", "demo-token")
    monkeypatch.setenv("COLUMNS", "200")
    with quiet_log():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[CoordinatorServer]:
    """Give one coordinator to the whole module."""
    with CoordinatorServer() as server:
        yield server


def write_config(base_url: str = "http://127.0.0.1:9/api/v1", more: str = "") -> str:
    """Write a configuration; give its name."""
    allow = Path("allow")
    allow.mkdir(exist_ok=True)
    (allow / "echo.yaml").write_text("command: {path: /bin/echo}\nargs: [['.*']]\n")
    os.utime(allow / "echo.yaml", (1e9, 1e9))
    root = Path.cwd() / "jobs"
    Path("miner.toml").write_text(
        f'node_id = "n1"\ncoordinator.base_url = "{base_url}"\n'
        f'workspace.root = "{root}"\nrunners.cli.allowlist_dir = "{allow.resolve()}"\n'
        f"pull.wait_s = 0\n{more}"
    )
    return "miner.toml"


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run a command line; give exit code, output, errors without colours."""
    code = main(args)
    told = capsys.readouterr()
    return code, told.out, re.sub(r"\x1b\[[0-9;]*m", "", told.err)


COMMANDS = (
    (),
    ("run",),
    ("probe",),
    ("tick",),
    ("init",),
    ("config",),
    ("config", "check"),
    ("config", "import"),
    ("config", "reference"),
    ("config", "example"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], flag: str
) -> None:
    """With its usage, successfully."""
    code, out, _ = run(capsys, *command, flag)
    assert code == ExitCode.OK
    assert "Usage: " + " ".join(["aitbc-aps-miner", *command]) in re.sub(
        r"\x1b\[[0-9;]*m", "", out
    )


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else."""
    assert run(capsys, "--version") == (0, f"aitbc-aps-miner {__version__}\n", "")


@pytest.mark.parametrize(
    "args",
    [
        ("no-such-command",),
        ("--no-such-flag",),
        ("run",),
        ("tick", "no-such-tick", "x.toml"),
        ("tick", "heartbeat"),
        ("run", "a.toml", "b.toml"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    """With a hint on standard error."""
    code, out, err = run(capsys, *args)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "for help" in err


@pytest.mark.parametrize("how", ["run", "shorthand", "tick", "probe"])
def test_a_configuration_that_can_not_be_used_is_told_whole(
    capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Every problem at once, with an exit code of its own."""
    path = write_config(more='heartbeat.interval_s = "soon"\nunknown_key = 1\n')
    args = {
        "run": ("run", path),
        "shorthand": (path,),
        "tick": ("tick", "probe", path),
        "probe": ("probe", path),
    }[how]
    code, out, err = run(capsys, *args)
    assert (code, out) == (ExitCode.CONFIG, "")
    assert "heartbeat.interval_s" in err
    assert "unknown_key" in err


def test_a_missing_configuration_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    code, _, err = run(capsys, "nowhere.toml")
    assert code == ExitCode.CONFIG
    assert "nowhere.toml: no such file" in err


def test_a_locked_workspace_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Another daemon is at work there."""
    path = write_config()
    roots = Roots(Path.cwd() / "jobs")
    assert roots.take()
    code, out, err = run(capsys, path)
    for fd in roots._locks.values():
        os.close(fd)
    assert (code, out) == (ExitCode.LOCKED, "")
    assert "another daemon holds" in err


def test_a_root_that_can_not_be_made_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what to do."""
    path = write_config()
    Path("jobs").write_text("in the way")
    code, _, err = run(capsys, "run", path)
    assert code == ExitCode.FAILURE
    assert "name a directory that this user may write" in err


def test_ctrl_c_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the midst of a command."""

    def interrupted(_value: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_pretty", interrupted)
    assert run(capsys, "probe")[0] == ExitCode.INTERRUPTED


@pytest.mark.parametrize("with_config", [False, True])
def test_the_capabilities_are_printed(
    capsys: pytest.CaptureFixture[str], *, with_config: bool
) -> None:
    """As JSON; nothing is written, also no key."""
    args = [write_config(more='tags = ["mine"]\n')] if with_config else []
    before = set(Path.cwd().rglob("*"))
    code, out, _ = run(capsys, "probe", *args)
    described = json.loads(out)
    assert code == ExitCode.OK
    assert described["node_id"] == ("n1" if with_config else os.uname().nodename)
    assert ("mine" in described["tags"]) == with_config
    assert described["runners"] == (["cli"] if with_config else [])
    assert described["public_key"] is None
    assert described["gpu_source"] in {"nvml", "nvidia-smi", "dcgm", "none"}
    assert set(Path.cwd().rglob("*")) == before


# Ticks by hand


def tick(capsys: pytest.CaptureFixture[str], name: str, base_url: str) -> Any:
    """Run a tick by hand; give its report."""
    code, out, _ = run(capsys, "tick", name, write_config(base_url))
    assert code == ExitCode.OK
    return json.loads(out)


def test_a_heartbeat_by_hand_registers_first(
    capsys: pytest.CaptureFixture[str], server: CoordinatorServer
) -> None:
    """There is no daemon to ask."""
    assert tick(capsys, "heartbeat", server.base_url)["known"] is True
    assert server.state.nodes["n1"].heartbeat is not None


def test_a_probe_by_hand_asks_no_coordinator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It works while that is away."""
    report = tick(capsys, "probe", "http://127.0.0.1:9/api/v1")
    assert report["host"]["cores"] >= 1


def test_a_pull_by_hand_shows_what_was_handed_out(
    capsys: pytest.CaptureFixture[str], server: CoordinatorServer
) -> None:
    """And refuses what can't be run; the log goes to standard error."""
    good = server.submit(echo_manifest())
    bad = server.submit({**echo_manifest(), "timeout_s": -1})
    code, out, err = run(capsys, "tick", "pull", write_config(server.base_url))
    report = json.loads(out)
    assert code == ExitCode.OK
    assert [job["job_id"] for job in report["accepted"]] == [good]
    assert [job["job_id"] for job in report["refused"]] == [bad]
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events.count("job.refused") == 1


def test_a_sweep_by_hand_looks_at_the_workspaces(
    capsys: pytest.CaptureFixture[str], server: CoordinatorServer
) -> None:
    """As a daemon does that starts."""
    report = tick(capsys, "sweep", server.base_url)
    assert (report["run"], report["unwritable"]) == ([], None)


def test_a_coordinator_that_is_away_has_its_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The report says why."""
    code, out, _ = run(capsys, "tick", "heartbeat", write_config())
    assert code == ExitCode.UNREACHABLE
    assert "refused" in json.loads(out)["error"]


def test_the_module_is_the_program() -> None:
    """`python -m aitbc_aps_miner` ends with the command's exit code."""
    program = [sys.executable, "-m", "aitbc_aps_miner"]
    done = subprocess.run([*program, "nowhere.toml"], capture_output=True, check=False)
    assert done.returncode == ExitCode.CONFIG
