"""Third parties' callbacks with the real daemon: installed as a package would be."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from miner_process import Miner, cli_manifest

from aitbc_aps_miner.hooks import EVENTS, GROUP

JOB_S = 40

HOOKS = '''
import json
import os
import time

class Noting:
    """Adds a line for each call."""

    def __getattr__(self, event):
        if not event.startswith("on_"):
            raise AttributeError(event)
        def note(payload):
            line = json.dumps([event, payload, "demo-token" in str(os.environ)])
            with open(__file__ + ".heard", "a") as file:
                file.write(line + "\\n")
        return note

class Raising:
    def on_job_accepted(self, payload):
        raise RuntimeError("this hook is broken")

class Hanging:
    def on_job_started(self, payload):
        time.sleep(3600)

class Dying:
    def on_job_finished(self, payload):
        os._exit(3)

noting, raising, hanging, dying = Noting(), Raising(), Hanging(), Dying()
'''


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorServer]:
    """Start a coordinator."""
    with CoordinatorServer() as server:
        yield server


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a package with four hooks, as pip would leave it; give the directory."""
    directory = tmp_path_factory.mktemp("packages")
    (directory / "some_hooks.py").write_text(HOOKS)
    info = directory / "some_hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-hooks\nVersion: 1.0\n"
    )
    names = ("noting", "raising", "hanging", "dying")
    points = [f"{name} = some_hooks:{name}" for name in names]
    broken = "absent = no_such_module:hook"
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points, broken]))
    return directory


@pytest.fixture(scope="module")
def miner(
    coordinator: CoordinatorServer,
    packages: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Miner]:
    """Start a daemon that finds them."""
    paths = [str(packages), os.environ.get("PYTHONPATH", "")]
    with Miner(
        tmp_path_factory.mktemp("miner"),
        coordinator.base_url,
        environ={"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as running:
        yield running


@pytest.fixture
def heard(packages: Path) -> "Heard":
    """Give what the well-behaved hook has written."""
    return Heard(packages / "some_hooks.py.heard")


class Heard:
    """The lines of the well-behaved hook."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, **wanted: Any) -> list[tuple[str, dict[str, Any]]]:
        """Give the calls whose payload is as `wanted`, and each call's event."""
        if not self._path.exists():
            return []
        calls = [json.loads(line) for line in self._path.read_text().splitlines()]
        assert not any(saw_token for _, _, saw_token in calls)
        return [
            (event, payload)
            for event, payload, _ in calls
            if wanted.items() <= payload.items()
        ]


def test_a_hook_hears_each_outcome_once(
    miner: Miner, coordinator: CoordinatorServer, heard: Heard
) -> None:
    """Accepted, started, and finished or failed; others raise, hang and die beside."""
    coordinator.submit(echo_manifest("good"))
    coordinator.submit(cli_manifest("bad", "false"))
    assert coordinator.wait("good", JOB_S)["state"] == "succeeded"
    assert coordinator.wait("bad", JOB_S)["state"] == "failed"

    miner.wait_until(lambda: len(heard.of(job_id="good")) >= 3)
    miner.wait_until(lambda: len(heard.of(job_id="bad")) >= 3)

    begun = {"on_job_accepted": 1, "on_job_started": 1}
    events = {
        job_id: Counter(event for event, _ in heard.of(job_id=job_id))
        for job_id in ("good", "bad")
    }
    assert events["good"] == {**begun, "on_job_finished": 1}
    assert events["bad"] == {**begun, "on_job_failed": 1}
    ((_, payload),) = heard.of(job_id="bad", code="E_EXIT")
    assert payload["exit_code"] == 1


def test_a_hook_hears_of_a_new_configuration(miner: Miner, heard: Heard) -> None:
    """With the keys that changed, and no values."""
    miner.edit(tags=["new"])

    miner.wait_until(lambda: bool(heard.of(keys=["tags"])))

    assert heard.of(keys=["tags"]) == [("on_config_changed", {"keys": ["tags"]})]
    assert {event for event, _ in heard.of()} <= set(EVENTS)


def test_broken_hooks_harm_nobody(
    miner: Miner, coordinator: CoordinatorServer, heard: Heard
) -> None:
    """What raises, hangs, dies or is not there is reported; jobs and ticks go on."""
    job_ids = [coordinator.submit(echo_manifest()) for _ in range(5)]
    for job_id in job_ids:
        assert coordinator.wait(job_id, JOB_S)["state"] == "succeeded"

    def failures() -> list[str]:
        lines = miner.events("tick.failed")
        return [f"{line['attrs']['tick']} {line['attrs']['error']}" for line in lines]

    miner.wait_until(lambda: any(":dying:" in each for each in failures()))
    assert any(
        "on_job_accepted:raising:" in each and "this hook is broken" in each
        for each in failures()
    )
    assert any(":absent:" in each and "no_such_module" in each for each in failures())
    assert miner.wait_healthz(running=0)["healthy"]
    assert all(each.startswith("hook:") for each in failures())
