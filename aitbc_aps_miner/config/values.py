"""The kinds of values that a configuration holds, each with its check and its name.

Pure: a text is judged by its form alone; whether a host answers or a file exists is
not asked here. Every check says what must be, in words that follow "expected".
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|d|w)", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?"
_HOST = rf"(?:\[[0-9a-fA-F:.]+\]|{_NAME})"
_BARE_IPV6 = r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*"
_PORT_MAX = 65535

LONGEST_S = 10 * 365 * 86400
"""No duration may be longer: ten years are a slip of the keyboard."""


@dataclass(frozen=True)
class Words:
    """What a kind of value is called in the reference and in error messages."""

    text: str
    secret: bool = False
    """Whether a value of this kind must never be shown."""


def parse_duration(value: object) -> object:
    """Turn "24h", "500ms" or a number of seconds into seconds."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError('must be seconds or a duration like "90s", "24h", "7d"')
        return float(match[1]) * _UNIT_S[match[2]]
    return value


def check_own_directory(value: Path) -> Path:
    """Refuse the root of the file system, for what is swept regularly."""
    if value == Path("/"):
        raise ValueError("must be a directory of its own, not /")
    return value


def _check_node_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value) or ".." in value:
        raise ValueError(
            "must be 1 to 128 of A-Z a-z 0-9 . _ -, beginning with one of A-Z a-z 0-9, "
            'without ".."'
        )
    return value


def _check_http_url(value: str) -> str:
    match = re.fullmatch(
        rf"https?://{_HOST}(?::(\d{{1,5}}))?(/[!-~]*)?", value, re.ASCII
    )
    port = int(match[1] or 1) if match else 0
    if not 1 <= port <= _PORT_MAX or "?" in value or "#" in value:
        raise ValueError(
            "must be an http:// or https:// URL without user name, query or fragment"
        )
    return value.rstrip("/")


def _check_listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if value and not (re.fullmatch(_HOST, host) and _is_port(port, lowest=0)):
        raise ValueError('must be "host:port", or "" to switch it off')
    return value


def _check_host(value: str) -> str:
    bare = value.removeprefix("*.")
    if value != "*" and not re.fullmatch(f"{_HOST}|{_BARE_IPV6}", bare):
        raise ValueError(
            'must be a host without port, "*" for every host, or "*.name" for every '
            "subdomain"
        )
    return value


def _check_target(value: str) -> str:
    host, _, port = value.rpartition(":")
    known = host == "*" or re.fullmatch(_HOST, host.removeprefix("*."))
    if not known or not (port == "*" or _is_port(port, lowest=1)):
        raise ValueError('must be "host:port"; the host may be "*" or "*.name"')
    return value


def _is_port(text: str, lowest: int) -> bool:
    digits = re.fullmatch(r"\d{1,5}", text, re.ASCII)
    return digits is not None and lowest <= int(text) <= _PORT_MAX


def _check_path(value: Path) -> Path:
    # "." is what an empty text becomes; control characters forge log lines
    if str(value) == "." or not str(value).isprintable():
        raise ValueError("must be a path, not empty and without control characters")
    return value


def _check_reference(value: str) -> str:
    scheme, _, rest = value.partition(":")
    if scheme == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
        raise ValueError('must be "env:" and the name of an environment variable')
    if scheme == "file":
        if not rest.startswith("/") or not rest.isprintable():
            raise ValueError('must be "file:" and an absolute path')
    elif not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be visible ASCII characters without blanks")
    return value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(ge=0, le=LONGEST_S),
    Words("duration"),
]
"""Seconds; in the file also "90s", "24h", "7d"."""

NodeId = Annotated[str, AfterValidator(_check_node_id), Words("node id")]
HttpUrl = Annotated[str, AfterValidator(_check_http_url), Words("URL")]
Listen = Annotated[str, AfterValidator(_check_listen), Words("host:port")]
Host = Annotated[str, AfterValidator(_check_host), Words("host")]
Target = Annotated[str, AfterValidator(_check_target), Words("host:port")]
SecretRef = Annotated[
    str, AfterValidator(_check_reference), Words("secret reference", secret=True)
]
FilePath = Annotated[
    Path,
    Field(strict=False),  # a path is written as text
    AfterValidator(_check_path),
    PlainSerializer(str, return_type=str),
    Words("path"),
]
