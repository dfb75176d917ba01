"""Durations and sizes in words."""

import pytest

from aitbc_aps_miner.util.words import duration, size_mb


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3601, "1 h"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 7200, "3 d 2 h"),
        (-75, "-1 min 15 s"),
    ],
)
def test_durations_name_their_two_largest_units(seconds: float, words: str) -> None:
    """Tenths below ten seconds, then the two largest units."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("mebibytes", "words"),
    [
        (0, "0 MiB"),
        (1023, "1023 MiB"),
        (1536, "1.5 GiB"),
        (143_771, "140 GiB"),
        (3 * 1024**2, "3.0 TiB"),
        (5000 * 1024**2, "5000 TiB"),
    ],
)
def test_sizes_take_the_unit_that_fits(mebibytes: float, words: str) -> None:
    """Three digits at most until there is no larger unit."""
    assert size_mb(mebibytes) == words
