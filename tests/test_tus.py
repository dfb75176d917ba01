"""Uploads that go on where they were cut."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer
from scripted_server import Connection, Seen, says, serving

from aitbc_aps_miner.coordinator import FixedToken, Transport
from aitbc_aps_miner.coordinator.multipart import Multipart
from aitbc_aps_miner.coordinator.text import dumps
from aitbc_aps_miner.coordinator.tus import TusUploader
from aitbc_aps_miner.errors import RefusedError, UnavailableError, WorkspaceError
from aitbc_aps_miner.util.clock import SystemClock

MIB = 2**20
ABOUT = {"filename": "ä.bin", "job_id": "j"}


class QuickClock(SystemClock):
    """The machine's clock, but pauses are only noted."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Note the wish."""
        self.slept.append(seconds)


def transport(url: str, token: str = "t", timeout_s: float = 5) -> Transport:
    """Open a transport whose pauses take no time."""
    return Transport(url, FixedToken(token), clock=QuickClock(), timeout_s=timeout_s)


@dataclass
class Site:
    """A reference coordinator, a registered node's transport, and a file."""

    server: CoordinatorServer
    client: Transport
    file: Path
    data: bytes
    start: int
    """How many requests came before this test's."""

    def upload(self, patch_bytes: int = 2 * MIB) -> str:
        """Upload the file; check that what arrived is the file."""
        uploader = TusUploader(self.client, patch_bytes=patch_bytes)
        return uploader.upload(self.file, len(self.data), ABOUT)

    def offset(self, url: str) -> int:
        """Give how much the server has."""
        reply = self.client.call("HEAD", url, headers={"Tus-Resumable": "1.0.0"})
        return int(reply.headers["Upload-Offset"])

    def patches(self, number: int) -> list[int]:
        """Give where each PATCH began, once there were `number`."""

        def begins() -> list[int]:
            calls = self.server.requests[self.start :]
            return [
                int(headers["upload-offset"])
                for method, _, _, headers in calls
                if method == "PATCH"
            ]

        # A call is noted a moment after its answer was sent.
        self.server.wait_until(lambda: len(begins()) >= number, 5)
        return begins()

    def refuse_patches(self) -> None:
        """Let every PATCH fail."""
        self.server.set_fault("uploads", "status", method="PATCH", status=503)

    def arrived(self, url: str) -> bytes:
        """Make the upload an artifact and give its bytes."""
        job_id = self.server.submit({"runner": "cli", "timeout_s": 1, "command": "x"})
        self.client.call("POST", "jobs/pull", json={"node_id": "n", "max_jobs": 1})
        self.client.call("POST", "jobs/ack", json={"node_id": "n", "job_id": job_id})
        entry = {
            "path": "a",
            "type": "b/c",
            "bytes": len(self.data),
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "upload_url": url,
        }
        metadata = dumps({"node_id": "n", "artifacts": [entry]}).decode()
        form = Multipart({"job_id": job_id, "metadata": metadata}, [])
        self.client.call("POST", "jobs/result", body=form)
        return self.server.artifact(job_id, "a")


@pytest.fixture(scope="module")
def server() -> Iterator[CoordinatorServer]:
    """Give one coordinator for all tests."""
    with CoordinatorServer() as running:
        yield running


