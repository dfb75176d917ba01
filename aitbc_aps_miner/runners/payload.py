"""What a runner wants to have run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What is to be run."""

    argv: tuple[str, ...]
    """The first one is the absolute path of the program."""
    env: Mapping[str, str]
    cwd: Path
    logs: Path
    stdin: str = ""
    measured: tuple[Path, ...] = ()
    """Directories that `output_mb` counts."""
    keep_stdout: bool = False
    """Whether `logs/stdout.bin` is wanted."""
    secrets: tuple[str, ...] = ()
    """Masked in everything that is kept of the output."""
