"""The shapes of a manifest on the wire: types, bounds and names, field by field.

Strict about types, null means absent, unknown fields are ignored. Policy (which
command, which host, which size) is not decided here.
"""

import re
from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from aitbc_aps_miner.models import ArtifactSpec, InputUrl, Manifest, Requirements

JOB_ID = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,127}", re.ASCII | re.DOTALL)
MAX_PROBLEMS = 20
"""Problems that one message shows."""

_MAX_TIMEOUT_S = 10 * 365 * 86400
_MAX_TEXT_BYTES = 100_000
"""Below the kernel's MAX_ARG_STRLEN (131072 bytes): what passes can be exec'd."""
_MAX_ARGS = 100_000
_MAX_ENTRIES = 1000
_MAX_NAME_BYTES = 255
_MAX_COUNT = 2**53
"""Integers that every JSON reader keeps exact."""


def _check_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL")
    if len(value.encode()) > _MAX_TEXT_BYTES:
        raise ValueError(f"must not be longer than {_MAX_TEXT_BYTES} bytes")
    return value


def check_file_name(value: str) -> str:
    """Pass a plain visible file name; raise ValueError for anything else."""
    if not 0 < len(value.encode()) <= _MAX_NAME_BYTES:
        raise ValueError(f"must be a file name of 1 to {_MAX_NAME_BYTES} bytes")
    if "/" in value or value.startswith(".") or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(
            "must be a plain file name: no '/', no control character, no leading '.'"
        )
    return value


def _check_path(value: str) -> str:
    for part in value.split("/"):
        check_file_name(part)
    return value


def _check_job_id(value: str) -> str:
    if not JOB_ID.fullmatch(value):
        raise ValueError(f"must match {JOB_ID.pattern}")
    return value


def _check_rfc3339(value: str) -> str:
    if not re.fullmatch(
        r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)",
        value,
        re.ASCII,
    ):
        raise ValueError("must be an RFC 3339 time like 2026-01-31T12:00:00Z")
    # Python reads six digits of a second at most; more are no reason to refuse.
    datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", value.upper()))
    return value


def _as_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Text = Annotated[str, AfterValidator(_check_text)]
Word = Annotated[str, AfterValidator(_check_text), Field(min_length=1, max_length=4096)]
FileName = Annotated[str, AfterValidator(check_file_name)]
EnvName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\z", max_length=_MAX_NAME_BYTES)
]
Env = Annotated[dict[EnvName, Text], Field(max_length=_MAX_ENTRIES)]


class _Model(BaseModel):
    """Base of the wire's shapes: strict types, null as absent."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}


class _Requirements(_Model):
    gpu: bool = False
    vram_mb: Count = 0
    cpu_threads: Count = 1
    gpu_count: Count = 0
    memory_mb: Count = 0
    disk_mb: Count = 0
    gpu_uuid: Annotated[Word, Field(max_length=_MAX_NAME_BYTES)] | None = None

    def requirements(self) -> Requirements:
        gpu = self.gpu or self.gpu_count > 0
        return Requirements(
            gpu=gpu,
            vram_mb=self.vram_mb,
            cpu_threads=max(1, self.cpu_threads),
            gpu_count=max(1, self.gpu_count) if gpu else 0,
            memory_mb=self.memory_mb,
            disk_mb=self.disk_mb,
            gpu_uuid=self.gpu_uuid,
        )


class _InputUrl(_Model):
    url: Annotated[Word, Field(max_length=8192)]
    name: FileName | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}\z")] | None = None
    size: Count | None = Field(None, alias="bytes")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name is None:
            try:
                check_file_name(_last_segment(self.url))
            except ValueError as error:
                raise ValueError(f"needs a `name`: its URL's last part {error}") from (
                    error
                )
        return self

    def input_url(self) -> InputUrl:
        return InputUrl(
            url=self.url,
            name=self.name or _last_segment(self.url),
            sha256=self.sha256.lower() if self.sha256 else None,
            size_bytes=self.size,
        )


def _last_segment(url: str) -> str:
    """Give the decoded last part of a URL's path; ValueError when it has none."""
    return unquote(urlsplit(url).path.rpartition("/")[2], errors="strict")


