"""Every key of the model as one flat record: what it takes and what it means.

Error messages, the reference, the example file, the environment overrides and the
masking of secrets all read this list, so none of them can forget a key.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.values import LONGEST_S, Words

_PLAIN: dict[type, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
}
_UNITS = {"_mb": " in MiB", "_pct": " in percent"}
_DAY_S, _HOUR_S = 86400, 3600


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the configuration."""

    path: tuple[str, ...]
    """As written in the file: ("heartbeat", "backoff", "min_s")."""
    attributes: tuple[str, ...]
    """The same for attribute access; differs only where a key has an alias."""
    kind: str
    """What it takes, in words: `whole number from 0 to 7`."""
    is_text: bool
    """Whether the file holds a text here (and so an override needs no quotes)."""
    default: str | None
    """As TOML; None where the key is absent by default."""
    required: bool
    secret: bool
    description: str

    @property
    def dotted(self) -> str:
        """The key as people write it: `heartbeat.backoff.min_s`."""
        return ".".join(self.path)

    def value(self, config: Config) -> Any:
        """Give the value that `config` holds for this key."""
        value: Any = config
        for name in self.attributes:
            value = getattr(value, name)
        return value


@dataclass(frozen=True, kw_only=True)
class Table:
    """One section of the configuration, or the file's top for an empty path."""

    path: tuple[str, ...]
    title: str
    keys: tuple[Key, ...]


@cache
def tables() -> tuple[Table, ...]:
    """Give all sections in the order in which a file names them."""
    return tuple(_tables(Config, (), ()))


@cache
def keys() -> dict[tuple[str, ...], Key]:
    """Give every key by its path."""
    return {key.path: key for table in tables() for key in table.keys}


def sections() -> frozenset[tuple[str, ...]]:
    """Give the path of every section, without the file's top."""
    return frozenset(table.path for table in tables() if table.path)


def as_toml(key: Key, value: Any) -> str:
    """Write a value as TOML, a duration the short way."""
    if isinstance(value, tuple):
        return "[" + ", ".join(as_toml(key, item) for item in value) + "]"
    if isinstance(value, float) and key.kind.startswith("duration"):
        return _duration(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    plain = value if isinstance(value, bool | int | float) else str(value)
    return tomli_w.dumps({"v": plain}).removeprefix("v = ").rstrip("\n")


def _tables(
    model: type[BaseModel], path: tuple[str, ...], attributes: tuple[str, ...]
) -> Iterator[Table]:
    fields = [
        (name, field.alias or name, field) for name, field in model.model_fields.items()
    ]
    inner = [
        (name, written, field.annotation)
        for name, written, field in fields
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
    ]
    yield Table(
        path=path,
        title=(model.__doc__ or "").partition("] ")[2] or "Top of the file.",
        keys=tuple(
            _key(field, (*path, written), (*attributes, name))
            for name, written, field in fields
            if not any(name == section for section, _, _ in inner)
        ),
    )
    for name, written, section in inner:
        yield from _tables(section, (*path, written), (*attributes, name))


def _key(field: FieldInfo, path: tuple[str, ...], attributes: tuple[str, ...]) -> Key:
    kind, secret, is_text = _kind(field.annotation, field.metadata)
    unit = next((unit for end, unit in _UNITS.items() if path[-1].endswith(end)), "")
    key = Key(
        path=path,
        attributes=attributes,
        kind=kind + unit,
        is_text=is_text,
        default=None,
        required=field.is_required(),
        secret=secret,
        description=field.description or "",
    )
    if key.required or field.default is None:
        return key
    # Field(300) of a number is 300.0 once it is in a Config
    default = float(field.default) if field.annotation is float else field.default
    return replace(key, default=as_toml(key, default))


def _kind(annotation: Any, given: Iterable[Any]) -> tuple[str, bool, bool]:
    """Give the words for a type, whether it is secret, whether it is a text."""
    metadata = list(given)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, UnionType):
        return _kind(arguments[0], metadata)
    if origin is tuple:
        inner, secret, _ = _kind(arguments[0], ())
        return f"list of {inner}s", secret, False
    if origin is Literal:
        return "one of " + ", ".join(f'"{item}"' for item in arguments), False, True
    words = next((item for item in metadata if isinstance(item, Words)), None)
    name = words.text if words else _PLAIN[annotation]
    text = annotation not in (bool, int, float) or name == "duration"
    return name + _range(metadata, name), bool(words and words.secret), text


def _range(metadata: list[Any], name: str) -> str:
    """Put the bounds of a number in words; of two lower bounds the tighter counts."""
    above = _bounds(metadata, annotated_types.Gt, "gt")
    least = _bounds(metadata, annotated_types.Ge, "ge")
    most = _bounds(metadata, annotated_types.Le, "le")
    if name == "duration":  # never negative and never ten years: not worth a word
        least = [bound for bound in least if bound > 0]
        most = [bound for bound in most if bound < LONGEST_S]
    words = []
    if above:
        words.append(f"above {max(above):g}")
    elif least:
        words.append(f"from {max(least):g}")
    if most:
        words.append(f"to {min(most):g}" if words else f"up to {min(most):g}")
    return "".join(f" {word}" for word in words)


def _bounds(metadata: list[Any], kind: type, attribute: str) -> list[float]:
    return [getattr(item, attribute) for item in metadata if isinstance(item, kind)]


def _duration(seconds: float) -> str:
    """Write seconds the way people do: 15, "24h", "7d"."""
    for unit_s, unit, least in ((_DAY_S, "d", 2 * _DAY_S), (_HOUR_S, "h", _HOUR_S)):
        if seconds >= least and seconds % unit_s == 0:
            return f'"{seconds // unit_s:g}{unit}"'
    return f"{seconds:.10g}"
