"""From what was observed of a payload to the outcome in the contract's words. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ArtifactFile,
    ExitCause,
    ExitFacts,
    Manifest,
    Outcome,
)

_CODE_OF_CAUSE: Mapping[ExitCause, ErrorCode] = {
    ExitCause.EXITED: ErrorCode.E_EXIT,
    ExitCause.DEADLINE: ErrorCode.E_TIMEOUT,
    ExitCause.CANCELLED: ErrorCode.E_CANCELLED,
    # Not E_CANCELLED, which is for good: this attempt ends with the node's daemon.
    ExitCause.DRAINED: ErrorCode.E_LOST,
    ExitCause.OOM: ErrorCode.E_OOM,
    # Too much output is a result over its size, whichever file it is in.
    ExitCause.OUTPUT: ErrorCode.E_ARTIFACT,
    # The lease is another node's by now; this attempt is lost.
    ExitCause.LEASE: ErrorCode.E_LOST,
}

_WORDS: Mapping[ExitCause, str] = {
    ExitCause.DEADLINE: "the job's time limit was reached",
    ExitCause.CANCELLED: "cancelled",
    ExitCause.DRAINED: "the node was drained before the job ended",
    ExitCause.OOM: "the payload was stopped for its memory",
    ExitCause.OUTPUT: "the payload wrote more than it may",
    ExitCause.LEASE: "the lease ran out without contact to the coordinator",
}


def raise_unless_successful(facts: ExitFacts) -> None:
    """Raise the JobError that `facts` amount to; return when they are a success."""
    ended_well = facts.cause is ExitCause.EXITED and facts.exit_code == 0
    if not ended_well or facts.error is not None:
        raise error_of(facts)


def error_of(facts: ExitFacts) -> JobError:
    """Say what an unsuccessful payload ended with."""
    detail: dict[str, Any] = dict(facts.detail)
    detail |= {"exit_code": facts.exit_code, "signal": facts.signal}
    if facts.error is not None:
        detail["exception"] = dict(facts.error)
    return JobError(_CODE_OF_CAUSE[facts.cause], _words(facts), detail)


def _words(facts: ExitFacts) -> str:
    if facts.cause is not ExitCause.EXITED:
        return _WORDS[facts.cause]
    if facts.error is not None:
        kind, message = facts.error.get("type", "error"), facts.error.get("message", "")
        return f"the task raised {kind}: {message}"
    if facts.signal is not None:
        return f"the payload was ended by signal {facts.signal}"
    return f"the payload ended with exit code {facts.exit_code}"


def stopped(cause: ExitCause) -> JobError:
    """Give the error of a job that was stopped before its payload ran."""
    return JobError(_CODE_OF_CAUSE[cause], _WORDS.get(cause, cause.value))


def succeeded(
    manifest: Manifest, facts: ExitFacts, artifacts: tuple[ArtifactFile, ...]
) -> Outcome:
    """Give the outcome of a job whose artifacts were collected."""
    return Outcome(
        job_id=manifest.job_id,
        attempt=manifest.attempt,
        succeeded=True,
        exit_code=facts.exit_code,
        resources=_resources(facts),
        artifacts=artifacts,
        detail=dict(facts.detail),
        cleanup=_cleanup(facts),
    )


def failed(manifest: Manifest, error: JobError, facts: ExitFacts | None) -> Outcome:
    """Give the outcome of a job that failed; `facts` if its payload ran."""
    return Outcome(
        job_id=manifest.job_id,
        attempt=manifest.attempt,
        succeeded=False,
        code=error.code,
        message=error.message,
        detail=error.detail,
        exit_code=facts.exit_code if facts else None,
        resources=_resources(facts) if facts else {},
        cleanup=_cleanup(facts) if facts else {},
    )


def rewritten(outcome: Outcome, error: JobError) -> Outcome:
    """Turn a success that the coordinator will never take into a failure."""
    return replace(
        outcome,
        succeeded=False,
        code=error.code,
        message=error.message,
        detail={**outcome.detail, **error.detail},
    )


def defect(error: BaseException, error_id: str) -> JobError:
    """Give the error of a job that died of a defect of the miner."""
    return JobError(
        ErrorCode.E_INTERNAL,
        f"a defect of the miner ({type(error).__name__}); error id {error_id}",
        {"error_id": error_id},
    )


def _resources(facts: ExitFacts) -> Mapping[str, Any]:
    return {
        "wall_s": round(facts.wall_s, 3),
        "cpu_s": round(facts.cpu_s, 3),
        "max_rss_mb": round(facts.max_rss_mb, 1),
        "stdout_bytes": facts.stdout_bytes,
    }


def _cleanup(facts: ExitFacts) -> Mapping[str, Any]:
    return {"tree_empty": facts.tree_empty}
