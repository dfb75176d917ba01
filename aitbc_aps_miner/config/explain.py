"""What pydantic found wrong, as problems a person can act on; pure.

A problem never shows a secret: values of secret keys, of unknown keys and of whole
sections are named by their kind only.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aitbc_aps_miner.config.keys import Key, keys, sections
from aitbc_aps_miner.config.secrets import MASK
from aitbc_aps_miner.errors import Problem

Path = tuple[str | int, ...]

_SHOWN = 60
"""Characters of a wrong value that a message shows."""


def explain(
    error: ValidationError,
    line_of: Callable[[Path], int | None],
    origins: Mapping[Path, str],
) -> list[tuple[Path, Problem]]:
    """Give one problem per thing wrong, each with the path that it is about.

    `origins` names the environment variable that a path's value came from, if any.
    """
    return [_problem(detail, line_of, origins) for detail in error.errors()]


def clashing(error: ValidationError) -> dict[Path, frozenset[Path]]:
    """Give the paths that each clash of two keys is about, by the one shown."""
    found = {}
    for detail in error.errors():
        if detail["type"] == "clash":
            paths = [(*detail["loc"], key) for key in detail["ctx"]["keys"]]
            found[paths[0]] = frozenset(paths)
    return found


def nearest(path: tuple[str, ...]) -> str | None:
    """Give the known key that someone who wrote `path` most likely meant."""
    known = [*keys(), *sections()]
    inside = [".".join(other) for other in known if other[:-1] == path[:-1]]
    dotted = [".".join(other) for other in known]
    wanted = ".".join(path)
    found = difflib.get_close_matches(wanted, inside, n=1, cutoff=0.6)
    same_name = [other for other in dotted if other.split(".")[-1] == path[-1]]
    found += same_name[:1] if len(same_name) == 1 else []
    found += difflib.get_close_matches(wanted, dotted, n=1, cutoff=0.6)
    return found[0] if found else None


def show(value: Any) -> str:
    """Write a value as it stands in TOML, shortened, without URL credentials."""
    try:
        text = tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
    except (TypeError, ValueError):
        return kind_of(value)
    text = re.sub(r"//[^/\s]*@", f"//{MASK}@", " ".join(text.split()))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def kind_of(value: Any) -> str:
    """Name the kind of a TOML value without showing it."""
    kinds: dict[type, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a section",
        NoneType: "nothing",
    }
    return kinds.get(type(value), "another kind of value")


def _problem(
    detail: ErrorDetails,
    line_of: Callable[[Path], int | None],
    origins: Mapping[Path, str],
) -> tuple[Path, Problem]:
    path: Path = detail["loc"]
    if detail["type"] == "clash":
        path = (*path, detail["ctx"]["keys"][0])
    expected, given, remedy = _words(detail, path)
    if path in origins:
        given += f" (from the environment, {origins[path]})"
        remedy += f" or unset {origins[path]}"
    missing = detail["type"] == "missing"
    problem = Problem(
        key=_dotted(path),
        line=None if missing or path in origins else line_of(path),
        expected=expected,
        given=given,
        remedy=remedy,
    )
    return path, problem


def _words(detail: ErrorDetails, path: Path) -> tuple[str, str, str]:
    """Give expected, given and remedy."""
    match detail["type"]:
        case "extra_forbidden":
            return _unknown(path)
        case "missing":
            return _missing(path)
        case "clash":
            context = detail["ctx"]
            return context["expected"], _of_clash(detail, path), context["remedy"]
        case _:
            return _wrong_value(detail, path)


def _wrong_value(detail: ErrorDetails, path: Path) -> tuple[str, str, str]:
    key = _key(path)
    if key is None:
        return _no_section(path, detail["input"])
    expected = key.kind
    if isinstance(path[-1], int):
        expected = expected.removeprefix("list of ").removesuffix("s")
    if detail["type"] == "value_error":
        expected = detail["msg"].removeprefix("Value error, ").removeprefix("must be ")
    given = MASK if key.secret else show(detail["input"])
    return expected, given, _correction(key, detail["input"])


def _of_clash(detail: ErrorDetails, path: Path) -> str:
    """Show one side of a clash; in the file it may be there by default only."""
    name = path[-1]
    if name in detail["input"]:
        return show(detail["input"][name])
    key = _key(path)
    return f"its default {key.default if key else ''}"


def _unknown(path: Path) -> tuple[str, str, str]:
    names = tuple(str(part) for part in path)
    meant = nearest(names)
    expected = f"a known key, perhaps {meant}" if meant else "a known key"
    remedy = f"rename it to {meant}, or remove it" if meant else "remove it"
    return expected, "an unknown one", remedy


def _missing(path: Path) -> tuple[str, str, str]:
    names = tuple(str(part) for part in path)
    if names in sections():
        required = [
            key.path[-1]
            for key in keys().values()
            if key.required and key.path[:-1] == names
        ]
        return (
            f"a section [{_dotted(path)}]",
            "nothing",
            f"add [{_dotted(path)}] with {', '.join(required)}",
        )
    where = f"under [{_dotted(path[:-1])}]" if path[:-1] else "at the top of the file"
    key = keys()[names]
    return key.kind, "nothing", f"add {path[-1]} = … {where}"


def _no_section(path: Path, value: Any) -> tuple[str, str, str]:
    dotted = _dotted(path)
    return f"a section [{dotted}]", kind_of(value), f"write [{dotted}] on its own line"


def _correction(key: Key, value: Any) -> str:
    choices = re.findall(r'"([^"]+)"', key.kind) if key.kind.startswith("one") else []
    close = difflib.get_close_matches(str(value).lower(), choices, n=1)
    if close:
        return f'write "{close[0]}"'
    if key.default is not None and not key.secret:
        return f"correct it, or remove the line for the default {key.default}"
    return "correct it" if key.required else "correct it, or remove the line"


def _key(path: Path) -> Key | None:
    """Give the key that a path lies in; an item of a list belongs to its list."""
    names = tuple(part for part in path if isinstance(part, str))
    return keys().get(names)


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_written(part)}" if text else _written(part)
    return text


def _written(name: str) -> str:
    """Write one name of a key; a file may hold any text there, line breaks too."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else show(name)