@pytest.fixture
def site(server: CoordinatorServer, tmp_path: Path) -> Iterator[Site]:
    """Give a place with a file of 5 MiB and a bit."""
    file, data = tmp_path / "a.bin", bytes(range(251)) * (5 * MIB // 251) + b"end"
    file.write_bytes(data)
    with transport(server.base_url) as boot:
        answer = boot.call(
            "POST", "nodes/register", json={"node_id": "n"}, bearer=server.token
        )
    with transport(server.base_url, answer.json()["node_token"]) as client:
        yield Site(server, client, file, data, len(server.requests))
        server.clear_faults()


def test_a_file_goes_in_pieces(site: Site) -> None:
    """Each PATCH begins where the one before ended; every byte arrives."""
    url = site.upload()
    assert site.patches(3) == [0, 2 * MIB, 4 * MIB]
    assert site.arrived(url) == site.data


def test_an_upload_is_offered(site: Site) -> None:
    """OPTIONS tells."""
    assert TusUploader(site.client).offered()


def test_a_cut_upload_goes_on_at_the_byte_the_server_has(site: Site) -> None:
    """What has arrived is not sent again."""
    site.server.set_fault("uploads", "cut", method="PATCH", bytes=MIB, count=1)
    url = site.upload(patch_bytes=16 * MIB)
    first, second = site.patches(2)
    assert first == 0
    assert 0 < second <= MIB
    assert site.arrived(url) == site.data


def test_another_process_goes_on(site: Site) -> None:
    """The URL is remembered beside the file."""
    site.server.set_fault("uploads", "cut", method="PATCH", bytes=MIB, count=1)
    site.refuse_patches()
    with pytest.raises(UnavailableError):
        site.upload()
    site.server.clear_faults()
    note = json.loads(site.file.with_name(".a.bin.upload").read_text())
    assert 0 < site.offset(note["url"]) <= MIB
    assert site.upload() == note["url"]
    assert site.arrived(note["url"]) == site.data


def test_a_whole_upload_is_only_asked_after(site: Site) -> None:
    """A resend of the result costs one HEAD."""
    url = site.upload()
    site.refuse_patches()
    assert site.upload() == url


def test_a_forgotten_upload_starts_anew(site: Site) -> None:
    """A coordinator that lost its memory gets the file again."""
    first = site.upload()
    site.client.call("DELETE", first, headers={"Tus-Resumable": "1.0.0"})
    second = site.upload()
    assert first != second
    assert site.arrived(second) == site.data


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"bytes": 1, "url": "http://x/"}',
        b'{"bytes": 5242641, "url": 5}',
        b'{"bytes": 5242641, "url": "https://elsewhere.example/1"}',
    ],
)
def test_a_bad_note_is_no_obstacle(site: Site, note: bytes) -> None:
    """At worst the upload starts anew; another origin gets nothing."""
    note = note.replace(b"5242641", str(len(site.data)).encode())
    site.file.with_name(".a.bin.upload").write_bytes(note)
    url = site.upload()
    assert site.offset(url) == len(site.data)


def test_an_empty_file_is_complete_at_once(site: Site) -> None:
    """No PATCH is needed."""
    site.file.write_bytes(b"")
    site.data = b""
    site.refuse_patches()
    url = site.upload()
    assert site.offset(url) == 0


def test_a_file_that_changed_is_not_uploaded(site: Site) -> None:
    """Its digest would be another one."""
    site.file.write_bytes(b"other")
    with pytest.raises(WorkspaceError):
        site.upload()


def test_a_file_that_grew_is_noticed_at_its_end(site: Site) -> None:
    """Also when each PATCH takes only a stretch of it."""
    uploader = TusUploader(site.client, patch_bytes=MIB // 2)
    with site.file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(WorkspaceError):
        uploader.upload(site.file, len(site.data), ABOUT)


def test_the_metadata_is_encoded_as_tus_says(tmp_path: Path) -> None:
    """Keys plain, values in base64; version and length in headers."""
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    answers = [
        says(201, headers={"Location": "/api/v1/uploads/1"}),
        says(204, headers={"Upload-Offset": "3"}),
    ]
    with serving(*answers) as server, transport(server.url) as client:
        url = TusUploader(client).upload(file, 3, ABOUT)
    create, patch = server.seen
    assert url == server.url + "/uploads/1"
    assert create.headers["upload-metadata"] == "filename w6QuYmlu,job_id ag=="
    assert create.headers["upload-length"] == "3"
    assert {seen.headers["tus-resumable"] for seen in server.seen} == {"1.0.0"}
    assert patch.headers["content-type"] == "application/offset+octet-stream"
    assert patch.body == b"abc"


def creates(location: str) -> Any:
    """Answer a creation with `location`, anything else with offset 0."""

    def answer(request: Seen, connection: Connection) -> None:
        if request.method == "POST":
            connection.reply(201, headers={"Location": location} if location else {})
        else:
            connection.reply(204, headers={"Upload-Offset": "0"})

    return answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (says(404), RefusedError),
        (says(413), RefusedError),
        (says(503), UnavailableError),
        (creates(""), UnavailableError),
        (creates("https://elsewhere.example/1"), RefusedError),
        (creates("/uploads/1"), UnavailableError),
        (
            says(201, headers={"Location": "/u", "Upload-Offset": "-1"}),
            UnavailableError,
        ),
        (
            says(201, headers={"Location": "/u", "Upload-Offset": "99"}),
            UnavailableError,
        ),
        (says(201, headers={"Location": "/u", "Upload-Offset": "9" * 5000}), None),
    ],
)
def test_a_server_that_never_takes_it_ends_the_tries(
    tmp_path: Path, answer: Any, kind: type[Exception] | None
) -> None:
    """Bounded, and an error of the tree; the bearer stays at its origin."""
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    with serving(answer) as server, transport(server.url) as client:
        with pytest.raises(kind or UnavailableError):
            TusUploader(client).upload(file, 3, ABOUT)
        assert len(server.seen) <= 12


@pytest.mark.parametrize("status", [204, 404, 405])
def test_where_it_is_not_offered(status: int) -> None:
    """An OPTIONS without tus, or none at all."""
    with serving(says(status)) as server, transport(server.url) as client:
        assert not TusUploader(client).offered()
