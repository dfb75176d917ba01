"""The ticks: open adapters, do one piece of work, return a small report.

Each runs in a process of its own with a hard deadline; a report is a JSON object. What
the coordinator or the network did wrong is a report with `error`; anything else that
goes wrong is raised and told by the executor, with its traceback.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec

from aitbc_aps_miner import lifecycle
from aitbc_aps_miner.admission import Rules, admit
from aitbc_aps_miner.coordinator import NodeApi
from aitbc_aps_miner.errors import (
    CoordinatorError,
    JobError,
    JobGoneError,
    UnauthorizedError,
    UnavailableError,
    WorkspaceError,
)
from aitbc_aps_miner.manifest import job_id_of, parse
from aitbc_aps_miner.models import Gpu, JobState, Manifest, Origin, Reservation
from aitbc_aps_miner.probe.capabilities import heartbeat_body
from aitbc_aps_miner.probe.gpu import probe_gpus
from aitbc_aps_miner.probe.host import HostFacts, probe_host
from aitbc_aps_miner.runners import build, enabled_kinds, problems
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.tokens import place_of
from aitbc_aps_miner.util import log
from aitbc_aps_miner.workspace import Workspaces
from aitbc_aps_miner.workspace.jobdir import moment_of
from aitbc_aps_miner.workspace.record import Moment, Record
from aitbc_aps_miner.world import Line, World

Report = dict[str, Any]
P = ParamSpec("P")

_log = log.get_logger()

# The executor's net around a job process, beyond the job's own limit: fetching ends
# with the limit, what follows is killing (twice grace_s), hashing and one delivery.
NET_S = 900

# One report carries them all back to the daemon, under a cap of 8 MiB (util.frames).
MAX_PULL = 6

JOB_ID_SHOWN = 200


def told(tick: Callable[P, Report]) -> Callable[P, Report]:
    """Turn what a coordinator did wrong into the tick's report."""

    @functools.wraps(tick)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> Report:
        try:
            return tick(*args, **kwargs)
        except CoordinatorError as error:
            return {
                "error": str(error),
                "unauthorized": isinstance(error, UnauthorizedError),
                "retry_after_s": getattr(error, "retry_after_s", None),
            }

    return reporting


@told
def register(
    channel: Line,
    *,
    config: str,
    host: Mapping[str, Any],
    gpus: list[Mapping[str, Any]],
) -> Report:
    """Register the node; the token goes back to the daemon's memory."""
    world = World(channel, config, None)
    facts = HostFacts(**host) if host else probe_host(world.config.workspace.root)
    registration = world.register(facts, gpus_of(gpus))
    extensions = registration.extensions
    return {
        **asdict(registration),
        "extensions": None if extensions is None else sorted(extensions),
        "place": place_of(world.config),
    }


@told
def heartbeat(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    digest: str,
    host: Mapping[str, Any],
    gpus: list[Mapping[str, Any]],
    running: list[str],
    slots_free: Mapping[str, int],
    draining: bool,
) -> Report:
    """Say that the node lives, and hear what the coordinator wants."""
    world = World(channel, config, token, extensions)
    # Cached facts, no disk: a busy or hung machine still says that it lives. Only the
    # very first heartbeat may come before the first probe.
    facts = HostFacts(**host) if host else probe_host(world.config.workspace.root)
    body = heartbeat_body(
        world.config,
        facts,
        gpus_of(gpus),
        running=running,
        slots_free=slots_free,
        draining=draining,
        config_hash=digest,
        realtime=world.clock.realtime(),
    )
    with world.coordinator() as coordinator:
        reply = coordinator.heartbeat(body)
    return {**asdict(reply), "refresh": sorted(reply.refresh)}


def probe(channel: Line, *, config: str) -> Report:
    """Look at the machine."""
    world = World(channel, config, None)
    gpus = probe_gpus(world.config.probe)
    for note in gpus.notes:
        _log.debug("probe.note", note=note)
    host = probe_host(world.config.workspace.root)
    return {
        "host": asdict(host),
        "gpus": [asdict(gpu) for gpu in gpus.gpus],
        "source": gpus.source,
        "notes": list(gpus.notes),
        "problems": list(problems(world.config)),
    }


def control(
    channel: Line, *, root: str, job_id: str, orders: Mapping[str, Any], config: str
) -> Report:
    """Leave orders for a running job in its control file."""
    try:
        World(channel, config, None).workspaces(root).write_control(job_id, orders)
    except WorkspaceError as error:
        return {"error": str(error)}  # it ended meanwhile, or its disk is gone
    return {"job_id": job_id}


@told
def pull(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    roots: list[str],
    capacity: Mapping[str, Any],
    held: list[str],
) -> Report:
    """Ask for as many jobs as fit; admit or refuse each.

    Jobs are stored under the first of `roots`; what came before may be under any.
    """
    world = World(channel, config, token, extensions)
    free = capacity_of(capacity)
    intake = _Intake(world, free, frozenset(held), roots)
    with world.coordinator() as coordinator:
        began = world.clock.monotonic()
        channel.send("polling")
        raws = coordinator.pull(
            world.config.node_id,
            _filters(world, free),
            min(free.free, MAX_PULL),
            world.config.pull.wait_s,
        )
        held_s = world.clock.monotonic() - began
        for raw in raws:
            intake.take(raw, coordinator)
    return {
        "accepted": intake.accepted,
        "duplicates": intake.duplicates,
        "refused": intake.refused,
        "held_s": held_s,
    }


