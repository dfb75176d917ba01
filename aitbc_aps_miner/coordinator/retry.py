"""When a call may be repeated, and how long to wait before it is.

The one place that decides; backoff over many tries belongs to the ticks.
"""

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from aitbc_aps_miner.errors import CoordinatorError, RefusedError, UnavailableError
from aitbc_aps_miner.ports import Clock

_T = TypeVar("_T")

ABSENT = frozenset({404, 405, 501})
"""Statuses with which a coordinator says that it has no such call."""
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say "not now": RFC 9110 and 6585; 501 says never."""
_MAX_RETRY_AFTER_S = 3600.0
"""A longer wish would take the node off the network on one server's word."""


def may_retry(
    *,
    idempotent: bool,
    status: int | None = None,
    error: Exception | None = None,
) -> bool:
    """Whether the same call may be sent again, given its status or its error.

    A call that is not idempotent is never repeated without being asked to: its first
    try may have worked and only the answer be lost.
    """
    if status is not None:
        later = status in _LATER or status >= 520  # noqa: PLR2004  proxies' own codes
        return later and (idempotent or status in (429, 503))
    return idempotent and isinstance(error, UnavailableError)


def retrying(
    call: Callable[[], _T],
    *,
    clock: Clock,
    tries: int,
    within_s: float,
    idempotent: bool = True,
    first_pause_s: float = 0.1,
) -> _T:
    """Call until it works, may not be repeated, or `tries` or `within_s` are used up.

    The pause doubles, and is the coordinator's own wish where that is longer. Raises
    what the last try raised.
    """
    end = clock.monotonic() + within_s
    pause_s = first_pause_s
    while True:
        tries -= 1
        try:
            return call()
        except CoordinatorError as error:
            wish_s = getattr(error, "retry_after_s", None) or 0.0
            wait_s = max(pause_s, wish_s)
            over = clock.monotonic() + wait_s >= end
            if tries <= 0 or over or not may_retry(idempotent=idempotent, error=error):
                raise
        clock.sleep(wait_s)
        pause_s *= 2


def retry_after_s(value: str | None, now: float) -> float | None:
    """Turn Retry-After (seconds or an HTTP date) into bounded seconds from `now`.

    `now` is the answer's own Date where it has one, so that a wrong clock here does
    not matter. None for a header that is absent or makes no sense.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])  # nine digits are past the bound already
    else:
        at = epoch_s(text)
        if at is None:
            return None
        seconds = at - now
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def epoch_s(http_date: str | None) -> float | None:
    """Give an HTTP date in seconds since the epoch; None when it makes no sense."""
    try:
        return parsedate_to_datetime(http_date).timestamp() if http_date else None
    except (ValueError, TypeError, OverflowError):
        return None


def check_refused(error: RefusedError, statuses: frozenset[int]) -> CoordinatorError:
    """Give a refusal as it is, or as "later" when its status is not in `statuses`.

    For what must not be lost: a stray 404 of a proxy must not throw a result away.
    """
    if error.status in statuses:
        return error
    return UnavailableError(str(error))
