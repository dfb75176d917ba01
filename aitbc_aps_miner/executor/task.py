"""The nouns of the executor: what is to run, how it ended, what is running."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from aitbc_aps_miner import zygote_child
from aitbc_aps_miner.errors import MinerError


@dataclass(frozen=True, kw_only=True)
class ZygoteSettings:
    """What a zygote is made of."""

    preload: tuple[str, ...] = ("aitbc_aps_miner.tasks", "aitbc_aps_miner.job")
    """Modules imported before the first fork."""
    warm: str = ""
    """`module:function` called before the first fork: builds the SSL context."""
    rehearse: str = ""
    """`module:function` called in each spare before it idles: it copies the pages
    that a tick is going to write to."""
    python: str = sys.executable
    environ: Mapping[str, str] | None = None
    """None means the daemon's own."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How processes are kept."""

    zygote: ZygoteSettings = field(default_factory=ZygoteSettings)
    spares: int = 2
    """Processes that wait ready."""
    spare_timeout_s: float = 5
    """A zygote that needs longer for a spare is mute, and replaced."""
    start_timeout_s: float = 30
    """The same for its imports; also how long a task waits for a process."""
    use_cgroups: bool = True
    """False: kill by walking trees, as where cgroup v2 can't be used."""


class TaskEnd(StrEnum):
    """How a task ended: six things that stay six."""

    RETURNED = "returned"
    """The function returned; its value is JSON-able."""
    RAISED = "raised"
    """The function raised, or returned what JSON can't say."""
    DIED = "died"
    """The process ended without a word: killed, crashed, or left by os._exit."""
    TIMED_OUT = "timed_out"
    """The deadline ended it, with everything it had started."""
    GARBLED = "garbled"
    """The process wrote what is no frame."""
    REFUSED = "refused"
    """It never started."""


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """How one task ended, with the evidence."""

    end: TaskEnd
    value: Any = None
    message: str = ""
    type: str = ""
    """Class name of the exception, with RAISED."""
    traceback: str = ""
    """The child's own: of the exception, of the hang, or of the crash."""
    exit_code: int | None = None
    signal: int | None = None
    duration_s: float = 0.0
    """From the hand-over to a process until the end was known."""

    def lasting(self, duration_s: float) -> "TaskOutcome":
        """Give the same outcome with its duration."""
        return replace(self, duration_s=duration_s)

    def unwrap(self) -> Any:
        """Give the value. Raises TaskFailedError when there is none."""
        if self.end is not TaskEnd.RETURNED:
            raise TaskFailedError(self)
        return self.value


OnEnd = Callable[[TaskOutcome], None]


def refused(why: str) -> TaskOutcome:
    """Describe a task that never started."""
    return TaskOutcome(end=TaskEnd.REFUSED, message=why)


def told(frame: Mapping[str, Any]) -> TaskOutcome:
    """Read the last frame of a child: `result` or `raised`."""
    if frame["kind"] == "result":
        return TaskOutcome(end=TaskEnd.RETURNED, value=frame["value"])
    return TaskOutcome(
        end=TaskEnd.RAISED,
        message=str(frame["message"]),
        type=str(frame["type"]),
        traceback=str(frame["traceback"]),
    )


class TaskFailedError(MinerError):
    """A task ended without a value; `outcome` says everything about it."""

    def __init__(self, outcome: TaskOutcome) -> None:
        super().__init__(f"{outcome.end}: {outcome.message}")
        self.outcome = outcome


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """A function to run in a process of its own; the `func` of a scheduler job.

    The function gets a channel to the daemon, `kwargs`, and what the executor's
    `prepare` adds; it returns something JSON-able.
    """

    ref: str
    """`package.module:name`, importable in the zygote."""
    deadline_s: float | None = None
    """From the hand-over until everything it started is killed; None: no limit."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, channel: Any = None, **extra: Any) -> Any:
        """Run it here and now, without process and deadline: for debugging."""
        function = zygote_child.resolve(self.ref)
        return function(channel, **self.kwargs, **extra)


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task that is in a process now."""

    job_id: str
    pid: int
    started_at_monotonic: float
    deadline_at_monotonic: float | None
    cgroup: Path | None
    detached: bool


@dataclass(kw_only=True, eq=False)
class Task:
    """One submission on its way through the pool; guarded by the pool's lock."""

    job_id: str
    deadline_s: float | None
    on_end: OnEnd
    """Called once, from the pool's thread or the launching one."""
    started_at: float = 0.0
    due_at: float | None = None
    is_sending: bool = False
    """While its frame is being written, only the writer decides about its end."""


class Log(Protocol):
    """The part of a structlog logger that is used here."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log what people may want to know."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Log what people should look at."""
        ...


OnMessage = Callable[[str, str, Any], Any]
"""(job id, name, payload) of a child's message; the result answers an ask, a
concurrent.futures.Future answers it later."""
