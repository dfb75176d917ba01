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
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import UnauthorizedError, UnavailableError
from aitbc_aps_miner.ports import Clock

# A registration is one HTTP call behind at most one other tick; a job process that
# waits longer than this for it is better off trying its whole call again later.
ASK_TIMEOUT_S = 60


class TokenBroker:
    """Answers "the token is refused, give me another" once for everybody."""

    def __init__(
        self,
        start_registration: Callable[[], None],
        clock: Clock,
        pause_s: float = 1,
        place: Callable[[], str] = lambda: "",
    ) -> None:
        """Start without a token; `place` names today's coordinator and node id."""
        self._start = start_registration
        self._clock = clock
        self._pause_s = pause_s
        self._place = place
        self._lock = threading.Lock()
        self._token: str | None = None
        self._token_place = ""
        self._waiting: list[tuple[str, Future[Mapping[str, Any]]]] = []
        self._refusal: tuple[float, Mapping[str, Any]] | None = None
        self.extensions: list[str] | None = None

    @property
    def token(self) -> str | None:
        """The node token of today's coordinator, if there is one."""
        return self.token_for(self._place())

    def token_for(self, place: str) -> str | None:
        """Give the node token if it is that of `place`: no other one may see it."""
        with self._lock:
            return self._token if self._token_place == place else None

    def reset(self) -> None:
        """Forget the token: the coordinator or the node's name changed."""
        with self._lock:
            self._token = None
            self._refusal = None

    def answer(
        self, stale: str | None, place: str = ""
    ) -> Mapping[str, Any] | Future[Any]:
        """Give another token than `stale`, now or when the registration has ended.

        Who works for another place than today's is told to register there alone.
        """
        if place != self._place():
            return {"alone": True}
        with self._lock:
            if self._token_place == place and self._token not in (None, stale):
                return {"token": self._token}
            if self._refusal is not None:
                until, refusal = self._refusal
                if self._clock.monotonic() < until:
                    return refusal
            self._token = None
            future: Future[Mapping[str, Any]] = Future()
            self._waiting.append((place, future))
            first = len(self._waiting) == 1
        if first:
            self._start()
        return future

    def registered(self, token: str, place: str = "") -> None:
        """Take the token that a registration at `place` gave."""
        with self._lock:
            self._token, self._token_place = token, place
            self._refusal = None
            waiting, self._waiting = self._waiting, []
        for asked_for, future in waiting:
            # Who asked before an edit wants another place's: not this one.
            mine = asked_for == place
            future.set_result({"token": token} if mine else {"alone": True})

    def failed(
        self, message: str, *, unauthorized: bool, retry_after_s: float | None = None
    ) -> None:
        """Tell everyone waiting that the registration failed, and ask for a pause."""
        refusal: dict[str, Any] = {"error": message, "unauthorized": unauthorized}
        if retry_after_s is not None:
            refusal["retry_after_s"] = retry_after_s
        pause_s = max(self._pause_s, retry_after_s or 0)
        with self._lock:
            self._refusal = (self._clock.monotonic() + pause_s, refusal)
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_result(refusal)


def place_of(config: Config) -> str:
    """Name the coordinator, and the node id at it, that a token is good for."""
    section = config.coordinator
    return f"{section.api} {section.base_url} {config.node_id}"


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
        place: str = "",
    ) -> None:
        self._channel = channel
        self._token = token
        self._register = register
        self._place = place

    def current(self) -> str | None:
        """Give the token known now."""
        return self._token

    def renew(self, stale: str | None) -> str:
        """Give another token than `stale`.

        Raises UnauthorizedError when the bootstrap token is refused, UnavailableError
        when nobody can be asked now.
        """
        question = {"stale": stale, "place": self._place}
        try:
            answer = self._channel.ask("token", question, ASK_TIMEOUT_S)
        except ChannelClosedError:
            answer = {"alone": True}
        except TimeoutError as error:
            raise UnavailableError("no answer to the question for a token") from error
        except AskRefusedError as error:
            raise UnavailableError(f"no token: {error}") from error
        if answer.get("alone"):
            answer = {"token": self._register()}
        if "token" not in answer:
            if answer.get("unauthorized"):
                raise UnauthorizedError(str(answer.get("error")))
            raise UnavailableError(
                f"registration failed: {answer.get('error')}",
                answer.get("retry_after_s"),
            )
        self._token = str(answer["token"])
        return self._token
