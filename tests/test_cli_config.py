"""The commands around a configuration: exit codes, words, files."""

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from aitbc_aps_miner.cli_config import config_app, default_root, init
from aitbc_aps_miner.config.keys import keys
from aitbc_aps_miner.config.load import load_file, load_text
from aitbc_aps_miner.config.reference import example_text, reference_markdown
from aitbc_aps_miner.exit_codes import ExitCode

DATA = Path(__file__).parent / "data" / "config"

app = typer.Typer()
app.add_typer(config_app)
app.command()(init)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of one's own, without a token around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINER_AUTH", raising=False)


def run(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, arguments)


def mode(path: Path | str) -> int:
    """Give a file's permissions."""
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_check_shows_what_a_config_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that differ from the defaults, the environment's included."""
    monkeypatch.setenv("AITBC_MINER__SWEEP__INTERVAL_S", "7")
    monkeypatch.setenv("MINER_AUTH", "s3cret")
    Path("c.toml").write_text(
        'node_id = "n1"\ncoordinator.base_url = "https://c.example"\n'
        'workspace.root = "/[red]"\nrunners.python.task_paths = ["/t"]\n'
        "runners.cli.enable = false\n"
    )
    result = run("config", "check", "c.toml")
    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == [
        "OK  c.toml",
        '    node_id = "n1"',
        '    coordinator.base_url = "https://c.example"',
        "    sweep.interval_s = 7",
        "    runners.cli.enable = false",
        '    runners.python.task_paths = ["/t"]',
        '    workspace.root = "/[red]"',
        f"    and {len(keys()) - 6} keys at their defaults",
    ]
    assert result.stderr == ""


def test_check_tells_every_problem() -> None:
    """On standard error, with an exit code of its own."""
    result = run("config", "check", str(DATA / "broken.toml"))
    assert (result.exit_code, result.stdout) == (ExitCode.CONFIG, "")
    told = [line.strip() for line in result.stderr.splitlines()[1:]]
    assert told == (DATA / "broken.problems.txt").read_text().splitlines()


def test_check_warns_of_a_token_that_is_not_there() -> None:
    """The daemon's environment may have it, so this is no error."""
    Path("c.toml").write_text(example_text())
    result = run("config", "check", "c.toml")
    assert result.exit_code == ExitCode.OK
    assert "the environment variable MINER_AUTH, which is not set" in result.stderr


def test_check_needs_a_path() -> None:
    """The command line is wrong without."""
    assert run("config", "check").exit_code == ExitCode.USAGE
    assert run("config", "check", "none.toml").exit_code == ExitCode.CONFIG


def test_import_writes_toml() -> None:
    """To standard output or to a file; notes go to standard error."""
    result = run("config", "import", str(DATA / "old.yaml"))
    assert result.exit_code == ExitCode.OK
    assert load_text(result.stdout, {}).resources.io_level == 6
    assert "note: logging.level: 'INFO' became 'info'" in result.stderr
    assert (
        run("config", "import", str(DATA / "old.yaml"), "-o", "n.toml").exit_code == 0
    )
    assert load_file("n.toml", {}).logging.path == Path("/var/log/aitbc/miner.jsonl")


def test_import_replaces_nothing_unasked() -> None:
    """With --force it does."""
    Path("n.toml").write_text("mine")
    command = ("config", "import", str(DATA / "old.yaml"), "-o", "n.toml")
    refused = run(*command)
    assert (refused.exit_code, Path("n.toml").read_text()) == (ExitCode.USAGE, "mine")
    assert (
        refused.stderr.splitlines()[-1] == "error: n.toml exists; --force replaces it"
    )
    assert run(*command, "--force").exit_code == ExitCode.OK
    assert load_file("n.toml", {}).heartbeat.interval_s == 15


def test_import_of_a_bad_file_writes_nothing() -> None:
    """Missing is a usage error, bad values are the configuration's."""
    Path("old.yaml").write_text("node_id: 1\ncoordinator: 2\n")
    assert run("config", "import", "none.yaml").exit_code == ExitCode.USAGE
    result = run("config", "import", "old.yaml", "-o", "new.toml")
    assert result.exit_code == ExitCode.CONFIG
    assert not Path("new.toml").exists()


def test_reference_and_example_are_printed() -> None:
    """As the README and config.toml.example hold them."""
    assert run("config", "reference").stdout == reference_markdown()
    assert run("config", "example").stdout == example_text()


