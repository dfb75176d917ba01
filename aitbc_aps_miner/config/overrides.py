"""Keys set by the environment: AITBC_MINER__SECTION__KEY wins over the file; pure."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aitbc_aps_miner.config.explain import nearest
from aitbc_aps_miner.config.keys import Key, keys, sections
from aitbc_aps_miner.errors import Problem

PREFIX = "AITBC_MINER__"

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the environment says about the configuration."""

    values: dict[Path, Any] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)
    """The variable that each value came from."""
    problems: tuple[Problem, ...] = ()


def variable(key: Key) -> str:
    """Give the name of the variable that overrides `key`."""
    return PREFIX + "__".join(part.upper() for part in key.path)


def read_overrides(environ: Mapping[str, str]) -> Overrides:
    """Read every variable that begins with AITBC_MINER__."""
    known = keys()
    values: dict[Path, Any] = {}
    names: dict[Path, str] = {}
    problems = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if path in known:
            values[path] = _value(known[path], environ[name])
            names[path] = name
        else:
            problems.append(_unknown(name, path))
    return Overrides(values=values, names=names, problems=tuple(problems))


def apply_overrides(data: dict[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """Give `data` with `values` laid over it; `data` itself is left as it is.

    A section that is no table in the file stays what it is, for its own problem.
    """
    for path, value in values.items():
        data = _with(data, path, value)
    return data


def _with(data: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    name, *rest = path
    if not rest:
        return {**data, name: value}
    inner = data.get(name, {})
    if not isinstance(inner, dict):
        return data
    return {**data, name: _with(inner, tuple(rest), value)}


def _value(key: Key, text: str) -> Any:
    """Read a TOML value; what is none, or should be a text anyway, is a text."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text
    if parsed.keys() != {"v"}:  # a line break smuggled in a second key
        return text
    number = isinstance(parsed["v"], int | float) and key.kind.startswith("duration")
    if key.is_text and not (isinstance(parsed["v"], str) or number):
        return text
    return parsed["v"]


def _unknown(name: str, path: Path) -> Problem:
    meant = keys().get(tuple((nearest(path) or "").split(".")))
    hint = f", perhaps {variable(meant)}" if meant else ""
    if path in sections():
        hint = f" of this section, like {name}__KEY"
    return Problem(
        key=".".join(path),
        line=None,
        expected=f"a variable for a known key{hint}",
        given=f"the environment variable {name}",
        remedy=f"rename {name} or unset it",
    )
