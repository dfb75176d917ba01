"""A watch, a workspace and short ways to run programs, for the tests of the runners."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aitbc_aps_miner.models import (
    ArtifactFile,
    ExitCause,
    ExitFacts,
    JobState,
    Outcome,
    PayloadLimits,
)
from aitbc_aps_miner.runners.payload import Payload

PROGRAMS = Path(__file__).parent / "programs"
GRACE_S = 0.2


class FakeWatch:
    """A watch with a deadline, and whatever a test makes it say."""

    def __init__(self, timeout_s: float = 20, **limits: Any) -> None:
        self._end = time.monotonic() + timeout_s
        self.in_force = PayloadLimits(**{"grace_s": GRACE_S, "nice": 0, **limits})
        self.cause: Callable[[], ExitCause | None] = lambda: None

    def remaining_s(self) -> float:
        return self._end - time.monotonic()

    def stop_cause(self) -> ExitCause | None:
        cause = self.cause()
        if cause is None and self.remaining_s() <= 0:
            return ExitCause.DEADLINE
        return cause

    def limits(self) -> PayloadLimits:
        return self.in_force

    def change(self, **limits: Any) -> None:
        self.in_force = replace(self.in_force, **limits)

    def check(self) -> None:
        assert self.stop_cause() is None


@dataclass
class FakeWorkspace:
    """A job's directory without its records."""

    root: Path
    state: JobState = JobState.RUNNING
    calls: list[str] = field(default_factory=list)

    @property
    def exec_log(self) -> Path:
        return self.root / "logs" / "exec.log"

    def timings(self) -> dict[str, float]:
        return {}

    def enter(self, state: JobState, **facts: Any) -> None:
        self.calls.append(state)

    def mark_spawn(self, **facts: Any) -> None:
        self.calls.append("spawn")

    def record(self, outcome: Outcome) -> None:
        self.calls.append("record")

    def mark_delivered(self, outcome: Outcome) -> None:
        self.calls.append("delivered")

    def mark_dropped(self, outcome: Outcome, reason: str) -> None:
        self.calls.append(reason)

    def forget(self) -> None:
        self.calls.append("forget")

    def artifact_path(self, artifact: ArtifactFile) -> Path:
        return self.root / artifact.stored

    def close(self) -> None:
        self.calls.append("close")


def program(directory: Path, name: str, *args: str, **more: Any) -> Payload:
    """Describe a run of one of the misbehaving programs, in `directory`."""
    return Payload(
        argv=(sys.executable, "-I", "-S", str(PROGRAMS / f"{name}.py"), *args),
        cwd=directory,
        logs=directory,
        **{"env": {}, **more},
    )


def essence(facts: ExitFacts) -> tuple[ExitCause, int | None, int | None, bool]:
    """Give what decides about an outcome."""
    return facts.cause, facts.exit_code, facts.signal, facts.tree_empty
