"""One call to a coordinator that may do anything."""

import datetime as dt
import inspect
import ipaddress
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Answer, Connection, Seen, says, serving

from aitbc_aps_miner import __version__
from aitbc_aps_miner.config.model import Coordinator
from aitbc_aps_miner.coordinator.network import Deadline
from aitbc_aps_miner.coordinator.retry import may_retry, retry_after_s, retrying
from aitbc_aps_miner.coordinator.text import dumps
from aitbc_aps_miner.coordinator.tls import build_ssl_context
from aitbc_aps_miner.coordinator.transport import (
    FOREIGN,
    FixedToken,
    TokenSource,
    Transport,
)
from aitbc_aps_miner.errors import (
    ConfigError,
    CoordinatorError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)
from aitbc_aps_miner.util.clock import SystemClock


@dataclass
class Tokens:
    """Tokens that can be renewed; `renewed` says from which."""

    token: str | None = "first"
    renewed: list[str | None] = field(default_factory=list)

    def current(self) -> str | None:
        """Give the token."""
        return self.token

    def renew(self, stale: str | None) -> str:
        """Give the next one."""
        self.renewed.append(stale)
        self.token = f"renewed-{len(self.renewed)}"
        return self.token


class StillClock(SystemClock):
    """The machine's clock, but waiting is only noted."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Note the wish."""
        self.slept.append(seconds)


def transport(
    url: str,
    tokens: TokenSource | None = None,
    *,
    timeout_s: float = 5,
    context: ssl.SSLContext | None = None,
) -> Transport:
    """Open a transport on the machine's clock."""
    return Transport(
        url, tokens, clock=SystemClock(), timeout_s=timeout_s, ssl_context=context
    )


def test_a_call_carries_what_the_contract_asks() -> None:
    """Prefix, bearer, request id and agent; the answer in whole."""
    with (
        serving(says(200, {"a": [1]})) as server,
        transport(server.url, FixedToken("t0k")) as client,
    ):
        reply = client.call("POST", "jobs/x", json={"b": "ü"}, params={"q": "a b"})
        client.call("GET", "jobs/x")
    assert (reply.status, reply.json()) == (200, {"a": [1]})
    one, two = server.seen
    assert (one.method, one.target) == ("POST", "/api/v1/jobs/x?q=a+b")
    assert one.json == {"b": "ü"}
    assert one.headers["authorization"] == "Bearer t0k"
    assert one.headers["user-agent"] == f"aitbc-aps-miner/{__version__}"
    assert one.headers["accept-encoding"] == "identity"
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert server.connections == 1


def test_cookies_are_not_kept() -> None:
    """One call leaves nothing for the next."""
    with (
        serving(says(headers={"Set-Cookie": "a=b"})) as server,
        transport(server.url) as client,
    ):
        client.call("GET", "x")
        client.call("GET", "x")
    assert "cookie" not in server.seen[1].headers


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable never gets the bearer."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with (
        serving(says()) as server,
        transport(server.url, FixedToken("t")) as client,
    ):
        assert client.call("GET", "x").status == 200


def test_a_401_renews_the_token_once_and_repeats_the_call_once() -> None:
    """The caller sees only the answer."""
    tokens = Tokens()
    with (
        serving(says(401), says(200, {})) as server,
        transport(server.url, tokens) as client,
    ):
        assert client.call("POST", "x", json={"n": 1}).status == 200
    assert tokens.renewed == ["first"]
    assert [seen.json for seen in server.seen] == [{"n": 1}] * 2
    assert [seen.headers["authorization"] for seen in server.seen] == [
        "Bearer first",
        "Bearer renewed-1",
    ]


def test_a_second_401_is_for_a_person() -> None:
    """No loop of registrations."""
    tokens = Tokens()
    with serving(says(401)) as server, transport(server.url, tokens) as client:
        with pytest.raises(UnauthorizedError):
            client.call("GET", "x")
        assert len(server.seen) == 2


def test_a_missing_token_is_fetched_first() -> None:
    """A call without a token would be a 401 for nothing."""
    tokens = Tokens(token=None)
    with serving(says()) as server, transport(server.url, tokens) as client:
        client.call("GET", "x")
    assert server.seen[0].headers["authorization"] == "Bearer renewed-1"


