"""A task to copy from: counts primes, tells how far it is, leaves a file behind.

A task is a module with a function `run`. The manifest's `params` are its arguments,
what it returns becomes `result.json`, and files that it writes to `output/` are the
job's artifacts. It runs in `work/`, in an interpreter of its own.
"""

import math
from pathlib import Path

from aitbc_task import progress

SEGMENTS = 100
"""So many steps of the progress bar and lines of the table."""


def run(limit: int = 10_000_000) -> dict[str, int]:
    """Count the primes up to `limit`; write the running count to output/primes.csv."""
    if limit < SEGMENTS:
        raise ValueError(f"limit: expected at least {SEGMENTS}, given {limit}")
    small = primes_up_to(math.isqrt(limit))
    count = 0
    with Path("../output/primes.csv").open("w") as table:
        print("up_to,primes", file=table)
        for step in range(SEGMENTS):
            low, high = limit * step // SEGMENTS, limit * (step + 1) // SEGMENTS
            count += count_between(max(low + 1, 2), high, small)
            print(f"{high},{count}", file=table)
            progress(100 * (step + 1) / SEGMENTS, f"{count} primes up to {high}")
    return {"limit": limit, "primes": count}


def primes_up_to(limit: int) -> list[int]:
    """List the primes up to `limit`, by the sieve of Eratosthenes."""
    is_prime = bytearray([1]) * (limit + 1)
    is_prime[:2] = bytes(min(2, limit + 1))
    for number in range(2, math.isqrt(limit) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(
                len(range(number * number, limit + 1, number))
            )
    return [number for number in range(limit + 1) if is_prime[number]]


def count_between(low: int, high: int, small: list[int]) -> int:
    """Count the primes in [low, high]; `small` holds those up to the root of high."""
    is_prime = bytearray([1]) * (high - low + 1)
    for prime in small:
        first = max(prime * prime, -(-low // prime) * prime)
        is_prime[first - low :: prime] = bytes(len(range(first, high + 1, prime)))
    return is_prime.count(1)
