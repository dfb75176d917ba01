"""A job process: one pulled job from its claim to its recorded outcome, and delivery.

Wires the adapters into lifecycle.run_one. It lives in a session and a cgroup of its
own, so it outlives the daemon; what it says to the daemon is news, never needed.
"""

import itertools
import math
import random
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aitbc_aps_miner import __version__, lifecycle
from aitbc_aps_miner.artifacts import ArtifactCollector
from aitbc_aps_miner.channel import Channel
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.coordinator import NodeApi
from aitbc_aps_miner.errors import (
    AttemptHereError,
    ErrorCode,
    JobError,
    UnavailableError,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.identity import load_or_create
from aitbc_aps_miner.lifecycle import Job
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import (
    ExitFacts,
    JobReport,
    JobState,
    Manifest,
    Origin,
    PayloadLimits,
    Progress,
    Reservation,
)
from aitbc_aps_miner.ports import Observer, Runner
from aitbc_aps_miner.progress import ProgressSender
from aitbc_aps_miner.receipt import Signer, manifest_digest
from aitbc_aps_miner.runners import Containment, build
from aitbc_aps_miner.sandbox.cgroup import PAYLOAD, SPARE_PREFIX, Cgroup, own_group
from aitbc_aps_miner.transfer import HttpTransfer
from aitbc_aps_miner.trigger import Backoff
from aitbc_aps_miner.util import log
from aitbc_aps_miner.watch import JobWatch
from aitbc_aps_miner.workspace import Workspace, read_control
from aitbc_aps_miner.world import World, ssl_context_of

# Pauses between deliveries while no daemon is there to take them over.
ALONE_MIN_S = 1
ALONE_MAX_S = 600

_log = log.get_logger()


def run(
    channel: Channel,
    *,
    config: str,
    token: str | None,
    extensions: list[str] | None,
    job: Mapping[str, Any],
    resume: bool,
) -> dict[str, Any]:
    """Run one job and give its report; the executor's entry into a job process."""
    channel.detach()
    world = World(channel, config, token, extensions, str(job["root"]))
    pulled = _pulled(job)
    group = _payload_cgroup()
    # Before any thread starts: it forks.
    with (
        Containment(group, prepare=True) as containment,
        world.coordinator(pulled.origin) as coordinator,
    ):
        runners = build(world.config, containment=containment)
        runner = runners.get(pulled.manifest.runner, _NotOffered())
        process = _Process(
            world,
            pulled,
            coordinator,
            runner,
            root=str(job["root"]),
            cgroup=str(group.path.parent) if group else None,
        )
        return asdict(process.run(resume=resume))


class _Process:
    """One job's adapters, wired; claims its workspace and keeps it."""

    def __init__(
        self,
        world: World,
        job: Job,
        coordinator: NodeApi,
        runner: Runner,
        *,
        root: str,
        cgroup: str | None,
    ) -> None:
        self._world = world
        self._job = job
        self._coordinator = coordinator
        self._runner = runner
        self._cgroup = cgroup
        self._workspaces = world.workspaces(root)
        self._workspace: Workspace | None = None
        path = self._workspaces.root / job.manifest.job_id
        self._watch = JobWatch(
            clock=world.clock,
            timeout_s=job.manifest.timeout_s,
            limits=limits_of(world.config),
            read_control=lambda: read_control(path),
        )

    def run(self, *, resume: bool) -> JobReport:
        job = self._job
        sender = ProgressSender(self._coordinator, job.manifest, self._watch)
        wired = self._ports(_Observer(self._world, sender))
        with sender:
            try:
                if resume:
                    workspace = self._note(self._workspaces.open(job.manifest.job_id))
                    workspace.renew()
                    report = lifecycle.resume_one(job, workspace, wired)
                else:
                    report = lifecycle.run_one(job, self, wired)
            except (AttemptHereError, WorkspaceBusyError) as here:
                return _not_run(job.manifest, str(here))
            except WorkspaceError as error:
                if self._workspace is not None:
                    raise
                # Nothing was promised to anyone: its lease brings it to another node.
                return _not_run(job.manifest, str(error), JobState.PULLING)
            except UnavailableError as error:
                # The ack has no answer; the claim stays for the sweep to settle.
                return _not_run(job.manifest, f"not acked: {error}")
        return self._keep_delivering(report)

    def claim(
        self, manifest: Manifest, raw: Any, origin: Origin, reservation: Reservation
    ) -> Workspace:
        """Claim the workspace; note what a later daemon needs to adopt this job."""
        return self._note(self._workspaces.claim(manifest, raw, origin, reservation))

    def _note(self, workspace: Workspace) -> Workspace:
        self._workspace = workspace
        log.configure_file(
            workspace.root / "logs" / "job.log",
            node_id=self._world.config.node_id,
            job_id=self._job.manifest.job_id,
            secrets=self._job.manifest.secrets.values(),
        )
        workspace.note(
            cgroup=self._cgroup,
            deadline_boottime=self._watch.deadline_boottime,
        )
        return workspace

    def _ports(self, observer: Observer) -> lifecycle.Ports:
        config, clock, job = self._world.config, self._world.clock, self._job
        identity = load_or_create(config.identity_path)
        return lifecycle.Ports(
            coordinator=self._coordinator,
            transfer=HttpTransfer(
                config.network,
                config.coordinator.timeout_s,
                ssl_context_of(config.coordinator),
                clock,
            ),
            runner=self._runner,
            collector=ArtifactCollector(),
            signer=Signer(
                identity,
                node_id=config.node_id,
                version=__version__,
                clock=clock,
                manifest_digest=manifest_digest(job.raw),
            ),
            watch=self._watch,
            observer=observer,
        )

    def _keep_delivering(self, report: JobReport) -> JobReport:
        """Deliver alone as long as there is no daemon to take it over."""
        world, workspace = self._world, self._workspace
        backoff = Backoff(min_s=ALONE_MIN_S, max_s=ALONE_MAX_S, rng=random.Random())  # noqa: S311  jitter
        for failures in itertools.count(1):
            if report.state is not JobState.RETRY_WAIT or workspace is None:
                return report
            if not world.channel.closed:
                return report
            world.clock.sleep(backoff.next_delay(failures))
            outcome = workspace.load_outcome()
            if outcome is not None:
                report = lifecycle.deliver(workspace, outcome, self._coordinator)
        raise AssertionError  # pragma: no cover - count() never ends


class _NotOffered:
    """Stands for a runner that was switched off after its job was accepted."""

    def check(self, manifest: Manifest) -> None:
        raise JobError(
            ErrorCode.E_DENY, f"runner {manifest.runner!r} is not offered here any more"
        )

    def run(self, *_args: Any, **_more: Any) -> ExitFacts:
        raise AssertionError  # pragma: no cover - check() refuses everything


class _Observer:
    """Tells the daemon, the coordinator and the job's own log."""

    def __init__(self, world: World, sender: ProgressSender) -> None:
        self._world = world
        self._sender = sender

    def entered(self, manifest: Manifest, state: JobState) -> None:
        self._say(manifest, state=state)

    def progressed(self, manifest: Manifest, progress: Progress) -> None:
        self._say(manifest, pct=progress.pct, note=progress.note)
        self._sender.put(progress)

    def defect(self, manifest: Manifest, error: BaseException) -> str:
        error_id = secrets.token_hex(6)
        _log.error(
            "job.defect", job_id=manifest.job_id, error_id=error_id, exc_info=error
        )
        return error_id

    def finished(self, manifest: Manifest, report: JobReport) -> None:
        _log.info("job.finished", runner=manifest.runner, **asdict(report))

    def _say(self, manifest: Manifest, **news: Any) -> None:
        self._world.channel.send("job", {"job_id": manifest.job_id, **news})


def limits_of(config: Config) -> PayloadLimits:
    """Give the limits that the owner's configuration sets for a payload."""
    resources = config.resources
    return PayloadLimits(
        nice=resources.cpu_nice,
        io_class=resources.io_class,
        io_level=resources.io_level,
        memory_mb=resources.mem_soft_mb or None,
        nofile=resources.max_open_files,
        log_mb=resources.max_log_mb,
        grace_s=resources.grace_s,
    )


def _pulled(job: Mapping[str, Any]) -> Job:
    return Job(
        # Checked against the owner's limit at admission; an edit since then doesn't
        # take back what was accepted.
        manifest=parse(job["raw"], max_timeout_s=math.inf),
        raw=job["raw"],
        origin=Origin(**job["origin"]),
        reservation=Reservation.of(job["reservation"]),
    )


def _payload_cgroup() -> Cgroup | None:
    """Find the group that the spare made for payloads, beside our own (`sup`)."""
    own = own_group()
    if own is None or not own.path.parent.name.startswith(SPARE_PREFIX):
        return None
    try:
        return Cgroup(path=own.path.parent).child(PAYLOAD)
    except OSError as error:
        _log.warning("job.no_cgroup", reason=str(error))
        return None


def _not_run(
    manifest: Manifest, message: str, state: JobState = JobState.IDLE
) -> JobReport:
    return JobReport(
        job_id=manifest.job_id,
        attempt=manifest.attempt,
        state=state,
        message=message,
    )
