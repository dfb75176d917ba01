"""A node's ticks on real workspaces at a real coordinator, without a daemon."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
from coordinator_server import CoordinatorServer
from daemon_fakes import config_of

from aitbc_aps_miner import sweep, tasks, world
from aitbc_aps_miner.channel import ChannelClosedError
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import ErrorCode
from aitbc_aps_miner.intake import JOB_ID_SHOWN
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import JobState, Origin, Outcome, Reservation
from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.util import log
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.workspace import StoredJob, Workspace, Workspaces

ECHO = """\
command: {path: /bin/echo}
args: [["-n"], ["[a-z]+"]]
max_total_args_len: 200
max_runtime_s: 10
"""


class Line:
    """A channel to no daemon that keeps what was said."""

    closed = True

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def send(self, kind: str, payload: Any = None) -> None:
        self.said.append((kind, payload))

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        raise ChannelClosedError("no daemon here")

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Give the attributes of every log record of this name, its job's id in it."""
        return [
            {**record["attrs"], "job_id": record["job_id"]}
            for kind, record in self.said
            if kind == "log" and record["event"] == name
        ]


class Site:
    """A node named n1 whose token is known already."""

    def __init__(
        self, home: Path, base_url: str, token: str | None, **settings: Any
    ) -> None:
        allowlists = home / "allow"
        allowlists.mkdir(exist_ok=True)
        if not (echo := allowlists / "echo.yaml").exists():
            echo.write_text(ECHO)
            os.utime(echo, (1e9, 1e9))  # what was just written is waited for
        defaults = {
            "workspace": {"root": str(home / "jobs"), **settings.pop("workspace", {})},
            "runners": {"cli": {"allowlist_dir": str(allowlists)}},
            "pull": {"wait_s": 0},
            "coordinator": {"auth_token": "demo-token", "timeout_s": 5},
        }
        self.home = home
        self.token = token
        self.line = Line()
        self.config: Config = config_of(base_url, **{**defaults, **settings})
        self.workspaces = Workspaces(self.config.workspace.root, SystemClock())
        self.origin = Origin(api="node-v1", base_url=base_url, node_id="n1")

    @property
    def root(self) -> Path:
        """The workspace root."""
        return self.config.workspace.root

    @property
    def access(self) -> dict[str, Any]:
        """What each tick is told."""
        return {
            "config": self.config.model_dump_json(by_alias=True),
            "token": self.token,
            "extensions": None,
        }

    def pull(self, *held: str, slots: int = 8, earlier: str = "") -> tasks.Report:
        """Pull with so many CPU slots; `earlier` was the root before today's."""
        report = tasks.pull(
            self.line,
            **self.access,
            roots=[str(self.root), *([earlier] if earlier else [])],
            capacity=capacity(slots),
            held=list(held),
        )
        if "error" in report:
            return report
        # What the daemon does next: refusals are told by a tick of their own.
        named = [job for job in report["refused"] if job["job_id"] is not None]
        told = tasks.refuse(self.line, **self.access, refused=named)
        assert "error" in told or told["told"] + told["untold"] == len(named)
        refused = [
            {"job_id": (job["job_id"] or "")[:JOB_ID_SHOWN], "code": job["code"]}
            for job in report["refused"]
        ]
        return {**report, "refused": refused}

    def deliver(self, job_id: str, *, resend: bool = False) -> tasks.Report:
        """Submit a recorded outcome."""
        return tasks.deliver(
            self.line,
            **self.access,
            roots=[str(self.home / "elsewhere"), str(self.root)],
            job_id=job_id,
            resend=resend,
        )

    def sweep(self, slots: int = 8, **more: Any) -> tasks.Report:
        """Sweep once."""
        told = {
            "roots": [str(self.root)],
            "held": [],
            "adopted": [],
            "orphans": [],
            "takes_work": True,
            "evidence": {},
            **more,
        }
        return sweep.sweep(self.line, **self.access, capacity=capacity(slots), **told)

    # Workspaces in every state

    def claim(self, raw: Mapping[str, Any], origin: Origin | None = None) -> Workspace:
        """Claim a workspace and keep its lock."""
        manifest = parse(raw, max_timeout_s=1e6)
        slot = Reservation(kind="cpu")
        return self.workspaces.claim(manifest, raw, origin or self.origin, slot)

    def spawned(self, raw: Mapping[str, Any]) -> None:
        """Leave a workspace whose payload ran and whose process died."""
        workspace = self.claim(raw)
        workspace.enter(JobState.ACKED)
        workspace.mark_spawn()
        workspace.close()

    def recorded(self, raw: Mapping[str, Any], *, succeeded: bool = True) -> Workspace:
        """Leave an outcome that waits for its delivery; keep the lock."""
        workspace = self.claim(raw)
        workspace.enter(JobState.ACKED)
        workspace.mark_spawn()
        workspace.record(outcome_of(raw, succeeded=succeeded))
        workspace.enter(JobState.RETRY_WAIT)
        return workspace

    def waiting(self, raw: Mapping[str, Any], *, succeeded: bool = True) -> None:
        """Leave an outcome that waits for its delivery."""
        self.recorded(raw, succeeded=succeeded).close()

    def delivered(self, raw: Mapping[str, Any], *, succeeded: bool = True) -> None:
        """Leave a job that is done with."""
        workspace = self.recorded(raw, succeeded=succeeded)
        workspace.mark_delivered(outcome_of(raw, succeeded=succeeded))
        workspace.close()

    def found(self, job_id: str) -> StoredJob:
        """Look at a job that is here."""
        found = self.workspaces.find(job_id)
        assert found is not None
        return found

    def state(self, job_id: str) -> JobState:
        """Say where a job stands."""
        record = self.found(job_id).record
        assert record is not None
        return record.state

    def names(self) -> list[str]:
        """Name the jobs that have a directory."""
        return sorted(self.workspaces.names())


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Let ticks set up their log as children do, and leave none behind."""
    if world._warm_tls is None:  # as in the zygote: building it costs 40 ms a tick
        os.environ.update(world.tls_environ(config_of().coordinator))
        world.warm()
        del os.environ[world.TLS_ENV]
    before = log._router
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log._router = log._Router()
    try:
        yield
    finally:
        log._close_sinks()
        log._router = before
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()


def registered(server: CoordinatorServer, node_id: str = "n1") -> str:
    """Give a token of a node at the coordinator."""
    return server.call(lambda: str(server.state.register({"node_id": node_id})[0]))


def capacity(slots: int = 8) -> dict[str, Any]:
    """Give a machine's capacity as a tick is told it."""
    return asdict(Capacity(cpu_slots=slots, gpu_slots=0, cpu_threads=0))


def outcome_of(raw: Mapping[str, Any], *, succeeded: bool = True) -> Outcome:
    """Give an outcome without files."""
    return Outcome(
        job_id=raw["job_id"],
        attempt=raw.get("attempt", 1),
        succeeded=succeeded,
        code=None if succeeded else ErrorCode.E_EXIT,
        message="" if succeeded else "exit 1",
    )
