"""What of a foreign source's output can be believed: numbers in range, plain names.

Pure. Anything else becomes None, never an exception.
"""

import math
from typing import Any

# DCGM marks a blank integer by 2^31-16 and above (also 2^63-18 and the like); no GPU
# has that many MiB, degrees or watts.
_BLANK = 2**31 - 16


def number(value: Any, most: float = _BLANK - 1) -> float | None:
    """Give a finite number from 0 to `most`, whatever form it comes in."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) and 0 <= parsed <= most else None


def whole(value: Any, most: int = _BLANK - 1) -> int | None:
    """Give `number`, rounded down."""
    parsed = number(value, most)
    return None if parsed is None else int(parsed)


def percent(value: Any) -> float | None:
    """Give a number from 0 to 100."""
    return number(value, 100)


def name(value: Any, most: int = 128) -> str | None:
    """Give a printable text without margin; None for the sources' ways to say n/a."""
    if not isinstance(value, str):
        return None
    text = "".join(char for char in value if char.isprintable()).strip()[:most]
    # nvidia-smi: "[N/A]", "[Not Supported]", "[Unknown Error]", "N/A"
    return None if not text or text == "N/A" or text.startswith("[") else text
