r"""What an owner allows a CLI job to run: one file a command, read and obeyed here.

The form is the specification's::

    command: {path: /usr/bin/ffmpeg}
    args:                               # each entry may occur any number of times
      - ["-y"]                          # a flag, literally
      - ["-i", ".+\\.mp4"]               # a flag and what its value matches
      - ["output\\.mp4"]                 # what a plain argument matches
      - {flag: "-f", pattern: ".+", allow_paths: true}
    max_total_args_len: 4096            # characters
    max_runtime_s: 7200
    max_output_mb: 5000                 # MiB written to work/ and output/

Patterns match whole arguments. Arguments are taken from left to right, by the longest
entry that fits, never with a second thought: the owner can follow it on paper.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.runners.cpu_guard import TooSlowError, cpu_guard

SHOWN_CHARS = 80
_MATCH_CPU_S = 1.0

# Where a text could name a file elsewhere: a slash or `..` at its start or after
# anything that is no part of a file name, as in `movie=/etc/passwd` or `a.mp4|/b`.
_ABSOLUTE = re.compile(r"(?<![\w.)\]}-])[/\\~]")
_CLIMBING = re.compile(r"(?<![\w.-])\.\.(?![\w.-])")
# `http://`, but also `concat:` and `file:`, which need no slashes.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:.*|.*://.*", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class ArgEntry:
    """One allowed sequence: a literal flag, or none, and patterns."""

    flag: str | None
    patterns: tuple[re.Pattern[str], ...]
    allow_paths: bool = False
    """Whether a value may be an absolute path, climb, or name a protocol."""
    allow_dash: bool = False
    """Whether the first argument may begin with `-` though it is no literal flag."""

    @property
    def length(self) -> int:
        """How many arguments it takes."""
        return len(self.patterns) + (self.flag is not None)

    def __str__(self) -> str:
        words = [] if self.flag is None else [self.flag]
        return " ".join([*words, *(f"/{each.pattern}/" for each in self.patterns)])


@dataclass(frozen=True, kw_only=True)
class Command:
    """One allowed command and its limits."""

    name: str
    path: Path
    source: Path
    """The file that allows it."""
    entries: tuple[ArgEntry, ...] = ()
    max_total_args_len: int = 4096
    max_args: int = 256
    max_runtime_s: float | None = None
    max_output_mb: float | None = None
    env: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()
    progress: str | None = None

    def check(self, args: Sequence[str]) -> None:
        """Raise JobError E_DENY, saying which argument is not allowed and what is."""
        self._check_size(args)
        for index, argument in enumerate(args):
            if _CONTROL.search(argument):
                raise _denied(index, argument, "control characters are never allowed")
        try:
            with cpu_guard(_MATCH_CPU_S):
                self._match(args)
        except TooSlowError as exc:
            raise JobError(
                ErrorCode.E_DENY,
                f"the patterns of {self.source} took more than {_MATCH_CPU_S:g} s "
                "for these arguments",
            ) from exc

    def _check_size(self, args: Sequence[str]) -> None:
        if len(args) > self.max_args:
            raise JobError(
                ErrorCode.E_DENY,
                f"{len(args)} arguments; {self.name} may have {self.max_args}",
            )
        total = sum(map(len, args))
        if total > self.max_total_args_len:
            raise JobError(
                ErrorCode.E_DENY,
                f"arguments of {total} characters together; {self.name} may have "
                f"{self.max_total_args_len}",
            )

    def _match(self, args: Sequence[str]) -> None:
        index = 0
        while index < len(args):
            index += self._match_one(args, index)

    def _match_one(self, args: Sequence[str], index: int) -> int:
        """Give how many arguments the entry that fits at `index` takes."""
        argument = args[index]
        # What is a flag is nothing else: no plain pattern can swallow it.
        fitting = [entry for entry in self.entries if entry.flag == argument]
        if not fitting:
            fitting = [entry for entry in self.entries if entry.flag is None]
        complaints: list[tuple[int, str]] = []
        for entry in sorted(fitting, key=lambda entry: -entry.length):
            complaint = _complaint(entry, args, index)
            if complaint is None:
                return entry.length
            complaints.append(complaint)
        if not complaints or fitting[0].flag is None:
            raise _denied(index, argument, self._allowed(complaints))
        where = max(at for at, _ in complaints)
        words = " or ".join(text for at, text in complaints if at == where)
        if where >= len(args):
            raise _denied(index, argument, f"it must be followed by {words}")
        raise _denied(where, args[where], f"after {argument} {words}")

    def _allowed(self, complaints: Sequence[tuple[int, str]]) -> str:
        """Say what may stand where nothing fitted."""
        reasons = {text for _, text in complaints if not text.startswith("/")}
        if reasons:
            return "; ".join(sorted(reasons))
        if not self.entries:
            return f"{self.name} takes no arguments"
        return "allowed here: " + ", ".join(map(str, self.entries))


@dataclass(frozen=True, kw_only=True)
class Allowlist:
    """Every allowed command; `problems` says what is wrong with which file."""

    commands: dict[str, Command] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    """Names that would be allowed if their files were in order, and why not."""

    def command(self, name: str | None) -> Command:
        """Look up the command of a manifest. Raises JobError E_DENY."""
        shown = _shown(name or "")
        if name is not None and name in self.broken:
            raise JobError(
                ErrorCode.E_DENY,
                f"command {shown} is switched off: {self.broken[name]}",
            )
        if name is None or name not in self.commands:
            known = ", ".join(sorted(self.commands)) or "none"
            raise JobError(
                ErrorCode.E_DENY, f"command {shown} is not allowed; allowed: {known}"
            )
        return self.commands[name]


def _complaint(
    entry: ArgEntry, args: Sequence[str], index: int
) -> tuple[int, str] | None:
    """Say where and why `entry` does not fit at `index`; None when it does."""
    start = index + (entry.flag is not None)
    for at, pattern in enumerate(entry.patterns, start):
        if at >= len(args):
            return at, f"/{pattern.pattern}/"
        value = args[at]
        dashed = at == index and value.startswith("-") and not entry.allow_dash
        if dashed or not pattern.fullmatch(value):
            return at, f"/{pattern.pattern}/"
        if not entry.allow_paths and _leaves(value):
            return at, "a path or address outside the job's directory is not allowed"
    return None


def _leaves(value: str) -> bool:
    """Whether a value could name something outside the working directory."""
    return bool(
        _ABSOLUTE.search(value) or _CLIMBING.search(value) or _PROTOCOL.fullmatch(value)
    )


def _denied(index: int, argument: str, words: str) -> JobError:
    return JobError(
        ErrorCode.E_DENY,
        f"argument {index} ({_shown(argument)}) is not allowed: {words}",
        {"index": index},
    )


def _shown(text: str) -> str:
    if len(text) <= SHOWN_CHARS:
        return repr(text)
    return f"{text[:SHOWN_CHARS]!r}… ({len(text)} characters)"
