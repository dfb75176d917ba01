"""The configuration as frozen pydantic models: every key, its unit and its default.

Only shapes and ranges live here. Reading files, line numbers, secrets and reloading
are the business of the modules beside this one. The README's reference and
config.toml.example are made from these descriptions.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aitbc_aps_miner.config.values import (
    Duration,
    FilePath,
    Host,
    HttpUrl,
    Listen,
    NodeId,
    SecretRef,
    Target,
    check_own_directory,
)


def _clash(keys: tuple[str, ...], expected: str, remedy: str) -> PydanticCustomError:
    """Two keys of a section that do not fit; the first is the one to be shown."""
    context: dict[str, Any] = {"keys": keys, "expected": expected, "remedy": remedy}
    return PydanticCustomError("clash", "must be {expected}", context)


class Section(BaseModel):
    """Base of every section: frozen, strict about types and unknown keys.

    Strict, because `enable = "no"` must not quietly become a truth. List fields say
    `strict=False`: TOML has arrays, the model tuples.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        strict=True,
        allow_inf_nan=False,
    )


class Daemon(Section):
    """[daemon] How the daemon ends."""

    on_sigterm: Literal["auto", "leave", "drain"] = Field(
        "auto",
        description="leave: running jobs go on without the daemon; drain: they get "
        "drain_s to end; auto: drain as PID 1 or on a terminal, else leave",
    )
    drain_s: Duration = Field(
        300, description="time that running jobs get to end when draining"
    )


class Coordinator(Section):
    """[coordinator] Who hands out the jobs."""

    api: Literal["node-v1"] = Field("node-v1", description="dialect")
    base_url: HttpUrl = Field(
        description="URL with the API prefix, https://host/api/v1"
    )
    auth_token: SecretRef = Field(
        "env:MINER_AUTH",
        repr=False,
        description='bootstrap token: "env:NAME", "file:/path", or the token itself',
    )
    tls_verify: bool = Field(True, description="verify the server's certificate")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the CA to trust instead of the system's"
    )
    timeout_s: Duration = Field(20, gt=0, description="limit of one call")

    @model_validator(mode="after")
    def _ca_needs_verification(self) -> Self:
        if self.ca_file is not None and not self.tls_verify:
            raise _clash(
                ("ca_file", "tls_verify"),
                "absent while tls_verify is false",
                "set tls_verify = true to trust this CA, or remove ca_file",
            )
        return self


class Backoff(Section):
    """[heartbeat.backoff] Pause after failed heartbeats, doubled each time."""

    min_s: Duration = Field(5, gt=0, description="first pause")
    max_s: Duration = Field(120, gt=0, description="longest pause")

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min_s > self.max_s:
            raise _clash(
                ("min_s", "max_s"),
                f"at most max_s, which is {self.max_s:g}",
                "lower min_s or raise max_s",
            )
        return self


class Heartbeat(Section):
    """[heartbeat] How often the node says that it lives."""

    interval_s: Duration = Field(
        15, ge=0.05, description="pause; a coordinator may only make it longer"
    )
    jitter_pct: float = Field(
        10, ge=0, le=50, description="the pause varies by ± this much"
    )
    backoff: Backoff = Backoff()


class Pull(Section):
    """[pull] How the node asks for jobs."""

    interval_s: Duration = Field(
        2, ge=0.02, description="pause after an empty answer that came at once"
    )
    wait_s: Duration = Field(
        25, le=300, description="how long the coordinator may hold an empty answer"
    )


class Sweep(Section):
    """[sweep] How often workspaces are looked after."""

    interval_s: Duration = Field(60, ge=0.1, description="pause between sweeps")


class Probe(Section):
    """[probe] How often the machine is looked at."""

    interval_s: Duration = Field(30, ge=0.1, description="pause between probes")
    timeout_s: Duration = Field(10, gt=0, description="limit of one whole probe")
    nvidia_smi: str = Field("nvidia-smi", description="program to ask without NVML")
    dcgm_url: HttpUrl | None = Field(
        None, description="DCGM exporter's /metrics, asked when the others fail"
    )


class CliRunner(Section):
    """[runners.cli] Allowlisted commands."""

    enable: bool = Field(True, description="take jobs with runner = cli")
    allowlist_files: tuple[FilePath, ...] = Field(
        (),
        strict=False,
        description="YAML or TOML files, one command each, named after the file",
    )
    allowlist_dir: FilePath | None = Field(
        None, description="directory of such files (*.yaml, *.yml, *.toml)"
    )


class PythonRunner(Section):
    """[runners.python] Trusted Python tasks."""

    enable: bool = Field(True, description="take jobs with runner = python")
    task_paths: tuple[FilePath, ...] = Field(
        (),
        strict=False,
        description="directories that hold the package `tasks`, or its modules",
    )
    venv: FilePath | None = Field(
        None, description="virtual environment that tasks run in; default the miner's"
    )


class Runners(Section):
    """[runners] What kinds of jobs are taken."""

    cli: CliRunner = CliRunner()
    python: PythonRunner = PythonRunner()


