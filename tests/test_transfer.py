"""Inputs over real sockets: whole, the right ones, from where they may come, or not."""

import contextlib
import errno
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.config.model import Network
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ExitCause,
    InputUrl,
    Manifest,
    Origin,
    PayloadLimits,
    Reservation,
)
from aitbc_aps_miner.transfer import HttpTransfer
from aitbc_aps_miner.transfer.http import MAX_TRIES
from aitbc_aps_miner.transfer.inputfile import InputFile, parse_content_range
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.workspace import Workspace, Workspaces

DATA = bytes(range(256)) * 400
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = 'ETag: "v1"'


@dataclass(frozen=True)
class Request:
    """One request as it came over the wire."""

    target: str
    headers: Mapping[str, str]
    connection: socket.socket

    def answer(self, status: int, body: bytes = b"", *lines: str) -> None:
        head = [f"HTTP/1.1 {status} Words", "Connection: close", *lines]
        if not any(line.lower().startswith("content-length") for line in lines):
            head.append(f"Content-Length: {len(body)}")
        self.connection.sendall("\r\n".join([*head, "", ""]).encode() + body)

    def start(self) -> int:
        """Give the first byte that a Range asks for."""
        return int(self.headers.get("range", "bytes=0-")[6:-1])

    def rest(self, *lines: str, stop: int | None = None) -> None:
        """Answer with the rest of DATA, cut at `stop`."""
        start = self.start()
        status, more = 200, list(lines)
        if start:
            status = 206
            more.append(f"Content-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        more.append(f"Content-Length: {len(DATA) - start}")
        self.answer(status, DATA[start:stop], *more)


Handler = Callable[[Request], None]


@dataclass
class Server:
    """A server whose every answer is a script; it remembers what it was asked."""

    handlers: list[Handler]
    """One for each request in turn; the last one stays."""
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def url(self, host: str = "127.0.0.1", path: str = "/f") -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), connection:
                if self.tls is None:
                    self._one(connection)
                else:
                    with self.tls.wrap_socket(connection, server_side=True) as secure:
                        self._one(secure)

    def _one(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                return
            data += chunk
        first, *lines = data.decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in pairs}
        request = Request(first.split(" ")[1], headers, connection)
        handler = self.handlers[min(len(self.requests), len(self.handlers) - 1)]
        self.requests.append(request)
        handler(request)


@dataclass
class FakeWatch:
    """A watch that stops the job after a number of questions."""

    stop_after: int | None = None
    asked: int = 0

    def remaining_s(self) -> float:
        return 100.0

    def stop_cause(self) -> ExitCause | None:
        return None

    def limits(self) -> PayloadLimits:
        return PayloadLimits()

    def check(self) -> None:
        self.asked += 1
        if self.stop_after is not None and self.asked > self.stop_after:
            raise JobError(ErrorCode.E_TIMEOUT, "the time is over")


class QuickClock(SystemClock):
    """The machine's clocks; pauses between tries pass at once."""

    skipped_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped_s

    def sleep(self, seconds: float) -> None:
        self.skipped_s += seconds


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """Give a claimed job."""
    claimed = Workspaces(tmp_path / "jobs", SystemClock()).claim(
        Manifest(job_id="job-1", runner="cli", timeout_s=5),
        {},
        Origin(api="node-v1", base_url="http://c", node_id="n"),
        Reservation(kind="cpu"),
    )
    yield claimed
    claimed.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Give a way to start servers that end with the test."""
    servers: list[Server] = []

    def start(*handlers: Handler, tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(list(handlers), tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _fetch(
    workspace: Workspace,
    *specs: InputUrl | str,
    network: Network | None = None,
    watch: FakeWatch | None = None,
    inline: Mapping[str, str] | None = None,
    timeout_s: float = 5,
    resolve: Callable[[str, int], list[str]] | None = None,
    ca_file: Path | None = None,
) -> None:
    inputs = tuple(
        InputUrl(url=spec, name="f") if isinstance(spec, str) else spec
        for spec in specs
    )
    manifest = Manifest(
        job_id="job-1", runner="cli", timeout_s=5, inputs=inputs, inline=inline or {}
    )
    context = ssl.create_default_context(cafile=ca_file)
    HttpTransfer(
        network or Network(private=True),
        timeout_s,
        context,
        QuickClock(),
        resolve=resolve or (lambda host, port: ["127.0.0.1"]),
    ).fetch(manifest, workspace, watch or FakeWatch())


def _refused(code: ErrorCode, words: str) -> "pytest.RaisesExc[JobError]":
    return pytest.raises(JobError, match=rf"{code}: .*{words}")


def _no_leftovers(workspace: Workspace) -> bool:
    return not any(
        entry.name.startswith(".") for entry in (workspace.root / "input").iterdir()
    )


def _whole(request: Request) -> None:
    request.rest(ETAG)


def test_an_input_arrives_and_is_shown_in_work(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Bytes in input/, a relative link in work/, nothing of ours in the request."""
    server = serve(_whole)
    url = f"http://user:pass@127.0.0.1:{server.port}/f?q=1#part"
    _fetch(workspace, InputUrl(url=url, name="in", sha256=SHA256, size_bytes=len(DATA)))
    assert (workspace.root / "input" / "in").read_bytes() == DATA
    assert (workspace.root / "work" / "in").read_bytes() == DATA
    assert os.readlink(workspace.root / "work" / "in") == "../input/in"  # noqa: PTH115  text, not a path
    (request,) = server.requests
    assert request.target == "/f?q=1"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "aitbc-aps-miner",
    }
    assert _no_leftovers(workspace)


