"""The rehearsal does what a real heartbeat does, and leaves nothing of it behind."""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aitbc_aps_miner import rehearsal, tasks, world
from aitbc_aps_miner.config.model import Coordinator
from aitbc_aps_miner.util import log


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    log.configure_child(lambda _event: None)


def test_a_rehearsal_is_a_heartbeat_that_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes the whole way to a parsed answer, else it would warm up too little."""
    reports: list[object] = []
    heartbeat = tasks.heartbeat

    def noted(*args: Any, **kwargs: Any) -> object:
        reports.append(heartbeat(*args, **kwargs))
        return reports[-1]

    monkeypatch.setattr(tasks, "heartbeat", noted)
    rehearsal.rehearse()
    assert reports == [{"cancel": (), "drain": False, "refresh": [], "known": True}]


def test_a_rehearsal_leaves_no_thread_and_no_descriptor() -> None:
    """Who forks afterwards has one thread, and spares inherit nothing of it."""
    rehearsal.rehearse()  # what the first one opens for good is not meant
    before = _descriptors(), threading.active_count()
    rehearsal.rehearse()
    assert (_descriptors(), threading.active_count()) == before


def test_a_rehearsal_that_cannot_listen_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where loopback is missing, ticks are slower and nothing else."""

    def refuse(*_args: object, **_kwargs: object) -> socket.socket:
        raise OSError("no loopback here")

    monkeypatch.setattr(socket, "create_server", refuse)
    rehearsal.rehearse()


def test_a_rehearsal_that_fails_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A defect in it costs a spare its warmth and not its life."""
    monkeypatch.setattr(rehearsal, "_PATIENCE_S", 0.05)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(tasks, "heartbeat", fail)
    rehearsal.rehearse()


def test_warming_up_builds_the_tls_context_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One function gets a whole zygote ready."""
    section = Coordinator(base_url="https://example.org/api/v1")
    for name, value in world.tls_environ(section).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "_warm_tls", None)
    rehearsal.warm()
    assert world.ssl_context_of(section) is world.ssl_context_of(section)
    assert "encodings.idna" in sys.modules


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
