"""Which queued jobs fit what a node asked for; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aitbc_aps_miner.reference_coordinator.records import Job


@dataclass(frozen=True, kw_only=True)
class Appetite:
    """A pull's filters; None means that the node did not say."""

    max_jobs: int = 1
    runners: frozenset[str] | None = None
    gpu: bool | None = None
    vram_mb_free: float | None = None
    cpu_slots_free: float | None = None
    models: frozenset[str] | None = None

    def choose(self, queued: Iterable[Job]) -> list[Job]:
        """Give the first jobs that fit, as many as fit together."""
        taken: list[Job] = []
        cpu_slots = self.cpu_slots_free
        has_gpu_job = False
        for job in queued:
            if len(taken) >= self.max_jobs:
                break
            needs_gpu = _requirements(job).get("gpu") is True
            # One GPU job per answer: the filters do not say how many GPUs are free.
            no_slot = has_gpu_job if needs_gpu else _is_below(cpu_slots, 1)
            if no_slot or not self._fits(job, needs_gpu):
                continue
            taken.append(job)
            has_gpu_job = has_gpu_job or needs_gpu
            if cpu_slots is not None and not needs_gpu:
                cpu_slots -= 1
        return taken

    def _fits(self, job: Job, needs_gpu: bool) -> bool:
        manifest = job.manifest if isinstance(job.manifest, dict) else {}
        vram_mb = _requirements(job).get("vram_mb")
        return (
            _is_in(manifest.get("runner"), self.runners)
            and _is_in(manifest.get("model"), self.models)
            and not (needs_gpu and self.gpu is False)
            and not (needs_gpu and _is_below(self.vram_mb_free, vram_mb))
        )


def appetite(filters: Any, max_jobs: Any) -> Appetite:
    """Read a pull's filters; what has a surprising type counts as not said."""
    said: Mapping[str, Any] = filters if isinstance(filters, dict) else {}
    gpu = said.get("gpu")
    return Appetite(
        max_jobs=max_jobs if type(max_jobs) is int and max_jobs > 0 else 1,
        runners=_words(said.get("runners")),
        gpu=gpu if isinstance(gpu, bool) else None,
        vram_mb_free=_number(said.get("vram_mb_free")),
        cpu_slots_free=_number(said.get("cpu_slots_free")),
        models=_words(said.get("models")),
    )


def _requirements(job: Job) -> Mapping[str, Any]:
    found = job.manifest.get("requirements") if isinstance(job.manifest, dict) else None
    return found if isinstance(found, dict) else {}


def _is_in(value: Any, allowed: frozenset[str] | None) -> bool:
    return allowed is None or not isinstance(value, str) or value in allowed


def _is_below(free: float | None, needed: Any) -> bool:
    number = _number(needed)
    return free is not None and number is not None and free < number


def _words(value: Any) -> frozenset[str] | None:
    if not isinstance(value, list):
        return None
    return frozenset(word for word in value if isinstance(word, str))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None
