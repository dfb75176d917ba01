"""The outcome of a payload in the contract's words."""

import pytest

from aitbc_aps_miner import outcome
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ArtifactFile,
    ExitCause,
    ExitFacts,
    Manifest,
    Outcome,
)

MANIFEST = Manifest(job_id="j", attempt=2, runner="cli", timeout_s=1, command="echo")


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        (
            ExitFacts(cause=ExitCause.EXITED, exit_code=3),
            ErrorCode.E_EXIT,
            "the payload ended with exit code 3",
        ),
        (
            ExitFacts(cause=ExitCause.EXITED, exit_code=None, signal=11),
            ErrorCode.E_EXIT,
            "the payload was ended by signal 11",
        ),
        (
            ExitFacts(
                cause=ExitCause.EXITED,
                exit_code=0,
                error={"type": "ValueError", "message": "bad"},
            ),
            ErrorCode.E_EXIT,
            "the task raised ValueError: bad",
        ),
        (
            ExitFacts(cause=ExitCause.DEADLINE, exit_code=None),
            ErrorCode.E_TIMEOUT,
            "the job's time limit was reached",
        ),
        (
            ExitFacts(cause=ExitCause.CANCELLED, exit_code=None),
            ErrorCode.E_CANCELLED,
            "cancelled",
        ),
        (
            ExitFacts(cause=ExitCause.DRAINED, exit_code=None),
            ErrorCode.E_LOST,
            "the node was drained before the job ended",
        ),
        (
            ExitFacts(cause=ExitCause.OOM, exit_code=None),
            ErrorCode.E_OOM,
            "the payload was stopped for its memory",
        ),
        (
            ExitFacts(cause=ExitCause.OUTPUT, exit_code=None),
            ErrorCode.E_ARTIFACT,
            "the payload wrote more than it may",
        ),
        (
            ExitFacts(cause=ExitCause.LEASE, exit_code=None),
            ErrorCode.E_LOST,
            "the lease ran out without contact to the coordinator",
        ),
    ],
)
def test_every_cause_has_its_code(
    facts: ExitFacts, code: ErrorCode, words: str
) -> None:
    """Each way to end badly becomes one code and one sentence."""
    with pytest.raises(JobError) as raised:
        outcome.raise_unless_successful(facts)
    assert (raised.value.code, raised.value.message) == (code, words)


def test_success_raises_nothing() -> None:
    """Exit code 0 without an exception is a success."""
    outcome.raise_unless_successful(ExitFacts(cause=ExitCause.EXITED, exit_code=0))


def test_evidence_reaches_the_detail() -> None:
    """What the runner measured stands in the failure's detail."""
    facts = ExitFacts(
        cause=ExitCause.OOM,
        exit_code=None,
        signal=9,
        error={"type": "MemoryError"},
        detail={"mechanism": "cgroup-v1"},
    )
    assert outcome.error_of(facts).detail == {
        "mechanism": "cgroup-v1",
        "exit_code": None,
        "signal": 9,
        "exception": {"type": "MemoryError"},
    }


def test_a_success_carries_its_artifacts() -> None:
    """The outcome of a success names exit code, resources and artifacts."""
    artifact = ArtifactFile(
        path="a", type="t", size_bytes=1, sha256="00", stored=".artifacts/0"
    )
    facts = ExitFacts(cause=ExitCause.EXITED, exit_code=0, wall_s=1.23456)
    assert outcome.succeeded(MANIFEST, facts, (artifact,)) == Outcome(
        job_id="j",
        attempt=2,
        succeeded=True,
        exit_code=0,
        resources={
            "wall_s": 1.235,
            "cpu_s": 0.0,
            "max_rss_mb": 0.0,
            "stdout_bytes": 0,
        },
        artifacts=(artifact,),
        cleanup={"tree_empty": True},
    )


def test_a_failure_before_the_payload_has_no_facts() -> None:
    """A job refused before its payload ran claims no resources."""
    error = JobError(ErrorCode.E_DENY, "no", {"index": 1})
    assert outcome.failed(MANIFEST, error, None) == Outcome(
        job_id="j",
        attempt=2,
        succeeded=False,
        code=ErrorCode.E_DENY,
        message="no",
        detail={"index": 1},
    )


def test_a_refused_result_is_rewritten_to_a_failure() -> None:
    """The artifacts stay listed; code and words are the refusal's."""
    success = outcome.succeeded(
        MANIFEST, ExitFacts(cause=ExitCause.EXITED, exit_code=0), ()
    )
    error = JobError(ErrorCode.E_UPLOAD, "too large", {"status": 413})
    refused = outcome.rewritten(success, error)
    assert (refused.succeeded, refused.code, refused.message, refused.detail) == (
        False,
        ErrorCode.E_UPLOAD,
        "too large",
        {"status": 413},
    )


def test_a_defect_names_its_error_id() -> None:
    """E_INTERNAL points at the log line."""
    error = outcome.defect(KeyError("x"), "id-1")
    assert (error.code, error.detail) == (ErrorCode.E_INTERNAL, {"error_id": "id-1"})


def test_a_stop_before_the_payload_has_its_code() -> None:
    """A deadline reached while fetching inputs is E_TIMEOUT like any other."""
    assert outcome.stopped(ExitCause.DEADLINE).code is ErrorCode.E_TIMEOUT
