"""Which hosts and addresses are taken, whatever the spelling; sockets that obey."""

import ipaddress
import socket
from collections.abc import Callable

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.transfer.egress import (
    address_allowed,
    canonical_host,
    host_allowed,
)
from aitbc_aps_miner.transfer.guarded import GuardedBackend, system_resolve
from aitbc_aps_miner.util.clock import SystemClock

HOSTS: list[tuple[str, str, bool]] = [
    ("example.org", "*", True),
    ("10.0.0.1", "*", True),
    ("example.org", "example.org", True),
    ("EXAMPLE.org.", "example.ORG", True),
    ("example.org", "example.org.", True),
    ("a.example.org", "*.example.org", True),
    ("a.b.example.org", "*.example.org", True),
    ("example.org", "*.example.org", False),
    ("badexample.org", "*.example.org", False),
    ("a.example.org.evil.net", "*.example.org", False),
    ("a.example.org", "example.org", False),
    ("münchen.example", "xn--mnchen-3ya.example", True),
    ("xn--mnchen-3ya.example", "MÜNCHEN.example", True),
    ("a.münchen.example", "*.münchen.example", True),
    ("127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1", "*.0.0.1", False),
    ("127.1", "*.1", False),
    ("a.0x7f000001", "*.0x7f000001", False),
    ("0x7f000001", "127.0.0.1", False),
    ("2130706433", "127.0.0.1", False),
    ("[::1]", "::1", True),
    ("::1", "[0:0:0:0:0:0:0:1]", True),
    ("[::ffff:127.0.0.1]", "127.0.0.1", False),
    ("my_host.example", "*.example", True),
    ("", "*", False),
    ("a..b", "*", False),
    ("a b", "*", False),
    ("fe80::1%eth0", "*", False),
    ("ex\u3002ample", "*.ample", True),
    ("\ud800", "*", False),
    ("a" * 64, "*", False),
    ("example.org", "*.a b", False),
    ("example.org", "*.", False),
    ("localhost.", "localhost", True),
]


@pytest.mark.parametrize(("host", "pattern", "taken"), HOSTS)
def test_a_pattern_takes_whole_labels_only(
    host: str, pattern: str, taken: bool
) -> None:
    """Names compare by labels in one spelling; addresses only match themselves."""
    assert host_allowed(host, (pattern,)) is taken


def test_no_pattern_takes_nothing() -> None:
    """An empty list is a closed door."""
    assert not host_allowed("example.org", ())


_labels = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z]", fullmatch=True)


@given(st.lists(_labels, min_size=1, max_size=4), _labels, st.text(max_size=8))
def test_a_subdomain_pattern_is_never_left(
    labels: list[str], base: str, junk: str
) -> None:
    """Every subdomain is taken; nothing that ends in anything else is."""
    pattern = (f"*.{base}.example",)
    name = ".".join([*labels, base, "example"])
    assert host_allowed(name, pattern)
    assert host_allowed(name.upper() + ".", pattern)
    other = f"{name}{junk}"
    canonical = canonical_host(other)
    assert host_allowed(other, pattern) == (
        canonical is not None and canonical.endswith(f".{base}.example")
    )


@given(st.text(max_size=30))
def test_a_canonical_host_is_its_own_canonical_form(host: str) -> None:
    """Comparing canonical forms is comparing hosts."""
    canonical = canonical_host(host)
    if canonical is not None:
        assert canonical_host(canonical) == canonical
        assert canonical.isascii()
        assert "@" not in canonical
        assert "/" not in canonical


