"""What each child is told when it starts."""

from dataclasses import asdict
from typing import Any

import pytest
from daemon_fakes import Bench, gpu, job_report

from aitbc_aps_miner.briefing import Briefing
from aitbc_aps_miner.callbacks import Callbacks
from aitbc_aps_miner.executor import Isolated
from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.node import Running
from aitbc_aps_miner.tokens import place_of
from aitbc_aps_miner.world import origin_of

CALL = Isolated(ref="x:y")


class Told(Bench):
    """A daemon with one job of its own and one adopted."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks = Callbacks(self.parts)
        self.briefing = Briefing(self.parts, self.callbacks, lambda: ["/jobs", "/old"])
        self.tokens.registered("t1", place_of(self.source.current.config))
        self.tokens.extensions = ["uploads"]
        self.node.host = {"cores": 4}
        self.node.gpus = (gpu(),)
        self.callbacks.jobs.start(job_report("own"))
        slot = Reservation(kind="gpu")
        self.node.hold(
            Running(
                job_id="adopted",
                attempt=1,
                reservation=slot,
                since_monotonic=0,
                adopted=True,
            )
        )

    def of(self, job_id: str) -> dict[str, Any]:
        """Give what a task is told beside the configuration."""
        told = dict(self.briefing(job_id, CALL))
        assert told.pop("config") == self.source.current.json
        return told


ACCESS = {"token": "t1", "extensions": ["uploads"]}


@pytest.mark.parametrize(
    ("job_id", "keys"),
    [
        ("probe", set()),
        ("control:own:cancel", set()),
        ("register", {"host", "gpus"}),
        ("job:own:1", {*ACCESS}),
        ("deliver:own", {*ACCESS, "roots"}),
        ("pull", {*ACCESS, "capacity", "held", "roots"}),
        (
            "sweep",
            {
                *ACCESS,
                "adopted",
                "capacity",
                "evidence",
                "held",
                "orphans",
                "roots",
                "takes_work",
            },
        ),
    ],
)
def test_each_task_is_told_what_it_needs(job_id: str, keys: set[str]) -> None:
    """And no more."""
    assert set(Told().of(job_id)) == keys


def test_a_heartbeat_tells_the_true_counts() -> None:
    """Whoever started the jobs."""
    node = Told()
    told = node.of("heartbeat")
    assert told == {
        **ACCESS,
        "host": {"cores": 4},
        "gpus": node.of("register")["gpus"],
        "digest": "d1",
        "running": ["own", "adopted"],
        "slots_free": {"cpu": 1, "gpu": 0},
        "draining": False,
    }
    assert told["gpus"][0]["uuid"] == "GPU-0"


@pytest.mark.parametrize("field", ["base_url", "node_id"])
def test_a_heartbeat_tells_no_job_of_another_origin(field: str) -> None:
    """Its coordinator would take it for a stranger and ask for its end."""
    node = Told()
    here = asdict(origin_of(node.parts.config))
    theirs = {**here, field: "another"}
    node.callbacks.jobs.start(job_report("here", origin=here))
    node.callbacks.jobs.start(job_report("there", origin=theirs))

    assert node.of("heartbeat")["running"] == ["own", "adopted", "here"]


@pytest.mark.parametrize("why", ["daemon", "coordinator"])
def test_a_draining_node_says_so(why: str) -> None:
    """Whoever wants it."""
    node = Told()
    node.node.draining = why == "daemon"
    if why == "coordinator":
        node.node.close("drain-request", "", "")
    assert node.of("heartbeat")["draining"] is True


def test_a_sweep_looks_at_adopted_jobs_and_not_at_our_own() -> None:
    """In every root."""
    node = Told()
    node.callbacks.jobs.orphans = ["lost"]
    told = node.of("sweep")
    assert told["roots"] == ["/jobs", "/old"]
    assert (told["held"], told["adopted"]) == (["own"], ["adopted"])
    assert told["orphans"] == ["lost"]
    assert set(told["capacity"]["held"]) == {"own", "adopted"}


def test_a_pull_is_told_which_jobs_are_here() -> None:
    """And is open from now on."""
    desk = Told()
    assert desk.of("pull")["held"] == ["own", "adopted"]
    desk.callbacks.pulls.check_open()
    assert desk.executor.killed == []
    desk.node.close("paused", "", "")
    desk.callbacks.pulls.check_open()
    assert len(desk.executor.killed) == 1


def test_a_hook_is_told_nothing_of_ours() -> None:
    """It is other people's code."""
    assert Told().briefing("hook:on_job_started:x:1", CALL) == {}


def test_every_start_takes_the_newest_settings() -> None:
    """The file is looked at right before, and the tick's time starts."""
    node = Told()
    node.source.edit(node.source.current.config.model_copy(update={"node_id": "n2"}))
    assert '"node_id":"n2"' in node.briefing("probe", CALL)["config"]
    assert node.callbacks._began == {"probe": node.clock.now}
