"""Progress reports: the newest one, in its pace, renewing the lease, never harmful."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from daemon_fakes import FakeClock

from aitbc_aps_miner import progress as progress_module
from aitbc_aps_miner.errors import CoordinatorError, JobGoneError, UnavailableError
from aitbc_aps_miner.models import (
    Capabilities,
    ExitCause,
    Lease,
    Manifest,
    PayloadLimits,
    Progress,
    ProgressReply,
)
from aitbc_aps_miner.ports import Coordinator
from aitbc_aps_miner.progress import ProgressSender
from aitbc_aps_miner.watch import JobWatch

MANIFEST = Manifest(job_id="j", runner="cli", timeout_s=60)


@dataclass
class Listener:
    """A coordinator that hears progress and answers in turn."""

    answers: list[ProgressReply | CoordinatorError] = field(default_factory=list)
    capabilities: Capabilities = field(default_factory=Capabilities)
    heard: list[Progress] = field(default_factory=list)
    bell: threading.Condition = field(default_factory=threading.Condition)

    def progress(self, manifest: Manifest, progress: Progress) -> ProgressReply:
        assert manifest is MANIFEST
        answer = self.answers.pop(0) if self.answers else ProgressReply()
        with self.bell:
            self.heard.append(progress)
            self.bell.notify_all()
        if isinstance(answer, CoordinatorError):
            raise answer
        return answer

    def wait_for(self, count: int) -> None:
        """Wait until so many reports were heard."""
        with self.bell:
            assert self.bell.wait_for(lambda: len(self.heard) >= count, 10)


def watch() -> JobWatch:
    """Give a job's watch."""
    control: Mapping[str, Any] = {}
    return JobWatch(
        clock=FakeClock(),
        timeout_s=60,
        limits=PayloadLimits(),
        read_control=lambda: control,
    )


def sender(listener: Listener, guard: JobWatch) -> ProgressSender:
    """Give a sender to `listener`."""
    return ProgressSender(cast("Coordinator", listener), MANIFEST, guard)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the least pause short."""
    monkeypatch.setattr(progress_module, "MIN_PAUSE_S", 0.01)


def test_a_job_shorter_than_the_pause_sends_nothing() -> None:
    """Nobody would see it."""
    listener = Listener()
    with sender(listener, watch()) as reports:
        reports.put(Progress(pct=50))
    reports._thread.join(10)
    assert listener.heard == []


@pytest.mark.usefixtures("quick")
def test_the_newest_report_counts() -> None:
    """What came before it and was not sent yet is gone."""
    listener = Listener()
    reports = sender(listener, watch())
    reports.put(Progress(pct=1))
    reports.put(Progress(pct=2))
    with reports:
        listener.wait_for(1)
        reports.put(Progress(pct=3))
        listener.wait_for(2)
    assert [report.pct for report in listener.heard] == [2, 3]


@pytest.mark.usefixtures("quick")
def test_a_silent_job_renews_its_lease_by_its_last_report() -> None:
    """Three times in each lease."""
    listener, guard = Listener(), watch()
    guard.lease(Lease(ttl_s=0.03))
    listener.answers = [ProgressReply(lease=Lease(ttl_s=0.06))]
    with sender(listener, guard):
        listener.wait_for(3)
    assert {report.pct for report in listener.heard} == {0}
    assert guard.lease_ttl_s == 0.06


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (ProgressReply(cancel=True), ExitCause.CANCELLED),
        (JobGoneError("409"), ExitCause.CANCELLED),
        (UnavailableError("503"), None),
    ],
)
def test_the_answer_may_end_the_job_and_a_failure_does_not(
    answer: ProgressReply | CoordinatorError, cause: ExitCause | None
) -> None:
    """A job that is another node's by now stops; one whose report is lost goes on."""
    listener, guard = Listener([answer]), watch()
    with sender(listener, guard) as reports:
        reports.put(Progress(pct=1))
        listener.wait_for(1)
        reports.put(Progress(pct=2))
        listener.wait_for(2)
    assert guard.stop_cause() is cause


def test_a_coordinator_without_progress_is_not_told_any() -> None:
    """No thread is started for it."""
    listener = Listener(capabilities=Capabilities(progress=False))
    with sender(listener, watch()) as reports:
        reports.put(Progress(pct=1))
    assert not reports._thread.is_alive()
    assert listener.heard == []