ADDRESSES: list[tuple[str, bool, bool]] = [
    # address, allowed, allowed with private = true
    ("93.184.216.34", True, True),
    ("10.1.2.3", False, True),
    ("172.16.0.1", False, True),
    ("172.32.0.1", True, True),
    ("192.168.1.1", False, True),
    ("127.0.0.1", False, True),
    ("127.255.255.254", False, True),
    ("169.254.169.254", False, True),
    ("100.64.0.1", False, True),
    ("100.128.0.1", True, True),
    ("198.18.0.1", False, True),
    ("0.0.0.0", False, False),
    ("0.1.2.3", False, False),
    ("224.0.0.1", False, False),
    ("255.255.255.255", False, False),
    ("240.0.0.1", False, False),
    ("192.0.2.1", False, False),
    ("203.0.113.9", False, False),
    ("2606:4700::1111", True, True),
    ("::1", False, True),
    ("::", False, False),
    ("fd00::1", False, True),
    ("fe80::1", False, True),
    ("ff02::1", False, False),
    ("2001:db8::1", False, False),
    ("2001::1", False, False),
    ("3fff::1", False, False),
    ("::ffff:127.0.0.1", False, True),
    ("::ffff:93.184.216.34", True, True),
    ("::ffff:0.0.0.0", False, False),
    ("::127.0.0.1", False, False),
    ("2002:7f00:1::", False, True),
    ("2002:a9fe:a9fe::1", False, True),
    ("64:ff9b::7f00:1", False, True),
    ("64:ff9b::5db8:d822", True, True),
    ("64:ff9b:1::1", False, False),
    ("fec0::1", False, False),
    ("fe80::1%eth0", False, False),
    ("127.1", False, False),
    ("0x7f000001", False, False),
    ("localhost", False, False),
]


@pytest.mark.parametrize(("address", "public", "near"), ADDRESSES)
def test_addresses_are_judged_by_who_answers(
    address: str, public: bool, near: bool
) -> None:
    """Private, loopback, link-local and metadata only with the owner's word."""
    assert address_allowed(address, private=False) is public
    assert address_allowed(address, private=True) is near


@given(st.ip_addresses(v=4))
def test_no_spelling_opens_what_is_shut(address: ipaddress.IPv4Address) -> None:
    """An address inside another is judged as itself; what is taken is global."""
    number = int(address)
    wrapped = [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
    ]
    plain = address_allowed(address, private=False)
    assert [address_allowed(one, private=False) for one in wrapped] == [plain] * 3
    if plain:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=6))
def test_what_is_taken_of_ipv6_is_global(address: ipaddress.IPv6Address) -> None:
    """Nothing beyond 2000::/3 is taken unless it stands for an IPv4 address."""
    if address_allowed(address, private=False):
        networks = ("2000::/3", "::ffff:0:0/96", "64:ff9b::/96")
        assert any(address in ipaddress.IPv6Network(one) for one in networks)
        assert not address.is_multicast


def _backend(
    answer: list[str] | Exception,
    *,
    private: bool = False,
    check: Callable[[], None] = lambda: None,
) -> GuardedBackend:
    def resolve(host: str, port: int) -> list[str]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return GuardedBackend(
        private=private, check=check, clock=SystemClock(), resolve=resolve
    )


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"]]
)
def test_one_refused_address_refuses_the_name(answer: list[str]) -> None:
    """A name that also points inside is not connected to at all."""
    with pytest.raises(JobError) as refused:
        _backend(answer).connect_tcp("evil.example", 80, 1)
    assert refused.value.code is ErrorCode.E_DENY
    assert refused.value.detail["host"] == "evil.example"


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "localhost"])
def test_odd_spellings_of_loopback_do_not_connect(host: str) -> None:
    """The system's resolver takes them for 127.0.0.1, and that is what is judged."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    backend = GuardedBackend(private=False, check=lambda: None, clock=SystemClock())
    with pytest.raises(JobError, match="E_DENY"):
        backend.connect_tcp(host, listener.getsockname()[1], 5)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


def test_the_judged_address_is_the_one_connected_to() -> None:
    """The name is asked for once; a second, different answer would not be seen."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    backend = GuardedBackend(
        private=True, check=lambda: None, clock=SystemClock(), resolve=resolve
    )
    stream = backend.connect_tcp("files.example", listener.getsockname()[1], 5)
    peer, _ = listener.accept()
    stream.write(b"hello")
    assert peer.recv(5) == b"hello"
    peer.close()
    assert stream.read(5) == b""
    assert asked == ["files.example"]
    stream.close()
    listener.close()


