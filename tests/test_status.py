"""Health, readiness, metrics and page: served on loopback, moved and stopped live."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.status.metrics import Metrics
from aitbc_aps_miner.status.page import render
from aitbc_aps_miner.status.server import StatusServer
from aitbc_aps_miner.status.view import (
    Gate,
    HealthView,
    NodeState,
    RunningJob,
    Slots,
    TickView,
    health_json,
    is_healthy,
    not_ready_because,
    ready_json,
)

GOOD = HealthView(
    node_id="node-1",
    version="1.2.3",
    uptime_s=100.04,
    heartbeat_interval_s=15,
    last_heartbeat_age_s=3.14159,
    registered=True,
    coordinator_url="https://h/api/v1",
    config_hash="abc",
    config_path="/etc/miner.toml",
)
GATE = Gate(gate="disk", since=1_700_000_000.0, remedy="free space")
BUSY = replace(
    GOOD,
    state=NodeState.DRAINING,
    jobs=(
        RunningJob(job_id="j-1", runner="cli", state="RUNNING", pct=40, timeout_s=60),
        RunningJob(job_id="<b>j-2", runner="python", state="PREP", note="<i>"),
    ),
    queued=1,
    undelivered=2,
    cpu_load=0.5,
    cores=8,
    memory_mb=2048,
    memory_free_mb=1024,
    disk_free_mb=10,
    gpus=(
        Gpu(
            index=0,
            uuid="GPU-0",
            name="<u>",
            vram_mb=1000,
            mem_used_mb=400,
            util_pct=5,
            temp_c=40,
            power_w=99.6,
        ),
        Gpu(index=1, uuid="GPU-1"),
    ),
    gpu_source="nvml",
    slots={"cpu": Slots(total=2, free=1), "gpu": Slots(total=1, free=0)},
    coordinator_error="<refused>",
    config_problems=("line 3: x: expected <1>",),
    gates=(GATE,),
    ticks=(
        TickView(tick="pull", outcome="ok", age_s=1, took_s=25),
        TickView(tick="probe", outcome="timeout", age_s=2, took_s=0.5, error="<late>"),
    ),
)


# --- judgement


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"last_heartbeat_age_s": 60.0}, True),
        ({"last_heartbeat_age_s": 60.1}, False),
        ({"last_heartbeat_age_s": 60.1, "heartbeats_offered": False}, True),
        ({"last_heartbeat_age_s": 8.0, "heartbeat_interval_s": 2}, True),
        ({"last_heartbeat_age_s": 8.1, "heartbeat_interval_s": 2}, False),
        ({"last_heartbeat_age_s": 200.0, "heartbeat_interval_s": 60}, True),
        ({"last_heartbeat_age_s": 200.1, "heartbeat_interval_s": 60}, False),
        ({"last_heartbeat_age_s": None, "uptime_s": 65.0}, True),
        ({"last_heartbeat_age_s": None, "uptime_s": 65.1}, False),
        (
            {"gates": (GATE,), "state": NodeState.PAUSED, "config_problems": ("x",)},
            True,
        ),
    ],
)
def test_healthy_means_that_heartbeats_are_answered(
    changes: dict[str, Any], expected: bool
) -> None:
    """Three missed ones and a little slack make a node unhealthy, nothing else does."""
    assert is_healthy(replace(GOOD, **changes)) is expected


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ()),
        ({"registered": False}, ("registration",)),
        ({"last_heartbeat_age_s": 999.0}, ("heartbeat",)),
        ({"state": NodeState.DRAINING, "gates": (GATE,)}, ("draining", "disk")),
        (
            {"state": NodeState.PAUSED, "gates": (replace(GATE, gate="paused"),)},
            ("paused",),
        ),
    ],
)
def test_ready_means_that_a_job_would_be_taken(
    changes: dict[str, Any], reasons: tuple[str, ...]
) -> None:
    """Every reason why no job would be taken is named once."""
    view = replace(GOOD, **changes)
    assert not_ready_because(view) == reasons
    assert ready_json(view) == {
        "status": "degraded" if reasons else "ready",
        "reasons": list(reasons),
        "registered": view.registered,
        "last_error": None,
    }


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((), None),
        ((Gpu(index=0, uuid="a"),), None),
        (
            (
                Gpu(index=0, uuid="a"),
                Gpu(index=1, uuid="b", vram_mb=10),
                Gpu(index=2, uuid="c", vram_mb=10, mem_used_mb=4),
            ),
            16,
        ),
    ],
)
def test_free_vram_is_that_of_the_gpus_that_tell(
    gpus: tuple[Gpu, ...], expected: int | None
) -> None:
    """A GPU that tells no size adds nothing."""
    assert replace(GOOD, gpus=gpus).vram_free_mb == expected


def test_the_health_body() -> None:
    """The body has the specification's fields and everything that explains them."""
    assert health_json(BUSY) == {
        "healthy": True,
        "running": 2,
        "queued": 1,
        "cpu_load": 0.5,
        "vram_free": 600,
        "last_heartbeat_age_s": 3.1,
        "config": {
            "ok": False,
            "hash": "abc",
            "path": "/etc/miner.toml",
            "problems": ["line 3: x: expected <1>"],
        },
        "node_id": "node-1",
        "version": "1.2.3",
        "state": "draining",
        "gates": [
            {"gate": "disk", "since": "2023-11-14T22:13:20Z", "remedy": "free space"}
        ],
        "jobs": ["j-1", "<b>j-2"],
        "slots": {"cpu": {"total": 2, "free": 1}, "gpu": {"total": 1, "free": 0}},
        "undelivered": 2,
        "coordinator": {
            "base_url": "https://h/api/v1",
            "registered": True,
            "last_error": "<refused>",
        },
        "uptime_s": 100.0,
    }


