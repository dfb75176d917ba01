"""What a child works with: the inherited TLS context, tokens of the right place."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinator_server import CoordinatorServer
from daemon_fakes import config_of
from tick_site import Line, Site, quiet_log, registered

from aitbc_aps_miner import world as world_module
from aitbc_aps_miner.errors import UnauthorizedError
from aitbc_aps_miner.models import Origin
from aitbc_aps_miner.probe.host import probe_host
from aitbc_aps_miner.world import World, ssl_context_of, tls_environ, warm


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with quiet_log():
        monkeypatch.setattr(world_module, "_warm_tls", world_module._warm_tls)
        yield


@pytest.fixture
def server() -> Iterator[CoordinatorServer]:
    """Give a coordinator."""
    with CoordinatorServer() as server:
        yield server


def test_the_context_that_was_built_first_is_used_where_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another trust gets one of its own."""
    section = config_of().coordinator
    for name, value in tls_environ(section).items():
        monkeypatch.setenv(name, value)
    warm()
    first = ssl_context_of(section)
    assert ssl_context_of(section) is first
    trusting = section.model_copy(update={"tls_verify": False})
    assert ssl_context_of(trusting) is not first


def test_a_bad_ca_file_does_not_keep_processes_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call says so itself, until it is mended."""
    (tmp_path / "ca.pem").write_text("no certificate")
    section = config_of(coordinator={"ca_file": str(tmp_path / "ca.pem")}).coordinator
    for name, value in tls_environ(section).items():
        monkeypatch.setenv(name, value)
    warm()
    assert world_module._warm_tls is None
    assert os.environ[world_module.TLS_ENV].count("ca.pem") == 1


def test_the_token_of_todays_coordinator_is_not_offered_to_another(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """A job of a former name registers under that name, by itself."""
    site = Site(tmp_path, server.base_url, registered(server))
    world = World(site.line, site.access["config"], "not-for-others")
    (tmp_path / "token").write_text("demo-token")
    former = Origin(
        api="node-v1",
        base_url=server.base_url,
        node_id="former",
        auth=f"file:{tmp_path / 'token'}",
    )
    with world.coordinator(former) as coordinator:
        assert coordinator.active_jobs("former") == ()
    assert "former" in server.state.nodes
    bearers = [headers.get("authorization") for *_, headers in server.requests]
    assert "Bearer not-for-others" not in bearers


def test_todays_bootstrap_token_is_never_offered_elsewhere(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """A former coordinator whose token was a literal gets no other one's."""
    site = Site(tmp_path, server.base_url, None)
    world = World(site.line, site.access["config"], None)
    former = Origin(api="node-v1", base_url=server.base_url, node_id="former")
    with (
        world.coordinator(former) as coordinator,
        pytest.raises(UnauthorizedError, match="was a literal"),
    ):
        coordinator.active_jobs("former")
    assert server.requests == []


def test_the_lock_of_lonely_registrations_lies_under_the_root_in_force(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """The configured one may be another daemon's, or no directory at all."""
    site = Site(tmp_path, server.base_url, None)
    site.root.write_text("in the way")
    in_force = tmp_path / "in-force"
    world = World(site.line, site.access["config"], None, root=str(in_force))
    with world.coordinator() as coordinator:
        assert coordinator.active_jobs("n1") == ()
    assert (in_force / ".register.lock").exists()
    assert world.workspaces().root == in_force


def test_processes_without_a_daemon_register_one_after_the_other(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """Under a lock in the root, which is made when it is not there."""
    site = Site(tmp_path, server.base_url, None)
    threads = [threading.Thread(target=site.sweep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (site.root / ".register.lock").exists()
    assert len(server.calls("nodes/register")) == 3
    assert {call[2] for call in server.calls("nodes/register")} == {200}


def test_a_token_that_is_not_there_is_refused_before_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference is named."""
    monkeypatch.delenv("NOT_SET", raising=False)
    config = config_of(
        coordinator={"auth_token": "env:NOT_SET"},
        workspace={"root": str(tmp_path / "jobs")},
    )
    world = World(Line(), config.model_dump_json(by_alias=True), None)
    with pytest.raises(UnauthorizedError, match="NOT_SET"):
        world.register(probe_host(tmp_path), ())