def test_the_next_address_is_tried() -> None:
    """One address that refuses is no reason to give the name up."""
    listener = socket.create_server(("127.0.0.1", 0))
    stream = _backend(["127.0.0.9", "127.0.0.1"], private=True).connect_tcp(
        "files.example", listener.getsockname()[1], 5
    )
    stream.close()
    listener.close()


def test_no_answer_is_a_connect_error() -> None:
    """A failing look-up, no address and a refused connection are worth a retry."""
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    answers: list[list[str] | Exception] = [
        socket.gaierror(-3, "again"),
        UnicodeError("label"),
        [],
    ]
    for answer in answers:
        with pytest.raises(httpcore.ConnectError):
            _backend(answer).connect_tcp("files.example", port, 1)
    with pytest.raises(httpcore.ConnectError, match="refused"):
        _backend(["127.0.0.1"], private=True).connect_tcp("files.example", port, 1)


def _full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """Give a listener whose backlog is full, so that connecting hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(3):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return listener, waiting


def test_a_connection_that_hangs_ends_in_time() -> None:
    """Nobody answers: the time limit does."""
    listener, waiting = _full_listener()
    with pytest.raises(httpcore.ConnectTimeout):
        _backend(["127.0.0.1"], private=True).connect_tcp(
            "files.example", listener.getsockname()[1], 0.3
        )
    for one in (listener, *waiting):
        one.close()


def test_a_look_up_that_hangs_ends_in_time() -> None:
    """The system's resolver cannot be interrupted; it is left behind."""
    release = socket.socketpair()

    def resolve(host: str, port: int) -> list[str]:
        with release[0]:
            release[0].recv(1)
        return []

    backend = GuardedBackend(
        private=True, check=lambda: None, clock=SystemClock(), resolve=resolve
    )
    with pytest.raises(httpcore.ConnectTimeout, match="looking up"):
        backend.connect_tcp("files.example", 80, 0.3)
    release[1].close()


def test_a_job_that_has_to_stop_does_not_wait_for_a_peer() -> None:
    """Whatever the check raises ends the wait and comes through as it is."""
    listener = socket.create_server(("127.0.0.1", 0))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise JobError(ErrorCode.E_CANCELLED, "cancelled")

    backend = _backend(["127.0.0.1"], private=True, check=check)
    stream = backend.connect_tcp("files.example", listener.getsockname()[1])
    with pytest.raises(JobError, match="E_CANCELLED"):
        stream.read(1)
    stream.close()
    with pytest.raises(httpcore.ReadError):
        _read_closed(stream)
    with pytest.raises(httpcore.WriteError):
        _write_closed(stream)
    listener.close()


def _read_closed(stream: httpcore.NetworkStream) -> None:
    stream._check = lambda: None  # type: ignore[attr-defined]  # the check said stop
    stream.read(1)


def _write_closed(stream: httpcore.NetworkStream) -> None:
    stream.write(b"x")


def test_a_peer_that_takes_nothing_is_a_write_timeout() -> None:
    """A request that cannot be sent ends at the time limit."""
    listener = socket.create_server(("127.0.0.1", 0))
    stream = _backend(["127.0.0.1"], private=True).connect_tcp(
        "files.example", listener.getsockname()[1], 5
    )
    with pytest.raises(httpcore.WriteTimeout):
        stream.write(b"x" * (64 << 20), 0.3)
    with pytest.raises(httpcore.ReadTimeout):
        stream.read(1, 0.1)
    stream.close()
    listener.close()


def test_the_system_resolver_gives_each_address_once() -> None:
    """A literal comes back as itself."""
    assert system_resolve("127.0.0.1", 80) == ["127.0.0.1"]