# --- page


@pytest.mark.parametrize(
    ("view", "headline", "shown"),
    [
        (GOOD, "taking jobs", ["No job is running.", "3.1 s ago"]),
        (
            BUSY,
            "draining",
            [
                "gate: disk",
                "free space",
                "2023-11-14T22:13:20Z",
                "line 3: x: expected &lt;1&gt;",
                "1 of 2",
                "40 %",
                "400 MiB of 1000 MiB",
                "40 °C",
                "100 W",
                "500 ms",
                "25 s",
                "&lt;late&gt;",
            ],
        ),
        (replace(GOOD, gates=(GATE,)), "taking no jobs", ["free space"]),
        (
            replace(GOOD, last_heartbeat_age_s=999.0),
            "out of contact",
            ["for 16 min 39 s", "https://h/api/v1 is in reach"],
        ),
        (
            replace(GOOD, last_heartbeat_age_s=None, uptime_s=999, coordinator_url=""),
            "out of contact",
            ["No heartbeat was answered yet.", "none yet", "the coordinator is in"],
        ),
        (
            replace(GOOD, heartbeats_offered=False, config_path="", config_hash=""),
            "taking jobs",
            ["not offered"],
        ),
        (
            replace(GOOD, gates=(replace(GATE, since=1e300),)),
            "taking no jobs",
            ["No jobs since ?."],
        ),
    ],
)
def test_the_page_says_whether_work_is_taken_and_why_not(
    view: HealthView, headline: str, shown: list[str]
) -> None:
    """The headline is one phrase; gates, problems and remedies stand in the page."""
    text = render(view)
    assert f">{headline}</span>" in text
    assert [each for each in shown if each not in text] == []


@given(st.text())
def test_the_page_escapes_what_it_shows(text: str) -> None:
    """No text from the wire becomes markup."""
    hostile = f"<script>{text}"
    view = replace(
        BUSY,
        node_id=hostile,
        coordinator_url=hostile,
        config_hash=hostile,
        config_path=hostile,
        jobs=(RunningJob(job_id=hostile, runner=hostile, state=hostile, note=hostile),),
        gates=(Gate(gate=hostile, since=0, remedy=hostile),),
        slots={hostile: Slots(total=1, free=1)},
        gpu_source=hostile,
    )
    assert "<script" not in render(view)


