"""The daemon: puts the parts together, waits for signals, ends as it was asked to.

leave   stop pulling and go; running jobs go on, the next daemon adopts them
drain   stop pulling, give running jobs `drain_s`, then stop and report them
now     a second signal: whatever still runs is the next daemon's to settle
"""

import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED

from aitbc_aps_miner.briefing import Briefing
from aitbc_aps_miner.callbacks import Callbacks
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.config.load import config_warnings
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.source import ConfigSource
from aitbc_aps_miner.executor import (
    Isolated,
    OverlapFilter,
    PoolSettings,
    ProcessExecutor,
    ZygoteSettings,
)
from aitbc_aps_miner.health import health_view
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.reload import Reload
from aitbc_aps_miner.roots import Roots
from aitbc_aps_miner.scheduler import Scheduler
from aitbc_aps_miner.status.metrics import Metrics
from aitbc_aps_miner.status.server import StatusServer
from aitbc_aps_miner.status.view import HealthView
from aitbc_aps_miner.tokens import TokenBroker, place_of
from aitbc_aps_miner.util import log, proc
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.world import tls_environ

# Everything that a child may need, imported once.
PRELOAD = tuple(f"aitbc_aps_miner.{name}" for name in ("tasks", "sweep", "job"))

ZYGOTE = ZygoteSettings(
    preload=PRELOAD,
    warm="aitbc_aps_miner.rehearsal:warm",
    rehearse="aitbc_aps_miner.rehearsal:rehearse",
)

# The first heartbeat waits for the first probe, but not for a probe that hangs.
FIRST_HEARTBEAT_S = 2.0

# After drain_s: the payloads' grace, their outcomes and one try to deliver each.
STOP_SLACK_S = 15.0

_log = log.get_logger()


class Daemon:
    """One daemon on one configuration file."""

    def __init__(self, source: ConfigSource, roots: Roots) -> None:
        config = source.current.config
        self._source = source
        self._roots = roots
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._asked: list[str] = []
        # Not an Event: its lock is not reentrant, and a signal handler that sets it
        # while the main thread is inside it would wait for itself for ever.
        self._wake: SimpleQueue[None] = SimpleQueue()
        node = Node(
            clock=self._clock,
            cpu_slots=config.resources.max_concurrent_cpu,
            gpu_slots=config.resources.max_concurrent_gpu,
        )
        os.environ.update(tls_environ(config.coordinator))
        # Seeded by the system: nodes started together must not act in step.
        rng = random.Random()  # noqa: S311  jitter, not cryptography
        self._metrics = Metrics(self._view)
        executor = ProcessExecutor(
            prepare=self._prepare,
            on_message=self._hear,
            settings=PoolSettings(zygote=ZYGOTE),
            clock=self._clock,
            log=log.get_logger(),
        )
        self._parts = Parts(
            node=node,
            scheduler=Scheduler(executor, rng),
            executor=executor,
            source=source,
            tokens=TokenBroker(
                self._register,
                self._clock,
                place=lambda: place_of(source.current.config),
            ),
            metrics=self._metrics,
            clock=self._clock,
            rng=rng,
        )
        self._callbacks = Callbacks(self._parts, on_slot_freed=self._nudge)
        self._briefing = Briefing(self._parts, self._callbacks, roots.all)
        self._status = StatusServer(self._view, self._metrics)
        self._reload = Reload(
            self._parts,
            self._callbacks,
            rebind=self._rebind,
            keep_root=lambda now: roots.keep(now.workspace.root),
        )

    def run(self) -> None:
        """Work until a signal ends it. Call from the main thread."""
        proc.hide_memory()
        self._take_signals()
        config = self._source.current.config
        _log.info(
            "daemon.started",
            pid=os.getpid(),
            config=str(self._source.path),
            coordinator=config.coordinator.base_url,
            workspace=str(config.workspace.root),
        )
        for words in config_warnings(config):
            _log.warning("config.warning", words=words)
        self._rebind(config.status.listen)
        self._start_ticks(config)
        self._reload.start()
        while not self._asked:
            self._wake.get()
        self._end()

    def _start_ticks(self, config: Config) -> None:
        logging.getLogger("apscheduler.scheduler").addFilter(OverlapFilter())
        scheduler = self._parts.scheduler
        scheduler.listen(self._callbacks.on_event, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        self._callbacks.owner_decided(config)
        scheduler.add_tick("heartbeat", config, FIRST_HEARTBEAT_S)
        scheduler.add_tick("probe", config, 0)
        scheduler.add_tick("sweep", config, 0)
        scheduler.add_tick("pull", config, None)
        scheduler.start()

    # Ending

    def _take_signals(self) -> None:
        def on_signal(number: int, _: FrameType | None) -> None:
            self._asked.append(signal.Signals(number).name)
            self._nudge()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        if os.getpid() == 1:
            # A container without an init: whatever lost its parent ends up here.
            signal.signal(signal.SIGCHLD, _reap)

    def _nudge(self) -> None:
        self._wake.put(None)

    def _end(self) -> None:
        drains = self._drains()
        node = self._parts.node
        node.draining = True
        node.close("draining", "the daemon was asked to end", "start it again")
        _log.info(
            "daemon.ending",
            signal=self._asked[0],
            how="drain" if drains else "leave",
            running=len(node.jobs()),
        )
        self._callbacks.pulls.stop()
        if drains and node.jobs():
            self._drain()
        self._reload.stop()
        self._callbacks.end()
        self._parts.scheduler.stop()
        self._parts.executor.shutdown(wait=False)
        self._status.stop()
        _log.info("daemon.ended", running=len(node.jobs()))

    def _drains(self) -> bool:
        """Whether running jobs get time, or live on without us."""
        wish = self._source.current.config.daemon.on_sigterm
        if self._asked[0] == "SIGINT" or wish == "drain":
            return True
        # As PID 1 the whole container ends with us; at a terminal a person waits.
        # There is no stdin where the program was started with it closed.
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        return wish == "auto" and (os.getpid() == 1 or is_terminal)

    def _drain(self) -> None:
        node, config = self._parts.node, self._source.current.config
        self._callbacks.request_heartbeat()
        if self._wait_until_idle(config.daemon.drain_s) or len(self._asked) > 1:
            return  # at a second signal what runs is the next daemon's to settle
        for job in node.jobs():
            self._callbacks.jobs.control(job.job_id, {"drain": True})
        self._wait_until_idle(config.resources.grace_s + STOP_SLACK_S)

    def _wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no job holds a slot; False on time-out or a second signal."""
        deadline = self._clock.monotonic() + timeout_s
        while self._parts.node.jobs():
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0 or len(self._asked) > 1:
                return False
            with contextlib.suppress(Empty):
                self._wake.get(timeout=left_s)
        return True

    # The executor is made before those who use it

    def _prepare(self, job_id: str, call: Isolated) -> Mapping[str, Any]:
        return self._briefing(job_id, call)

    def _hear(self, job_id: str, kind: str, payload: Any) -> Any:
        return self._callbacks.on_message(job_id, kind, payload)

    def _register(self) -> None:
        self._callbacks.start_registration()

    # What others see

    def _rebind(self, listen: str) -> None:
        problem = self._status.rebind(listen)
        if problem:
            _log.error("status.unbound", listen=listen, problem=problem)

    def _view(self) -> HealthView:
        return health_view(self._parts, uptime_s=self._clock.monotonic() - self._began)


def _reap(_number: int, _frame: FrameType | None) -> None:
    """Bury every child that has ended; subprocess copes with one of its own missing."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
