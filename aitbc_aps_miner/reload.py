"""Applies an edited configuration to the running daemon, key by key.

A thread looks at the file when the source says so and listens for a wall clock that
was set. Ticks and jobs get new settings with their next start; here is what has to be
changed in what is already there.
"""

import os
import select
import threading
from collections.abc import Callable

from aitbc_aps_miner.callbacks import Callbacks
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.config.diff import difference
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.source import Snapshot
from aitbc_aps_miner.job import limits_of
from aitbc_aps_miner.util import log
from aitbc_aps_miner.util.clock import ClockStepWatch
from aitbc_aps_miner.watch import LIVE_LIMITS
from aitbc_aps_miner.world import tls_environ

# Smaller steps are what time daemons do all day; a tick a little late is no harm.
STEP_S = 2.0

_log = log.get_logger()


class Reload:
    """Watches the configuration and the wall clock until it is stopped."""

    def __init__(
        self,
        parts: Parts,
        callbacks: Callbacks,
        *,
        rebind: Callable[[str], None],
        keep_root: Callable[[Config], str | None],
    ) -> None:
        self._parts = parts
        self._callbacks = callbacks
        self._rebind = rebind
        self._keep_root = keep_root
        self._applied = parts.source.current
        self._ca_seen = _ca_mark(self._applied.config)
        self._step = ClockStepWatch(parts.clock)
        self._stop_fd, self._stopped_fd = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="reload", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; returns at once."""
        os.close(self._stopped_fd)

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select(
                [self._stop_fd, self._step.fileno()],
                [],
                [],
                self._parts.source.next_check_s(),
            )
            if self._stop_fd in ready:
                return
            try:
                self._keep_time()
                self._look()
                self._callbacks.deliveries.pump()
            except Exception:  # noqa: BLE001  else no edit would count again
                _log.exception("reload.failed")

    def _keep_time(self) -> None:
        step_s = self._step.step()
        if abs(step_s) > STEP_S:
            _log.warning("clock.stepped", step_s=round(step_s, 3))
            self._parts.scheduler.shift(step_s)

    def _look(self) -> None:
        snapshot = self._parts.source.check()
        before, self._applied = self._applied, snapshot
        if snapshot.problems != before.problems:
            self._say_problems(snapshot)
        # Each time: a root may be free later, or be removed with its lock at any time.
        problem = self._keep_root(snapshot.config)
        self._callbacks.moved_root(snapshot.config, problem)
        if snapshot.generation != before.generation:
            self._apply(before.config, snapshot.config)
        ca_mark = _ca_mark(snapshot.config)
        if ca_mark != self._ca_seen:
            self._ca_seen = ca_mark
            self._renew_tls(snapshot.config, "the CA file or TLS settings changed")

    def _say_problems(self, snapshot: Snapshot) -> None:
        for problem in snapshot.problems:
            _log.error("config.problem", problem=str(problem))
        if snapshot.problems:
            _log.error(
                "config.kept", words="the last good configuration stays in force"
            )
        else:
            _log.info("config.good_again")

    def _apply(self, old: Config, new: Config) -> None:
        changes = difference(old, new)
        for change in changes:
            _log.info("config.changed", key=change.key, old=change.old, new=change.new)
        for step in (
            self._log_anew,
            self._resize,
            self._move,
            self._introduce,
            self._listen_anew,
            self._retime,
            self._renew_limits,
        ):
            try:
                step(old, new)
            except Exception:  # noqa: BLE001  one key must not keep the others out
                _log.exception("reload.step_failed", step=step.__name__)
        self._callbacks.owner_decided(new)
        self._callbacks.pulls.request()
        self._callbacks.jobs.hook(
            "on_config_changed", {"keys": [change.key for change in changes]}
        )

    def _log_anew(self, _old: Config, new: Config) -> None:
        log.reconfigure(new.logging, new.node_id)

    def _resize(self, _old: Config, new: Config) -> None:
        node = self._parts.node
        node.cpu_slots = new.resources.max_concurrent_cpu
        node.gpu_slots = new.resources.max_concurrent_gpu

    def _move(self, old: Config, new: Config) -> None:
        if new.workspace.root != old.workspace.root:
            self._callbacks.pulls.renew("new jobs go to another workspace")

    def _introduce(self, old: Config, new: Config) -> None:
        """Register where the node is unknown, or known as another."""
        node = self._parts.node
        if _who(new) != _who(old):
            # Another coordinator, or another name at it: this token is not for it.
            self._parts.tokens.reset()
            node.registered, node.heartbeats_offered = False, True
            node.heartbeat_floor_s = 0
            self._parts.scheduler.run_in("heartbeat", 0)
            self._callbacks.pulls.renew("another coordinator is asked now")
        elif _described(new) != _described(old):
            self._callbacks.start_registration()
            self._callbacks.pulls.renew("other jobs are asked for now")

    def _listen_anew(self, old: Config, new: Config) -> None:
        if new.status.listen != old.status.listen:
            self._rebind(new.status.listen)

    def _retime(self, old: Config, new: Config) -> None:
        self._parts.scheduler.retime(new, old, self._parts.node.heartbeat_floor_s)

    def _renew_limits(self, old: Config, new: Config) -> None:
        """Tell running jobs what they may use from now on."""
        limits, before = limits_of(new), limits_of(old)
        if limits == before:
            return
        orders = {"limits": {key: getattr(limits, key) for key in LIVE_LIMITS}}
        for job in self._parts.node.jobs():
            self._callbacks.jobs.control(job.job_id, orders)

    def _renew_tls(self, config: Config, reason: str) -> None:
        os.environ.update(tls_environ(config.coordinator))
        self._parts.executor.new_generation(reason)


def _who(config: Config) -> tuple[str, str, str, str]:
    section = config.coordinator
    return section.api, section.base_url, section.auth_token, config.node_id


def _described(config: Config) -> tuple[object, ...]:
    """Give what a registration tells of the configuration."""
    slots = config.resources.max_concurrent_cpu, config.resources.max_concurrent_gpu
    return config.tags, config.runners, slots, config.identity_path


def _ca_mark(config: Config) -> tuple[object, ...]:
    """Name the TLS settings, and the very content of the CA file by its stat."""
    section = config.coordinator
    mark: tuple[object, ...] = (section.tls_verify, section.ca_file)
    if section.ca_file is not None:
        try:
            found = section.ca_file.stat()
        except OSError as error:
            return (*mark, error.errno)
        mark += (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return mark
