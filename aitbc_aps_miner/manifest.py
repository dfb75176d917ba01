"""From a pulled JSON value to a checked `Manifest`, or E_MANIFEST with every problem.

Everything that comes later builds paths, arguments and environments from what passes
here. The fields themselves are in manifest_model.py.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.manifest_model import MAX_PROBLEMS, Wire
from aitbc_aps_miner.models import Manifest

MAX_BYTES = 1 << 20
"""What a manifest may take as JSON; inputs of that size belong behind a URL."""

_MAX_DEPTH = 64
"""Nesting that no honest manifest has; far below where json itself gives up."""
_LINE = 80
"""What a shown value may take of a message."""


def parse(raw: object, *, max_timeout_s: float) -> Manifest:
    """Check a manifest as it was pulled.

    Raises JobError E_MANIFEST whose message holds all problems, and nothing else
    whatever `raw` is.
    """
    flaw = _flaw(raw) or _excess(raw)
    if flaw is not None:
        raise JobError(ErrorCode.E_MANIFEST, f"manifest: {flaw}")
    try:
        wire = Wire.model_validate(raw, context={"max_timeout_s": max_timeout_s})
    except ValidationError as error:
        problems = [_words(each) for each in error.errors(include_url=False)]
        shown = "; ".join(problems[:MAX_PROBLEMS])
        more = len(problems) - MAX_PROBLEMS
        message = shown + (f"; and {more} more" if more > 0 else "")
        raise JobError(ErrorCode.E_MANIFEST, message) from None  # inputs stay unsaid
    return wire.manifest()


def job_id_of(raw: object) -> str | None:
    """Give the job id as it stands, also a bad one, to report the job by it."""
    job_id = raw.get("job_id") if isinstance(raw, Mapping) else None
    return job_id if isinstance(job_id, str) else None


def _excess(raw: object) -> str | None:
    """Say so when it is too large to be handed from process to process."""
    size = len(json.dumps(raw))
    if size <= MAX_BYTES:
        return None
    return f"expected at most {MAX_BYTES} bytes of JSON, given {size}"


def _flaw(raw: object) -> str | None:
    """Say what is no plain JSON, without recursion: depth is the sender's choice."""
    if not isinstance(raw, dict):
        return f"expected an object, given {type(raw).__name__}"
    level: list[object] = [raw]
    for _ in range(_MAX_DEPTH):
        odd = [value for value in level if not _is_plain(value)]
        if odd:
            return f"expected plain JSON, given {_short(odd[0])}"
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return None
    return f"nested deeper than {_MAX_DEPTH} levels"


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _is_plain(value: object) -> bool:
    match value:
        case str():
            return not re.search("[\ud800-\udfff]", value)  # half a character
        case float():
            return math.isfinite(value)
        case dict():
            return all(isinstance(key, str) for key in value)
        case _:
            return value is None or isinstance(value, int | list)


def _short(value: object) -> str:
    """Show a value in a message: one line, no matter what or how long it is."""
    shown = ascii(value) if isinstance(value, str | int | float) else ""
    shown = shown if value is not None else "null"
    if not shown or len(shown) > _LINE:
        size = f" of {len(value)}" if isinstance(value, str | list | dict) else ""
        return type(value).__name__ + size
    return shown


def _words(problem: ErrorDetails) -> str:
    """Say one problem as field, expected and given; a secret's value is never shown."""
    where = [str(part) for part in problem["loc"]]
    field = ascii(".".join(where) or "manifest")[1:-1][:120]
    expected = problem["msg"].removeprefix("Value error, ")
    hidden = problem["type"] == "missing" or "secrets" in where or not where
    given = "" if hidden else f", given {_short(problem['input'])}"
    return f"{field}: {expected}{given}"