# --- metrics


def test_metrics_count_and_mirror_the_view() -> None:
    """Counters go up by what ended; gauges are the view's values now."""
    view = GOOD
    metrics = Metrics(lambda: view)
    metrics.job_finished(None)
    metrics.job_finished("E_OOM")
    metrics.job_finished("E_OOM")
    metrics.tick_ended("pull", "ok", 0.01)
    view = BUSY
    lines = metrics.render().decode().splitlines()
    assert {
        'aitbc_miner_jobs_finished_total{code="OK"} 1.0',
        'aitbc_miner_jobs_finished_total{code="E_OOM"} 2.0',
        'aitbc_miner_ticks_total{outcome="ok",tick="pull"} 1.0',
        'aitbc_miner_tick_seconds_count{tick="pull"} 1.0',
        'aitbc_miner_build_info{node_id="node-1",version="1.2.3"} 1.0',
        "aitbc_miner_running 2.0",
        "aitbc_miner_queued 1.0",
        "aitbc_miner_undelivered 2.0",
        "aitbc_miner_cpu_load 0.5",
        "aitbc_miner_vram_free_bytes 6.291456e+08",
        "aitbc_miner_last_heartbeat_age_seconds 3.14159",
        "aitbc_miner_config_problems 1.0",
        "aitbc_miner_healthy 1.0",
        "aitbc_miner_ready 0.0",
        'aitbc_miner_gate_closed{gate="disk"} 1.0',
        'aitbc_miner_slots{kind="cpu",state="held"} 1.0',
    } - set(lines) == set()


def test_what_is_not_known_has_no_sample() -> None:
    """Without GPU and heartbeat there is no sample to be mistaken for 0."""
    view = replace(GOOD, last_heartbeat_age_s=None)
    text = Metrics(lambda: view).render().decode()
    assert not re.search("vram_free|heartbeat_age", text)


# --- server


class Node:
    """A node whose view a test changes, and its server."""

    def __init__(self) -> None:
        self.view = GOOD
        self.server = StatusServer(lambda: self.view, Metrics(lambda: self.view))

    def get(self, path: str, method: str = "GET", **headers: str) -> Any:
        """Ask the server; give the response with its body in `text`."""
        assert self.server.address is not None
        host, port = self.server.address
        connection = http.client.HTTPConnection(host, port, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def node() -> Iterator[Node]:
    """Run a node's server on a free loopback port."""
    node = Node()
    assert node.server.start("127.0.0.1:0") is None
    yield node
    node.server.stop()


def test_healthz_is_200_while_healthy_and_503_when_not(node: Node) -> None:
    """The status code is the verdict, the body the explanation."""
    status, headers, text = node.get("/healthz")
    assert (status, json.loads(text)) == (200, health_json(GOOD))
    assert headers["Content-Type"] == "application/json"
    node.view = replace(GOOD, last_heartbeat_age_s=999.0)
    status, _, text = node.get("/healthz")
    assert (status, json.loads(text)["healthy"]) == (503, False)


def test_readyz_is_503_when_no_job_would_be_taken(node: Node) -> None:
    """Readiness follows gates and state."""
    assert node.get("/readyz")[0] == 200
    node.view = BUSY
    status, _, text = node.get("/readyz")
    assert (status, json.loads(text)) == (503, ready_json(BUSY))


def test_page_and_metrics_are_served(node: Node) -> None:
    """The page may load nothing and run nothing; metrics are Prometheus text."""
    status, headers, text = node.get("/")
    assert (status, text) == (200, render(GOOD))
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    status, headers, text = node.get("/metrics")
    assert (status, headers["Content-Type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert "aitbc_miner_running 0.0" in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/healthz", 200),
        ("POST", "/healthz", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/healthz", 405),
        ("GET", "/nothing", 404),
    ],
)
def test_only_reading_is_served(
    node: Node, method: str, path: str, status: int
) -> None:
    """Nothing can be changed here, and no other origin is let in."""
    seen, headers, _ = node.get(path, method, Origin="https://evil.example")
    assert seen == status
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8479", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost:80:80", 421),
        ("", 421),
    ],
)
def test_other_names_are_refused_on_loopback(
    node: Node, host: str, status: int
) -> None:
    """A browser that was led here under a foreign name gets nothing."""
    assert node.get("/healthz", Host=host)[0] == status


