"""Faults on demand: which call breaks how, by count or by rate; pure bookkeeping.

What each kind does to a connection is in breaking.py.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aitbc_aps_miner.reference_coordinator.problems import invalid

CALLS = {
    ("POST", "nodes/register"): "register",
    ("POST", "nodes/heartbeat"): "heartbeat",
    ("POST", "jobs/pull"): "pull",
    ("POST", "jobs/ack"): "ack",
    ("POST", "jobs/progress"): "progress",
    ("POST", "jobs/result"): "result",
    ("POST", "jobs/fail"): "fail",
}
NAMES = frozenset({*CALLS.values(), "query", "uploads", "*"})
_WORST_STATUS = 599


class FaultKind(StrEnum):
    """How a call breaks."""

    DROP_REPLY = "drop_reply"
    """The call takes effect; the connection closes without an answer."""
    ANSWER_TWICE = "answer_twice"
    """The next pull gets a pull's answer, too; other calls take effect twice."""
    STATUS = "status"
    """`status` is answered, with `retry_after_s` as Retry-After; no effect."""
    STALL = "stall"
    """The call takes effect; its answer waits `seconds`."""
    CUT = "cut"
    """The connection closes after `bytes` of the request's body."""
    CUT_REPLY = "cut_reply"
    """The call takes effect; the connection closes after `bytes` of the answer."""
    GARBAGE = "garbage"
    """200 with a body that is not JSON; no effect."""
    HUGE = "huge"
    """200 with a JSON body of `bytes`, 1 GiB if not given; no effect."""


@dataclass(kw_only=True)
class Fault:
    """One switched-on fault."""

    call: str
    kind: FaultKind
    count: int | None = None
    """How many calls it breaks still; None: no limit."""
    rate: float = 1.0
    method: str | None = None
    """Only this HTTP method: PATCH of `uploads`, say."""
    status: int = 503
    retry_after_s: float | None = None
    seconds: float = 1.0
    bytes: int | None = None
    hits: int = 0

    def view(self) -> dict[str, Any]:
        """Give the fault as JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(kw_only=True)
class Faults:
    """All faults that are on; for one call, the first that applies."""

    chance: random.Random
    active: list[Fault] = field(default_factory=list)

    def take(self, call: str, method: str) -> Fault | None:
        """Give the fault that this call suffers, and count it."""
        for fault in self.active:
            if self._applies(fault, call, method):
                fault.hits += 1
                if fault.count is not None:
                    fault.count -= 1
                return fault
        return None

    def give_back(self, fault: Fault) -> None:
        """Uncount a fault that found nothing to break."""
        fault.hits -= 1
        if fault.count is not None:
            fault.count += 1

    def _applies(self, fault: Fault, call: str, method: str) -> bool:
        return (
            fault.call in {call, "*"}
            and fault.method in {None, method}
            and fault.count != 0
            and (fault.rate >= 1 or self.chance.random() < fault.rate)
        )


def call_name(method: str, path: str, *, is_node: bool) -> str | None:
    """Give the contract's name of a call below the prefix; None for clients' calls."""
    if path == "uploads" or path.startswith("uploads/"):
        return "uploads"
    if is_node and method == "GET" and (path == "jobs" or path.startswith("jobs/")):
        return "query"
    return CALLS.get((method, path))


def parse_fault(body: Mapping[str, Any]) -> Fault:
    """Read `{call, kind, count? | rate?, …}`; ProblemError 422 with all complaints."""
    wrong = [
        f"{name}: expected {expected}, given {body[name]!r:.80}"
        for name, (is_right, expected) in _FIELDS.items()
        if name in body and not is_right(body[name])
    ]
    wrong += [f"{name}: missing" for name in ("call", "kind") if name not in body]
    wrong += [f"{name}: unknown" for name in body if name not in _FIELDS]
    if wrong:
        raise invalid("; ".join(wrong), "fault")
    return Fault(**{**body, "kind": FaultKind(body["kind"])})


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and least <= value <= most


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and _is_number(value, least, most)


_LARGE = 1 << 40

_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "call": (lambda v: isinstance(v, str) and v in NAMES, f"one of {sorted(NAMES)}"),
    "kind": (
        lambda v: isinstance(v, str) and v in set(FaultKind),
        f"one of {sorted(FaultKind)}",
    ),
    "count": (lambda v: _is_whole(v, 0, _LARGE), "a whole number"),
    "rate": (lambda v: _is_number(v, 0, 1), "0 to 1"),
    "method": (lambda v: isinstance(v, str), "an HTTP method"),
    "status": (lambda v: _is_whole(v, 400, _WORST_STATUS), "400 to 599"),
    "retry_after_s": (lambda v: _is_number(v, 0, _LARGE), "seconds"),
    "seconds": (lambda v: _is_number(v, 0, _LARGE), "seconds"),
    "bytes": (lambda v: _is_whole(v, 0, _LARGE), "a number of bytes"),
}