class _Intake:
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

    def take(self, raw: object, coordinator: NodeApi) -> None:
        """Decide about one manifest; a refusal is told to the coordinator at once."""
        try:
            manifest = parse(raw, max_timeout_s=self._world.config.resources.max_job_s)
            if self._is_here(manifest):
                return
            reservation = admit(manifest, self._capacity, self._rules, self._check)
        except JobError as error:
            self._refuse(raw, error, coordinator)
            return
        self._capacity = self._capacity.taking(manifest.job_id, reservation)
        self._taken.add(manifest.job_id)
        root = self._roots[0]
        job = job_of(self._world, manifest, raw, reservation, root=root)
        self.accepted.append(job)

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

    def _refuse(self, raw: object, error: JobError, coordinator: NodeApi) -> None:
        job_id = job_id_of(raw)
        shown = (job_id or "")[:JOB_ID_SHOWN]
        _log.warning("job.refused", job_id=shown, code=error.code, reason=error.message)
        self.refused.append({"job_id": shown, "code": error.code})
        if job_id is None:
            return
        attempt = raw.get("attempt") if isinstance(raw, Mapping) else None
        try:
            coordinator.fail_raw(
                job_id,
                attempt if type(attempt) is int else 1,
                error.code,
                error.message,
                error.detail,
            )
        except CoordinatorError as lost:
            # Its lease runs out, it is handed out again, and refused again.
            _log.warning("job.refusal_untold", job_id=shown, reason=str(lost))


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


@told
def deliver(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    roots: list[str],
    job_id: str,
    resend: bool,
) -> Report:
    """Submit one recorded outcome, once; `resend` also one delivered before."""
    world = World(channel, config, token, extensions)
    for root in roots:
        workspaces = world.workspaces(root)
        found = workspaces.find(job_id)
        if found is None or not found.outcome_recorded:
            continue
        if found.delivered and not resend:
            break
        return _deliver_one(world, workspaces, job_id, resend=resend)
    return {"job_id": job_id, "state": JobState.IDLE}


def _deliver_one(
    world: World, workspaces: Workspaces, job_id: str, *, resend: bool
) -> Report:
    workspace = workspaces.open(job_id)
    try:
        outcome = workspace.load_outcome()
        if outcome is None:
            return {"job_id": job_id, "state": JobState.IDLE}
        record = workspace.record_now
        kept_s = _seconds_undelivered(record, moment_of(world.clock))
        if kept_s > world.config.results.keep_trying and not resend:
            reason = f"not taken within results.keep_trying ({kept_s:.0f} s)"
            workspace.mark_dropped(outcome, reason)
            return {"job_id": job_id, "state": workspace.state, "message": reason}
        with world.coordinator(record.origin) as coordinator:
            if resend:
                _ack_again(record, coordinator)
            report = lifecycle.deliver(workspace, outcome, coordinator)
        return {**asdict(report), "resent": resend}
    finally:
        workspace.close()


def _seconds_undelivered(record: Record, now: Moment) -> float:
    """Count since the first try; a wall clock that is set throws nothing away."""
    tries = (line for line in record.history if line.state is JobState.UPLOADING)
    first = next(tries, None)
    return 0.0 if first is None else now.seconds_since(first.moment)


def _ack_again(record: Record, coordinator: NodeApi) -> None:
    """Take a job that was handed out again, so that its outcome may be answered."""
    # Of a job that was buried, only the key is left; an ack needs no more.
    manifest = Manifest(
        job_id=record.job_id, attempt=record.attempt, runner="", timeout_s=0
    )
    try:
        coordinator.ack(manifest)
    except (JobGoneError, UnavailableError):
        return  # the submission itself says what is true


def _filters(world: World, free: Capacity) -> Report:
    return {
        "runners": list(enabled_kinds(world.config)),
        "gpu": free.gpu_free > 0,
        "vram_mb_free": free.vram_free_mb if free.gpu_free else 0,
        "cpu_slots_free": free.cpu_free,
        "models": [],
    }


def gpus_of(gpus: list[Mapping[str, Any]]) -> tuple[Gpu, ...]:
    """Give the GPUs that the daemon told of."""
    return tuple(Gpu(**gpu) for gpu in gpus)


def capacity_of(fields: Mapping[str, Any]) -> Capacity:
    """Give the slots that the daemon told of."""
    held = {
        job_id: Reservation(**{**kept, "gpu_uuids": tuple(kept["gpu_uuids"])})
        for job_id, kept in fields["held"].items()
    }
    return Capacity(**{**fields, "gpus": gpus_of(fields["gpus"]), "held": held})
