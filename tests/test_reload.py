"""An edit, applied key by key to what is already there."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon_fakes import Bench, config_of, job_report
from structlog.testing import capture_logs

from aitbc_aps_miner.callbacks import Callbacks
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import Problem
from aitbc_aps_miner.reload import Reload
from aitbc_aps_miner.tokens import place_of
from aitbc_aps_miner.world import TLS_ENV

OTHER = "http://127.0.0.1:8/api/v1"


@pytest.fixture(autouse=True)
def _own_environ() -> Iterator[None]:
    before = os.environ.get(TLS_ENV)
    yield
    if before is None:
        os.environ.pop(TLS_ENV, None)
    else:
        os.environ[TLS_ENV] = before


class Edited(Bench):
    """A daemon's parts with a reload on them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.callbacks = Callbacks(self.parts)
        self.callbacks.pulls.recovered()
        self.scheduler.take()
        self.bound: list[str] = []
        self.roots: list[Path] = []
        self.root_problem: str | None = None
        self.reload = Reload(
            self.parts,
            self.callbacks,
            rebind=self.bound.append,
            keep_root=self._keep_root,
        )

    def _keep_root(self, config: Config) -> str | None:
        self.roots.append(config.workspace.root)
        return self.root_problem

    def edit(self, **settings: Any) -> list[dict[str, Any]]:
        """Bring an edit into force; give what was logged of it."""
        self.source.edit(config_of(**settings))
        with capture_logs() as events:
            self.reload._look()
        return [dict(event) for event in events]


def test_an_edit_is_logged_key_by_key_and_applied() -> None:
    """Slots at once, the timetable anew, a pull for what there is room for."""
    node = Edited()
    before = node.source.current.config
    events = node.edit(resources={"max_concurrent_cpu": 5, "max_concurrent_gpu": 0})
    changed = [event["key"] for event in events if event["event"] == "config.changed"]
    assert changed == ["resources.max_concurrent_cpu", "resources.max_concurrent_gpu"]
    assert (node.node.cpu_slots, node.node.gpu_slots) == (5, 0)
    assert node.scheduler.retimed == [(node.source.current.config, before, 0)]
    assert node.scheduler.take() == {"pull": 0}
    assert "register" in node.scheduler.jobs  # its slots are told there


def test_without_an_edit_nothing_happens() -> None:
    """However often it is looked for."""
    node = Edited()
    node.reload._look()
    assert (node.scheduler.retimed, node.scheduler.take()) == ([], {})


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": OTHER},
        {"coordinator": {"auth_token": "env:OTHER"}},
        {"node_id": "n2"},
    ],
)
def test_another_coordinator_or_name_starts_anew(change: dict[str, Any]) -> None:
    """The token is forgotten, the open poll ended, the heartbeat registers."""
    node = Edited()
    node.tokens.registered("t1", place_of(node.source.current.config))
    node.node.registered, node.node.heartbeats_offered = True, False
    node.node.heartbeat_floor_s = 90
    node.callbacks.pulls.opening()
    node.edit(**change)
    assert node.tokens.token is None
    assert (node.node.registered, node.node.heartbeats_offered) == (False, True)
    assert node.scheduler.retimed[0][2] == 0
    assert node.scheduler.take()["heartbeat"] == 0
    assert node.executor.killed == [("pull", "another coordinator is asked now")]
    assert node.scheduler.jobs == {}


@pytest.mark.parametrize(
    "change", [{"tags": ["x"]}, {"runners": {"cli": {"enable": False}}}]
)
def test_what_the_coordinator_was_told_is_told_again(change: dict[str, Any]) -> None:
    """And an open poll that asks for other jobs is ended."""
    node = Edited()
    node.tokens.registered("t1", place_of(node.source.current.config))
    node.callbacks.pulls.opening()
    node.edit(**change)
    assert "register" in node.scheduler.jobs
    assert node.tokens.token == "t1"
    assert node.executor.killed == [("pull", "other jobs are asked for now")]


