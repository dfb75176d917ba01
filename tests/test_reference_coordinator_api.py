"""The reference coordinator over real HTTP: nodes, clients, uploads, faults, page."""

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from coordinator_server import CoordinatorServer, deadline, echo_manifest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aitbc_aps_miner.reference_coordinator.multipart import MAX_FIELD_BYTES, MAX_PARTS
from aitbc_aps_miner.reference_coordinator.wire import MAX_JSON_BYTES

HELLO = b"hello world\n"
TUS = {"Tus-Resumable": "1.0.0"}
OFFSET = "application/offset+octet-stream"


@pytest.fixture
def server() -> Iterator[CoordinatorServer]:
    """Run a coordinator with everything on."""
    with CoordinatorServer() as running:
        yield running


@pytest.fixture
def node(server: CoordinatorServer) -> Iterator[httpx.Client]:
    """Give a registered node's client."""
    with registered(server) as client:
        yield client


@contextmanager
def registered(server: CoordinatorServer, name: str = "n1") -> Iterator[httpx.Client]:
    """Give a client with the node's token."""
    with httpx.Client(base_url=server.base_url, timeout=10) as client:
        client.headers["Authorization"] = f"Bearer {server.token}"
        answer = client.post("/nodes/register", json={"node_id": name})
        if answer.status_code == 200:
            token = answer.json()["node_token"]
            client.headers["Authorization"] = f"Bearer {token}"
        yield client


def take(server: CoordinatorServer, node: httpx.Client, name: str = "a") -> None:
    """Let the node have a job."""
    server.submit(echo_manifest(name))
    assert pull(node)["job"]["job_id"] == name
    ack = {"job_id": name, "node_id": "n1", "attempt": 1}
    assert node.post("/jobs/ack", json=ack).status_code == 200