def test_the_bootstrap_token_is_not_renewed() -> None:
    """At register a 401 is final, also for a source that could renew."""
    tokens = Tokens()
    with serving(says(401)) as server, transport(server.url, tokens) as client:
        with pytest.raises(UnauthorizedError):
            client.call("POST", "nodes/register", bearer="boot")
        assert server.seen[0].headers["authorization"] == "Bearer boot"
    assert tokens.renewed == []


def test_a_fixed_token_has_no_successor() -> None:
    """It ends as unauthorized."""
    with (
        serving(says(401)) as server,
        transport(server.url, FixedToken("t")) as client,
        pytest.raises(UnauthorizedError),
    ):
        client.call("GET", "x")


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "ключ"])
def test_a_token_that_no_header_can_carry(token: str) -> None:
    """It is never sent."""
    with (
        serving(says()) as server,
        transport(server.url, FixedToken(token)) as client,
    ):
        with pytest.raises(UnauthorizedError, match="no header can carry"):
            client.call("GET", "x", bearer=token)
        assert server.seen == []


DATE = "Sat, 31 Jan 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retry_s"),
    [
        (400, {}, RefusedError, None),
        (403, {}, UnauthorizedError, None),
        (404, {}, RefusedError, None),
        (408, {}, UnavailableError, None),
        (429, {"Retry-After": "7"}, UnavailableError, 7.0),
        (429, {"Retry-After": "99999999999999"}, UnavailableError, 3600.0),
        (429, {"Retry-After": "-5"}, UnavailableError, None),
        (
            503,
            {"Retry-After": "Sat, 31 Jan 2026 12:01:30 GMT", "Date": DATE},
            UnavailableError,
            90.0,
        ),
        (503, {"Retry-After": DATE}, UnavailableError, 0.0),
        (503, {"Retry-After": "soon"}, UnavailableError, None),
        (500, {}, UnavailableError, None),
        (501, {}, RefusedError, None),
        (524, {}, UnavailableError, None),
        (302, {"Location": "http://127.0.0.1:1/"}, RefusedError, None),
        (307, {"Location": "https://elsewhere.example/"}, RefusedError, None),
    ],
)
def test_statuses_become_errors_of_the_tree(
    status: int,
    headers: dict[str, str],
    kind: type[CoordinatorError],
    retry_s: float | None,
) -> None:
    """What the caller can do about it decides the kind."""
    with (
        serving(says(status, {"title": "No", "detail": "why"}, headers=headers)) as srv,
        transport(srv.url, None) as client,
    ):
        with pytest.raises(CoordinatorError, match=f"{status} No: why") as caught:
            client.call("GET", "x")
        assert len(srv.seen) == 1  # a redirect is not followed
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after_s", None) == retry_s


def test_an_expected_status_is_an_answer() -> None:
    """Its caller knows what it means."""
    with serving(says(409)) as server, transport(server.url) as client:
        assert client.call("GET", "x", expect=frozenset({409})).status == 409


