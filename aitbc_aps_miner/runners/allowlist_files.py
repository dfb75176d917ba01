"""Reads allowlist files, strictly: a file with a problem switches its command off.

Read again for each job and kept by what `stat` says; which arguments are allowed is
the business of allowlist.py.
"""

import os
import re
import stat
import time
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from aitbc_aps_miner.runners.allowlist import Allowlist, ArgEntry, Command
from aitbc_aps_miner.runners.environment import ENV_NAME

SUFFIXES = (".yaml", ".yml", ".toml")
_MAX_BYTES = 1 << 20
# An editor's half-written file can be valid and lack its limits at the end.
SETTLE_S = 0.5

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
StatKey = tuple[int, int, int, int]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Program(_Model):
    path: str

    @field_validator("path")
    @classmethod
    def _is_absolute(cls, path: str) -> str:
        if not path.startswith("/") or "\0" in path:
            raise ValueError("must be an absolute path")
        return path


class _Entry(_Model):
    """One entry of `args`, in either form."""

    flag: str | None = None
    patterns: tuple[re.Pattern[str], ...] = ()
    allow_paths: bool = False
    allow_dash: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, raw: Any) -> Any:
        if isinstance(raw, list):
            return cls._from_list(raw)
        if not isinstance(raw, dict):
            raise ValueError("must be a list of texts, or {flag, pattern, …}")  # noqa: TRY004 - pydantic turns ValueError into a problem
        entry = dict(raw)
        if "pattern" in entry:
            entry["patterns"] = [entry.pop("pattern")]
        if not entry.get("flag") and not entry.get("patterns"):
            raise ValueError("must have a flag, a pattern, or both")
        return entry | {"patterns": _compiled(entry.get("patterns", []))}

    @classmethod
    def _from_list(cls, raw: list[Any]) -> Mapping[str, Any]:
        if not raw or not all(isinstance(part, str) and part for part in raw):
            raise ValueError("must be one or more texts, none of them empty")
        # A first element with a dash is meant literally, `-c:v` or `--level`.
        if raw[0].startswith("-"):
            return {"flag": raw[0], "patterns": _compiled(raw[1:])}
        return {"patterns": _compiled(raw)}


class _File(_Model):
    command: _Program
    name: Name | None = None
    aliases: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    args: Annotated[tuple[_Entry, ...], Field(strict=False)] = ()
    max_total_args_len: int = Field(4096, ge=0, le=1 << 20)
    max_args: int = Field(256, ge=0, le=65536)
    max_runtime_s: float | None = Field(None, gt=0, strict=False)
    max_output_mb: float | None = Field(None, gt=0, strict=False)
    env: dict[str, str] = Field(default_factory=dict)
    progress: str | None = None

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not ENV_NAME.fullmatch(name) or "\0" in value:
                raise ValueError(
                    f"{name!r} is not a variable of the form [A-Z_][A-Z0-9_]*"
                )
        return env

    @field_validator("progress")
    @classmethod
    def _progress_is_known(cls, progress: str | None) -> str | None:
        if progress not in {None, "ffmpeg"}:
            (pattern,) = _compiled([progress])
            if "pct" not in pattern.groupindex:
                raise ValueError(
                    'must be "ffmpeg" or a pattern with a group (?P<pct>…)'
                )
        return progress


