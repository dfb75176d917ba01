"""Kind of job → what runs it. Payloads start and end here; nothing is judged."""

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.ports import Runner
from aitbc_aps_miner.runners.cli import CliRunner
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.python import PythonRunner
from aitbc_aps_miner.sandbox.cgroup import Cgroup

__all__ = ["build", "enabled_kinds"]


def enabled_kinds(config: Config) -> tuple[str, ...]:
    """Name the kinds that are switched on and have something that they may run."""
    cli, python = config.runners.cli, config.runners.python
    kinds = {
        "cli": cli.enable and bool(cli.allowlist_files or cli.allowlist_dir),
        "python": python.enable and bool(python.task_paths),
    }
    return tuple(kind for kind, enabled in kinds.items() if enabled)


def build(config: Config, payload_cgroup: Cgroup | None) -> dict[str, Runner]:
    """Make the runners of one job process, with a fork in waiting for its payload.

    Call it in the main thread while there is no other, so that the fork is safe, and
    after secrets are hidden from children; the fork ends with this process.
    """
    kinds = enabled_kinds(config)
    if not kinds:
        return {}
    containment = Containment(payload_cgroup, prepare=True)
    runners: dict[str, Runner] = {
        "cli": CliRunner(config.runners.cli, containment),
        "python": PythonRunner(config.runners.python, containment),
    }
    return {kind: runners[kind] for kind in kinds}
