"""Resumable uploads: tus 1.0, core and creation (https://tus.io/protocols).

An upload goes on at the byte the server has, also in another process: its URL is kept
in a small file beside the artifact. No checksum is sent per PATCH: the result's
metadata carries the digest of the whole, and hashing each piece before it is sent would
halve the rate.
"""

import contextlib
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aitbc_aps_miner.coordinator.answer import Reply
from aitbc_aps_miner.coordinator.multipart import READ_BYTES, read_exactly
from aitbc_aps_miner.coordinator.retry import may_retry
from aitbc_aps_miner.coordinator.transport import Transport
from aitbc_aps_miner.errors import CoordinatorError, RefusedError, UnavailableError

_VERSION = {"Tus-Resumable": "1.0.0"}
_PATCH_BYTES = 64 * READ_BYTES
"""One PATCH: what a proxy that buffers whole requests has to hold."""
_TRIES = 6
"""Failures in a row without one new byte; with the pauses below about 6 s."""
_PAUSE_S = 0.2
_ASK_AGAIN = frozenset({409, 423})
"""At another byte than we thought, or still busy with a PATCH that was cut."""


class TusUploader:
    """Uploads files to one coordinator."""

    def __init__(
        self, transport: Transport, *, patch_bytes: int = _PATCH_BYTES
    ) -> None:
        self._transport = transport
        self._patch_bytes = patch_bytes

    def offered(self) -> bool:
        """Whether the coordinator speaks tus with creation. May raise."""
        try:
            reply = self._transport.call("OPTIONS", "uploads", headers=_VERSION)
        except RefusedError:
            return False
        return "creation" in reply.headers.get("Tus-Extension", "")

    def upload(self, path: Path, size_bytes: int, about: Mapping[str, str]) -> str:
        """Upload a file, or go on with it; give the upload's URL.

        Raises UnavailableError when it has to be tried again later (what has arrived
        stays), RefusedError when the server will not have it, WorkspaceError when the
        file is not what was announced.
        """
        url, offset = _remembered(path, size_bytes), -1
        best = failures = 0
        while offset < size_bytes:
            try:
                if url is None:
                    url, offset = self._create(size_bytes, about), 0
                    _remember(path, size_bytes, url)
                elif offset < 0:
                    offset = self._offset(url, size_bytes)
                else:
                    offset = self._patch(url, path, size_bytes, offset)
            except CoordinatorError as error:
                failures += 1
                gone = url is not None and _is_gone(error)
                if failures == _TRIES or not (gone or _may_go_on(error)):
                    raise
                url, offset = None if gone else url, -1
                self._transport.clock.sleep(_PAUSE_S * 2 ** (failures - 1))
            if offset > best:
                best, failures = offset, 0
        assert url is not None, "the loop ends with an upload"
        return url

    def _create(self, size_bytes: int, about: Mapping[str, str]) -> str:
        metadata = ",".join(
            f"{key} {b64encode(value.encode('utf-8', 'replace')).decode()}"
            for key, value in about.items()
        )
        headers = {"Upload-Length": str(size_bytes), "Upload-Metadata": metadata}
        reply = self._transport.call("POST", "uploads", headers=_VERSION | headers)
        location = reply.headers.get("Location")
        if not location:
            raise UnavailableError("answer not understood: an upload without Location")
        return str(self._transport.resolve(location))

    def _offset(self, url: str, size_bytes: int) -> int:
        reply = self._transport.call("HEAD", url, headers=_VERSION)
        return _offset_in(reply, size_bytes)

    def _patch(self, url: str, path: Path, size_bytes: int, offset: int) -> int:
        end = min(size_bytes, offset + self._patch_bytes)
        reply = self._transport.call(
            "PATCH",
            url,
            body=_Piece(path=path, size_bytes=size_bytes, start=offset, end=end),
            headers={**_VERSION, "Upload-Offset": str(offset)},
        )
        arrived = _offset_in(reply, size_bytes)
        if arrived <= offset:
            raise UnavailableError(f"the upload does not move on from byte {offset}")
        return arrived


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A stretch of a file as a request body."""

    path: Path
    size_bytes: int
    start: int
    end: int
    content_type: str = "application/offset+octet-stream"

    @property
    def length(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[bytes]:
        whole, rest = divmod(self.length, READ_BYTES)
        pieces = read_exactly(self.path, self.size_bytes, self.start)
        yield from islice(pieces, whole)
        if rest:
            yield next(pieces)[:rest]
        if self.end == self.size_bytes:
            # Runs its last check: that the file has not changed meanwhile.
            yield from pieces


def _offset_in(reply: Reply, size_bytes: int) -> int:
    text = reply.headers.get("Upload-Offset", "")
    if not (text.isascii() and text.isdigit() and int(text[:19]) <= size_bytes):
        raise UnavailableError(f"answer not understood: Upload-Offset {text[:40]!r}")
    return int(text)


def _is_gone(error: CoordinatorError) -> bool:
    """Whether the upload's URL is no more, or of an origin that was left (0)."""
    return isinstance(error, RefusedError) and error.status in (0, 404, 410)


def _may_go_on(error: CoordinatorError) -> bool:
    if isinstance(error, RefusedError):
        return error.status in _ASK_AGAIN
    return may_retry(idempotent=True, error=error)


def _note(path: Path) -> Path:
    """Name the file that keeps the URL; no artifact's name begins with a dot."""
    return path.with_name(f".{path.name}.upload")


def _remembered(path: Path, size_bytes: int) -> str | None:
    try:
        note = json.loads(_note(path).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or note.get("bytes") != size_bytes:
        return None
    url = note.get("url")
    return url if isinstance(url, str) else None


def _remember(path: Path, size_bytes: int, url: str) -> None:
    # Without the note a later process starts at byte 0, which costs time only.
    with contextlib.suppress(OSError):
        _note(path).write_text(json.dumps({"url": url, "bytes": size_bytes}))