def test_a_new_address_is_bound_and_a_new_root_taken() -> None:
    """The address only where it changed; the root is looked at each time."""
    node = Edited()
    node.edit(tags=["x"])
    assert (node.bound, node.roots) == ([], [config_of().workspace.root])
    node.edit(status={"listen": "127.0.0.1:1"}, workspace={"root": "/new"})
    assert (node.bound, node.roots[1:]) == (["127.0.0.1:1"], [Path("/new")])
    assert node.node.gates() == ()


def test_a_root_that_can_not_be_had_closes_a_gate_until_it_can() -> None:
    """Two daemons must never share one; no second edit is needed."""
    node = Edited()
    node.root_problem = "another daemon holds it"
    node.edit(workspace={"root": "/theirs"})
    (gate,) = node.node.gates()
    assert (
        gate.reason == "workspace.root /theirs can't be used: another daemon holds it"
    )
    node.root_problem = None
    node.reload._look()
    assert node.node.gates() == ()


def test_running_jobs_get_new_limits() -> None:
    """Those that can be changed live; other edits leave them alone."""
    node = Edited()
    node.callbacks.jobs.start(job_report("a"))
    node.scheduler.jobs.clear()
    node.edit(pull={"interval_s": 9})
    assert node.scheduler.jobs == {}
    node.edit(resources={"cpu_nice": 3, "mem_soft_mb": 0})
    call, _ = node.scheduler.jobs["control:a:limits"]
    assert call.kwargs["orders"] == {
        "limits": {
            "nice": 3,
            "io_class": "best-effort",
            "io_level": 6,
            "memory_mb": None,
        }
    }


def test_the_owner_pauses_by_an_edit() -> None:
    """No pull follows."""
    node = Edited()
    node.edit(owner={"paused": True})
    assert node.node.is_closed("paused")
    assert node.scheduler.take()["pull"] is None


def test_problems_are_told_once_and_their_end_as_well() -> None:
    """The last good configuration stays in force."""
    node = Edited()
    problem = Problem(key="x", line=1, expected="a", given="b", remedy="remove it")
    good = node.source.current
    with capture_logs() as events:
        for snapshot in (replace(good, problems=(problem,)),) * 2 + (good,):
            node.source.next = snapshot
            node.reload._look()
    assert [event["event"] for event in events] == [
        "config.problem",
        "config.kept",
        "config.good_again",
    ]
    assert events[0]["problem"] == str(problem)
    assert node.scheduler.retimed == []


def test_a_ca_file_with_new_content_means_new_processes(tmp_path: Path) -> None:
    """Also when only the file changed, went away, or came back."""
    ca = tmp_path / "ca.pem"
    ca.write_text("one")
    node = Edited(coordinator={"ca_file": str(ca)})
    node.reload._look()
    assert node.executor.generations == []
    for change in (lambda: ca.write_text("two, longer"), ca.unlink, ca.touch):
        change()
        node.reload._look()
        node.reload._look()
    assert len(node.executor.generations) == 3
    assert str(ca) in os.environ[TLS_ENV]
    node.edit()
    assert len(node.executor.generations) == 4
    assert str(ca) not in os.environ[TLS_ENV]


@pytest.mark.parametrize(
    ("step_s", "shifted"), [(3600, [3600]), (-3600, [-3600]), (1, [])]
)
def test_a_stepped_wall_clock_shifts_the_timetable(
    step_s: float, shifted: list[float]
) -> None:
    """Small steps are what time daemons do all day."""
    node = Edited()
    node.clock.now += 50
    node.clock.suspended_s += 1000
    node.clock.epoch += step_s + 1000
    node.reload._keep_time()
    assert [round(each) for each in node.scheduler.shifted] == shifted


def test_the_watch_goes_on_after_an_edit_that_could_not_be_applied() -> None:
    """Else no edit would count again; it ends when it is told to."""
    node = Edited()
    seen, failed = threading.Event(), threading.Event()
    check = node.source.check

    def look() -> Any:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a defect")
        seen.set()
        return check()

    node.source.check = look  # type: ignore[method-assign]  # the test's own edit
    node.reload.start()
    assert seen.wait(10)
    node.reload.stop()
    node.reload._thread.join(10)
    assert not node.reload._thread.is_alive()
