"""Runs allowlisted commands: a name, checked arguments, no shell anywhere."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace

from aitbc_aps_miner.config.model import CliRunner as CliConfig
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ExitCause,
    ExitFacts,
    Manifest,
    PayloadLimits,
    Progress,
    Reservation,
)
from aitbc_aps_miner.ports import Watch, Workspace
from aitbc_aps_miner.runners.allowlist import Command
from aitbc_aps_miner.runners.allowlist_files import AllowlistReader
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.environment import check_environment, environment
from aitbc_aps_miner.runners.progress import (
    FfmpegProgress,
    ProgressSource,
    TextProgress,
)
from aitbc_aps_miner.runners.scene import payload_in


class CliRunner:
    """The runner of kind `cli`."""

    def __init__(
        self,
        config: CliConfig,
        containment: Containment,
        reader: AllowlistReader | None = None,
    ) -> None:
        self._config = config
        self._containment = containment
        self._reader = reader or AllowlistReader()

    def check(self, manifest: Manifest) -> None:
        """Raise JobError E_DENY for what the allowlist does not allow."""
        self._allowed(manifest)

    def run(
        self,
        manifest: Manifest,
        workspace: Workspace,
        reservation: Reservation,
        watch: Watch,
        on_progress: Callable[[Progress], None],
    ) -> ExitFacts:
        """Run the command to an empty process tree."""
        command = self._allowed(manifest)
        payload = payload_in(
            workspace,
            manifest,
            # The program sees the name that it has, not the one of the allowlist.
            argv=(str(command.path), *manifest.args),
            env=environment(manifest, workspace, reservation, dict(command.env)),
        )
        bounded = BoundedWatch(watch, command, time.monotonic)
        return self._containment.run(payload, bounded, on_progress, _source(command))

    def _allowed(self, manifest: Manifest) -> Command:
        allowlist = self._reader.read(
            self._config.allowlist_files, self._config.allowlist_dir
        )
        command = allowlist.command(manifest.command)
        command.check(manifest.args)
        check_environment(manifest, dict(command.env))
        if not command.path.is_file() or not os.access(command.path, os.X_OK):
            raise JobError(
                ErrorCode.E_DENY,
                f"command {command.name} is allowed, but {command.path} is no program "
                "on this machine",
            )
        return command


class BoundedWatch:
    """A job's watch with the tighter limits of its command."""

    def __init__(
        self, watch: Watch, command: Command, monotonic: Callable[[], float]
    ) -> None:
        self._watch = watch
        self._output_mb = command.max_output_mb
        self._monotonic = monotonic
        runtime_s = command.max_runtime_s
        self._end = float("inf") if runtime_s is None else monotonic() + runtime_s

    def remaining_s(self) -> float:
        """Give the seconds left of the job's limit or the command's."""
        return min(self._watch.remaining_s(), self._end - self._monotonic())

    def stop_cause(self) -> ExitCause | None:
        """Say why the job has to stop, if it has to."""
        cause = self._watch.stop_cause()
        if cause is None and self.remaining_s() <= 0:
            return ExitCause.DEADLINE
        return cause

    def limits(self) -> PayloadLimits:
        """Give the limits in force now; the smaller of two for the output."""
        limits = self._watch.limits()
        caps = [cap for cap in (limits.output_mb, self._output_mb) if cap is not None]
        return replace(limits, output_mb=min(caps, default=None))

    def check(self) -> None:
        """Raise JobError when the job has to stop."""
        self._watch.check()


def _source(command: Command) -> ProgressSource:
    if (command.progress or command.path.name) == "ffmpeg":
        return FfmpegProgress()
    if command.progress is None:
        return TextProgress()
    return TextProgress(re.compile(command.progress.encode()))
