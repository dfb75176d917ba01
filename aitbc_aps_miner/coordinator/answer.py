"""A whole answer in bounded memory, and the JSON or the words in it."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from aitbc_aps_miner.errors import UnavailableError

MAX_ANSWER_BYTES = 8 * 1024 * 1024
_MAX_WORDS_BYTES = 64 * 1024
"""What is read of an error's body: enough for its words."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    body: bytes
    date: float | None
    """The server's own clock, seconds since the epoch."""
    elapsed_s: float
    """From just before the request was sent until now, suspended time included."""

    def json(self) -> Any:
        """Give the body's JSON value, None for no body. Raises UnavailableError."""
        if not self.body.strip():
            return None
        try:
            return json.loads(self.body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            start = ascii(self.body[:60].decode(errors="replace"))
            raise UnavailableError(
                f"answer not understood: not JSON ({error}): {start}"
            ) from error

    @property
    def words(self) -> str:
        """What an error's body says, on one line; RFC 9457 or anything else."""
        try:
            problem = json.loads(self.body)
        except (ValueError, RecursionError):
            problem = None
        text = self.body[:200].decode(errors="replace")
        if isinstance(problem, dict):
            parts = [problem.get(key) for key in ("error_code", "title", "detail")]
            text = ": ".join(str(part) for part in parts if part) or text
        return " ".join(text.split())[:500]


def read_body(response: httpx.Response) -> bytes:
    """Read the body up to its cap; of an error only what its words may take."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise UnavailableError(f"answer not understood: encoded as {encoding[:40]!r}")
    failed = response.is_error
    pieces, size = [], 0
    for piece in response.iter_raw():
        pieces.append(piece)
        size += len(piece)
        if failed and size > _MAX_WORDS_BYTES:
            break
        if size > MAX_ANSWER_BYTES:
            raise UnavailableError(
                f"answer not understood: longer than {MAX_ANSWER_BYTES} bytes"
            )
    return b"".join(pieces)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
