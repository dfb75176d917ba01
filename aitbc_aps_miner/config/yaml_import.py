"""Old YAML configurations → our TOML data, with notes about what was changed.

The sections and keys are the same in both; what differs is repaired where the
meaning is plain, dropped with a note where we know no such key, and a problem with
its line in the YAML otherwise.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any

import yaml

from aitbc_aps_miner.config.explain import nearest
from aitbc_aps_miner.config.keys import Key, keys, sections
from aitbc_aps_miner.config.lines import line_of
from aitbc_aps_miner.config.load import validate
from aitbc_aps_miner.errors import ConfigError, Problem

MAX_CHARACTERS = 256 * 1024
"""PyYAML reads some 100 kB a second; a configuration has a few."""
MAX_NODES = 10_000
"""Nodes after every alias is followed: the end of an alias bomb."""

MAX_DEPTH = 32
"""Levels after every alias is followed: the end of an alias that holds itself."""

_TAG = "tag:yaml.org,2002:"
_KINDS = frozenset(
    {"null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value"}
)
"""What TOML can hold too; sets, bytes and Python objects are no configuration."""

_PLACEHOLDER = re.compile(r"<[^>]*>")


def new_node_id(
    stem: str = "node", token_hex: Callable[[int], str] | None = None
) -> str:
    """Make a node id that is nobody else's: `<stem>-<8 hex digits>`."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:100] or "node"
    return f"{stem}-{(token_hex or secrets.token_hex)(4)}"


def import_yaml(text: str) -> tuple[dict[str, Any], list[str]]:
    """Give the TOML data of a YAML configuration, and notes on what was changed.

    Raises ConfigError with every problem, also those of the values.
    """
    found, lines = _parse(text)
    notes: list[str] = []
    data = _convert(found, (), notes)
    validate(data, lambda path: line_of(lines, path), {})
    return data, notes


def _convert(
    found: dict[Any, Any], path: tuple[str, ...], notes: list[str]
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for raw, value in found.items():
        inner = (*path, str(raw))
        dotted = ".".join(inner)
        key = keys().get(inner)
        if value is None:
            notes.append(f"{dotted}: dropped, it has no value")
        elif inner in sections() and isinstance(value, dict):
            data[inner[-1]] = _convert(value, inner, notes)
        elif inner in sections():
            data[inner[-1]] = value  # for the problem that it is no section
        elif key is None:
            meant = nearest(inner)
            hint = f"; the nearest known one is {meant}" if meant else ""
            notes.append(f"{dotted}: dropped, no such key is known{hint}")
        else:
            data[inner[-1]] = _repair(key, value, notes)
    return data


def _repair(key: Key, value: Any, notes: list[str]) -> Any:
    """Mend what has a plain meaning and another form here."""
    mended = value
    if key.path == ("node_id",) and _PLACEHOLDER.search(str(value)):
        mended = new_node_id(_PLACEHOLDER.sub("", str(value)))
    elif key.kind.startswith("one of") and isinstance(value, str):
        mended = value.lower()
    elif key.kind.startswith("list of") and isinstance(value, str):
        mended = [value]
    elif key.path == ("node_id",) and type(value) is int:
        mended = str(value)
    if mended != value and not key.secret:
        notes.append(f"{key.dotted}: {value!r} became {mended!r}")
    return mended


def _parse(text: str) -> tuple[dict[Any, Any], dict[tuple[str | int, ...], int]]:
    if len(text) > MAX_CHARACTERS:
        raise _error(None, f"more than {MAX_CHARACTERS} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        lines = _lines(node)
        data = loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        line = mark.line + 1 if mark else None
        raise _error(line, exc.problem or "a broken document") from exc
    except RecursionError as exc:
        raise _error(None, "values nested too deeply") from exc
    except Exception as exc:  # PyYAML leaks LookupError and more on tagged scalars
        raise _error(None, f"{type(exc).__name__} on a value") from exc
    if not isinstance(data, dict):
        raise _error(1, "a document without keys")
    return data, lines


def _lines(root: yaml.Node) -> dict[tuple[str | int, ...], int]:
    """Give the line of every key, following aliases up to MAX_NODES nodes."""
    lines: dict[tuple[str | int, ...], int] = {}
    stack: list[tuple[tuple[str | int, ...], yaml.Node]] = [((), root)]
    seen = 0
    while stack:
        path, node = stack.pop()
        seen += 1
        if seen > MAX_NODES or len(path) > MAX_DEPTH:
            raise _error(None, "too many or too deep values, aliases included")
        line = node.start_mark.line + 1
        if node.tag.removeprefix(_TAG) not in _KINDS:
            raise _error(line, f"a value tagged {node.tag!r}")
        lines.setdefault(path, line)
        stack += [((*path, name), child) for name, child in _children(node)]
    return lines


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(str(name.value), value) for name, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return list(enumerate(node.value))
    return []


def _error(line: int | None, given: str) -> ConfigError:
    problem = Problem(
        key="",
        line=line,
        expected="a YAML configuration",
        given=given,
        remedy="correct the YAML file",
    )
    return ConfigError((problem,))
