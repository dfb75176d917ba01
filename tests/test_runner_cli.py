"""cli.py and environment.py: allowlisted commands as jobs of a workspace."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from runner_fakes import FakeWatch, FakeWorkspace, essence

from aitbc_aps_miner import runners
from aitbc_aps_miner.config.model import CliRunner as CliConfig
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ArtifactSpec,
    ExitCause,
    Manifest,
    PayloadLimits,
    Progress,
    Reservation,
)
from aitbc_aps_miner.runners.allowlist import Command
from aitbc_aps_miner.runners.allowlist_files import AllowlistReader
from aitbc_aps_miner.runners.cli import BoundedWatch, CliRunner
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.environment import environment
from aitbc_aps_miner.util import proc

CPU = Reservation(kind="cpu", cpu_threads=3)
PROGRAM = '[command]\npath = "/bin/sh"\n'


def _manifest(**fields: Any) -> Manifest:
    return Manifest(**{"job_id": "job-1", "runner": "cli", "timeout_s": 9, **fields})


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[CliRunner]:
    """Allow what tests put into a directory of allowlists."""
    (tmp_path / "allowed").mkdir()
    config = CliConfig(allowlist_dir=tmp_path / "allowed")
    with Containment(prepare=True) as containment:
        yield CliRunner(config, containment, AllowlistReader(settle_s=0))


@pytest.fixture
def workspace(tmp_path: Path) -> FakeWorkspace:
    """Make an empty directory of a job."""
    (tmp_path / "job").mkdir()
    return FakeWorkspace(tmp_path / "job")


def _allow(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "allowed" / name
    path.write_text(text)
    path.chmod(0o600)


def _script(tmp_path: Path, script: str, more: str = "") -> None:
    """Allow a command `tool` that is a shell script."""
    file = tmp_path / "tool"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o700)
    _allow(
        tmp_path, "tool.toml", f'args = [[".*"]]\n{more}\n[command]\npath = "{file}"\n'
    )


def test_a_command_runs_in_work_with_an_environment_from_nothing(
    tmp_path: Path, runner: CliRunner, workspace: FakeWorkspace
) -> None:
    """No shell sees its arguments; the owner's variables and the job's are there."""
    _script(tmp_path, 'echo "$1"; pwd; env >&2', 'env = {OWNER = "yes"}')
    manifest = _manifest(
        command="tool",
        args=("$(touch x); `ls` *",),
        env={"MODE": "fast"},
        secrets={"API_KEY": "very-secret"},
        artifacts=(ArtifactSpec(path="out.txt", type="text/plain; charset=utf-8"),),
    )
    runner.check(manifest)
    facts = runner.run(manifest, workspace, CPU, FakeWatch(), lambda _: None)
    assert essence(facts) == (ExitCause.EXITED, 0, None, True)
    work = workspace.root / "work"
    stdout = (workspace.root / "logs" / "stdout.bin").read_text()
    assert stdout == f"$(touch x); `ls` *\n{work}\n"
    log = workspace.exec_log.read_text()
    variables = dict(line.split("=", 1) for line in log.splitlines() if "=" in line)
    variables.pop("PWD")  # the shell's own
    assert variables == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work / ".tmp"),
        "LANG": "C.UTF-8",
        "AITBC_JOB_ID": "job-1",
        "AITBC_ATTEMPT": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "OMP_NUM_THREADS": "3",
        "OWNER": "yes",
        "MODE": "fast",
        "API_KEY": "***",
    }
    assert sorted(path.name for path in work.iterdir()) == [".tmp"]


def test_assigned_gpus_are_the_only_ones_to_be_seen(workspace: FakeWorkspace) -> None:
    """By UUID, for CUDA and for the container runtime."""
    reservation = Reservation(kind="gpu", gpu_uuids=("GPU-a", "GPU-b"))
    built = environment(_manifest(), workspace, reservation)
    assert built["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert built["NVIDIA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


@pytest.mark.parametrize(
    "variables",
    [
        {"PATH": "/tmp"},
        {"HOME": "/"},
        {"LD_PRELOAD": "x.so"},
        {"PYTHONPATH": "x"},
        {"BASH_ENV": "x"},
        {"FFREPORT": "file=/etc/x"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"AITBC_JOB_ID": "other"},
        {"OWNER": "no"},
        {"lower": "x"},
        {"A B": "x"},
        {"": "x"},
        {"A": "nul\0"},
        {"A": "x" * 70_000},
        {"A": "\ud800"},
    ],
)
@pytest.mark.parametrize("kind", ["env", "secrets"])
def test_a_job_may_not_set_every_variable(
    tmp_path: Path, runner: CliRunner, variables: Mapping[str, str], kind: str
) -> None:
    """Not ours, not the owner's, none that makes programs load code."""
    _script(tmp_path, "true", 'env = {OWNER = "yes"}')
    with pytest.raises(JobError, match="environment variable") as caught:
        runner.check(_manifest(command="tool", **{kind: variables}))
    assert caught.value.code is ErrorCode.E_DENY


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"command": "/bin/sh"}, "command '/bin/sh' is not allowed"),
        ({"command": "tool", "args": ("a", "\n")}, "argument 1 ('\\n')"),
        ({"command": "tool", "args": ("a",) * 10_000}, "10000 arguments"),
        ({"command": "absent"}, "/nonexistent is no program on this machine"),
        ({"command": "folder"}, "/usr is no program on this machine"),
    ],
)
def test_what_is_not_allowed_starts_no_process(
    tmp_path: Path,
    runner: CliRunner,
    workspace: FakeWorkspace,
    manifest: Mapping[str, Any],
    words: str,
) -> None:
    """`check` and `run` both refuse; the workspace stays as it was."""
    _script(tmp_path, "true")
    _allow(tmp_path, "absent.toml", '[command]\npath = "/nonexistent"')
    _allow(tmp_path, "folder.toml", '[command]\npath = "/usr"')
    refused = _manifest(**manifest)
    for attempt in (
        lambda: runner.check(refused),
        lambda: runner.run(refused, workspace, CPU, FakeWatch(), lambda _: None),
    ):
        with pytest.raises(JobError) as caught:
            attempt()
        assert caught.value.code is ErrorCode.E_DENY
        assert words in caught.value.message
    assert list(workspace.root.iterdir()) == []


