"""What a logged value may look like: no secret, bounded, always JSON.

Knows nothing of lines or files. Every function takes any object and returns.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

VALUE_MAX = 8192
"""Characters of one value; a value is for reading, a file is for keeping."""
ITEMS_MAX = 100
DEPTH_MAX = 6
_SECRET_MIN = 4  # masking shorter strings would mask half of every line


class Scrubber:
    """Replaces known secrets by `***` wherever they stand in a text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Mask `secret` from now on, also as it looks inside a URL or JSON text."""
        if len(secret) < _SECRET_MIN:
            return
        escaped = {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        forms = (
            self._forms | escaped | {secret, quote(secret, safe="", errors="replace")}
        )
        if forms != self._forms:
            self._forms = forms
            # Longest first: a secret may begin with another one.
            ordered = sorted(forms, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, ordered)))

    def scrub(self, text: str) -> str:
        """Give `text` with every known secret masked."""
        return text if self._pattern is None else self._pattern.sub("***", text)


def clip(text: str, limit: int = VALUE_MAX) -> str:
    """Cut `text` to `limit` characters and say how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… (+{len(text) - limit})"


def clean(value: Any, scrubber: Scrubber, depth: int = 0) -> Any:
    """Give `value` as bounded JSON with secrets masked; what is not JSON as repr."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        return _mapping(value, scrubber, depth)
    if depth < DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return _items(list(value), scrubber, depth)
    # Enum members of type str are their value; repr would show the class.
    text = str.__str__(value) if isinstance(value, str) else _repr(value)
    # Scrubbed before it is cut, or the cut could leave half a secret behind.
    return clip(scrubber.scrub(text))


def _number(value: float) -> Any:
    if isinstance(value, int):
        # Beyond 64 bit few readers agree, and beyond 4300 digits str() raises.
        bits = value.bit_length()
        return int(value) if bits <= 64 else f"<int of {bits} bits>"  # noqa: PLR2004 - said above
    return float(value) if math.isfinite(value) else repr(float(value))


def _mapping(
    value: Mapping[Any, Any], scrubber: Scrubber, depth: int
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for count, (key, item) in enumerate(value.items()):
        if count == ITEMS_MAX:
            result["…"] = f"+{len(value) - ITEMS_MAX} keys"
            break
        name = key if isinstance(key, str) else _repr(key)
        result[clip(scrubber.scrub(name), 200)] = clean(item, scrubber, depth + 1)
    return result


def _items(value: list[Any], scrubber: Scrubber, depth: int) -> list[Any]:
    result = [clean(item, scrubber, depth + 1) for item in value[:ITEMS_MAX]]
    if len(value) > ITEMS_MAX:
        result.append(f"… (+{len(value) - ITEMS_MAX})")
    return result


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ may raise anything
        return f"<unprintable {type(value).__name__}>"