def test_a_request_without_a_name_is_refused_on_loopback(node: Node) -> None:
    """No Host header is as good as a foreign one."""
    assert node.server.address is not None
    with socket.create_connection(node.server.address, 20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 421 ")


def test_any_name_is_served_off_loopback() -> None:
    """Who listens on all addresses is asked by whatever name they have."""
    node = Node()
    assert node.server.start("0.0.0.0:0") is None
    assert node.get("/healthz", Host="miner-7.lan")[0] == 200
    node.server.stop()


def test_the_server_moves_live(node: Node) -> None:
    """A new address is served at once and the old one is free."""
    old = node.server.address
    assert node.server.rebind("127.0.0.1:0") is None  # nothing changed
    assert node.server.address == old
    assert node.server.rebind("localhost:0") is None
    assert node.server.address != old
    assert node.get("/healthz")[0] == 200
    assert node.server.rebind("") is None
    assert node.server.address is None
    assert node.server.rebind("") is None


def test_the_server_moves_on_the_same_port(node: Node) -> None:
    """From loopback to all addresses: its own port is not in its way."""
    port = free_port()
    assert node.server.rebind(f"127.0.0.1:{port}") is None
    assert node.server.rebind(f"0.0.0.0:{port}") is None
    assert node.server.address == ("0.0.0.0", port)
    assert node.get("/healthz", Host="any")[0] == 200


@pytest.mark.parametrize("listen", ["a..b:80", "192.0.2.1:8479", "127.0.0.1:99999"])
def test_an_impossible_address_keeps_the_old_one(node: Node, listen: str) -> None:
    """Trouble is told in words that name the address; the old one goes on."""
    problem = node.server.rebind(listen)
    assert problem is not None
    assert problem.startswith(f"{listen}: ")
    assert node.get("/healthz")[0] == 200


def test_a_port_in_use_is_a_problem_not_a_crash(node: Node) -> None:
    """Somebody else's port is named; the old address goes on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        problem = node.server.rebind(listen)
        first = Node().server.start(listen)
    assert problem == first == f"{listen}: [Errno 98] Address already in use"
    assert node.get("/healthz")[0] == 200


def test_a_move_on_the_same_port_that_fails_goes_back(node: Node) -> None:
    """Somebody else holds the port on another of our addresses: stay where we were."""
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        assert node.server.rebind(f"127.0.0.1:{port}") is None
        problem = node.server.rebind(f"0.0.0.0:{port}")
        assert problem == f"0.0.0.0:{port}: [Errno 98] Address already in use"
        assert node.server.address == ("127.0.0.1", port)
        assert node.get("/healthz")[0] == 200


def test_stopping_takes_less_than_a_second(node: Node) -> None:
    """Idle and half-sent requests do not hold the daemon back."""
    assert node.server.address is not None
    with (
        socket.create_connection(node.server.address) as idle,
        socket.create_connection(node.server.address) as half,
    ):
        half.sendall(b"GET /healthz HTT")
        assert node.get("/healthz")[0] == 200
        started = time.monotonic()
        node.server.stop()
        assert time.monotonic() - started < 1
        assert (idle.recv(1), half.recv(1)) == (b"", b"")
    node.server.stop()  # again, which changes nothing


def test_stopping_at_once_works() -> None:
    """A server that was only just started stops as well."""
    node = Node()
    assert node.server.start("127.0.0.1:0") is None
    address = node.server.address
    node.server.stop()
    assert address is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_the_web_server_is_not_imported_before_it_serves() -> None:
    """Commands and the zygote do not pay for a web server that they never start."""
    program = (
        "import sys, aitbc_aps_miner.status.server; "
        "print({'uvicorn', 'starlette'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def free_port() -> int:
    """Give a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