class AllowlistReader:
    """Reads the configured files; keeps what has not changed."""

    def __init__(
        self,
        *,
        settle_s: float = SETTLE_S,
        realtime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_REALTIME),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settle_s = settle_s
        self._realtime = realtime
        self._sleep = sleep
        self._known: dict[Path, tuple[StatKey, Command | str]] = {}

    def read(self, files: Iterable[Path], directory: Path | None = None) -> Allowlist:
        """Read `files` and those in `directory`; never raises for their contents."""
        paths = dict.fromkeys(files)
        problems: list[str] = []
        if directory is not None:
            try:
                found = sorted(directory.iterdir())
            except OSError as error:
                problems.append(f"{directory}: {error.strerror}")
                found = []
            hidden = (path for path in found if path.suffix in SUFFIXES)
            paths |= dict.fromkeys(p for p in hidden if not p.name.startswith("."))
        read = {path: self._read_one(path) for path in paths}
        self._known = {path: self._known[path] for path in paths if path in self._known}
        return _joined(read, problems)

    def _read_one(self, path: Path) -> Command | str:
        """Give the command of a file, or its problems in words."""
        try:
            key = self._settled(path)
            known = self._known.get(path)
            if known is not None and known[0] == key:
                return known[1]
            result = _load(path)
            if _stat_key(path.stat()) == key:
                self._known[path] = (key, result)
        except OSError as error:
            return f"{path}: cannot be read: {error.strerror}"
        return result

    def _settled(self, path: Path) -> StatKey:
        """Give the file's stat once it is not being written; waits for one settling."""
        status = path.stat()
        known = self._known.get(path)
        if known is None or known[0] != _stat_key(status):
            age_s = self._realtime() - status.st_mtime
            if 0 <= age_s < self._settle_s:
                self._sleep(self._settle_s - age_s)
                status = path.stat()
        return _stat_key(status)


def _joined(read: Mapping[Path, Command | str], problems: list[str]) -> Allowlist:
    """Join files to one list; a name that two files claim belongs to neither."""
    owners: dict[str, list[Command]] = {}
    broken: dict[str, str] = {}
    for path, result in read.items():
        if isinstance(result, str):
            problems.append(result)
            broken[path.stem] = result
            continue
        for name in dict.fromkeys((result.name, *result.aliases)):
            owners.setdefault(name, []).append(result)
    for name, commands in owners.items():
        if len(commands) > 1:
            files = " and ".join(str(command.source) for command in commands)
            broken[name] = f"the name {name} is given by {files}"
            problems.append(broken[name])
    commands_by_name = {
        name: commands[0] for name, commands in owners.items() if name not in broken
    }
    return Allowlist(commands=commands_by_name, problems=tuple(problems), broken=broken)


def _load(path: Path) -> Command | str:
    try:
        raw = _parse(path)
        file = _File.model_validate(raw)
    except ValidationError as error:
        words = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or '(file)'}: {each['msg']}, "
            f"given {str(each['input'])[:80]!r}"
            for each in error.errors(include_url=False)
        )
        return f"{path}: {words}"
    except ValueError as error:
        return f"{path}: {error}"
    return Command(
        name=file.name or path.stem,
        path=Path(file.command.path),
        source=path,
        entries=tuple(
            ArgEntry(
                flag=entry.flag,
                patterns=entry.patterns,
                allow_paths=entry.allow_paths,
                allow_dash=entry.allow_dash,
            )
            for entry in file.args
        ),
        max_total_args_len=file.max_total_args_len,
        max_args=file.max_args,
        max_runtime_s=file.max_runtime_s,
        max_output_mb=file.max_output_mb,
        env=tuple(file.env.items()),
        aliases=file.aliases,
        progress=file.progress,
    )


def _parse(path: Path) -> Any:
    """Parse a file that only its owner can have written. Raises ValueError."""
    # Not blocked by a FIFO of that name.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _check_trust(os.fstat(file.fileno()))
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    text = data.decode()
    if path.suffix == ".toml":
        return tomllib.loads(text)
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader's child
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


def _check_trust(status: os.stat_result) -> None:
    """Refuse what somebody else could have written. Raises ValueError."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"belongs to user {status.st_uid}; chown it to the miner's")
    if os.geteuid() == 0 and status.st_mode & 0o022:
        raise ValueError("others than root can write it; chmod go-w")


class _StrictLoader(yaml.SafeLoader):
    """YAML without repeated keys: the last one would win in silence."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} stands twice (from line {line})")
        return super().construct_mapping(node, deep)


def _compiled(patterns: Iterable[Any]) -> tuple[re.Pattern[str], ...]:
    compiled = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"a pattern must be a text, given {pattern!r}")  # noqa: TRY004 - pydantic turns ValueError into a problem
        try:
            compiled.append(re.compile(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{pattern!r} is no regular expression: {error}"
            ) from error
    return tuple(compiled)


def _stat_key(status: os.stat_result) -> StatKey:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
