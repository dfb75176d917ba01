"""One adapter per dialect over one httpx transport; `open_coordinator` chooses."""

import ssl

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.coordinator.api import (
    HeartbeatReply,
    JobView,
    NodeApi,
    Registration,
)
from aitbc_aps_miner.coordinator.node_v1 import NodeV1
from aitbc_aps_miner.coordinator.tls import build_ssl_context
from aitbc_aps_miner.coordinator.transport import FixedToken, TokenSource, Transport
from aitbc_aps_miner.models import Origin
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util.clock import SystemClock

__all__ = [
    "FixedToken",
    "HeartbeatReply",
    "JobView",
    "NodeApi",
    "NodeV1",
    "Registration",
    "TokenSource",
    "Transport",
    "build_ssl_context",
    "open_coordinator",
]


def open_coordinator(
    config: Config,
    tokens: TokenSource | None,
    ssl_context: ssl.SSLContext | None,
    *,
    origin: Origin | None = None,
    extensions: frozenset[str] | None = None,
    clock: Clock | None = None,
) -> NodeApi:
    """Open the coordinator of the configuration, or the one a job came from.

    `ssl_context` is built once (build_ssl_context) and handed to every child;
    `extensions` is what registering gave, None where that is not known.
    """
    # One dialect so far; the next one is chosen here by (origin or config).api.
    transport = Transport(
        origin.base_url if origin else config.coordinator.base_url,
        tokens,
        clock=clock or SystemClock(),
        ssl_context=ssl_context,
        timeout_s=config.coordinator.timeout_s,
    )
    return NodeV1(
        transport,
        origin.node_id if origin else config.node_id,
        extensions=extensions,
        resumable_above_mb=config.uploads.resumable_above_mb,
    )
