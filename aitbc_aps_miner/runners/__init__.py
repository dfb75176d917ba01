"""Kind of job → what runs it. Payloads start and end here; nothing is judged."""

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.ports import Runner
from aitbc_aps_miner.runners.allowlist_files import AllowlistReader
from aitbc_aps_miner.runners.cli import CliRunner
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.python import PythonRunner
from aitbc_aps_miner.sandbox.cgroup import Cgroup

__all__ = ["Containment", "build", "enabled_kinds", "problems"]


def enabled_kinds(config: Config) -> tuple[str, ...]:
    """Name the kinds that are switched on and have something that they may run."""
    cli, python = config.runners.cli, config.runners.python
    kinds = {
        "cli": cli.enable and bool(cli.allowlist_files or cli.allowlist_dir),
        "python": python.enable and bool(python.task_paths),
    }
    return tuple(kind for kind, enabled in kinds.items() if enabled)


def problems(config: Config) -> tuple[str, ...]:
    """Say what of the owner's allowlists and task paths cannot be used."""
    cli, python = config.runners.cli, config.runners.python
    found: list[str] = []
    if cli.enable:
        found += AllowlistReader().read(cli.allowlist_files, cli.allowlist_dir).problems
    if python.enable:
        missing = (path for path in python.task_paths if not path.is_dir())
        found += (f"{path}: no such directory of tasks" for path in missing)
    return tuple(found)


def build(
    config: Config,
    payload_cgroup: Cgroup | None = None,
    *,
    containment: Containment | None = None,
) -> dict[str, Runner]:
    """Make the runners of the enabled kinds; nothing is forked before one runs.

    A job process gives a `containment` that it prepared, best before it has threads
    (`Containment(group, prepare=True)`, a context manager): the fork and the joining
    of groups, which can take 10 ms, are done by the time that the payload is due.
    """
    contained = containment or Containment(payload_cgroup)
    runners: dict[str, Runner] = {
        "cli": CliRunner(config.runners.cli, contained),
        "python": PythonRunner(config.runners.python, contained),
    }
    return {kind: runners[kind] for kind in enabled_kinds(config)}
