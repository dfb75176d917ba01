"""The payload's environment, built from nothing; none of the miner's is inherited."""

import re
from collections.abc import Mapping
from pathlib import Path

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import Manifest, Reservation
from aitbc_aps_miner.ports import Workspace

ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_VALUE_MAX = 65536  # the kernel takes 128 KiB for one string (MAX_ARG_STRLEN)
# What makes a program load or run code, or write a file, that no allowlist has seen.
_FORBIDDEN_PREFIXES = (
    "LD_", "PYTHON", "GLIBC_", "MALLOC_", "PERL", "RUBY", "NODE_", "JAVA_", "_JAVA_",
    "JDK_", "BASH", "GIT_", "AITBC_", "CUDA_INJECTION", "NVIDIA_",
)  # fmt: skip
_FORBIDDEN = frozenset(
    {
        "ENV", "IFS", "SHELL", "SHELLOPTS", "PS4", "GCONV_PATH", "LOCPATH", "NLSPATH",
        "HOSTALIASES", "FFREPORT", "LUA_INIT", "LUA_PATH", "LUA_CPATH",
    }
)  # fmt: skip


def environment(
    manifest: Manifest,
    workspace: Workspace,
    reservation: Reservation,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Build the environment; `fixed` is what the owner sets for the command.

    Raises JobError as `check_environment` does.
    """
    owner = dict(fixed or {})
    check_environment(manifest, owner)
    return {
        **_own(manifest, workspace.root / "work", reservation),
        **owner,
        **manifest.env,
        **manifest.secrets,
    }


def check_environment(
    manifest: Manifest, fixed: Mapping[str, str] | None = None
) -> None:
    """Raise JobError E_DENY for a variable that a manifest may not set."""
    nowhere = Path("/")
    taken = {*_own(manifest, nowhere, Reservation(kind="cpu")), *(fixed or {})}
    for name, value in (*manifest.env.items(), *manifest.secrets.items()):
        if not ENV_NAME.fullmatch(name):
            raise _denied(name, "its name must match [A-Z_][A-Z0-9_]*")
        if name in taken | _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES):
            raise _denied(name, "a job may not set it")
        if "\0" in value or len(value) > _VALUE_MAX or not _encodable(value):
            raise _denied(name, f"its value must be text of at most {_VALUE_MAX}")


def _own(manifest: Manifest, work: Path, reservation: Reservation) -> Mapping[str, str]:
    gpus = ",".join(reservation.gpu_uuids)
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work / ".tmp"),
        "LANG": "C.UTF-8",
        "AITBC_JOB_ID": manifest.job_id,
        "AITBC_ATTEMPT": str(manifest.attempt),
        # Empty hides every GPU from CUDA; "void" does so for the container runtime.
        "CUDA_VISIBLE_DEVICES": gpus,
        "NVIDIA_VISIBLE_DEVICES": gpus or "void",
        "OMP_NUM_THREADS": str(reservation.cpu_threads),
    }


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _denied(name: str, words: str) -> JobError:
    return JobError(
        ErrorCode.E_DENY, f"environment variable {name[:80]!r} is not allowed: {words}"
    )