def pull(node: httpx.Client, **more: Any) -> Any:
    """Ask for work."""
    answer = node.post("/jobs/pull", json={"node_id": "n1", "filters": {}, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def entry(path: str, data: bytes, **more: Any) -> dict[str, Any]:
    """Describe an artifact as metadata does."""
    return {
        "path": path,
        "type": "text/plain",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **more,
    }


def deliver(
    node: httpx.Client,
    *artifacts: dict[str, Any],
    parts: dict[str, bytes],
    job_id: str = "a",
    key: str | None = "a:1",
    **metadata: Any,
) -> httpx.Response:
    """Send a result."""
    told = {"exit_code": 0, "artifacts": list(artifacts), **metadata}
    return node.post(
        "/jobs/result",
        data={"job_id": job_id, "metadata": json.dumps(told)},
        files=[
            ("artifact", (f"artifacts/{path}", data, "text/plain"))
            for path, data in parts.items()
        ],
        headers={"Idempotency-Key": key} if key else {},
    )


def deliver_hello(node: httpx.Client, **more: Any) -> httpx.Response:
    """Send the echo job's result."""
    return deliver(
        node, entry("output.txt", HELLO), parts={"output.txt": HELLO}, **more
    )


def problem(answer: httpx.Response) -> tuple[int, str | None]:
    """Give a problem answer's status and code, after a look at its form."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert {"type", "title", "detail"} <= set(body)
    return answer.status_code, body.get("error_code")


# Nodes ------------------------------------------------------------------------


def test_registering_gives_a_token_and_names_the_extensions(
    server: CoordinatorServer,
) -> None:
    """The answer holds all that the contract offers."""
    auth = {"Authorization": f"Bearer {server.token}"}
    answer = httpx.post(
        f"{server.base_url}/nodes/register", json={"node_id": "n1"}, headers=auth
    ).json()
    assert answer["expires_at"].endswith("Z")
    assert answer["extensions"] == [
        "long-poll",
        "leases",
        "cancel",
        "query",
        "uploads",
        "idempotency",
    ]
    assert "heartbeat_interval_s" not in answer


def test_a_wrong_bootstrap_token_is_401(server: CoordinatorServer) -> None:
    """Whoever does not know it stays outside."""
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(
            f"{server.base_url}/nodes/register",
            json={"node_id": "n1"},
            headers=headers,
        )
        assert problem(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_every_call_of_a_node_needs_its_token(server: CoordinatorServer) -> None:
    """The bootstrap token serves for registering only."""
    headers = {"Authorization": f"Bearer {server.token}"}
    body = {"node_id": "n1", "job_id": "a", "error_code": "E_EXIT"}
    with httpx.Client(base_url=server.base_url, headers=headers) as client:
        for call in ("nodes/heartbeat", "jobs/pull", "jobs/ack", "jobs/progress"):
            assert problem(client.post(call, json=body)) == (401, "unauthorized")
        for call in ("jobs/fail", "jobs/result"):
            assert problem(client.post(call, json=body)) == (401, "unauthorized")
        assert problem(client.get("/jobs/a")) == (401, "unauthorized")
        assert problem(client.get("/jobs?node_id=n1")) == (401, "unauthorized")
        assert problem(client.post("/uploads")) == (401, "unauthorized")


def test_a_token_serves_its_node_only(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Naming another node is 403."""
    body = {"node_id": "n2"}
    assert problem(node.post("/jobs/pull", json=body)) == (403, "wrong_node")
    assert problem(node.get("/jobs?node_id=n2")) == (403, "wrong_node")


def test_a_coordinator_may_slow_heartbeats_down() -> None:
    """The interval is told at registering."""
    with CoordinatorServer(heartbeat_interval_s=30) as server:
        answer = httpx.post(
            f"{server.base_url}/nodes/register",
            json={"node_id": "n1"},
            headers={"Authorization": f"Bearer {server.token}"},
        )
    assert answer.json()["heartbeat_interval_s"] == 30


def test_the_way_of_a_job_over_the_wire(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Pull, ack, progress, result; then clients read it and fetch the artifact."""
    take(server, node)
    report = {"job_id": "a", "node_id": "n1", "pct": 50, "note": "half", "tail": "x"}
    told = node.post("/jobs/progress", json=report).json()
    assert (told["cancel"], told["lease_ttl_s"]) == (False, 60)
    log = b"hello world\n"
    answer = deliver(
        node,
        entry("output.txt", HELLO),
        parts={"exec.log": log, "output.txt": HELLO},
    )
    assert answer.json() == {"ok": True}
    with httpx.Client(base_url=server.base_url) as client:
        view = client.get("/jobs/a").json()
        assert (view["state"], view["attempt"], view["node_id"]) == (
            "succeeded",
            1,
            "n1",
        )
        assert view["progress"] == report
        assert view["outcome"]["metadata"]["exit_code"] == 0
        assert [step["state"] for step in view["history"]] == [
            "queued",
            "leased",
            "acked",
            "running",
            "succeeded",
        ]
        assert [each["path"] for each in view["artifacts"]] == [
            "output.txt",
            "exec.log",
        ]
        fetched = client.get("/jobs/a/artifacts/output.txt")
        assert (fetched.content, fetched.headers["content-security-policy"]) == (
            HELLO,
            "sandbox",
        )
        assert problem(client.get("/jobs/a/artifacts/none")) == (404, "not_found")
    assert server.artifact("a", "exec.log") == log


def test_a_pull_with_max_jobs_gets_a_list(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Up to that many at once; an empty list when there is none."""
    for name in ("a", "b", "c"):
        server.submit(echo_manifest(name))
    answers = [pull(node, max_jobs=2)["jobs"] for _ in range(3)]
    assert [[job["job_id"] for job in jobs] for jobs in answers] == [
        ["a", "b"],
        ["c"],
        [],
    ]
    assert pull(node) == {"job": None}


def test_a_long_poll_is_answered_when_a_job_comes(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The waiting pull gets the job that is submitted meanwhile."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(pull(node, wait_s=30)))
    thread.start()
    server.wait_for_polls()
    server.submit(echo_manifest("a"))
    thread.join(10)
    assert answers[0]["job"]["job_id"] == "a"


def test_a_long_poll_ends_empty_after_its_time(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """A job that does not fit wakes the wait, but does not end it."""
    server.submit(echo_manifest("a", runner="other"))
    answer = pull(node, wait_s=0.05, filters={"runners": ["cli"]})
    assert answer == {"job": None}


def test_a_client_that_hung_up_gets_no_job(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """A long poll whose client is gone leaves the job to others."""
    body = b'{"node_id":"n1","wait_s":30}'
    head = (
        "POST /api/v1/jobs/pull HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {node.headers['Authorization']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head.encode() + body)
    server.wait_until(lambda: bool(server.calls("jobs/pull")), 10)
    assert server.calls("jobs/pull")[0][2] is None
    server.submit(echo_manifest("a"))
    assert server.job("a")["state"] == "queued"


def test_ack_takes_body_or_query(server: CoordinatorServer, node: httpx.Client) -> None:
    """Both forms of the specification work, alone and together."""
    for name in ("a", "b", "c"):
        server.submit(echo_manifest(name))
        pull(node)
    query = {"job_id": "a", "node_id": "n1", "attempt": "1"}
    assert node.post("/jobs/ack", params=query).json()["lease_ttl_s"] == 60
    assert node.post("/jobs/ack", json={**query, "job_id": "b"}).status_code == 200
    both = {"job_id": "c", "node_id": "n1"}
    assert node.post("/jobs/ack", params=both, json=both).status_code == 200
    assert problem(node.post("/jobs/ack")) == (422, "invalid")
    for wrong in ("x", True, -1, 10**12):
        answer = node.post("/jobs/ack", json={**both, "attempt": wrong})
        assert problem(answer) == (422, "invalid")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "not_json")),
        (b"{", (400, "not_json")),
        (b'{"node_id": NaN}', (400, "not_json")),
        (b'{"node_id": 1e999}', (400, "not_json")),
        (b"[" * 100_000, (400, "not_json")),
        (b"\xff", (400, "not_json")),
        (b"[]", (422, "invalid")),
        (b'{"node_id": 7}', (422, "invalid")),
        (b'{"node_id": "n1", "wait_s": "long"}', (422, "invalid")),
        (b" " * (MAX_JSON_BYTES + 1), (413, "too_large")),
    ],
)
def test_bad_json_is_refused_in_words(
    node: httpx.Client, body: bytes, expected: tuple[int, str]
) -> None:
    """Each with its status as problem JSON; none hurts the coordinator."""
    assert problem(node.post("/jobs/pull", content=body)) == expected


def test_a_body_of_unknown_length_is_limited_too(node: httpx.Client) -> None:
    """Chunks are counted as they come."""
    answer = node.post("/jobs/pull", content=(b" " * 65536 for _ in range(32)))
    assert problem(answer) == (413, "too_large")


def test_lone_surrogates_come_back_as_they_went(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """JSON allows them; an answer with one must not fail."""
    server.submit(echo_manifest("a", args=["\ud800"]))
    assert pull(node)["job"]["args"] == ["\ud800"]


def test_a_result_may_come_again_but_not_differ(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Same key and outcome: the same answer. Another outcome: 409."""
    take(server, node)
    first, again = (deliver_hello(node) for _ in range(2))
    assert first.json() == again.json() == {"ok": True}
    other = deliver(node, entry("output.txt", b"x"), parts={"output.txt": b"x"})
    assert problem(other) == (409, "different_outcome")
    assert problem(deliver_hello(node, key="a:2")) == (409, "final")
    assert server.artifact("a", "output.txt") == HELLO
    # What was sent again is not kept twice.
    assert len(list(server.spool_path.iterdir())) == 1


def test_a_key_has_to_fit_its_job(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """A key of another job or attempt is a mistake, not an outcome."""
    take(server, node)
    assert problem(deliver_hello(node, key="b:1")) == (422, "invalid")
    assert problem(deliver_hello(node, key="a")) == (422, "invalid")
    assert problem(deliver_hello(node, attempt=2)) == (409, "attempt")
    assert deliver_hello(node, key=None).json() == {"ok": True}


@pytest.mark.parametrize(
    ("artifacts", "parts", "expected"),
    [
        ([entry("o", b"abc")], {"o": b"abd"}, (422, "digest_mismatch")),
        ([entry("o", b"abc", bytes=4)], {"o": b"abc"}, (422, "digest_mismatch")),
        ([entry("o", b"abc")], {"p": b"abc"}, (422, "missing")),
        ([{"type": "x"}], {}, (422, "invalid")),
        (["x"], {}, (422, "metadata")),
        ([entry("o", b"", upload_url="/api/v1/uploads/x")], {}, (422, "upload")),
    ],
)
def test_bytes_that_are_not_what_the_metadata_says_are_refused(
    server: CoordinatorServer,
    node: httpx.Client,
    artifacts: list[Any],
    parts: dict[str, bytes],
    expected: tuple[int, str],
) -> None:
    """Nothing of such a result is kept; the right one still counts."""
    take(server, node)
    parts = {"exec.log": b"log", **parts}
    assert problem(deliver(node, *artifacts, parts=parts)) == expected
    assert list(server.spool_path.iterdir()) == []
    assert deliver_hello(node).json() == {"ok": True}


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"{}", "application/json", (415, "not_multipart")),
        (b"--b--", "multipart/form-data", (415, "not_multipart")),
        (b"rubbish", "multipart/form-data; boundary=b", (400, "multipart")),
        (b"--b\r\n", "multipart/form-data; boundary=b", (400, "multipart")),
        (
            b'--b\r\ncontent-disposition: form-data; name="f"; filename="x"\r\n\r\nab',
            "multipart/form-data; boundary=b",
            (400, "multipart"),
        ),
        (
            b"--b\r\nContent-Disposition: form-data; name=job_id\r\n\r\n\xff\r\n--b--",
            "multipart/form-data; boundary=b",
            (422, "invalid"),
        ),
        (
            b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n'
            + b"y" * (MAX_FIELD_BYTES + 1),
            "multipart/form-data; boundary=b",
            (413, "too_large"),
        ),
        (
            b"--b\r\ncontent-disposition: form-data\r\n\r\n\r\n" * (MAX_PARTS + 1),
            "multipart/form-data; boundary=b",
            (413, "too_large"),
        ),
        (b"--b--\r\n", "multipart/form-data; boundary=b", (422, "missing_field")),
    ],
)
def test_a_broken_form_is_refused(
    server: CoordinatorServer,
    node: httpx.Client,
    content: bytes,
    kind: str,
    expected: tuple[int, str],
) -> None:
    """Each with its status, and nothing of it stays in the spool."""
    answer = node.post("/jobs/result", content=content, headers={"Content-Type": kind})
    assert problem(answer) == expected
    assert list(server.spool_path.iterdir()) == []


@pytest.mark.parametrize("metadata", ["[]", "x"])
def test_metadata_has_to_be_an_object(node: httpx.Client, metadata: str) -> None:
    """Anything else is refused before the job is looked at."""
    answer = node.post(
        "/jobs/result",
        data={"job_id": "a", "metadata": metadata},
        files={"artifact": ("artifacts/o", b"")},
    )
    assert problem(answer)[0] in {400, 422}


def test_a_failure_is_final_or_queued_again(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Retryable failures are handed out again with the next attempt."""
    take(server, node)
    fail = {"job_id": "a", "node_id": "n1", "attempt": 1, "error_code": "E_INPUT"}
    answer = node.post("/jobs/fail", json={**fail, "retryable": True})
    assert answer.json() == {"ok": True}
    assert pull(node)["job"]["attempt"] == 2
    answer = node.post("/jobs/fail", json={**fail, "attempt": 2})
    assert answer.json() == {"ok": True}
    view = server.wait("a", 1)
    assert (view["state"], view["error_code"]) == ("failed", "E_INPUT")


def test_a_node_asks_for_what_it_holds(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The recovery query is complete and gives whole manifests, secrets included."""
    server.submit(echo_manifest("a", secrets={"k": "v"}))
    server.submit(echo_manifest("b"))
    server.submit(echo_manifest("queued"))
    pull(node, max_jobs=2)
    node.post("/jobs/ack", json={"job_id": "b", "node_id": "n1"})
    jobs = node.get("/jobs?node_id=n1&state=active").json()["jobs"]
    assert [(job["job_id"], job["state"], job["attempt"]) for job in jobs] == [
        ("a", "leased", 1),
        ("b", "acked", 1),
    ]
    assert jobs[0]["manifest"]["secrets"] == {"k": "v"}
    assert "secrets" not in node.get("/jobs/a").json()["manifest"]
    with registered(server, "n2") as other:
        assert other.get("/jobs?node_id=n2&state=active").json() == {"jobs": []}
    assert problem(node.get("/jobs/none")) == (404, "not_found")


def test_a_lease_runs_out_while_nobody_calls() -> None:
    """The job is queued again by time alone, and then expires."""
    with CoordinatorServer(lease_s=0.05, max_attempts=2) as server:
        with registered(server) as node:
            server.submit(echo_manifest("a"))
            pull(node)
            server.wait("a", 10, "queued")
            assert pull(node)["job"]["attempt"] == 2
        assert server.wait("a", 10)["state"] == "expired"


def test_the_bare_specification_has_no_extensions() -> None:
    """What is only ours is absent: fields, queries, waiting, uploads."""
    with CoordinatorServer(spec_only=True) as server, registered(server) as node:
        auth = {"Authorization": f"Bearer {server.token}"}
        told = node.post("/nodes/register", json={"node_id": "n1"}, headers=auth)
        assert set(told.json()) == {"node_token"}
        assert node.post("/nodes/heartbeat", json={"node_id": "n1"}).json() == {}
        assert pull(node, max_jobs=4, wait_s=300) == {"job": None}
        server.submit(echo_manifest("a"))
        assert pull(node, max_jobs=4)["job"]["job_id"] == "a"
        body = {"job_id": "a", "node_id": "n1"}
        assert node.post("/jobs/ack", json=body).json() == {}
        assert node.post("/jobs/progress", json=body).json() == {}
        assert problem(node.get("/jobs/a")) == (404, "not_found")
        assert problem(node.get("/jobs?node_id=n1")) == (404, "not_found")
        assert problem(node.post("/uploads")) == (404, None)
        assert deliver_hello(node).json() == {"ok": True}
        assert problem(deliver_hello(node)) == (409, "final")
        server.submit(echo_manifest("b"))
        pull(node)
        fail = {"job_id": "b", "error_code": "E_INPUT", "retryable": True}
        node.post("/jobs/fail", json=fail)
        assert httpx.get(f"{server.base_url}/jobs/b").json()["state"] == "failed"


def test_without_registration_the_bootstrap_token_serves() -> None:
    """Register and heartbeat are 404; the node is whom the body names."""
    with (
        CoordinatorServer(no_registration=True) as server,
        registered(server) as node,
    ):
        body = {"node_id": "n1"}
        assert problem(node.post("/nodes/register", json=body)) == (404, "not_found")
        assert problem(node.post("/nodes/heartbeat", json=body)) == (
            404,
            "not_found",
        )
        take(server, node)
        assert deliver_hello(node, node_id="n1").json() == {"ok": True}
        assert server.job("a")["node_id"] == "n1"
        node.headers["Authorization"] = "Bearer wrong"
        answer = node.post("/jobs/pull", json=body)
        assert problem(answer) == (401, "unauthorized")


# Clients ----------------------------------------------------------------------


def test_clients_submit_cancel_and_list(server: CoordinatorServer) -> None:
    """No token is asked for; a job without an id gets one."""
    with httpx.Client(base_url=server.base_url) as client:
        made = client.post("/jobs", json=echo_manifest())
        job_id = made.json()["job_id"]
        assert (made.status_code, made.json()["state"]) == (201, "queued")
        assert client.post(f"/jobs/{job_id}/cancel").json()["state"] == "cancelled"
        assert problem(client.post(f"/jobs/{job_id}/cancel")) == (409, "final")
        client.post("/jobs", json=echo_manifest("b"))
        listed = client.get("/jobs").json()
        assert [job["job_id"] for job in listed["jobs"]] == ["b", job_id]
        assert {k: v for k, v in listed["counts"].items() if v} == {
            "cancelled": 1,
            "queued": 1,
        }
        assert problem(client.post("/jobs", json=echo_manifest("b"))) == (
            409,
            "job_exists",
        )
        assert problem(client.post("/jobs", json={})) == (422, "manifest")
        assert problem(client.post("/jobs", content=b" " * (MAX_JSON_BYTES + 1))) == (
            413,
            "too_large",
        )
        assert client.post("/jobs?unchecked=1", json=["x"]).status_code == 201
        assert problem(client.delete("/jobs")) == (405, None)
        assert problem(client.get("/nothing")) == (404, None)


def test_a_forced_cancel_does_not_wait(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The node's later outcome is refused as already final."""
    take(server, node)
    node.post("/jobs/a/cancel", json={"force": True})
    assert server.job("a")["state"] == "cancelled"
    assert problem(deliver_hello(node)) == (409, "final")


def test_nodes_are_listed_and_ordered(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """An order waits for the node's next heartbeat."""
    url = f"{server.base_url}/nodes"
    node.post("/nodes/heartbeat", json={"node_id": "n1", "load": 0.5})
    (listed,) = httpx.get(url).json()["nodes"]
    assert 0 <= listed.pop("heartbeat_age_s") < 10
    assert listed == {
        "node_id": "n1",
        "descriptor": {"node_id": "n1"},
        "heartbeat": {"node_id": "n1", "load": 0.5},
        "active": [],
        "drain": False,
    }
    httpx.post(f"{url}/n1", json={"drain": True, "refresh": ["token"]})
    assert node.post("/nodes/heartbeat", json={"node_id": "n1"}).json() == {
        "cancel": [],
        "drain": True,
        "refresh": ["token"],
    }
    assert problem(httpx.post(f"{url}/n2", json={})) == (404, "not_found")


def test_an_artifacts_own_type_never_breaks_its_download(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """A type that is no type is served as bytes."""
    take(server, node)
    evil = entry("o", HELLO, type="text/html\r\nx: y")
    deliver(node, evil, parts={"o": HELLO})
    fetched = httpx.get(f"{server.base_url}/jobs/a/artifacts/o")
    assert fetched.headers["content-type"] == "application/octet-stream"


def test_the_page_needs_nothing_from_elsewhere(server: CoordinatorServer) -> None:
    """One document, no address of another host in it."""
    page = httpx.get(server.base_url.removesuffix("/api/v1") + "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>reference coordinator</title>" in page.text
    assert "://" not in page.text


# Uploads ----------------------------------------------------------------------


def begin(node: httpx.Client, size: int) -> str:
    """Start an upload; give its URL."""
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": "name eA=="}
    answer = node.post("/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def patch(
    node: httpx.Client, url: str, offset: int, data: bytes, **headers: str
) -> httpx.Response:
    """Send a piece."""
    said = {**TUS, "Upload-Offset": str(offset), "Content-Type": OFFSET, **headers}
    return node.request("PATCH", _absolute(node, url), content=data, headers=said)


def offset_of(node: httpx.Client, url: str) -> int:
    """Ask how much has come."""
    answer = node.head(_absolute(node, url), headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def _absolute(node: httpx.Client, url: str) -> str:
    return str(httpx.URL(str(node.base_url)).join(url))


def _sha256(data: bytes) -> str:
    return "sha256 " + base64.b64encode(hashlib.sha256(data).digest()).decode()


def test_an_upload_comes_in_pieces_and_becomes_an_artifact(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Creation, two pieces, a question between them; the result names the URL."""
    take(server, node)
    url = begin(node, len(HELLO))
    first = patch(node, url, 0, HELLO[:5])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "5")
    assert offset_of(node, url) == 5
    named = entry("output.txt", HELLO, upload_url=url)
    assert problem(deliver(node, named, parts={"exec.log": b""})) == (422, "upload")
    patch(node, url, 5, HELLO[5:], **{"Upload-Checksum": _sha256(HELLO[5:])})
    assert deliver(node, named, parts={"exec.log": b""}).json() == {"ok": True}
    assert deliver(node, named, parts={"exec.log": b""}).json() == {"ok": True}
    assert server.artifact("a", "output.txt") == HELLO
    assert problem(patch(node, url, 12, b"")) == (404, "not_found")


def test_a_piece_with_a_wrong_checksum_does_not_count(node: httpx.Client) -> None:
    """460, and the offset is where it was."""
    url = begin(node, 6)
    patch(node, url, 0, b"abc")
    answer = patch(node, url, 3, b"def", **{"Upload-Checksum": _sha256(b"xyz")})
    assert problem(answer) == (460, "checksum")
    assert offset_of(node, url) == 3
    answer = patch(node, url, 3, b"def", **{"Upload-Checksum": _sha256(b"def")})
    assert answer.status_code == 204


@pytest.mark.parametrize(
    ("with_checksum", "kept"), [(False, 40_000), (True, 0)], ids=["bare", "checksum"]
)
def test_a_cut_piece_counts_unless_it_had_a_checksum(
    server: CoordinatorServer, node: httpx.Client, with_checksum: bool, kept: int
) -> None:
    """What cannot be verified as promised is not kept."""
    data = bytes(100_000)
    url = begin(node, len(data))
    server.set_fault("uploads", "cut", bytes=40_000, count=1, method="PATCH")
    checksum = {"Upload-Checksum": _sha256(data)} if with_checksum else {}
    with pytest.raises(httpx.TransportError):
        patch(node, url, 0, data, **checksum)
    assert offset_of(node, url) == kept
    assert patch(node, url, kept, data[kept:]).status_code == 204


def test_an_upload_can_be_given_up(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Its bytes go at once."""
    url = begin(node, 6)
    patch(node, url, 0, b"abc")
    assert node.delete(_absolute(node, url), headers=TUS).status_code == 204
    assert node.head(_absolute(node, url), headers=TUS).status_code == 404
    assert list(server.spool_path.iterdir()) == []


def test_uploads_say_what_they_speak(node: httpx.Client) -> None:
    """OPTIONS names version, extensions and the checksum algorithm."""
    for path in ("/uploads", "/uploads/any"):
        told = node.options(path)
        assert told.status_code == 204
        assert told.headers["tus-version"] == "1.0.0"
        assert told.headers["tus-extension"] == "creation,checksum,termination"
        assert told.headers["tus-checksum-algorithm"] == "sha256"


@pytest.mark.parametrize(
    ("headers", "data", "status"),
    [
        ({"Tus-Resumable": "0.2"}, b"", 412),
        ({"Content-Type": "text/plain"}, b"", 415),
        ({"Upload-Offset": "1"}, b"", 409),
        ({"Upload-Offset": "-1"}, b"", 400),
        ({"Upload-Offset": "²"}, b"", 400),
        ({"Upload-Checksum": "sha256 *"}, b"", 400),
        ({"Upload-Checksum": "md5 eA=="}, b"", 400),
        ({}, b"too much", 413),
    ],
)
def test_a_wrong_piece_is_refused(
    node: httpx.Client, headers: dict[str, str], data: bytes, status: int
) -> None:
    """Each mistake has its status; the offset stays."""
    url = begin(node, 3)
    said = {**TUS, "Upload-Offset": "0", "Content-Type": OFFSET, **headers}
    encoded = [(name.encode(), value.encode()) for name, value in said.items()]
    answer = node.request("PATCH", _absolute(node, url), content=data, headers=encoded)
    assert problem(answer)[0] == status
    assert offset_of(node, url) == 0


def test_an_absurd_length_is_refused(node: httpx.Client) -> None:
    """A TiB is the end."""
    headers = {**TUS, "Upload-Length": str(1 << 41)}
    assert problem(node.post("/uploads", headers=headers)) == (413, "too_large")
    assert problem(node.post("/uploads", headers=TUS)) == (400, None)


def test_two_pieces_at_once_are_one_too_many(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The second is told that the upload is busy; the first goes on."""
    url = begin(node, 4)
    may_go_on = threading.Event()
    begun = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"ab"
        begun.set()
        may_go_on.wait(10)
        yield b"cd"

    answers: list[httpx.Response] = []
    said = {**TUS, "Upload-Offset": "0", "Content-Type": OFFSET}
    with httpx.Client(headers=node.headers) as other:
        thread = threading.Thread(
            target=lambda: answers.append(
                other.request(
                    "PATCH", _absolute(node, url), content=slowly(), headers=said
                )
            )
        )
        thread.start()
        begun.wait(10)
        left_s = deadline(10)
        while offset_of(node, url) == 0:
            left_s()
        assert problem(patch(node, url, 2, b"xy")) == (423, "busy")
        may_go_on.set()
        thread.join(10)
    assert answers[0].status_code == 204


# Faults -----------------------------------------------------------------------


def test_faults_are_switched_over_http(server: CoordinatorServer) -> None:
    """POST adds, GET lists with hits, DELETE clears."""
    with httpx.Client(base_url=server.base_url) as client, registered(server) as node:
        body = {"call": "pull", "kind": "status", "status": 429, "retry_after_s": 1.5}
        assert client.post("/faults", json=body).status_code == 201
        answer = node.post("/jobs/pull", json={"node_id": "n1"})
        assert problem(answer) == (429, "fault")
        assert answer.headers["retry-after"] == "2"
        assert client.get("/faults").json()["faults"][0]["hits"] == 1
        assert client.delete("/faults").json() == {"faults": []}
        assert pull(node) == {"job": None}
        assert problem(client.post("/faults", json={"call": "x"})) == (422, "fault")


def test_a_dropped_reply_has_taken_effect(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The node hears nothing; the coordinator has its word."""
    take(server, node)
    server.set_fault("result", "drop_reply", count=1)
    with pytest.raises(httpx.RemoteProtocolError):
        deliver_hello(node)
    assert server.job("a")["state"] == "succeeded"
    assert [call[2] for call in server.calls("jobs/result")] == [None]
    assert deliver_hello(node).json() == {"ok": True}


def test_a_pull_answered_twice_hands_one_job_out_twice(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """An empty answer does not use the fault up."""
    server.set_fault("pull", "answer_twice", count=1)
    assert pull(node) == {"job": None}
    server.submit(echo_manifest("a"))
    answers = [pull(node)["job"] for _ in range(3)]
    assert answers[0] == answers[1]
    assert answers[2] is None


def test_another_call_answered_twice_takes_effect_twice(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """As if a proxy had repeated it: the second answer is what comes back."""
    take(server, node)
    server.set_fault("result", "answer_twice", count=1)
    assert deliver_hello(node).json() == {"ok": True}
    server.clear_faults()
    assert server.job("a")["state"] == "succeeded"


def test_a_cut_result_has_no_effect(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The connection closes after so many bytes; nothing stays in the spool."""
    take(server, node)
    for cut_at in (0, 100):
        server.set_fault("result", "cut", bytes=cut_at, count=1)
        with pytest.raises(httpx.TransportError):
            deliver_hello(node)
    assert server.job("a")["state"] == "acked"
    assert list(server.spool_path.iterdir()) == []
    assert deliver_hello(node).json() == {"ok": True}


def test_a_cut_reply_has_taken_effect(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """The answer begins and breaks off."""
    server.submit(echo_manifest("a"))
    server.set_fault("pull", "cut_reply", bytes=10, count=1)
    with pytest.raises(httpx.RemoteProtocolError, match="received 10 bytes"):
        pull(node)
    assert server.job("a")["state"] == "leased"


def test_a_stalled_call_has_taken_effect(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """A client that is less patient hears nothing of it; others hear late."""
    server.submit(echo_manifest("a"))
    server.set_fault("pull", "stall", seconds=60, count=1)
    with pytest.raises(httpx.ReadTimeout):
        node.post("/jobs/pull", json={"node_id": "n1"}, timeout=0.2)
    assert server.job("a")["state"] == "leased"
    server.set_fault("pull", "stall", seconds=0.01, count=1)
    assert pull(node) == {"job": None}


def test_garbage_and_huge_answers(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """200 with what no client may trust, and no effect."""
    server.submit(echo_manifest("a"))
    server.set_fault("pull", "garbage", count=1)
    answer = node.post("/jobs/pull", json={"node_id": "n1"})
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="decode"):
        answer.json()
    server.set_fault("pull", "huge", count=2, bytes=200_000)
    answer = node.post("/jobs/pull", json={"node_id": "n1"})
    assert len(answer.content) == 200_002
    assert len(answer.json()["job"]) == 200_000 - len('{"job": "')
    server.clear_faults()
    server.set_fault("pull", "huge", count=1)
    with node.stream("POST", "/jobs/pull", json={"node_id": "n1"}) as answer:
        next(answer.iter_raw())
    assert server.job("a")["state"] == "queued"


# Life -------------------------------------------------------------------------


def test_a_restart_keeps_or_forgets(server: CoordinatorServer) -> None:
    """Kept, all goes on; forgotten, the node has to register again."""
    with registered(server) as node:
        server.submit(echo_manifest("a"))
        server.restart()
        assert pull(node)["job"]["job_id"] == "a"
        server.restart(forget=True)
        answer = node.post("/jobs/pull", json={"node_id": "n1"})
        assert problem(answer) == (401, "unauthorized")
    assert server.state.jobs == {}


def test_stopping_ends_a_long_poll_and_a_stall(
    server: CoordinatorServer, node: httpx.Client
) -> None:
    """Nobody who waits keeps the coordinator alive."""
    server.set_fault("heartbeat", "stall", seconds=300)
    ended: list[str] = []

    def wait(path: str) -> None:
        try:
            node.post(path, json={"node_id": "n1", "wait_s": 300}, timeout=60)
        except httpx.TransportError as exc:
            ended.append(type(exc).__name__)
        else:
            ended.append("answered")

    threads = [
        threading.Thread(target=wait, args=(path,))
        for path in ("/jobs/pull", "/nodes/heartbeat")
    ]
    for thread in threads:
        thread.start()
    server.wait_for_polls(2)  # the stalled answer waits where a long poll does
    assert server.state.nodes["n1"].heartbeat
    server.stop()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 2
    assert server.job(server.submit(echo_manifest()))["state"] == "queued"


def test_tls_is_served(tmp_path: Path) -> None:
    """With certificate and key it speaks https, and faults still break it."""
    cert, key = _certificate(tmp_path)
    with CoordinatorServer(tls=(cert, key)) as server:
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=server.base_url, verify=context) as client:
            assert client.get("/nodes").json() == {"nodes": []}
            server.set_fault("pull", "drop_reply")
            with pytest.raises(httpx.TransportError):
                client.post("/jobs/pull", json={})


def _certificate(where: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    paths = where / "cert.pem", where / "key.pem"
    paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
