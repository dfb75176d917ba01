"""One fresh process and one hard deadline for every scheduler job."""

from aitbc_aps_miner.executor.executor import OverlapFilter, ProcessExecutor
from aitbc_aps_miner.executor.task import (
    Isolated,
    PoolSettings,
    RunningTask,
    TaskEnd,
    TaskFailedError,
    TaskOutcome,
    ZygoteSettings,
)

__all__ = [
    "Isolated",
    "OverlapFilter",
    "PoolSettings",
    "ProcessExecutor",
    "RunningTask",
    "TaskEnd",
    "TaskFailedError",
    "TaskOutcome",
    "ZygoteSettings",
]
