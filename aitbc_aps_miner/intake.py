"""What becomes of the jobs that a pull brought: accepted, refused, or known already."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aitbc_aps_miner.admission import Rules, admit
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.manifest import job_id_of, parse
from aitbc_aps_miner.models import Manifest, Origin, Reservation
from aitbc_aps_miner.runners import build, enabled_kinds
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.util import log
from aitbc_aps_miner.world import World

Report = dict[str, Any]

# The executor's net around a job process, beyond the job's own limit: fetching ends
# with the limit, what follows is killing (twice grace_s), hashing and one delivery.
NET_S = 900

# One report carries them all back to the daemon, under a cap of 8 MiB (util.frames).
MAX_PULL = 6

JOB_ID_SHOWN = 200

_log = log.get_logger()


class Intake:
    """Sorts what a pull brought into accepted, duplicate and refused."""

    def __init__(
        self,
        world: World,
        capacity: Capacity,
        held: frozenset[str],
        roots: Sequence[str],
    ) -> None:
        self._world = world
        self._capacity = capacity
        self._held = held
        self._roots = roots
        self._runners = build(world.config, None)
        config = world.config
        self._rules = Rules(
            runners=frozenset(enabled_kinds(config)), network_jobs=config.network.jobs
        )
        self._taken: set[str] = set()
        self.accepted: list[Report] = []
        self.duplicates: list[str] = []
        self.refused: list[Report] = []

    def take(self, raw: object) -> None:
        """Decide about one manifest."""
        try:
            manifest = parse(raw, max_timeout_s=self._world.config.resources.max_job_s)
            if self._is_here(manifest):
                return
            reservation = self._admit(manifest)
        except JobError as error:
            self._refuse(raw, error)
            return
        self._capacity = self._capacity.taking(manifest.job_id, reservation)
        self._taken.add(manifest.job_id)
        root = self._roots[0]
        job = job_of(self._world, manifest, raw, reservation, root=root)
        self.accepted.append(job)

    def _admit(self, manifest: Manifest) -> Reservation:
        if len(self.accepted) >= MAX_PULL:
            raise JobError(ErrorCode.E_NORES, "handed out beyond max_jobs")
        return admit(manifest, self._capacity, self._rules, self._check)

    def _check(self, manifest: Manifest) -> None:
        self._runners[manifest.runner].check(manifest)

    def _is_here(self, manifest: Manifest) -> bool:
        """Whether this attempt was taken before; only a finished one is answered."""
        if manifest.job_id in self._held | self._taken:
            return True
        for root in self._roots:
            found = self._world.workspaces(root).find(manifest.job_id)
            if found is None or found.record is None:
                continue
            if found.record.attempt >= manifest.attempt:
                if found.outcome_recorded:
                    self.duplicates.append(manifest.job_id)
                return True
        return False

    def _refuse(self, raw: object, error: JobError) -> None:
        job_id = job_id_of(raw)
        shown = (job_id or "")[:JOB_ID_SHOWN]
        _log.warning("job.refused", job_id=shown, code=error.code, reason=error.message)
        attempt = raw.get("attempt") if isinstance(raw, Mapping) else None
        self.refused.append(
            {
                "job_id": job_id,
                "attempt": attempt if type(attempt) is int else 1,
                "code": error.code,
                "message": error.message,
                "detail": error.detail,
            }
        )


def job_of(
    world: World,
    manifest: Manifest,
    raw: object,
    reservation: Reservation,
    *,
    root: str,
    origin: Origin | None = None,
) -> Report:
    """Give what the daemon needs to start a job's process."""
    resources = world.config.resources
    return {
        "job_id": manifest.job_id,
        "attempt": manifest.attempt,
        "runner": manifest.runner,
        "raw": raw,
        "origin": asdict(origin or world.origin),
        "reservation": asdict(reservation),
        "root": root,
        "net_s": manifest.timeout_s + 2 * resources.grace_s + NET_S,
    }


def filters(world: World, free: Capacity) -> Report:
    """Give what a pull asks for: what is offered and what is free."""
    return {
        "runners": list(enabled_kinds(world.config)),
        "gpu": free.gpu_free > 0,
        "vram_mb_free": free.vram_free_mb if free.gpu_free else 0,
        "cpu_slots_free": free.cpu_free,
        "models": [],
    }
