"""Brings a job's inputs into `input/` and shows each by name in `work/`.

Redirects are followed by hand, so that scheme, host and address of every hop are
judged; nothing of ours is ever sent along: no token, no cookie, no proxy setting. A
cut download goes on where it stopped when the server can prove that it is the same
file.
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import httpcore
import httpx

from aitbc_aps_miner.config.model import Network
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import InputUrl, Manifest
from aitbc_aps_miner.ports import Clock, Watch, Workspace
from aitbc_aps_miner.transfer.egress import host_allowed
from aitbc_aps_miner.transfer.guarded import GuardedBackend, Resolve, system_resolve
from aitbc_aps_miner.transfer.inputfile import InputFile, Mismatch, parse_content_range
from aitbc_aps_miner.util import fs

MAX_REDIRECTS: Final = 5
MAX_TRIES: Final = 5
"""Tries in a row that bring less than GAIN_BYTES."""
GAIN_BYTES: Final = 1 << 20
_FIRST_PAUSE_S: Final = 0.5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LAST_PORT = 65535
_OK, _PARTIAL, _BAD_RANGE = 200, 206, 416


class _CutError(Exception):
    """The answer broke off or is for now: worth another try."""


_WORTH_ANOTHER_TRY = (
    _CutError,
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.RemoteProtocolError,  # a body that is too short is one
)


class HttpTransfer:
    """Fetches by http and https under the owner's `[network]` rules."""

    def __init__(
        self,
        network: Network,
        timeout_s: float,
        ssl_context: ssl.SSLContext,
        clock: Clock,
        *,
        resolve: Resolve = system_resolve,
    ) -> None:
        self._network = network
        self._timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        self._ssl_context = ssl_context
        self._clock = clock
        self._resolve = resolve

    def fetch(self, manifest: Manifest, workspace: Workspace, watch: Watch) -> None:
        """Fill `input/` and show every input by name in `work/`.

        Raises JobError: E_INPUT, E_DENY for a host or address that policy forbids,
        E_NORES for a full disk, and what `watch.check` raises.
        """
        backend = GuardedBackend(
            private=self._network.private,
            check=watch.check,
            clock=self._clock,
            resolve=self._resolve,
        )
        with (
            _disk_errors(),
            fs.opened(workspace.root) as root_fd,
            fs.opened("input", dir_fd=root_fd) as input_fd,
            fs.opened("work", dir_fd=root_fd) as work_fd,
            httpcore.ConnectionPool(
                ssl_context=self._ssl_context, network_backend=backend
            ) as pool,
        ):
            for name, text in manifest.inline.items():
                self._write_inline(name, text, input_fd)
                _show(name, work_fd)
            for spec in manifest.inputs:
                self._fetch_one(spec, input_fd, pool, watch)
                _show(spec.name, work_fd)

    @property
    def _cap_bytes(self) -> int:
        return int(self._network.max_input_mb * (1 << 20))

    def _write_inline(self, name: str, text: str, input_fd: int) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError as exc:
            raise _input_error(name, f"is not Unicode text: {exc.reason}") from exc
        if len(data) > self._cap_bytes:
            raise _input_error(name, f"is larger than {self._cap_bytes} bytes")
        with InputFile(name, input_fd, cap_bytes=self._cap_bytes) as file:
            file.write(data)
            file.finish()

    def _fetch_one(
        self, spec: InputUrl, input_fd: int, pool: httpcore.ConnectionPool, watch: Watch
    ) -> None:
        cap_bytes = self._cap_bytes
        if (spec.size_bytes or 0) > cap_bytes:
            raise _input_error(
                spec.name, f"is announced with more than {cap_bytes} bytes"
            )
        with InputFile(
            spec.name,
            input_fd,
            cap_bytes=cap_bytes,
            size_bytes=spec.size_bytes,
            sha256=spec.sha256,
        ) as file:
            try:
                self._until_whole(spec, file, pool, watch)
            except Mismatch as exc:
                raise _input_error(spec.name, str(exc)) from exc

    def _until_whole(
        self,
        spec: InputUrl,
        file: InputFile,
        pool: httpcore.ConnectionPool,
        watch: Watch,
    ) -> None:
        failures = 0
        while True:
            before = file.received
            try:
                return self._one_try(spec, file, pool)
            except _WORTH_ANOTHER_TRY as exc:
                reason = exc
            except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as exc:
                raise _input_error(spec.name, f"cannot be asked for: {exc}") from exc
            failures = 0 if file.received - before >= GAIN_BYTES else failures + 1
            if failures >= MAX_TRIES:
                raise _input_error(
                    spec.name, f"could not be fetched in {failures} tries: {reason}"
                ) from reason
            self._pause(_FIRST_PAUSE_S * 2 ** max(0, failures - 1), watch)

    def _pause(self, seconds: float, watch: Watch) -> None:
        until = self._clock.monotonic() + seconds
        while (left_s := until - self._clock.monotonic()) > 0:
            watch.check()
            self._clock.sleep(min(0.25, left_s))

    def _one_try(
        self, spec: InputUrl, file: InputFile, pool: httpcore.ConnectionPool
    ) -> None:
        range_headers = file.resume_headers()
        url = self._judged(_parse_url(spec), spec)
        for _ in range(MAX_REDIRECTS + 1):
            with pool.stream(
                "GET",
                _wire_url(url),
                headers=_headers(url, range_headers),
                extensions={"timeout": self._timeouts},
            ) as response:
                headers = httpx.Headers(response.headers)
                if response.status in _REDIRECTS and "location" in headers:
                    url = self._judged(_next_url(url, headers["location"], spec), spec)
                    continue
                self._take(spec, file, response, headers)
                return
        raise _input_error(spec.name, f"is redirected more than {MAX_REDIRECTS} times")

    def _judged(self, url: httpx.URL, spec: InputUrl) -> httpx.URL:
        if url.scheme not in {"http", "https"}:
            raise _input_error(
                spec.name, f"is at a {url.scheme!r} URL; only http and https are taken"
            )
        if not url.host:
            raise _input_error(spec.name, "has a URL without a host")
        if url.port is not None and not 0 < url.port <= _LAST_PORT:
            raise _input_error(spec.name, f"is at port {url.port}, which cannot be")
        host = url.raw_host.decode("ascii")
        if not host_allowed(host, self._network.inputs):
            raise JobError(
                ErrorCode.E_DENY,
                f"input {spec.name}: host {host} is not in [network] inputs",
                {"host": host, "key": "network.inputs"},
            )
        return url

    def _take(
        self,
        spec: InputUrl,
        file: InputFile,
        response: httpcore.Response,
        headers: Mapping[str, str],
    ) -> None:
        self._begin(spec, file, response.status, headers)
        for chunk in response.iter_stream():
            file.write(chunk)
        if file.is_short():
            raise _CutError(f"the answer ended after {file.received} bytes")
        if not file.digest_matches() and file.was_resumed:
            # Without a validator the server may have changed the file in between.
            file.restart()
            raise _CutError("the parts do not belong together")
        file.finish()

    def _begin(
        self, spec: InputUrl, file: InputFile, status: int, headers: Mapping[str, str]
    ) -> None:
        """Bring the file in step with the answer that starts now."""
        if status in _TRY_AGAIN:
            raise _CutError(f"the server answered {status}")
        if status == _BAD_RANGE and file.received:
            file.restart()
            raise _CutError("the server cannot go on where it stopped")
        if status not in {_OK, _PARTIAL}:
            raise _input_error(spec.name, f"the server answered {status}")
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise _input_error(spec.name, f"comes encoded as {encoding!r}, unasked")
        if status == _PARTIAL:
            content_range = parse_content_range(headers.get("content-range", ""))
            if not file.goes_on_with(content_range):
                file.restart()
                raise _CutError("the server sent another part than the one asked for")
            return
        file.restart()
        file.expect(headers)