def test_the_commands_own_limits_are_kept(
    tmp_path: Path, runner: CliRunner, workspace: FakeWorkspace
) -> None:
    """max_runtime_s ends a job that may have more time by its manifest."""
    _script(tmp_path, "exec sleep 60", "max_runtime_s = 0.2")
    facts = runner.run(
        _manifest(command="tool"), workspace, CPU, FakeWatch(), lambda _: None
    )
    assert facts.cause is ExitCause.DEADLINE
    # Counted from a moment before the start.
    assert 0.1 < facts.wall_s < 1.2


def test_too_much_output_ends_it(
    tmp_path: Path, runner: CliRunner, workspace: FakeWorkspace
) -> None:
    """max_output_mb counts work/ and output/ together."""
    script = "head -c 700000 /dev/zero | tee ../output/a > b; exec sleep 60"
    _script(tmp_path, script, "max_output_mb = 1")
    facts = runner.run(
        _manifest(command="tool"), workspace, CPU, FakeWatch(), lambda _: None
    )
    assert facts.cause is ExitCause.OUTPUT
    assert facts.detail["limit_mb"] == 1


@pytest.mark.parametrize(
    ("job_mb", "command_mb", "effective_mb"),
    [(None, None, None), (5, None, 5), (None, 3, 3), (5, 3, 3), (2, 3, 2)],
)
def test_the_smaller_limit_counts(
    job_mb: float | None, command_mb: float | None, effective_mb: float | None
) -> None:
    """Of the job's watch and of the command, live."""
    command = Command(
        name="x",
        path=Path("/x"),
        source=Path("/x"),
        max_output_mb=command_mb,
        max_runtime_s=5,
    )
    now = [100.0]
    watch = FakeWatch(50, output_mb=job_mb)
    bounded = BoundedWatch(watch, command, lambda: now[0])
    expected = PayloadLimits(
        **{**dataclasses.asdict(watch.in_force), "output_mb": effective_mb}
    )
    assert bounded.limits() == expected
    assert (bounded.remaining_s(), bounded.stop_cause()) == (5, None)
    bounded.check()
    now[0] = 105
    assert (bounded.remaining_s(), bounded.stop_cause()) == (0, ExitCause.DEADLINE)
    watch.cause = lambda: ExitCause.CANCELLED
    assert bounded.stop_cause() is ExitCause.CANCELLED