def test_inline_inputs_are_files_too(workspace: Workspace) -> None:
    """Text is written as UTF-8 and shown like a fetched file; again over an old one."""
    _fetch(workspace, inline={"a.txt": "old"})
    _fetch(workspace, inline={"a.txt": "grüße", "empty": ""})
    assert (workspace.root / "work" / "a.txt").read_text("utf-8") == "grüße"
    assert (workspace.root / "work" / "empty").read_bytes() == b""
    with _refused(ErrorCode.E_INPUT, "not Unicode"):
        _fetch(workspace, inline={"a": "\ud800"})
    with _refused(ErrorCode.E_INPUT, "larger than"):
        _fetch(
            workspace, inline={"a": "xx"}, network=Network(max_input_mb=1 / (1 << 20))
        )


def _cut(request: Request) -> None:
    request.rest(ETAG, stop=request.start() + 30_000)


def test_a_cut_download_goes_on_where_it_stopped(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Each try asks for the rest of the same version, and no byte comes twice."""
    server = serve(_cut)
    _fetch(workspace, server.url())
    assert (workspace.root / "input" / "f").read_bytes() == DATA
    assert [
        (request.headers.get("range"), request.headers.get("if-range"))
        for request in server.requests
    ] == [
        (None, None),
        ("bytes=30000-", '"v1"'),
        ("bytes=60000-", '"v1"'),
        ("bytes=90000-", '"v1"'),
    ]


def test_a_date_or_a_digest_will_do_as_proof(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Last-Modified goes into If-Range; a digest allows a bare Range."""
    date = "Sat, 01 Jan 2022 00:00:00 GMT"
    dated = serve(
        lambda request: request.rest(
            'ETag: W/"weak"', f"Last-Modified: {date}", stop=request.start() + 60_000
        )
    )
    _fetch(workspace, dated.url())
    assert dated.requests[1].headers["if-range"] == date
    bare = serve(lambda request: request.rest(stop=request.start() + 60_000))
    _fetch(workspace, InputUrl(url=bare.url(), name="g", sha256=SHA256))
    assert bare.requests[1].headers["range"] == "bytes=60000-"
    assert "if-range" not in bare.requests[1].headers


def test_without_proof_a_cut_download_starts_over(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Halves of two different files are never joined."""
    server = serve(
        lambda request: request.rest(stop=30_000), lambda request: request.rest()
    )
    _fetch(workspace, server.url())
    assert "range" not in server.requests[1].headers
    assert (workspace.root / "input" / "f").read_bytes() == DATA


def test_parts_of_two_versions_are_noticed_by_the_digest(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """A server without validators changed the file: fetched again from the start."""

    def first(request: Request) -> None:
        request.answer(200, b"old" * 10, f"Content-Length: {len(DATA)}")

    server = serve(first, lambda request: request.rest())
    _fetch(workspace, InputUrl(url=server.url(), name="f", sha256=SHA256))
    assert (workspace.root / "input" / "f").read_bytes() == DATA
    assert len(server.requests) == 3


def _full_answer(request: Request) -> None:
    request.answer(200, DATA, ETAG)


def _other_range(request: Request) -> None:
    request.answer(206, DATA[5:], f"Content-Range: bytes 5-9/{len(DATA)}", ETAG)


def _other_total(request: Request) -> None:
    start = request.start()
    line = f"Content-Range: bytes {start}-{len(DATA) - 1}/{len(DATA) + 1}"
    request.answer(206, DATA[start:], line, ETAG)


def _no_range(request: Request) -> None:
    request.answer(206, DATA[request.start() :], ETAG)


def _bad_range(request: Request) -> None:
    request.answer(416)


@pytest.mark.parametrize(
    ("second", "requests"),
    [
        (_full_answer, 2),
        (_other_range, 3),
        (_other_total, 3),
        (_no_range, 3),
        (_bad_range, 3),
    ],
)
def test_a_server_that_will_not_go_on_is_asked_anew(
    workspace: Workspace,
    serve: Callable[..., Server],
    second: Handler,
    requests: int,
) -> None:
    """A whole answer is taken as such; a wrong part is thrown away."""
    server = serve(_cut, second, _whole)
    _fetch(workspace, InputUrl(url=server.url(), name="f", sha256=SHA256))
    assert (workspace.root / "input" / "f").read_bytes() == DATA
    assert len(server.requests) == requests


def test_a_partial_answer_to_a_whole_question_is_no_answer(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """A 206 that nobody asked for never becomes a file."""
    server = serve(_other_range)
    with _refused(ErrorCode.E_INPUT, "another part"):
        _fetch(workspace, server.url())
    assert len(server.requests) == MAX_TRIES
    assert _no_leftovers(workspace)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(
    workspace: Workspace, serve: Callable[..., Server], status: int
) -> None:
    """A passing trouble is waited for, a number of times."""
    server = serve(lambda request: request.answer(status), _whole)
    _fetch(workspace, server.url())
    assert len(server.requests) == 2
    down = serve(lambda request: request.answer(status))
    with _refused(ErrorCode.E_INPUT, f"5 tries: the server answered {status}"):
        _fetch(workspace, down.url())


@pytest.mark.parametrize("status", [204, 401, 404, 416])
def test_a_plain_no_is_taken_for_it(
    workspace: Workspace, serve: Callable[..., Server], status: int
) -> None:
    """What will not change is not asked again."""
    server = serve(lambda request: request.answer(status))
    with _refused(ErrorCode.E_INPUT, f"answered {status}"):
        _fetch(workspace, server.url())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"sha256": "00" * 32}, "has the digest"),
        ({"size_bytes": len(DATA) + 1}, "announced were"),
        ({"size_bytes": len(DATA) - 1}, "more than"),
        ({"size_bytes": 1 << 40}, "announced with more"),
    ],
)
def test_what_is_not_as_announced_is_refused(
    workspace: Workspace,
    serve: Callable[..., Server],
    spec: dict[str, object],
    words: str,
) -> None:
    """Wrong digest, too few bytes, too many, more than may be: E_INPUT, no file."""
    server = serve(_whole)
    with _refused(ErrorCode.E_INPUT, words):
        _fetch(workspace, InputUrl(url=server.url(), name="f", **spec))  # type: ignore[arg-type]  # from the table
    assert list((workspace.root / "input").iterdir()) == []
    assert list((workspace.root / "work").iterdir()) == []


def _endless(request: Request) -> None:
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    request.connection.sendall(head.encode())
    while True:
        request.connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_an_endless_body_ends_at_its_cap(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Not a byte beyond the cap is kept, announced or not."""
    server = serve(_endless)
    with _refused(ErrorCode.E_INPUT, "more than the 1048576 bytes"):
        _fetch(workspace, server.url(), network=Network(private=True, max_input_mb=1))
    with _refused(ErrorCode.E_INPUT, "more than the 1000 bytes"):
        _fetch(workspace, InputUrl(url=server.url(), name="f", size_bytes=1000))
    assert _no_leftovers(workspace)


def test_a_length_over_the_cap_is_not_even_started(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """A Content-Length of a terabyte is answered at once."""
    server = serve(
        lambda request: request.answer(200, b"x", f"Content-Length: {1 << 40}")
    )
    with _refused(ErrorCode.E_INPUT, "more than"):
        _fetch(workspace, server.url())


def test_a_body_that_just_ends_is_whole_unless_announced(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Without a length the end of the connection is the end; a size says otherwise."""

    def unmeasured(request: Request) -> None:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + DATA[:100])

    server = serve(unmeasured)
    _fetch(workspace, server.url())
    assert (workspace.root / "input" / "f").read_bytes() == DATA[:100]
    with _refused(ErrorCode.E_INPUT, "ended after 100 bytes"):
        _fetch(workspace, InputUrl(url=server.url(), name="f", size_bytes=200))


def test_an_encoded_body_is_refused(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Nobody asked for gzip: its bytes would be hashed for the wrong ones."""
    server = serve(lambda request: request.answer(200, b"x", "Content-Encoding: gzip"))
    with _refused(ErrorCode.E_INPUT, "gzip"):
        _fetch(workspace, server.url())


def _trickle(request: Request) -> None:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        request.connection.sendall(b"x")
        select_pause(0.01)


def select_pause(seconds: float) -> None:
    """Let a misbehaving server take its time."""
    threading.Event().wait(seconds)


def _mute(request: Request) -> None:
    request.connection.recv(1)


@pytest.mark.parametrize("handler", [_trickle, _mute])
def test_a_slow_server_does_not_outlast_the_job(
    workspace: Workspace, serve: Callable[..., Server], handler: Handler
) -> None:
    """The watch is asked all the while, and what it raises ends the fetch."""
    server = serve(handler)
    started = time.monotonic()
    with _refused(ErrorCode.E_TIMEOUT, "over"):
        _fetch(workspace, server.url(), watch=FakeWatch(stop_after=6))
    assert time.monotonic() - started < 4
    assert _no_leftovers(workspace)


def test_a_mute_server_is_given_up(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Each try ends at the time limit of one call."""
    server = serve(_mute)
    with _refused(ErrorCode.E_INPUT, "no byte for 0.05 s"):
        _fetch(workspace, server.url(), timeout_s=0.05)
    assert len(server.requests) == MAX_TRIES


def test_progress_earns_more_tries(
    workspace: Workspace,
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tries are counted since the last good piece, not since the beginning."""
    monkeypatch.setattr("aitbc_aps_miner.transfer.http.GAIN_BYTES", 10_000)
    server = serve(lambda request: request.rest(ETAG, stop=request.start() + 10_000))
    _fetch(workspace, server.url())
    assert len(server.requests) == 11
    assert (workspace.root / "input" / "f").read_bytes() == DATA


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000],
    ids=["nothing", "no HTTP", "endless head"],
)
def test_rubbish_is_no_answer(
    workspace: Workspace, serve: Callable[..., Server], rubbish: bytes
) -> None:
    """Whatever a server says, it is E_INPUT after the tries."""
    server = serve(lambda request: request.connection.sendall(rubbish))
    with _refused(ErrorCode.E_INPUT, "5 tries"):
        _fetch(workspace, server.url())


# --- where inputs may come from -------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(
    workspace: Workspace, serve: Callable[..., Server], status: int
) -> None:
    """Relative and absolute targets, to the end."""
    target = serve(_whole)
    server = serve(
        lambda request: request.answer(status, b"", "Location: /next"),
        lambda request: request.answer(status, b"", f"Location: {target.url()}"),
    )
    _fetch(workspace, server.url())
    assert [request.target for request in server.requests] == ["/f", "/next"]
    assert (workspace.root / "input" / "f").read_bytes() == DATA


def test_a_loop_of_redirects_ends(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Five hops are enough for anybody."""
    server = serve(lambda request: request.answer(302, b"", "Location: /f"))
    with _refused(ErrorCode.E_INPUT, "more than 5 times"):
        _fetch(workspace, server.url())
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("location", "code", "words"),
    [
        ("ftp://127.0.0.1/f", ErrorCode.E_INPUT, "only http and https"),
        ("file:///etc/passwd", ErrorCode.E_INPUT, "only http and https"),
        ("gopher://127.0.0.1/", ErrorCode.E_INPUT, "only http and https"),
        ("http://other.example/f", ErrorCode.E_DENY, r"not in \[network\] inputs"),
        ("http://127.0.0.1@other.example/", ErrorCode.E_DENY, "other.example"),
        ("http://[::1", ErrorCode.E_INPUT, "no valid URL"),
    ],
)
def test_every_hop_is_judged(
    workspace: Workspace,
    serve: Callable[..., Server],
    location: str,
    code: ErrorCode,
    words: str,
) -> None:
    """Another scheme or a host that is not allowed ends the fetch."""
    server = serve(lambda request: request.answer(302, b"", f"Location: {location}"))
    with _refused(code, words):
        _fetch(
            workspace,
            server.url(),
            network=Network(private=True, inputs=("127.0.0.1",)),
        )


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://127.0.0.1:{port}/f", ErrorCode.E_INPUT),
        ("file:///etc/passwd", ErrorCode.E_INPUT),
        ("no url", ErrorCode.E_INPUT),
        ("http:///f", ErrorCode.E_INPUT),
        ("http://127.0.0.1:0/f", ErrorCode.E_INPUT),
        ("http://127.0.0.1:99999/f", ErrorCode.E_INPUT),
        ("http://\ud800/f", ErrorCode.E_INPUT),
        ("http://127.0.0.1:{port}/f", ErrorCode.E_DENY),
        ("http://127.1:{port}/f", ErrorCode.E_DENY),
        ("http://0x7f000001:{port}/f", ErrorCode.E_DENY),
        ("http://2130706433:{port}/f", ErrorCode.E_DENY),
        ("http://localhost:{port}/f", ErrorCode.E_DENY),
        ("http://[::ffff:127.0.0.1]:{port}/f", ErrorCode.E_DENY),
        ("http://files.example@127.0.0.1:{port}/f", ErrorCode.E_DENY),
        ("http://169.254.169.254/latest/meta-data/", ErrorCode.E_DENY),
    ],
)
def test_an_address_near_us_is_never_connected_to(
    workspace: Workspace, serve: Callable[..., Server], url: str, code: ErrorCode
) -> None:
    """However it is spelled; the server does not see so much as a connection."""
    server = serve(_whole)
    with pytest.raises(JobError) as refused:
        HttpTransfer(Network(), 5, ssl.create_default_context(), QuickClock()).fetch(
            Manifest(
                job_id="job-1",
                runner="cli",
                timeout_s=5,
                inputs=(InputUrl(url=url.format(port=server.port), name="f"),),
            ),
            workspace,
            FakeWatch(),
        )
    assert refused.value.code is code
    assert server.connections == 0


def test_a_redirect_inside_is_refused_at_the_second_hop(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """A public name that sends us to a private one: judged there again."""
    inside = serve(_whole)
    server = serve(
        lambda request: request.answer(
            302, b"", f"Location: {inside.url('inside.example')}"
        )
    )
    answers = {"127.0.0.1": ["127.0.0.1"], "inside.example": ["0.0.0.0"]}
    with _refused(ErrorCode.E_DENY, "inside.example is at 0.0.0.0"):
        _fetch(workspace, server.url(), resolve=lambda host, port: answers[host])
    assert inside.connections == 0


def test_a_name_that_moves_inside_gains_nothing(workspace: Workspace) -> None:
    """The answer that is judged is the one connected to: rebinding is refused."""
    answers = iter([["93.184.216.34", "127.0.0.1"]])
    with _refused(ErrorCode.E_DENY, "127.0.0.1"):
        _fetch(
            workspace,
            "http://rebind.example/f",
            network=Network(),
            resolve=lambda host, port: next(answers),
        )


def test_a_name_without_address_is_an_input_error(workspace: Workspace) -> None:
    """A failing look-up is tried again, then E_INPUT."""

    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    with _refused(ErrorCode.E_INPUT, "cannot look up nowhere.example"):
        _fetch(workspace, "http://nowhere.example/f", resolve=resolve)


# --- TLS ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a key and a certificate for files.example, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("files.example")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    both = tmp_path_factory.mktemp("tls") / "both.pem"
    both.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    """Give the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_https_keeps_the_name_at_the_judged_address(
    workspace: Workspace,
    serve: Callable[..., Server],
    tls: ssl.SSLContext,
    certificate: Path,
) -> None:
    """The certificate is checked for the name although an address is connected to."""
    server = serve(_whole, tls=tls)
    _fetch(workspace, server.url("files.example"), ca_file=certificate)
    assert (workspace.root / "input" / "f").read_bytes() == DATA
    assert server.requests[0].headers["host"] == f"files.example:{server.port}"


def test_a_wrong_certificate_is_refused_at_once(
    workspace: Workspace,
    serve: Callable[..., Server],
    tls: ssl.SSLContext,
    certificate: Path,
) -> None:
    """Another name, or a CA that nobody trusts: no second try."""
    server = serve(_whole, tls=tls)
    with _refused(ErrorCode.E_INPUT, "Hostname mismatch"):
        _fetch(workspace, server.url("other.example"), ca_file=certificate)
    with _refused(ErrorCode.E_INPUT, "self-signed"):
        _fetch(workspace, server.url("files.example"))
    assert server.requests == []
    assert server.connections == 2


def test_https_is_not_left_for_http(
    workspace: Workspace,
    serve: Callable[..., Server],
    tls: ssl.SSLContext,
    certificate: Path,
) -> None:
    """A redirect to plain http is refused, the other way round is fine."""
    plain = serve(_whole)
    secure = serve(
        lambda request: request.answer(
            302, b"", f"Location: {plain.url('files.example')}"
        ),
        _whole,
        tls=tls,
    )
    with _refused(ErrorCode.E_INPUT, "from https to http"):
        _fetch(workspace, secure.url("files.example"), ca_file=certificate)
    upgrade = serve(
        lambda request: request.answer(
            302, b"", f"Location: {secure.url('files.example')}"
        )
    )
    _fetch(workspace, upgrade.url("files.example"), ca_file=certificate)
    assert (workspace.root / "input" / "f").read_bytes() == DATA


def test_a_server_that_breaks_or_stalls_the_handshake_is_given_up(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """Plain words instead of TLS, or none at all: E_INPUT after the tries."""
    server = serve(lambda request: None)
    url = server.url("files.example").replace("http:", "https:")
    with _refused(ErrorCode.E_INPUT, "handshake"):
        _fetch(workspace, url, timeout_s=0.05)
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        for _ in range(MAX_TRIES):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    with _refused(ErrorCode.E_INPUT, "5 tries"):
        _fetch(workspace, f"https://files.example:{listener.getsockname()[1]}/f")
    thread.join(10)
    listener.close()


# --- the disk -------------------------------------------------------------------


def test_a_full_disk_is_the_nodes_want(
    workspace: Workspace,
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No space left is E_NORES: another node may have it."""
    server = serve(_whole)
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if "input" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with _refused(ErrorCode.E_NORES, "No space left"):
        _fetch(workspace, server.url())
    assert _no_leftovers(workspace)


def test_folders_that_are_links_are_not_written_through(
    workspace: Workspace, tmp_path: Path
) -> None:
    """input/ is opened without following a link that something put there."""
    (workspace.root / "input").rmdir()
    (workspace.root / "input").symlink_to(tmp_path)
    with _refused(ErrorCode.E_NORES, "cannot be stored"):
        _fetch(workspace, inline={"a": "x"})
    assert not (tmp_path / "a").exists()


def test_an_unfinished_file_of_an_earlier_run_is_replaced(
    workspace: Workspace, serve: Callable[..., Server]
) -> None:
    """A rerun starts over: nobody knows what the old part was."""
    (workspace.root / "input" / ".f.part").write_bytes(b"rubbish")
    _fetch(workspace, serve(_whole).url())
    assert (workspace.root / "input" / "f").read_bytes() == DATA


@given(st.text(max_size=20))
def test_a_content_range_is_read_strictly(text: str) -> None:
    """Any text is either rejected or a range with an order."""
    parsed = parse_content_range(text)
    assert parsed is None or parsed[0] >= 0


def test_content_ranges() -> None:
    """The forms of RFC 9110 section 14.4."""
    assert parse_content_range("bytes 0-4/5") == (0, 5)
    assert parse_content_range("bytes 3-4/*") == (3, None)
    assert parse_content_range("bytes 4-3/5") is None
    assert parse_content_range("bytes */5") is None
    assert parse_content_range("lines 0-4/5") is None


@pytest.mark.parametrize("name", ["../x", "a/b/../c", "", "/x"])
def test_an_input_name_cannot_lead_away(tmp_path: Path, name: str) -> None:
    """The last guard before the disk does not rely on the ones before it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ValueError, match="plain"):
        InputFile(name, fd, cap_bytes=1)
    os.close(fd)
