"""What every reaction works with; no behaviour of its own."""

import random
from dataclasses import dataclass

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.source import ConfigSource
from aitbc_aps_miner.executor import ProcessExecutor
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.scheduler import Scheduler
from aitbc_aps_miner.status.metrics import Metrics
from aitbc_aps_miner.tokens import TokenBroker


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one daemon that reactions use."""

    node: Node
    scheduler: Scheduler
    executor: ProcessExecutor
    source: ConfigSource
    tokens: TokenBroker
    metrics: Metrics
    clock: Clock
    rng: random.Random

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.source.current.config
