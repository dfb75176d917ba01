"""What every coordinator adapter does, over HTTP against the reference coordinator.

One suite for all dialects: a new adapter is one more entry in ADAPTERS.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest

from aitbc_aps_miner import manifest as manifests
from aitbc_aps_miner.config.model import Config, Coordinator
from aitbc_aps_miner.coordinator import FixedToken, NodeApi, open_coordinator
from aitbc_aps_miner.errors import CoordinatorError, ErrorCode, JobGoneError
from aitbc_aps_miner.models import ArtifactFile, Manifest, Outcome, Progress

ADAPTERS = ["node-v1"]
FILTERS = {"runners": ["cli"], "gpu": False, "cpu_slots_free": 2}
_NUMBERS = count(1)
CALLS = ["register", "heartbeat", "pull", "ack", "progress", "result", "fail", "query"]


@dataclass
class Place:
    """A coordinator, a node at it, and a directory with results."""

    server: CoordinatorServer
    api: NodeApi
    node_id: str
    folder: Path

    def pulled(self) -> Manifest:
        """Submit a job and pull it."""
        self.server.submit(echo_manifest())
        (raw,) = self.api.pull(self.node_id, FILTERS, 1, 0)
        return manifests.parse(raw, max_timeout_s=3600)

    def acked(self) -> Manifest:
        """Submit a job, pull and ack it."""
        manifest = self.pulled()
        self.api.ack(manifest)
        return manifest

    def outcome(self, manifest: Manifest, content: bytes = b"hello\n") -> Outcome:
        """Write a log and an artifact; give the success that holds it."""
        (self.folder / "exec.log").write_bytes(b"said\n")
        (self.folder / "output.txt").write_bytes(content)
        return Outcome(
            job_id=manifest.job_id,
            attempt=manifest.attempt,
            succeeded=True,
            exit_code=0,
            timings={"RUNNING": 0.5},
            artifacts=(
                ArtifactFile(
                    path="output.txt",
                    type="text/plain",
                    size_bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    stored="output.txt",
                ),
            ),
        )

    def deliver(self, outcome: Outcome) -> None:
        """Submit an outcome."""
        self.api.deliver(
            outcome,
            lambda artifact: self.folder / artifact.stored,
            self.folder / "exec.log",
        )


def config(url: str, adapter: str, node_id: str) -> Config:
    """Give a configuration for a coordinator at `url`."""
    section = Coordinator.model_validate(
        {"api": adapter, "base_url": url, "timeout_s": 2}
    )
    return Config(node_id=node_id, coordinator=section)


@pytest.fixture(scope="module")
def server() -> Iterator[CoordinatorServer]:
    """Give one coordinator for all tests; each is a node of its own there."""
    with CoordinatorServer() as running:
        yield running


@pytest.fixture(params=ADAPTERS)
def place(
    request: pytest.FixtureRequest, server: CoordinatorServer, tmp_path: Path
) -> Iterator[Place]:
    """Give a registered node."""
    settings = config(server.base_url, request.param, f"node-{next(_NUMBERS)}")
    with closing(open_coordinator(settings, None, None)) as first:
        registration = first.register({"node_id": settings.node_id}, server.token)
    opened = open_coordinator(
        settings,
        FixedToken(registration.token),
        None,
        extensions=registration.extensions,
    )
    with closing(opened) as api:
        yield Place(server, api, settings.node_id, tmp_path)
        server.clear_faults()


def test_a_job_goes_its_way(place: Place) -> None:
    """Pulled, acked, reported, delivered with its log and artifact."""
    manifest = place.acked()
    lease = place.api.progress(manifest, Progress(pct=50, note="half")).lease
    place.deliver(place.outcome(manifest))
    job = place.server.job(manifest.job_id)
    assert job["state"] == "succeeded"
    assert place.server.artifact(manifest.job_id, "output.txt") == b"hello\n"
    assert place.server.artifact(manifest.job_id, "logs/exec.log") == b"said\n"
    assert lease.ttl_s is None or 0 < lease.ttl_s <= 60


def test_a_failure_is_told(place: Place) -> None:
    """With its code and words."""
    manifest = place.acked()
    place.deliver(
        Outcome(
            job_id=manifest.job_id,
            attempt=manifest.attempt,
            succeeded=False,
            code=ErrorCode.E_EXIT,
            message="ended with 3",
        )
    )
    outcome = place.server.job(manifest.job_id)["outcome"]
    assert (outcome["error_code"], outcome["error_msg"]) == ("E_EXIT", "ended with 3")


def test_an_outcome_delivered_twice_is_one(place: Place) -> None:
    """A crash between the answer and our mark costs nothing."""
    if not place.api.capabilities.idempotency:
        return
    outcome = place.outcome(place.acked())
    place.deliver(outcome)
    place.deliver(outcome)
    steps = [step["state"] for step in place.server.job(outcome.job_id)["history"]]
    assert steps.count("succeeded") == 1


def test_a_job_that_is_no_longer_ours_is_gone(place: Place) -> None:
    """Cancelled before the ack: nothing of it may start."""
    manifest = place.pulled()
    place.server.cancel(manifest.job_id, force=True)
    with pytest.raises(JobGoneError):
        place.api.ack(manifest)


def test_nothing_to_do_is_no_job(place: Place) -> None:
    """An empty answer is not an error."""
    assert place.api.pull(place.node_id, FILTERS, 4, 0) == ()


def test_a_cancel_is_heard(place: Place) -> None:
    """Through a progress report or a heartbeat."""
    if not place.api.capabilities.cancel:
        return
    manifest = place.acked()
    place.server.cancel(manifest.job_id)
    assert place.api.progress(manifest, Progress(pct=1)).cancel
    assert manifest.job_id in place.api.heartbeat({"node_id": place.node_id}).cancel


def test_active_jobs_are_listed(place: Place) -> None:
    """The recovery query shows what this node holds, and one job by its id."""
    if not place.api.capabilities.query:
        return
    manifest = place.acked()
    listed = place.api.active_jobs(place.node_id)
    assert listed is not None
    assert [(job.job_id, job.state) for job in listed] == [(manifest.job_id, "acked")]
    assert manifests.parse(listed[0].manifest, max_timeout_s=3600) == manifest
    asked = place.api.query(manifest.job_id)
    assert asked is not None
    assert (asked.state, asked.node_id, asked.attempt) == ("acked", place.node_id, 1)
    assert place.api.query("nobody-knows") is None


def every_call(place: Place, manifest: Manifest) -> dict[str, Callable[[], object]]:
    """Give each call of the port by its name in the contract."""
    outcome = place.outcome(manifest)
    failure = Outcome(
        job_id=manifest.job_id, attempt=1, succeeded=False, code=ErrorCode.E_EXIT
    )
    return {
        "register": lambda: place.api.register(
            {"node_id": place.node_id}, place.server.token
        ),
        "heartbeat": lambda: place.api.heartbeat({"node_id": place.node_id}),
        "pull": lambda: place.api.pull(place.node_id, FILTERS, 1, 0),
        "ack": lambda: place.api.ack(manifest),
        "progress": lambda: place.api.progress(manifest, Progress(pct=1)),
        "result": lambda: place.deliver(outcome),
        "fail": lambda: place.deliver(failure),
        "query": lambda: place.api.active_jobs(place.node_id),
    }


@pytest.mark.parametrize("call", CALLS)
def test_whatever_breaks_is_an_error_of_the_tree(place: Place, call: str) -> None:
    """Garbage, floods, cuts, refusals: never another exception, never a crash.

    Afterwards the same call works.
    """
    manifest = place.acked()
    calls = every_call(place, manifest)
    faults: list[dict[str, Any]] = [
        {"kind": "huge", "bytes": 64 * 2**20},
        {"kind": "garbage"},
        {"kind": "status", "status": 429, "retry_after_s": 1000},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 401},
        {"kind": "status", "status": 403},
    ]
    if call != "query":  # has no body to be cut
        faults.append({"kind": "cut", "bytes": 0})
    if call not in ("result", "fail"):
        # After the commit of these, the repetition finds it done.
        faults.append({"kind": "cut_reply", "bytes": 3})
    for fault in faults:
        place.server.set_fault(call, **fault)
        with pytest.raises(CoordinatorError):
            calls[call]()
        place.server.clear_faults()
    calls[call]()
