"""What of the machine is free, and what a job gets of it. Pure.

A CPU job takes one CPU slot; a GPU job takes one GPU slot only, and of each GPU it is
given the VRAM it asks for (all of it when it names no amount).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import Gpu, Requirements, Reservation


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The machine's slots, its GPUs, and what running jobs hold of them."""

    cpu_slots: int
    gpu_slots: int
    cpu_threads: int
    memory_mb: int = 0
    """0 where the machine could not be looked at: then memory is not judged."""
    disk_free_mb: int = 0
    gpus: tuple[Gpu, ...] = ()
    held: Mapping[str, Reservation] = field(default_factory=dict)

    @property
    def cpu_free(self) -> int:
        """CPU slots that no job holds; never negative after slots were lowered."""
        return max(0, self.cpu_slots - self._count("cpu"))

    @property
    def gpu_free(self) -> int:
        """GPU slots that no job holds, at most one where there is no GPU."""
        return max(0, self.gpu_slots - self._count("gpu")) if self.gpus else 0

    @property
    def vram_free_mb(self) -> int:
        """The most VRAM that one more job could get on one GPU."""
        return max((self._vram_free(gpu) for gpu in self.gpus), default=0)

    @property
    def free(self) -> int:
        """How many more jobs fit at most."""
        return self.cpu_free + self.gpu_free

    def taking(self, job_id: str, reservation: Reservation) -> "Capacity":
        """Give the capacity that is left with `reservation` held by `job_id`."""
        return replace(self, held={**self.held, job_id: reservation})

    def returning(self, job_id: str) -> "Capacity":
        """Give the capacity with whatever `job_id` held free again."""
        held = {key: kept for key, kept in self.held.items() if key != job_id}
        return replace(self, held=held)

    def reserve(self, requirements: Requirements) -> Reservation:
        """Choose what a job with `requirements` gets.

        Raises JobError: E_NOGPU when no GPU that fits is present or free, E_NORES when
        slots, threads, memory or disk are missing.
        """
        self._check_sizes(requirements)
        if not requirements.gpu:
            if self.cpu_free == 0:
                raise JobError(ErrorCode.E_NORES, "no CPU slot is free")
            return Reservation(kind="cpu", cpu_threads=requirements.cpu_threads)
        chosen = self._choose(requirements)
        return Reservation(
            kind="gpu",
            cpu_threads=requirements.cpu_threads,
            gpu_uuids=tuple(gpu.uuid for gpu in chosen),
            vram_mb=requirements.vram_mb,
        )

    def _check_sizes(self, wanted: Requirements) -> None:
        for what, asked, there in (
            ("CPU threads", wanted.cpu_threads, self.cpu_threads),
            ("MiB of memory", wanted.memory_mb, self.memory_mb),
            ("MiB of disk", wanted.disk_mb, self.disk_free_mb),
        ):
            if there and asked > there:
                raise JobError(
                    ErrorCode.E_NORES,
                    f"the job asks for {asked} {what}, the node has {there}",
                )

    def _choose(self, wanted: Requirements) -> list[Gpu]:
        if self.gpu_free == 0:
            raise JobError(ErrorCode.E_NOGPU, "no GPU slot is free")
        fitting = [
            gpu
            for gpu in self.gpus
            if wanted.gpu_uuid in (None, gpu.uuid) and self._fits(gpu, wanted.vram_mb)
        ]
        count = max(1, wanted.gpu_count)
        if len(fitting) < count:
            raise JobError(
                ErrorCode.E_NOGPU,
                f"the job asks for {count} GPU with {wanted.vram_mb} MiB free, "
                f"{len(fitting)} of {len(self.gpus)} fit",
            )
        # Least used first: what jobs hold, then what the driver says is in use.
        fitting.sort(key=lambda gpu: (self._vram_held(gpu), gpu.mem_used_mb or 0))
        return fitting[:count]

    def _fits(self, gpu: Gpu, vram_mb: int) -> bool:
        if vram_mb == 0:
            return self._vram_held(gpu) == 0
        return self._vram_free(gpu) >= vram_mb

    def _vram_free(self, gpu: Gpu) -> int:
        return max(0, (gpu.vram_mb or 0) - self._vram_held(gpu))

    def _vram_held(self, gpu: Gpu) -> int:
        return sum(
            # An unnamed amount is the whole GPU; one whose size is unknown counts 1.
            kept.vram_mb or gpu.vram_mb or 1
            for kept in self.held.values()
            if gpu.uuid in kept.gpu_uuids
        )

    def _count(self, kind: str) -> int:
        return sum(kept.kind == kind for kept in self.held.values())
