"""JSON out: strict, whatever a payload or an exception put into the value."""

import json
import math
from collections.abc import Mapping
from typing import Any

from aitbc_aps_miner.errors import RefusedError


def dumps(value: Any) -> bytes:
    """Encode as JSON: half characters replaced, NaN and infinities as null.

    Raises RefusedError for a value nested too deep to be written.
    """
    try:
        text = json.dumps(_clean(value), allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        raise RefusedError("the request is nested too deep", status=0) from error
    return text.encode()


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_clean(str(key)): _clean(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(each) for each in value]
        case None | bool() | int():
            return value
        case _:
            return _clean(str(value))
