"""Runs `tasks.<name>:run(**params)` in an interpreter of its own.

Only modules below the owner's task paths; parameters travel on standard input, never
as arguments. What happens inside the interpreter is in python_child.py.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aitbc_aps_miner.config.model import PythonRunner as PythonConfig
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ExitCause,
    ExitFacts,
    Manifest,
    Progress,
    Reservation,
)
from aitbc_aps_miner.ports import Watch, Workspace
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.environment import check_environment, environment
from aitbc_aps_miner.runners.progress import FileProgress
from aitbc_aps_miner.runners.scene import payload_in
from aitbc_aps_miner.util import fs
from aitbc_aps_miner.util.log_value import Scrubber

CHILD = Path(__file__).with_name("python_child.py")
RESULT_FILE = "result.json"
RESULT_MAX_BYTES = 16 << 20
PARAMS_MAX_BYTES = 16 << 20
_REPORT_FILE = ".task.json"
_PROGRESS_FILE = ".progress.json"
_REPORT_MAX_BYTES = 1 << 20
_PART = r"(?!__)[a-z_][a-z0-9_]{0,63}"
_TASK = re.compile(rf"(?:tasks\.)?(?P<name>{_PART}(?:\.{_PART}){{0,7}})(?::run)?")
# Isolated from PYTHON* and the user's site, unbuffered for a live log, no .pyc files
# in the owner's directories, a traceback also when it crashes.
_INTERPRETER_FLAGS = ("-I", "-u", "-B", "-X", "faulthandler")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that is there."""

    module: str
    path: Path
    """The task path that holds it."""
    package: Path | None
    """The directory that is to be the package `tasks`, where it isn't named so."""


class PythonRunner:
    """The runner of kind `python`."""

    def __init__(self, config: PythonConfig, containment: Containment) -> None:
        self._config = config
        self._containment = containment

    def check(self, manifest: Manifest) -> None:
        """Raise JobError for a task that is not there or must not be run."""
        self._find(manifest.task)
        check_environment(manifest)
        _params_text(manifest)
        interpreter = self._interpreter()
        if not os.access(interpreter, os.X_OK):
            raise JobError(
                ErrorCode.E_DENY, f"no interpreter for tasks here: {interpreter}"
            )

    def run(
        self,
        manifest: Manifest,
        workspace: Workspace,
        reservation: Reservation,
        watch: Watch,
        on_progress: Callable[[Progress], None],
    ) -> ExitFacts:
        """Run the task to an empty process tree.

        Raises JobError E_MANIFEST when the parameters don't fit the function.
        """
        task = self._find(manifest.task)
        work = workspace.root / "work"
        progress, report = work / _PROGRESS_FILE, work / _REPORT_FILE
        payload = payload_in(
            workspace,
            manifest,
            argv=(str(self._interpreter()), *_INTERPRETER_FLAGS, str(CHILD)),
            env=environment(manifest, workspace, reservation),
            stdin=self._orders(task, manifest, workspace.root / "output", work),
        )
        for leftover in (progress, report):
            leftover.unlink(missing_ok=True)
        source = FileProgress(progress)
        facts = self._containment.run(payload, watch, on_progress, source)
        return _with_report(facts, report, Scrubber(manifest.secrets.values()))

    def _interpreter(self) -> Path:
        if self._config.venv is None:
            return Path(sys.executable)
        return self._config.venv / "bin" / "python"

    def _orders(self, task: Task, manifest: Manifest, output: Path, work: Path) -> str:
        others = (path for path in self._config.task_paths if path != task.path)
        orders = {
            "module": task.module,
            "package": None if task.package is None else str(task.package),
            "paths": [str(path) for path in (task.path, *others)],
            "result": str(output / RESULT_FILE),
            "result_max_bytes": RESULT_MAX_BYTES,
            "report": str(work / _REPORT_FILE),
            "progress": str(work / _PROGRESS_FILE),
        }
        return f'{json.dumps(orders)[:-1]}, "params": {_params_text(manifest)}}}'

    def _find(self, task: str | None) -> Task:
        """Find the task below the task paths. Raises JobError E_DENY."""
        match = _TASK.fullmatch(task or "")
        if match is None:
            raise JobError(
                ErrorCode.E_DENY,
                f"task {(task or '')[:80]!r} is not of the form tasks.<name>:run",
            )
        parts = match["name"].split(".")
        for path in self._config.task_paths:
            package = path / "tasks"
            directory = package if package.is_dir() else path
            base = directory.joinpath(*parts)
            if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
                return Task(
                    module=f"tasks.{match['name']}",
                    path=path,
                    package=None if directory is package else path,
                )
        raise JobError(
            ErrorCode.E_DENY, f"task tasks.{match['name']} is not among this node's"
        )


def _params_text(manifest: Manifest) -> str:
    """Give the parameters as JSON. Raises JobError E_MANIFEST."""
    try:
        text = json.dumps(dict(manifest.params), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(ErrorCode.E_MANIFEST, f"params are no JSON: {error}") from error
    if len(text) > PARAMS_MAX_BYTES:
        raise JobError(
            ErrorCode.E_MANIFEST,
            f"params take {len(text)} bytes; {PARAMS_MAX_BYTES} are allowed",
        )
    return text


def _with_report(facts: ExitFacts, report_path: Path, scrubber: Scrubber) -> ExitFacts:
    """Add what the interpreter says of the task; its word counts less than the facts.

    Raises JobError E_MANIFEST when it refused to call the function.
    """
    report = _read_report(report_path)
    if report.get("ok") is True or facts.cause is not ExitCause.EXITED:
        return facts
    if isinstance(report.get("refused"), str):
        raise JobError(ErrorCode.E_MANIFEST, scrubber.scrub(report["refused"]))
    error = report.get("error")
    if isinstance(error, dict):
        words = {key: scrubber.scrub(str(text)) for key, text in error.items()}
        return replace(facts, error=words)
    if facts.exit_code == 0:
        message = "the interpreter ended before the task returned"
        return replace(facts, error={"type": "NoResult", "message": message})
    return facts


def _read_report(path: Path) -> Mapping[str, Any]:
    try:
        report = fs.read_json(path, max_bytes=_REPORT_MAX_BYTES)
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
