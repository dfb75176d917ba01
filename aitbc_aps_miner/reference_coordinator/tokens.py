"""Node tokens: issued at registering, valid for a while, forgotten with the process."""

from collections.abc import Callable

from aitbc_aps_miner.ports import Clock


class Tokens:
    """Every token that was issued and has not been seen expired."""

    def __init__(
        self, ttl_s: float, clock: Clock, new_secret: Callable[[], str]
    ) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._new_secret = new_secret
        self._issued: dict[str, tuple[str, float]] = {}

    def issue(self, node_id: str) -> tuple[str, float]:
        """Give a new token and its end in monotonic seconds; older ones stay valid."""
        token, until = self._new_secret(), self._clock.monotonic() + self._ttl_s
        self._issued[token] = (node_id, until)
        return token, until

    def node_of(self, token: str) -> str | None:
        """Give the node of a token that is valid now."""
        node_id, until = self._issued.get(token, ("", 0.0))
        if until <= self._clock.monotonic():
            self._issued.pop(token, None)
            return None
        return node_id

    def forget(self) -> None:
        """Make every node register again."""
        self._issued.clear()
