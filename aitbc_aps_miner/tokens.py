"""The node token: one registration at a time, kept in the daemon's memory only.

`TokenBroker` is the daemon's end: whoever finds the token refused asks it, the first
question starts a registration, everyone waiting gets its result. `ChannelTokens` is the
end of a tick or job process; with no daemon alive it registers by itself.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from aitbc_aps_miner.channel import AskRefusedError, ChannelClosedError
from aitbc_aps_miner.errors import UnauthorizedError, UnavailableError
from aitbc_aps_miner.ports import Clock

# A registration is one HTTP call behind at most one other tick; a job process that
# waits longer than this for it is better off trying its whole call again later.
ASK_TIMEOUT_S = 60


class TokenBroker:
    """Answers "the token is refused, give me another" once for everybody."""

    def __init__(
        self, start_registration: Callable[[], None], clock: Clock, pause_s: float = 1
    ) -> None:
        self._start = start_registration
        self._clock = clock
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._token: str | None = None
        self._waiting: list[Future[Mapping[str, Any]]] = []
        self._refusal: tuple[float, Mapping[str, Any]] | None = None
        self.extensions: list[str] | None = None

    @property
    def token(self) -> str | None:
        """The node token, if there is one."""
        with self._lock:
            return self._token

    def reset(self) -> None:
        """Forget the token: the coordinator or the node's name changed."""
        with self._lock:
            self._token = None
            self._refusal = None

    def answer(self, stale: str | None) -> Mapping[str, Any] | Future[Any]:
        """Give another token than `stale`, now or when the registration has ended."""
        with self._lock:
            if self._token is not None and self._token != stale:
                return {"token": self._token}
            if self._refusal is not None:
                until, refusal = self._refusal
                if self._clock.monotonic() < until:
                    return refusal
            self._token = None
            future: Future[Mapping[str, Any]] = Future()
            self._waiting.append(future)
            first = len(self._waiting) == 1
        if first:
            self._start()
        return future

    def registered(self, token: str) -> None:
        """Take the token of a registration that succeeded."""
        with self._lock:
            self._token = token
            self._refusal = None
            waiting, self._waiting = self._waiting, []
        _resolve(waiting, {"token": token})

    def failed(self, message: str, *, unauthorized: bool) -> None:
        """Tell everyone waiting that the registration failed, and ask for a pause."""
        refusal = {"error": message, "unauthorized": unauthorized}
        with self._lock:
            self._refusal = (self._clock.monotonic() + self._pause_s, refusal)
            waiting, self._waiting = self._waiting, []
        _resolve(waiting, refusal)


def _resolve(
    waiting: list[Future[Mapping[str, Any]]], answer: Mapping[str, Any]
) -> None:
    for future in waiting:
        future.set_result(answer)


class Line(Protocol):
    """The part of a Channel that is needed here."""

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        """Ask the daemon."""
        ...


class ChannelTokens:
    """A child's TokenSource: asks the daemon, or registers when there is none."""

    def __init__(
        self,
        channel: Line,
        token: str | None,
        register: Callable[[], str],
        *,
        alone: bool = False,
    ) -> None:
        self._channel = channel
        self._token = token
        self._register = register
        self._alone = alone

    def current(self) -> str | None:
        """Give the token known now."""
        return self._token

    def renew(self, stale: str | None) -> str:
        """Give another token than `stale`.

        Raises UnauthorizedError when the bootstrap token is refused, UnavailableError
        when nobody can be asked now.
        """
        if self._alone:  # a coordinator that the daemon has no token of
            self._token = self._register()
            return self._token
        try:
            answer = self._channel.ask("token", {"stale": stale}, ASK_TIMEOUT_S)
        except ChannelClosedError:
            self._token = self._register()
            return self._token
        except TimeoutError as error:
            raise UnavailableError("no answer to the question for a token") from error
        except AskRefusedError as error:
            raise UnavailableError(f"no token: {error}") from error
        if "token" not in answer:
            if answer.get("unauthorized"):
                raise UnauthorizedError(str(answer.get("error")))
            raise UnavailableError(f"registration failed: {answer.get('error')}")
        self._token = str(answer["token"])
        return self._token
