"""What each child is told when it starts: one consistent snapshot, nothing else.

Called on the executor's feeder thread right before a task is handed over; looks at the
configuration file first (one stat), so that every tick runs on the newest settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from aitbc_aps_miner.callbacks import Callbacks
from aitbc_aps_miner.callbacks.parts import Parts
from aitbc_aps_miner.executor import Isolated
from aitbc_aps_miner.tokens import place_of
from aitbc_aps_miner.world import origin_of


class Briefing:
    """The executor's `prepare`."""

    def __init__(
        self, parts: Parts, callbacks: Callbacks, roots: Callable[[], list[str]]
    ) -> None:
        self._parts = parts
        self._callbacks = callbacks
        self._roots = roots
        self._more: Mapping[str, Callable[[], Mapping[str, Any]]] = {
            "heartbeat": self._heartbeat,
            "register": self._machine,
            "pull": self._pull,
            "sweep": self._sweep,
            "deliver": self._deliver,
            "job": self._access,
            "refuse": self._access,
        }

    def __call__(self, job_id: str, _call: Isolated) -> Mapping[str, Any]:
        """Give the keyword arguments of one task beside its own."""
        name = job_id.partition(":")[0]
        if name == "hook":
            return {}  # other people's code gets its event and nothing of ours
        self._callbacks.started(job_id)
        snapshot = self._parts.source.check()
        more = self._more.get(name)
        told: dict[str, Any] = {"config": snapshot.json, **(more() if more else {})}
        if "token" in told:
            # Of this very snapshot's coordinator: an edit may be a moment old.
            place = place_of(snapshot.config)
            told["token"] = self._parts.tokens.token_for(place)
        return told

    def _access(self) -> Mapping[str, Any]:
        return {"token": None, "extensions": self._parts.tokens.extensions}

    def _machine(self) -> Mapping[str, Any]:
        node = self._parts.node
        return {"host": dict(node.host), "gpus": [asdict(gpu) for gpu in node.gpus]}

    def _heartbeat(self) -> Mapping[str, Any]:
        node, here = self._parts.node, origin_of(self._parts.config)
        capacity = node.capacity()
        return {
            **self._access(),
            **self._machine(),
            "digest": self._parts.source.current.digest,
            # A coordinator that is told of jobs which it gave to another name, or
            # never gave, asks for their end.
            "running": [
                job.job_id for job in node.jobs() if job.origin in (None, here)
            ],
            "slots_free": {"cpu": capacity.cpu_free, "gpu": capacity.gpu_free},
            "draining": node.draining or node.is_closed("drain-request"),
        }

    def _pull(self) -> Mapping[str, Any]:
        return {
            **self._access(),
            **self._callbacks.pulls.opening(),
            "roots": self._roots(),
            "held": [job.job_id for job in self._parts.node.jobs()],
        }

    def _sweep(self) -> Mapping[str, Any]:
        node = self._parts.node
        return {
            **self._access(),
            "roots": self._roots(),
            "held": [job.job_id for job in node.jobs() if not job.adopted],
            "adopted": [job.job_id for job in node.jobs() if job.adopted],
            "orphans": list(self._callbacks.jobs.orphans),
            "capacity": asdict(node.capacity()),
            "takes_work": not node.gates(),
            "evidence": dict(self._callbacks.jobs.evidence),
        }

    def _deliver(self) -> Mapping[str, Any]:
        return {**self._access(), "roots": self._roots()}
