"""Sets the scene of a payload in its workspace: directories, and what is kept of it."""

from collections.abc import Mapping

from aitbc_aps_miner.models import Manifest
from aitbc_aps_miner.ports import Workspace
from aitbc_aps_miner.runners.payload import Payload


def payload_in(
    workspace: Workspace,
    manifest: Manifest,
    *,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    stdin: str = "",
) -> Payload:
    """Describe the payload of a job whose directories are in place."""
    work, output = workspace.root / "work", workspace.root / "output"
    logs = workspace.exec_log.parent
    for directory in (work, work / ".tmp", output, logs):
        directory.mkdir(mode=0o700, exist_ok=True)
    return Payload(
        argv=argv,
        env=env,
        cwd=work,
        logs=logs,
        stdin=stdin,
        measured=(work, output),
        keep_stdout=_may_be_filled_from_stdout(manifest),
        secrets=tuple(manifest.secrets.values()),
    )


def _may_be_filled_from_stdout(manifest: Manifest) -> bool:
    """Whether the contract may turn standard output into an artifact."""
    return (
        len(manifest.artifacts) == 1
        and manifest.artifacts[0].type.partition(";")[0].strip() == "text/plain"
    )
