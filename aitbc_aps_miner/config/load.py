"""TOML text + environment → a checked Config, or every problem at once.

No state and no secrets: references are checked for their form, never followed.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from aitbc_aps_miner.config.explain import clashing, explain
from aitbc_aps_miner.config.lines import key_lines, line_of
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.overrides import apply_overrides, read_overrides
from aitbc_aps_miner.config.read import Unreadable, read_small
from aitbc_aps_miner.config.secrets import is_reference
from aitbc_aps_miner.errors import ConfigError, Problem

MAX_BYTES = 1024 * 1024
"""A configuration is a page or two; more is another kind of file."""

KeyPath = tuple[str | int, ...]

# Stand-ins that let the second look begin when required keys are missing or wrong.
_REQUIRED = {("node_id",): "node", ("coordinator", "base_url"): "http://localhost"}


def load_file(path: Path | str, environ: Mapping[str, str]) -> Config:
    """Load a file; never block on it. Raises ConfigError with every problem."""
    return load_bytes(read_small(path, MAX_BYTES), str(path), environ)


def load_bytes(
    content: bytes | Unreadable, path: str, environ: Mapping[str, str]
) -> Config:
    """Load what was read from `path`. Raises ConfigError with every problem."""
    if isinstance(content, Unreadable):
        given = f"{path}: {content.reason}"
        remedy = "name a readable TOML file; `aitbc-aps-miner init` writes one"
        raise _file_error("a readable file of at most 1 MiB", given, remedy)
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _file_error(
            "UTF-8 without a byte order mark",
            "a file that begins with one",
            "save it as plain UTF-8",
            line=1,
        )
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise _file_error("text", "a NUL byte", "save it as plain UTF-8", line=line)
    try:
        text = content.decode()
    except UnicodeDecodeError as exc:
        raise _file_error(
            "UTF-8",
            f"the byte 0x{content[exc.start]:02x}, which is none",
            "save it as plain UTF-8",
            line=content.count(b"\n", 0, exc.start) + 1,
        ) from exc
    return load_text(text, environ)


def load_text(text: str, environ: Mapping[str, str]) -> Config:
    """Load TOML text. Raises ConfigError with every problem."""
    try:
        data = tomllib.loads(text)
    except RecursionError as exc:
        raise _file_error(
            "TOML", "values nested too deeply", "write it flatter"
        ) from exc
    except ValueError as exc:  # TOMLDecodeError, and int() of thousands of digits
        raise _syntax_error(text, exc) from exc

    lines: dict[KeyPath, int] = {}

    def find(path: KeyPath) -> int | None:
        if not lines:  # only a text with problems is scanned
            lines.update(key_lines(text))
        return line_of(lines, path)

    return validate(data, find, environ)


def validate(
    data: dict[str, Any],
    find_line: Callable[[KeyPath], int | None],
    environ: Mapping[str, str],
) -> Config:
    """Check plain data. Raises ConfigError with every problem."""
    overrides = read_overrides(environ)
    data = apply_overrides(data, overrides.values)
    problems = list(overrides.problems)
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        names: dict[KeyPath, str] = dict(overrides.names.items())
        found = explain(exc, find_line, names)
        hidden = _hidden(data, exc, find_line, names)
        problems += sorted(
            (problem for _, problem in found + hidden),
            key=lambda problem: problem.line or 0,
        )
        raise ConfigError(tuple(problems)) from exc
    if problems:
        raise ConfigError(tuple(problems))
    return config


def config_warnings(config: Config) -> tuple[str, ...]:
    """Give what is allowed and yet worth a second thought."""
    coordinator, runners = config.coordinator, config.runners
    url = urlsplit(coordinator.base_url)
    found = {
        "coordinator.auth_token stands in the configuration itself; "
        'keep it out by "env:NAME" or "file:/path"': not is_reference(
            coordinator.auth_token
        ),
        f"coordinator.base_url: http:// to {url.hostname} sends the token and all "
        "results unencrypted; use https://": url.scheme == "http"
        and not _is_loopback(url.hostname or ""),
        "coordinator.tls_verify = false: anyone on the way can pose as the "
        "coordinator; trust its CA by ca_file instead": url.scheme == "https"
        and not coordinator.tls_verify,
        "runners.cli offers no command: allowlist_files and allowlist_dir are "
        "empty": runners.cli.enable
        and not (runners.cli.allowlist_files or runners.cli.allowlist_dir),
        "runners.python offers no task: task_paths is empty": runners.python.enable
        and not runners.python.task_paths,
        "network.private = true: jobs may fetch from this machine's own "
        "network": config.network.private,
    }
    return tuple(words for words, applies in found.items() if applies)


def _hidden(
    data: dict[str, Any],
    error: ValidationError,
    find_line: Callable[[KeyPath], int | None],
    names: Mapping[KeyPath, str],
) -> list[tuple[KeyPath, Problem]]:
    """Find clashes between good keys that bad keys of the same section hid.

    The bad keys are taken out and the rest is checked again; a clash that involves
    a key that was taken out would be about its default, so it is not told.
    """
    bad = {detail["loc"] for detail in error.errors() if detail["type"] != "clash"}
    for path in bad:
        data = _without(data, path)
    data = apply_overrides(
        data, {path: value for path, value in _REQUIRED.items() if path in bad}
    )
    if ("coordinator",) in bad:
        data = apply_overrides(data, _REQUIRED)
    try:
        Config.model_validate(data)
    except ValidationError as exc:
        seen, now = clashing(error), clashing(exc)
        return [
            (path, problem)
            for path, problem in explain(exc, find_line, names)
            if path in now and path not in seen and not (now[path] & bad)
        ]
    return []


def _without(data: Any, path: KeyPath) -> Any:
    """Give `data` without the key at `path`, or without the list it lies in."""
    name, *rest = path
    if not isinstance(data, dict) or name not in data:
        return data
    if rest and isinstance(data[name], dict):
        return {**data, name: _without(data[name], tuple(rest))}
    return {key: value for key, value in data.items() if key != name}


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _syntax_error(text: str, exc: ValueError) -> ConfigError:
    words = str(exc)
    place = re.search(r"\s*\(at line (\d+), column (\d+)\)$", words)
    line = int(place[1]) if place else text.count("\n") + 1
    given = (
        words[: place.start()] if place else words.removesuffix(" (at end of document)")
    )
    column = f" at column {place[2]}" if place else " at the end of the file"
    if not isinstance(exc, tomllib.TOMLDecodeError):
        given, column = "a number of thousands of digits", ""
    return _file_error(
        "TOML",
        f"{given[:1].lower()}{given[1:]}{column}",
        "texts need quotes, tables [brackets], and each key stands once",
        line=line,
    )


def _file_error(
    expected: str, given: str, remedy: str, line: int | None = None
) -> ConfigError:
    problem = Problem(key="", line=line, expected=expected, given=given, remedy=remedy)
    return ConfigError((problem,))