def test_init_writes_a_valid_config_from_flags() -> None:
    """Paths become absolute: the daemon may be started from anywhere."""
    result = run(
        *("init", "--node-id", "n1", "--base-url", "https://c.example/v1"),
        *("--auth-token", "file:/run/token", "--workspace", "jobs"),
        *("--allowlist-dir", "allow", "--task-path", "t1", "--task-path", "/t2"),
    )
    assert result.exit_code == ExitCode.OK
    config = load_file("config.toml", {})
    here = Path.cwd()
    assert (
        config.node_id,
        config.coordinator.auth_token,
        config.workspace.root,
        config.runners.cli.allowlist_dir,
        config.runners.python.task_paths,
    ) == (
        "n1",
        "file:/run/token",
        here / "jobs",
        here / "allow",
        (here / "t1", Path("/t2")),
    )
    assert mode("config.toml") == 0o644
    assert not list(here.glob(".config*"))


def test_init_hides_a_literal_token() -> None:
    """The file is its owner's only."""
    result = run("init", "--base-url", "https://c.example", "--auth-token", "s3cret")
    assert (result.exit_code, mode("config.toml")) == (ExitCode.OK, 0o600)
    assert "s3cret" not in result.output


def test_init_replaces_nothing_unasked() -> None:
    """With --force it does, through a symlink too."""
    Path("real.toml").write_text("mine")
    Path("config.toml").symlink_to("real.toml")
    command = ("init", "--base-url", "https://c.example", "--node-id", "n2")
    assert run(*command).exit_code == ExitCode.USAGE
    assert Path("real.toml").read_text() == "mine"
    assert run(*command, "--force").exit_code == ExitCode.OK
    assert Path("config.toml").is_symlink()
    assert load_file("real.toml", {}).node_id == "n2"


def test_init_without_a_coordinator_is_a_usage_error() -> None:
    """There is no default for it; where nobody can be asked, it says so."""
    result = run("init", "--yes")
    assert (result.exit_code, Path("config.toml").exists()) == (ExitCode.USAGE, False)
    assert "--base-url" in result.stderr


def test_init_writes_nothing_that_would_not_load() -> None:
    """Bad flags are told like a bad file."""
    result = run("init", "--base-url", "c.example", "--node-id", "a b")
    assert (result.exit_code, Path("config.toml").exists()) == (ExitCode.CONFIG, False)
    assert "2 problem(s)" in result.stderr


def test_init_into_a_missing_directory_fails_with_words() -> None:
    """And with a code of its own."""
    result = run("init", "--base-url", "https://c.example", "-o", "none/c.toml")
    assert result.exit_code == ExitCode.FAILURE
    assert "no such file or directory" in result.stderr


def test_init_asks_on_a_terminal() -> None:
    """A bad answer is asked for again; Enter takes the default or nothing."""
    program = (
        "import typer; from aitbc_aps_miner.cli_config import init; typer.run(init)"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program, "--node-id", "n3"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
    ) as child:
        os.close(theirs)
        dialogue = [
            ("URL with the API prefix", "nonsense"),
            ("expected an http:// or https:// URL", "https://c.example/v1"),
            ("bootstrap token", ""),
            ("directory of all workspaces", "/jobs"),
            ("directory of such files", ""),
            ("directories that hold", "/tasks"),
        ]
        screen = ""
        for question, answer in dialogue:
            screen = read_until(ours, question)
            assert question in screen
            os.write(ours, answer.encode() + b"\n")
        screen = read_until(ours, "Start it with")
        assert child.wait(timeout=20) == 0
    os.close(ours)
    config = load_file("config.toml", {})
    assert (
        config.node_id,
        config.coordinator.base_url,
        config.coordinator.auth_token,
        config.workspace.root,
        config.runners.cli.allowlist_dir,
        config.runners.python.task_paths,
    ) == (
        "n3",
        "https://c.example/v1",
        "env:MINER_AUTH",
        Path("/jobs"),
        None,
        (Path("/tasks"),),
    )


def read_until(fd: int, words: str) -> str:
    """Read from a terminal until `words` appear, for at most 20 s."""
    screen = ""
    deadline = time.monotonic() + 20
    while words not in screen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.5)[0]:
            screen += re.sub(r"\s+", " ", os.read(fd, 4096).decode())
    return screen


def test_the_default_workspace_is_writable_for_whoever_asks() -> None:
    """The system's for root, one's own for others."""
    assert default_root(0, Path("/root")) == Path("/var/lib/aitbc/miner/jobs")
    assert default_root(1000, Path("/home/a")) == Path(
        "/home/a/.local/state/aitbc/miner/jobs"
    )