class Resources(Section):
    """[resources] What jobs may use of the machine."""

    max_concurrent_cpu: int = Field(2, ge=0, le=1024, description="CPU jobs at once")
    max_concurrent_gpu: int = Field(
        1, ge=0, le=1024, description="GPU jobs at once; they take no CPU slot"
    )
    cpu_nice: int = Field(10, ge=-20, le=19, description="niceness of payloads; live")
    io_class: Literal["none", "realtime", "best-effort", "idle"] = Field(
        "best-effort", description="I/O scheduling class of payloads; live"
    )
    io_level: int = Field(6, ge=0, le=7, description="I/O priority in its class; live")
    mem_soft_mb: int = Field(
        16384, ge=0, description="memory of one payload, 0 = no limit; live"
    )
    max_open_files: int = Field(4096, ge=16, description="RLIMIT_NOFILE of payloads")
    max_log_mb: float = Field(64, gt=0, description="cap of a job's logs/exec.log")
    max_job_s: Duration = Field(
        86400, gt=0, description="no job may ask for more time than this"
    )
    grace_s: Duration = Field(10, description="from SIGTERM to SIGKILL")


class WorkspaceSection(Section):
    """[workspace] Where jobs live and how long their files stay."""

    root: Annotated[FilePath, AfterValidator(check_own_directory)] = Field(
        Path("/var/lib/aitbc/miner/jobs"), description="directory of all workspaces"
    )
    keep_success: Duration = Field(
        24 * 3600, description="files of delivered successes"
    )
    keep_failed: Duration = Field(7 * 86400, description="files of delivered failures")
    disk_high_pct: float = Field(
        90, gt=0, le=100, description="disk use that stops pulls and expires files"
    )
    disk_low_pct: float = Field(
        80, gt=0, le=100, description="disk use at which pulls go on"
    )

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> Self:
        if self.disk_low_pct > self.disk_high_pct:
            raise _clash(
                ("disk_low_pct", "disk_high_pct"),
                f"at most disk_high_pct, which is {self.disk_high_pct:g}",
                "lower disk_low_pct or raise disk_high_pct",
            )
        return self


class Logging(Section):
    """[logging] What the daemon says and where."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is written"
    )
    json_lines: bool = Field(
        True,
        alias="json",
        description="JSON lines; false or a terminal: pretty",
    )
    path: FilePath | None = Field(
        None, description="log file beside standard output; reopened after rotation"
    )


class Status(Section):
    """[status] The local health server."""

    listen: Listen = Field(
        "127.0.0.1:8479", description='address of /healthz, "" switches it off'
    )


class Network(Section):
    """[network] Where inputs may come from and what jobs may reach."""

    inputs: tuple[Host, ...] = Field(
        ("*",),
        strict=False,
        description="hosts of input URLs; *.name takes every subdomain",
    )
    jobs: tuple[Target, ...] = Field(
        (),
        strict=False,
        description="host:port that a manifest's network.allow may name",
    )
    private: bool = Field(
        False,
        description="allow private, loopback and link-local addresses for both",
    )
    max_input_mb: float = Field(10240, gt=0, description="cap of one input")


class Results(Section):
    """[results] How stubborn deliveries are."""

    keep_trying: Duration = Field(
        7 * 86400, description="how long an undelivered result is retried"
    )
    max_undelivered: int = Field(
        100, ge=1, description="this many undelivered results stop pulls"
    )


class Uploads(Section):
    """[uploads] How artifacts travel."""

    resumable_above_mb: float = Field(
        64, ge=0, description="artifacts above this go by tus where it is offered"
    )


class Security(Section):
    """[security] The node's own key."""

    identity_file: FilePath | None = Field(
        None,
        description="Ed25519 key, made at first start; default identity.key beside "
        "the workspace root",
    )


class Owner(Section):
    """[owner] The owner's own say."""

    paused: bool = Field(False, description="pull nothing; running jobs go on")


class Config(Section):
    """The whole configuration; one frozen snapshot serves one tick."""

    node_id: NodeId = Field(
        description="name of this node at the coordinator",
    )
    tags: tuple[str, ...] = Field(
        (), strict=False, description="free words for the coordinator"
    )
    coordinator: Coordinator
    daemon: Daemon = Daemon()
    heartbeat: Heartbeat = Heartbeat()
    pull: Pull = Pull()
    sweep: Sweep = Sweep()
    probe: Probe = Probe()
    runners: Runners = Runners()
    resources: Resources = Resources()
    workspace: WorkspaceSection = WorkspaceSection()
    logging: Logging = Logging()
    status: Status = Status()
    network: Network = Network()
    results: Results = Results()
    uploads: Uploads = Uploads()
    security: Security = Security()
    owner: Owner = Owner()

    @property
    def identity_path(self) -> Path:
        """Where the node's Ed25519 key lies."""
        return self.security.identity_file or self.workspace.root.parent / (
            "identity.key"
        )
