"""One HTTP call to one coordinator: bearer, deadline, caps, and errors of our tree.

Knows nothing of jobs. Every foreign exception stops here. Answers are read into memory
up to a cap, requests with files are streamed. The bearer goes to the coordinator's own
origin only: redirects are refused, not followed.
"""

import ssl
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, Self

import httpcore
import httpx

from aitbc_aps_miner import __version__
from aitbc_aps_miner.coordinator.answer import Reply, read_body
from aitbc_aps_miner.coordinator.network import Deadline, DeadlineTransport
from aitbc_aps_miner.coordinator.retry import epoch_s, may_retry, retry_after_s
from aitbc_aps_miner.coordinator.text import dumps
from aitbc_aps_miner.errors import (
    CoordinatorError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)
from aitbc_aps_miner.ports import Clock

_SLOWEST_BYTES_PER_S = 64 * 1024
"""Half a megabit: an upload slower than this is stuck, not slow."""

FOREIGN: tuple[type[Exception], ...] = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    httpx.CookieConflict,
    httpcore.ConnectionNotAvailable,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
    UnicodeError,  # a host name that IDNA cannot encode
)
"""Everything the libraries below raise on purpose; a test fails when they grow one."""

_OURS_TO_BLAME = (
    httpx.InvalidURL,
    httpx.LocalProtocolError,
    httpx.StreamError,
    httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError,
    httpcore.UnsupportedProtocol,
)


class TokenSource(Protocol):
    """Where a caller gets the node's bearer token from."""

    def current(self) -> str | None:
        """Give the token in use, None when there is none yet."""
        ...

    def renew(self, stale: str | None) -> str:
        """Give a newer token than `stale`; registers at most once.

        Raises UnauthorizedError or UnavailableError.
        """
        ...


@dataclass(frozen=True)
class FixedToken:
    """A token that cannot be renewed: the bootstrap token, or a command by hand."""

    token: str = field(repr=False)

    def current(self) -> str | None:
        """Give the token."""
        return self.token

    def renew(self, stale: str | None) -> str:  # noqa: ARG002  the protocol's name
        """Refuse: there is no other one."""
        raise UnauthorizedError("the coordinator refused the token")


class Body(Protocol):
    """What is streamed to the server; iterated anew for every try."""

    @property
    def content_type(self) -> str:
        """The Content-Type header."""
        ...

    @property
    def length(self) -> int:
        """The exact number of bytes."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes in pieces."""
        ...


class Transport:
    """A keep-alive connection to one coordinator; not shared between processes."""

    def __init__(
        self,
        base_url: str,
        tokens: TokenSource | None,
        *,
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
        timeout_s: float = 20,
    ) -> None:
        self.clock = clock
        self.timeout_s = timeout_s
        self._base = httpx.URL(base_url.rstrip("/") + "/")
        self._tokens = tokens
        self._deadline = Deadline(clock.monotonic)
        self._client = httpx.Client(
            transport=DeadlineTransport(ssl_context, self._deadline),
            trust_env=False,
            headers={
                "User-Agent": f"aitbc-aps-miner/{__version__}",
                "Accept": "application/json",
                # An encoded answer could unpack to any size.
                "Accept-Encoding": "identity",
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: Body | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        bearer: str | None = None,
        timeout_s: float | None = None,
        expect: frozenset[int] = frozenset(),
    ) -> Reply:
        """Send one request and give its answer: any 2xx, or a status in `expect`.

        `path` is below the base URL, or a whole URL of the same origin. `bearer`
        replaces the token source's token and is not renewed. Raises UnavailableError,
        UnauthorizedError or RefusedError.
        """
        content = body if json is None else JsonBody(json)
        own = {"X-Request-ID": uuid.uuid4().hex, **(headers or {})}
        if content is not None:
            own["Content-Type"] = content.content_type
            own["Content-Length"] = str(content.length)
        limit_s = timeout_s or self.timeout_s
        url = self.resolve(path)

        def once(token: str | None) -> Reply:
            if token is not None:
                own["Authorization"] = f"Bearer {_sendable(token)}"
            request = self._client.build_request(
                method,
                url,
                params=params,
                content=content,
                headers=own,
                timeout=httpx.Timeout(limit_s),
            )
            size = content.length if content else 0
            return self._exchange(request, limit_s + size / _SLOWEST_BYTES_PER_S)

        reply = self._authorized(once, bearer)
        if 200 <= reply.status < 300 or reply.status in expect:  # noqa: PLR2004  2xx
            return reply
        raise _error_of(reply, method, path, self.clock)

    def resolve(self, path: str) -> httpx.URL:
        """Give the URL of `path` below the base URL, or of a Location as it came.

        Raises RefusedError when that is another origin.
        """
        try:
            url = self._base.join(path)
        except httpx.InvalidURL as error:
            raise RefusedError(f"{path!r} is no URL: {error}", status=0) from error
        if _origin(url) != _origin(self._base) or url.userinfo:
            raise RefusedError(
                f"{path!r} is not of the coordinator's origin; it gets no token",
                status=0,
            )
        return url

    def _authorized(self, once: Any, bearer: str | None) -> Reply:
        """Call; on 401 renew the token once and call once more."""
        if bearer is not None or self._tokens is None:
            reply: Reply = once(bearer)
        else:
            token = self._tokens.current() or self._tokens.renew(None)
            reply = once(token)
            if reply.status == httpx.codes.UNAUTHORIZED:
                reply = once(self._tokens.renew(token))
        return reply

    def _exchange(self, request: httpx.Request, within_s: float) -> Reply:
        sent_at = self.clock.boottime()
        try:
            with self._deadline.within(within_s):
                response = self._client.send(request, stream=True)
                try:
                    body = read_body(response)
                finally:
                    response.close()
        except FOREIGN as error:
            _translate(error, request)
        self._client.cookies.clear()  # one call leaves nothing for the next
        return Reply(
            status=response.status_code,
            headers=response.headers,
            body=body,
            date=epoch_s(response.headers.get("Date")),
            elapsed_s=self.clock.boottime() - sent_at,
        )


class JsonBody:
    """A JSON value as a request body."""

    content_type = "application/json"

    def __init__(self, value: Any) -> None:
        self._data = dumps(value)
        self.length = len(self._data)

    def __iter__(self) -> Iterator[bytes]:
        yield self._data


def _translate(error: Exception, request: httpx.Request) -> NoReturn:
    what = str(error) or type(error).__name__
    words = f"{request.method} {request.url.path}: {what}"
    if isinstance(error, _OURS_TO_BLAME):
        raise RefusedError(words, status=0) from error
    raise UnavailableError(words) from error


def _error_of(reply: Reply, method: str, path: str, clock: Clock) -> CoordinatorError:
    words = f"{method} {path}: {reply.status} {reply.words}".rstrip()
    if reply.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return UnauthorizedError(words)
    if may_retry(idempotent=True, status=reply.status):
        now = clock.realtime() if reply.date is None else reply.date
        wish_s = retry_after_s(reply.headers.get("Retry-After"), now)
        return UnavailableError(words, retry_after_s=wish_s)
    if 300 <= reply.status < 400:  # noqa: PLR2004  3xx
        target = ascii(reply.headers.get("Location", ""))[:200]
        words += f" redirects to {target}; set coordinator.base_url to where it is"
    return RefusedError(words, status=reply.status)


def _sendable(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UnauthorizedError("the token is empty or holds what no header can carry")
    return token


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, url.port or default
