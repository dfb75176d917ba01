"""May this job run here, and on what? Pure: manifest + capacity + rules → answer."""

from collections.abc import Callable
from dataclasses import dataclass

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import Manifest, Reservation
from aitbc_aps_miner.slots import Capacity


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the owner allows."""

    runners: frozenset[str]
    network_jobs: tuple[str, ...] = ()


def admit(
    manifest: Manifest,
    capacity: Capacity,
    rules: Rules,
    check_runner: Callable[[Manifest], None],
) -> Reservation:
    """Give what the job gets of the machine.

    `check_runner` is the runner's own check of command, arguments or task. Raises
    JobError: E_DENY for policy, E_NORES or E_NOGPU for what is missing.
    """
    if manifest.runner not in rules.runners:
        offered = ", ".join(sorted(rules.runners)) or "none"
        raise JobError(
            ErrorCode.E_DENY,
            f"runner {manifest.runner!r} is not offered here (offered: {offered})",
        )
    for target in manifest.network_allow:
        if not any(_covers(allowed, target) for allowed in rules.network_jobs):
            raise JobError(
                ErrorCode.E_DENY,
                f"network.allow names {target!r}, which the owner's [network] jobs "
                "does not",
            )
    check_runner(manifest)
    return capacity.reserve(manifest.requirements)


def _covers(allowed: str, target: str) -> bool:
    """Whether `host:port` lies within an allowed `host:port`; `*.` takes subdomains."""
    host, _, port = target.lower().rpartition(":")
    allowed_host, _, allowed_port = allowed.lower().rpartition(":")
    if not host or allowed_port not in ("*", port):
        return False
    if allowed_host.startswith("*."):
        return host.endswith(allowed_host[1:]) and len(host) > len(allowed_host) - 1
    return allowed_host in ("*", host)
