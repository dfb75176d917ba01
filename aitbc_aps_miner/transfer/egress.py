"""Which hosts and addresses may be reached. Pure; guarded.py holds to it."""

import ipaddress
import re
from collections.abc import Iterable

import idna

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_V4_PRIVATE = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, cloud metadata among it
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
    )
)
_V4_NEVER = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this host": Linux connects to loopback
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_V6_PRIVATE = tuple(
    ipaddress.IPv6Network(text) for text in ("::1/128", "fc00::/7", "fe80::/10")
)
_V6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_V6_NEVER = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ASCII_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def canonical_host(host: str) -> str | None:
    """Give a host in the one form in which hosts are compared; None for no host.

    Lower case, ASCII, without the root's dot; IPv6 compressed and without brackets.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    address = _literal(bare)
    if address is not None:
        return str(address)
    try:
        name = (
            bare.lower() if bare.isascii() else idna.encode(bare, uts46=True).decode()
        )
    except (idna.IDNAError, UnicodeError):
        return None
    name = name.removesuffix(".")
    return name if len(name) <= 253 and _ASCII_HOST.fullmatch(name) else None  # noqa: PLR2004  RFC 1035


def host_allowed(host: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern takes `host`.

    `*` takes all, `*.example.org` every subdomain but not example.org itself, anything
    else its own name. An address, in whatever spelling, is only taken by itself or `*`.
    """
    name = canonical_host(host)
    return name is not None and any(_matches(name, pattern) for pattern in patterns)


def address_allowed(address: str | IPAddress, *, private: bool) -> bool:
    """Whether an address may be connected to; with `private` also those near us.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is judged as itself, since
    that is who answers. Multicast, unspecified, reserved and documentation addresses
    are refused in any case.
    """
    ip = _literal(address) if isinstance(address, str) else address
    if ip is None:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _embedded(ip)
        if inner is None:
            return _v6_allowed(ip, private=private)
        ip = inner
    if any(ip in network for network in _V4_PRIVATE):
        return private
    return not any(ip in network for network in _V4_NEVER)


def _literal(text: str) -> IPAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    has_zone = isinstance(address, ipaddress.IPv6Address) and address.scope_id
    return None if has_zone else address


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _v6_allowed(ip: ipaddress.IPv6Address, *, private: bool) -> bool:
    if any(ip in network for network in _V6_PRIVATE):
        return private
    return ip in _V6_GLOBAL and not any(ip in network for network in _V6_NEVER)


def _matches(name: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if not pattern.startswith("*."):
        return canonical_host(pattern) == name
    base = canonical_host(pattern[2:])
    # The system's resolver also takes 127.1 and 0x7f000001 for addresses.
    if base is None or _literal(name) or re.match(r"\d|0x", name.rsplit(".", 1)[-1]):
        return False
    return name.endswith(f".{base}")
