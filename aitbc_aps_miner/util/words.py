"""Times, durations and sizes as text."""

from datetime import UTC, datetime

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Give "0.4 s", "12 s", "2 h 5 min": the two largest units."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 10:  # noqa: PLR2004 - below ten a tenth is still worth telling
        return f"{seconds:.1f} s"
    rest = round(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def size_mb(mebibytes: float) -> str:
    """Give "512 MiB", "1.5 GiB", "12 TiB"."""
    value, unit, digits = mebibytes, "MiB", 0
    for larger in ("GiB", "TiB"):
        if abs(value) < 1024:  # noqa: PLR2004 - binary units
            break
        value, unit = value / 1024, larger
        digits = 0 if abs(value) >= 100 else 1  # noqa: PLR2004 - three digits say enough
    return f"{value:.{digits}f} {unit}"


def utc_text(realtime: float, timespec: str = "milliseconds") -> str:
    """Write seconds since the epoch as RFC 3339 with `Z`."""
    moment = datetime.fromtimestamp(realtime, UTC)
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
