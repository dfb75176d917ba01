"""Which kinds of jobs are offered, and what is wrong with what they need."""

from pathlib import Path

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.runners import enabled_kinds, problems


def config(**runners: object) -> Config:
    """Give a configuration with these runners."""
    return Config.model_validate(
        {
            "node_id": "n",
            "coordinator": {"base_url": "http://127.0.0.1:1"},
            "runners": runners,
        }
    )


def test_a_kind_without_anything_to_run_is_not_offered() -> None:
    """Enabled is not enough: there has to be an allowlist or a task path."""
    assert enabled_kinds(config()) == ()
    assert enabled_kinds(config(cli={"allowlist_dir": "/x"})) == ("cli",)
    assert enabled_kinds(config(python={"task_paths": ["/x"]})) == ("python",)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A missing directory and a broken file each say what is wrong, all at once."""
    broken = tmp_path / "echo.yaml"
    broken.write_text("command: {}\n")
    broken.chmod(0o600)
    absent = tmp_path / "absent"
    found = problems(
        config(
            cli={"allowlist_files": [str(broken)], "allowlist_dir": str(absent)},
            python={"task_paths": [str(absent)]},
        )
    )
    assert found[0] == f"{absent}: No such file or directory"
    assert found[1].startswith(f"{broken}: ")
    assert found[2:] == (f"{absent}: no such directory of tasks",)


def test_runners_that_are_off_have_no_problems() -> None:
    """Nobody asks after the allowlist of a runner that takes no jobs."""
    off = {"enable": False, "allowlist_dir": "/absent"}
    assert problems(config(cli=off, python={"enable": False})) == ()