@pytest.mark.parametrize(
    "body",
    [
        b"<html>portal</html>",
        b"{",
        b"\xff\xfe",
        b"NaN",
        b'{"a": Infinity}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_an_answer_that_is_no_json(body: bytes) -> None:
    """An error of that call."""
    with serving(says(body=body)) as server, transport(server.url) as client:
        reply = client.call("GET", "x")
        with pytest.raises(UnavailableError, match="answer not understood"):
            reply.json()


@pytest.mark.parametrize(
    "body", [b"", b"[" * 60_000, b"\xff\0\n\x1b[2J", b"x" * 200_000]
)
def test_any_body_of_an_error_is_tolerated(body: bytes) -> None:
    """Its words are one short line."""
    with (
        serving(says(500, body=body)) as server,
        transport(server.url) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.call("GET", "x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def endless(head: bytes, piece: bytes) -> Answer:
    """Give an answer that goes on until the client hangs up."""

    def answer(_: Seen, connection: Connection) -> None:
        connection.raw(head)
        while connection.raw(piece):
            pass
        connection.hang_up()

    return answer


def trickle(head: bytes, piece: bytes) -> Answer:
    """Give an answer of which a little comes every now and then."""

    def answer(_: Seen, connection: Connection) -> None:
        connection.raw(head)
        while connection.raw(piece):
            time.sleep(0.02)
        connection.hang_up()

    return answer


def cut(data: bytes) -> Answer:
    """Give an answer that breaks off."""

    def answer(_: Seen, connection: Connection) -> None:
        connection.raw(data)
        connection.hang_up()

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK), "longer than"),
        (endless(HEAD + b"\r\n", b"x" * 65536), "longer than"),
        (endless(HEAD, b"X: " + b"y" * 65536 + b"\r\n"), "."),
        (cut(b""), "disconnected"),
        (cut(HEAD + b"Content-Length: 10\r\n\r\n{"), "."),
        (cut(b"\0\0\0 garbage\r\n\r\n"), "."),
        (says(body=b"x", headers={"Content-Encoding": "gzip"}), "encoded as 'gzip'"),
    ],
)
def test_answers_that_break_the_protocol(answer: Answer, words: str) -> None:
    """Bounded memory and an error of that call; the next one works."""
    with serving(answer, says(200, {})) as server, transport(server.url) as client:
        with pytest.raises(UnavailableError, match=words):
            client.call("GET", "x")
        assert client.call("GET", "x").status == 200


@pytest.mark.parametrize(
    "answer",
    [
        lambda _, connection: connection.gone(),
        trickle(HEAD + b"X-Slow: ", b"a"),
        trickle(HEAD + b"Content-Length: 100000\r\n\r\n", b"a"),
        trickle(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    ],
)
def test_a_slow_server_is_cut_at_the_calls_own_deadline(answer: Answer) -> None:
    """Also one that sends a byte now and then, which renews httpx's own timeouts."""
    with (
        serving(answer) as server,
        transport(server.url, timeout_s=0.3) as client,
    ):
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            client.call("GET", "x")
        assert 0.25 < time.monotonic() - start < 2


@dataclass
class Zeros:
    """A body of zeros; `sent` counts what was asked for."""

    length: int
    content_type: str = "application/octet-stream"
    sent: int = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.sent < self.length:
            self.sent += 2**20
            yield bytes(2**20)


def test_an_answer_in_the_middle_of_an_upload_is_heard() -> None:
    """A 413 ends the upload and says why, where a reset would destroy it."""

    def too_large(_: Seen, connection: Connection) -> None:
        connection.reply(413, {"title": "Too large"})
        connection.gone()

    body = Zeros(length=2**30)
    with (
        serving(too_large, read_body=False) as server,
        transport(server.url) as client,
    ):
        with pytest.raises(RefusedError, match="413 Too large") as caught:
            client.call("POST", "x", body=body)
        assert caught.value.status == 413
        assert body.sent < 2**28


def test_a_server_that_hangs_up_in_an_upload() -> None:
    """An error of that call."""
    with (
        serving(cut(b""), read_body=False) as server,
        transport(server.url) as client,
        pytest.raises(UnavailableError),
    ):
        client.call("POST", "x", body=Zeros(length=2**30))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a", "http://a..b/", "http://x.invalid/"]
)
def test_nobody_there(url: str) -> None:
    """Refused connections and names that are none are for later."""
    with transport(url) as client, pytest.raises(CoordinatorError):
        client.call("GET", "x")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/api/v1/uploads/1", "/api/v1/uploads/1"),
        ("uploads/1?x=y", "/api/v1/uploads/1?x=y"),
        ("//elsewhere.example/1", None),
        ("https://127.0.0.1/1", None),
        ("http://user@127.0.0.1/1", None),
        ("file:///etc/passwd", None),
        ("http://[", None),
        ("http://a\0b/", None),
    ],
)
def test_only_the_coordinators_own_origin_gets_calls(
    location: str, target: str | None
) -> None:
    """The bearer never goes elsewhere."""
    with transport("http://127.0.0.1:80/api/v1", FixedToken("t")) as client:
        if target is None:
            with pytest.raises(RefusedError) as caught:
                client.call("GET", location)
            assert caught.value.status == 0
        else:
            assert client.resolve(location).raw_path.decode() == target


