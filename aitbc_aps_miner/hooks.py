"""Third parties' callbacks: the entry-point group `aitbc_aps_miner.callbacks`.

A hook is any object with functions named after EVENTS. Each call runs in a process of
its own, once per outcome, so one that raises or hangs harms nobody.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from aitbc_aps_miner.channel import Channel

GROUP = "aitbc_aps_miner.callbacks"
EVENTS = (
    "on_job_accepted",
    "on_job_started",
    "on_job_finished",
    "on_job_failed",
    "on_config_changed",
)
DEADLINE_S = 30


def discover() -> tuple[str, ...]:
    """Name the installed hooks without importing any of them."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def call(
    _channel: Channel, *, entry_point: str, event: str, payload: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Load one hook here, in its own process, and call its function for `event`."""
    (point,) = entry_points(group=GROUP, name=entry_point)
    function = getattr(point.load(), event, None)
    if function is None:
        return {"called": False}
    function(dict(payload))
    return {"called": True}