def _parse_url(spec: InputUrl) -> httpx.URL:
    try:
        return httpx.URL(spec.url)
    except (httpx.InvalidURL, ValueError) as exc:
        raise _input_error(spec.name, f"has no valid URL: {exc}") from exc


def _next_url(url: httpx.URL, location: str, spec: InputUrl) -> httpx.URL:
    try:
        target = url.join(location)
    except (httpx.InvalidURL, ValueError) as exc:
        raise _input_error(spec.name, f"is redirected to no valid URL: {exc}") from exc
    if url.scheme == "https" and target.scheme == "http":
        raise _input_error(spec.name, "is redirected from https to http")
    return target


def _wire_url(url: httpx.URL) -> httpcore.URL:
    """Leave the user name and password behind, if the URL had any."""
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _headers(url: httpx.URL, more: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        ("Host", url.netloc.decode("ascii")),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "aitbc-aps-miner"),
        *more.items(),
    ]


def _show(name: str, work_fd: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=work_fd)
    os.symlink(f"../input/{name}", name, dir_fd=work_fd)


def _input_error(name: str, words: str) -> JobError:
    return JobError(ErrorCode.E_INPUT, f"input {name} {words}", {"input": name})


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Call what the disk refuses what it is: this node's want, not the job's fault."""
    try:
        yield
    except OSError as exc:
        words = exc.strerror or str(exc)
        raise JobError(ErrorCode.E_NORES, f"inputs cannot be stored: {words}") from exc