class _Input(_Model):
    urls: Annotated[
        list[Annotated[_InputUrl, BeforeValidator(_as_url)]],
        Field(max_length=_MAX_ENTRIES),
    ] = []
    inline: Annotated[dict[FileName, str], Field(max_length=_MAX_ENTRIES)] = {}

    def names(self) -> list[str]:
        return [each.input_url().name for each in self.urls] + list(self.inline)


class _Artifact(_Model):
    path: Annotated[str, Field(max_length=1024), AfterValidator(_check_path)]
    type: Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,255}\z")] = (
        "application/octet-stream"
    )
    max_mb: Annotated[float, Field(gt=0, le=2**40)] = 1024

    def spec(self) -> ArtifactSpec:
        return ArtifactSpec(path=self.path, type=self.type, max_mb=self.max_mb)


class _Network(_Model):
    allow: Annotated[list[Word], Field(max_length=_MAX_ENTRIES)] = []


class Wire(_Model):
    """The manifest as the contract writes it."""

    job_id: Annotated[str, AfterValidator(_check_job_id)]
    attempt: Annotated[int, Field(ge=1, le=_MAX_COUNT)] = 1
    runner: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\z", max_length=64)]
    requirements: _Requirements = _Requirements()
    timeout_s: Annotated[float, Field(gt=0, le=_MAX_TIMEOUT_S)]
    input: _Input = _Input()
    command: Word | None = None
    args: Annotated[list[Text], FailFast(), Field(max_length=_MAX_ARGS)] = []
    task: Word | None = None
    params: dict[str, Any] = {}
    artifacts: Annotated[list[_Artifact], Field(max_length=_MAX_ENTRIES)] = []
    env: Env = {}
    secrets: Env = Field({}, repr=False)
    idempotent: bool = False
    deadline: Annotated[str, AfterValidator(_check_rfc3339)] | None = None
    """Checked only: the coordinator ends a job that is past it, by lease or cancel."""
    network: _Network = _Network()

    @field_validator("timeout_s")
    @classmethod
    def _check_timeout(cls, value: float, info: ValidationInfo) -> float:
        longest = info.context["max_timeout_s"] if info.context else _MAX_TIMEOUT_S
        if value > longest:
            raise ValueError(f"is more than this node's longest job ({longest:g} s)")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = [
            f"runner {self.runner!r} needs `{needed}`"
            for runner, needed in (("cli", "command"), ("python", "task"))
            if self.runner == runner and getattr(self, needed) is None
        ]
        inputs = self.input.names()
        paths = [artifact.path for artifact in self.artifacts]
        problems += [f"two inputs are named {name!a}" for name in _twice(inputs)]
        problems += [f"two artifacts have the path {p!a}" for p in _twice(paths)]
        problems += [
            f"artifact {path!a} has an input's name"
            for path in sorted(set(paths) & set(inputs))
        ]
        if problems:
            raise ValueError("; ".join(problems[:MAX_PROBLEMS]))
        return self

    def manifest(self) -> Manifest:
        """Give the checked noun."""
        return Manifest(
            job_id=self.job_id,
            attempt=self.attempt,
            runner=self.runner,
            requirements=self.requirements.requirements(),
            timeout_s=self.timeout_s,
            inputs=tuple(each.input_url() for each in self.input.urls),
            inline=self.input.inline,
            command=self.command,
            args=tuple(self.args),
            task=self.task,
            params=self.params,
            artifacts=tuple(each.spec() for each in self.artifacts),
            env=self.env,
            secrets=self.secrets,
            idempotent=self.idempotent,
            network_allow=tuple(self.network.allow),
        )


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