def test_a_request_that_cannot_be_written_is_never_sent() -> None:
    """It is ours to mend: no repetition helps."""
    with serving(says()) as server, transport(server.url) as client:
        with pytest.raises(RefusedError) as caught:
            client.call("GET", "x", headers={"X-Odd": "a\0b"})
        assert (caught.value.status, server.seen) == (0, [])


def foreign_exceptions() -> list[type[Exception]]:
    """Every exception that the libraries export."""
    found: dict[str, type[Exception]] = {}
    for module in (httpx, httpcore):
        for name, value in inspect.getmembers(module, inspect.isclass):
            if issubclass(value, Exception):
                found[f"{module.__name__}.{name}"] = value
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("kind", foreign_exceptions())
def test_every_foreign_exception_stops_here(kind: type[Exception]) -> None:
    """A new one in the libraries fails this test."""
    assert len(foreign_exceptions()) > 30
    assert issubclass(kind, FOREIGN)


def test_a_foreign_exception_is_the_cause() -> None:
    """Its own words stay in the log."""
    with (
        transport("http://127.0.0.1:1") as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.call("GET", "x")
    assert isinstance(caught.value.__cause__, httpcore.ConnectError)


def test_a_deadline_that_has_passed_gives_no_more_time() -> None:
    """Nested deadlines end with their block."""
    now = [0.0]
    deadline = Deadline(lambda: now[0])
    assert deadline.limit(None) is None
    with deadline.within(10):
        now[0] = 4.0
        assert (deadline.limit(None), deadline.limit(1)) == (6.0, 1)
        now[0] = 10.0
        with pytest.raises(httpcore.TimeoutException):
            deadline.limit(1)
    assert deadline.limit(3) == 3


# TLS


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, and a server's context for 127.0.0.1."""

    ca_file: Path
    server: ssl.SSLContext
    wrong_host: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make the authority."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)

    def certificate(
        subject: x509.Name, public: Any, extension: x509.ExtensionType
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=30))
            .add_extension(extension, critical=False)
            .sign(key, hashes.SHA256())
        )

    ca_file = folder / "ca.pem"
    ca = certificate(name, key.public_key(), x509.BasicConstraints(True, None))
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))

    def server(host: x509.GeneralName) -> ssl.SSLContext:
        own = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(
            x509.Name([]), own.public_key(), x509.SubjectAlternativeName([host])
        )
        file = folder / "server.pem"
        file.write_bytes(
            leaf.public_bytes(serialization.Encoding.PEM)
            + own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    return Authority(
        ca_file=ca_file,
        server=server(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
        wrong_host=server(x509.DNSName("elsewhere.example")),
    )


def settings(**keys: Any) -> Coordinator:
    """Give a [coordinator] section."""
    return Coordinator(base_url="https://127.0.0.1/api", **keys)


def test_the_owners_ca_is_trusted(authority: Authority) -> None:
    """An upload and its early end work over TLS, too."""
    context = build_ssl_context(settings(ca_file=authority.ca_file))

    def too_large(_: Seen, connection: Connection) -> None:
        connection.reply(413)
        connection.gone()

    with (
        serving(says(200, {"ok": 1}), too_large, context=authority.server) as server,
        transport(server.url, FixedToken("t"), context=context) as client,
    ):
        assert client.call("POST", "x", json={}).json() == {"ok": 1}
        server.read_body = False
        with pytest.raises(RefusedError, match="413"):
            client.call("POST", "x", body=Zeros(length=2**28))


def test_session_tickets_are_no_answer(authority: Authority) -> None:
    """TLS 1.3 sends them when it likes; the upload goes on."""
    context = build_ssl_context(settings(ca_file=authority.ca_file))

    def sink(request: Seen, connection: Connection) -> None:
        connection.reply(200, connection.drain(request))

    with (
        serving(sink, read_body=False, context=authority.server) as server,
        transport(server.url, context=context) as client,
    ):
        reply = client.call("POST", "x", body=Zeros(length=2**25))
    assert reply.json() == 2**25


def test_an_unknown_ca_gets_no_token(authority: Authority) -> None:
    """The system's store does not know it."""
    context = build_ssl_context(settings())
    with (
        serving(says(), context=authority.server) as server,
        transport(server.url, FixedToken("t"), context=context) as client,
    ):
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            client.call("GET", "x")
        assert server.seen == []


def test_a_certificate_of_another_host_gets_no_token(authority: Authority) -> None:
    """Also when its CA is trusted."""
    context = build_ssl_context(settings(ca_file=authority.ca_file))
    with (
        serving(says(), context=authority.wrong_host) as server,
        transport(server.url, FixedToken("t"), context=context) as client,
    ):
        with pytest.raises(UnavailableError, match="IP address mismatch"):
            client.call("GET", "x")
        assert server.seen == []


def test_verification_can_be_switched_off(authority: Authority) -> None:
    """The owner's own choice."""
    context = build_ssl_context(settings(tls_verify=False))
    with (
        serving(says(), context=authority.wrong_host) as server,
        transport(server.url, context=context) as client,
    ):
        assert client.call("GET", "x").status == 200


@pytest.mark.parametrize("content", [None, b"no PEM", b""])
def test_a_ca_file_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    """A problem of the configuration, with its key."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        build_ssl_context(settings(ca_file=file))
    assert caught.value.problems[0].key == "coordinator.ca_file"


def test_without_a_system_store_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim container has no CAs of its own."""
    nothing = ssl.DefaultVerifyPaths("", "", "", "", "", "")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nothing)
    assert len(build_ssl_context(settings()).get_ca_certs()) > 50


# When a call is repeated


@pytest.mark.parametrize(
    ("idempotent", "status", "error", "expected"),
    [
        (True, 503, None, True),
        (True, 500, None, True),
        (False, 500, None, False),
        (False, 429, None, True),
        (True, 404, None, False),
        (True, 501, None, False),
        (True, None, UnavailableError("x"), True),
        (False, None, UnavailableError("x"), False),
        (True, None, RefusedError("x", 400), False),
        (True, None, UnauthorizedError("x"), False),
    ],
)
def test_what_may_be_repeated(
    idempotent: bool, status: int | None, error: Exception | None, expected: bool
) -> None:
    """One function decides."""
    assert may_retry(idempotent=idempotent, status=status, error=error) is expected


def failing(errors: list[Exception]) -> Any:
    """Give a call that fails with each of `errors` and then works."""

    def call() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return call


def test_pauses_double_and_obey_the_server() -> None:
    """The longer of both is waited."""
    clock = StillClock()
    errors: list[Exception] = [
        UnavailableError("x"),
        UnavailableError("x", retry_after_s=3),
        UnavailableError("x"),
    ]
    assert retrying(failing(errors), clock=clock, tries=4, within_s=20) == "done"
    assert clock.slept == [0.1, 3, 0.4]


@pytest.mark.parametrize(
    ("errors", "within_s"),
    [
        ([UnavailableError("x")] * 3, 20),
        ([UnavailableError("x", retry_after_s=30)], 20),
        ([RefusedError("x", 400)], 20),
    ],
)
def test_repetition_ends(errors: list[Exception], within_s: float) -> None:
    """After its tries, at its time, and at what stays wrong."""
    with pytest.raises(type(errors[0])):
        retrying(failing([*errors]), clock=StillClock(), tries=3, within_s=within_s)


@given(st.text(), st.floats(0, 2**33))
def test_any_retry_after_is_bounded(value: str, now: float) -> None:
    """Or none."""
    seconds = retry_after_s(value, now)
    assert seconds is None or 0 <= seconds <= 3600


# JSON out


def test_what_json_cannot_say_is_replaced() -> None:
    """A payload's words never break a call."""
    value = {
        "half": "a\ud800b",
        "nan": float("nan"),
        1: (float("inf"), None, True, 1.5),
        "path": Path("/x"),
    }
    assert dumps(value) == (
        b'{"half":"a?b","nan":null,"1":[null,null,true,1.5],"path":"/x"}'
    )


def test_what_is_too_deep_is_refused() -> None:
    """It stays so."""
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RefusedError, match="nested too deep"):
        dumps(deep)