@pytest.mark.parametrize(
    ("progress", "script", "pct"),
    [
        (
            'progress = "ffmpeg"',
            "echo 'Duration: 00:00:50.00,'; echo 'time=00:00:20.5'",
            41,
        ),
        ("progress = 'step (?P<pct>[0-9]+)'", "echo 10%; echo step 33", 33),
        ("", "echo 10%; echo 12.5 %", 12.5),
    ],
)
def test_progress_is_read_as_the_owner_says(  # noqa: PLR0917 - fixtures and a table
    tmp_path: Path,
    runner: CliRunner,
    workspace: FakeWorkspace,
    progress: str,
    script: str,
    pct: float,
) -> None:
    """From ffmpeg's status line, by a pattern, or the last percentage there is."""
    _script(tmp_path, f"{script}; sleep 0.3", progress)
    heard: list[Progress] = []
    manifest = _manifest(command="tool")
    runner.run(manifest, workspace, CPU, FakeWatch(), heard.append)
    assert [each.pct for each in heard][-1] == pct


def _config(tmp_path: Path, **kinds: Any) -> Config:
    return Config.model_validate(
        {
            "node_id": "n1",
            "coordinator": {"base_url": "http://127.0.0.1:1/api/v1"},
            "workspace": {"root": str(tmp_path / "jobs")},
            "runners": kinds,
        }
    )


@pytest.mark.parametrize(
    ("kinds", "enabled"),
    [
        ({}, ()),
        ({"cli": {"allowlist_dir": "/a"}}, ("cli",)),
        ({"cli": {"allowlist_files": ["/a"], "enable": False}}, ()),
        (
            {"cli": {"allowlist_files": ["/a"]}, "python": {"task_paths": ["/t"]}},
            ("cli", "python"),
        ),
    ],
)
def test_only_kinds_that_can_run_something_are_built(
    tmp_path: Path, kinds: Mapping[str, Any], enabled: tuple[str, ...]
) -> None:
    """A kind without an allowlist or task path would refuse every job."""
    config = _config(tmp_path, **kinds)
    assert runners.enabled_kinds(config) == enabled
    before = proc.children(os.getpid())
    assert tuple(runners.build(config, None)) == enabled
    assert proc.children(os.getpid()) == before


def test_runners_share_what_was_prepared(
    tmp_path: Path, workspace: FakeWorkspace
) -> None:
    """The first run takes the waiting fork, a second one gets its own."""
    (tmp_path / "allowed").mkdir()
    _script(tmp_path, "echo $$")
    config = _config(tmp_path, cli={"allowlist_dir": str(tmp_path / "allowed")})
    manifest = _manifest(command="tool")
    before = set(proc.children(os.getpid()))
    with runners.Containment(prepare=True) as containment:
        (waiting,) = set(proc.children(os.getpid())) - before
        cli = runners.build(config, containment=containment)["cli"]
        for _ in range(2):
            facts = cli.run(manifest, workspace, CPU, FakeWatch(), lambda _: None)
            assert facts.exit_code == 0
    first, second = map(int, workspace.exec_log.read_text().split())
    assert (first == waiting, second == waiting) == (True, False)
