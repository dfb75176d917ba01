"""The ticks: open adapters, do one piece of work, return a small report.

Each runs in a process of its own with a hard deadline; a report is a JSON object. What
the coordinator or the network did wrong is a report with `error`; anything else that
goes wrong is raised and told by the executor, with its traceback.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ParamSpec

from aitbc_aps_miner import lifecycle
from aitbc_aps_miner.coordinator import NodeApi
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobGoneError,
    UnauthorizedError,
    UnavailableError,
    WorkspaceError,
)
from aitbc_aps_miner.intake import JOB_ID_SHOWN, MAX_PULL, Intake, filters
from aitbc_aps_miner.models import Gpu, JobState, Manifest, Reservation
from aitbc_aps_miner.probe.capabilities import heartbeat_body
from aitbc_aps_miner.probe.gpu import probe_gpus
from aitbc_aps_miner.probe.host import HostFacts, probe_host
from aitbc_aps_miner.runners import problems
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
    world = World(channel, config, token, extensions, roots[0])
    free = capacity_of(capacity)
    intake = Intake(world, free, frozenset(held), roots)
    with world.coordinator() as coordinator:
        began = world.clock.monotonic()
        channel.send("polling")
        raws = coordinator.pull(
            world.config.node_id,
            filters(world, free),
            min(free.free, MAX_PULL),
            world.config.pull.wait_s,
        )
        held_s = world.clock.monotonic() - began
        for raw in raws:
            intake.take(raw)
    return {
        "accepted": intake.accepted,
        "duplicates": intake.duplicates,
        "refused": intake.refused,
        "held_s": held_s,
    }


@told
def refuse(
    channel: Line,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    refused: list[Mapping[str, Any]],
) -> Report:
    """Tell the coordinator which jobs of a pull this node does not take.

    Not part of the pull: a coordinator that is slow to hear of one bad job must not
    keep the good ones beside it from starting.
    """
    world = World(channel, config, token, extensions)
    untold = 0
    with world.coordinator() as coordinator:
        for job in refused:
            try:
                coordinator.fail_raw(
                    job["job_id"],
                    job["attempt"],
                    ErrorCode(job["code"]),
                    job["message"],
                    job["detail"],
                )
            except CoordinatorError as lost:
                # Its lease runs out, it is handed out again, and refused again.
                untold += 1
                _log.warning(
                    "job.refusal_untold",
                    job_id=job["job_id"][:JOB_ID_SHOWN],
                    reason=str(lost),
                )
    return {"told": len(refused) - untold, "untold": untold}


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
    world = World(channel, config, token, extensions, roots[0])
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


def gpus_of(gpus: list[Mapping[str, Any]]) -> tuple[Gpu, ...]:
    """Give the GPUs that the daemon told of."""
    return tuple(Gpu(**gpu) for gpu in gpus)


def capacity_of(fields: Mapping[str, Any]) -> Capacity:
    """Give the slots that the daemon told of."""
    held = {job_id: Reservation.of(kept) for job_id, kept in fields["held"].items()}
    return Capacity(**{**fields, "gpus": gpus_of(fields["gpus"]), "held": held})
