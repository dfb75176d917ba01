"""Resumable uploads: tus 1.0 core, creation, checksum and termination.

https://tus.io/protocols/resumable-upload. A PATCH without a checksum keeps what came
before a cut; one with a checksum counts as a whole or not at all.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from aitbc_aps_miner.reference_coordinator.problems import (
    ProblemError,
    conflict,
    invalid,
    not_found,
)
from aitbc_aps_miner.reference_coordinator.spool import SpoolFile
from aitbc_aps_miner.reference_coordinator.wire import PREFIX, Site

VERSION = "1.0.0"
MAX_BYTES = 1 << 40
_TUS = {"Tus-Resumable": VERSION}
_OFFER = {
    **_TUS,
    "Tus-Version": VERSION,
    "Tus-Extension": "creation,checksum,termination",
    "Tus-Checksum-Algorithm": "sha256",
    "Tus-Max-Size": str(MAX_BYTES),
}


@dataclass(kw_only=True)
class Upload:
    """One file on its way."""

    length_bytes: int
    metadata: str
    file: SpoolFile
    is_busy: bool = False


class Uploads:
    """The uploads that have been started and not yet become part of a result."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._uploads: dict[str, Upload] = {}
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/uploads", self.offer, methods=["OPTIONS"])
        add("/uploads/{upload_id}", self.offer, methods=["OPTIONS"])
        add("/uploads", self.create, methods=["POST"])
        add("/uploads/{upload_id}", self.head, methods=["HEAD"])
        add("/uploads/{upload_id}", self.patch, methods=["PATCH"])
        add("/uploads/{upload_id}", self.delete, methods=["DELETE"])

    # For results --------------------------------------------------------------

    def finished(self, url: str) -> SpoolFile:
        """Give the bytes of a complete upload; ProblemError 422 for any other."""
        upload = self._uploads.get(_last_segment(url))
        if upload is None:
            raise invalid(f"upload_url: no such upload: {url:.200}", "upload")
        if upload.file.size_bytes != upload.length_bytes:
            raise invalid(
                f"upload_url: {upload.file.size_bytes} of {upload.length_bytes} "
                f"bytes have come: {url:.200}",
                "upload",
            )
        return upload.file

    def release(self, path: Path) -> None:
        """Forget the upload whose file has become a result's."""
        for upload_id, upload in list(self._uploads.items()):
            if upload.file.path == path:
                upload.file.close()
                del self._uploads[upload_id]

    # Routes -------------------------------------------------------------------

    async def offer(self) -> Response:
        """Say what is spoken here."""
        return Response(status_code=204, headers=_OFFER)

    async def create(self, request: Request) -> Response:
        """Start an upload; its bytes come by PATCH."""
        self._enter(request)
        length = _count(request, "upload-length")
        if length > MAX_BYTES:
            raise ProblemError(413, f"over {MAX_BYTES} bytes", "too_large", _TUS)
        upload_id = secrets.token_urlsafe(16)
        self._uploads[upload_id] = Upload(
            length_bytes=length,
            metadata=request.headers.get("upload-metadata", ""),
            file=self._site.spool.new(),
        )
        where = f"{PREFIX}/uploads/{upload_id}"
        return Response(status_code=201, headers={**_TUS, "Location": where})

    async def head(self, request: Request, upload_id: str) -> Response:
        """Say how much has come."""
        upload = self._find(request, upload_id)
        headers = {
            **_TUS,
            "Cache-Control": "no-store",
            "Upload-Offset": str(upload.file.size_bytes),
            "Upload-Length": str(upload.length_bytes),
        }
        if upload.metadata:
            headers["Upload-Metadata"] = upload.metadata
        return Response(status_code=200, headers=headers)

    async def patch(self, request: Request, upload_id: str) -> Response:
        """Take bytes from the offset on."""
        upload = self._find(request, upload_id)
        kind = request.headers.get("content-type", "")
        if kind != "application/offset+octet-stream":
            raise ProblemError(415, f"content type {kind!r}", "content_type", _TUS)
        if upload.is_busy:
            raise ProblemError(423, "another PATCH is running", "busy", _TUS)
        if _count(request, "upload-offset") != upload.file.size_bytes:
            raise conflict(f"the offset is {upload.file.size_bytes}", "offset")
        checksum = _checksum(request)
        upload.is_busy = True
        try:
            await _receive(request, upload, checksum)
        finally:
            upload.is_busy = False
        headers = {**_TUS, "Upload-Offset": str(upload.file.size_bytes)}
        return Response(status_code=204, headers=headers)

    async def delete(self, request: Request, upload_id: str) -> Response:
        """Give an upload up."""
        upload = self._find(request, upload_id)
        del self._uploads[upload_id]
        upload.file.discard()
        return Response(status_code=204, headers=_TUS)

    def _enter(self, request: Request) -> None:
        self._site.node_of(request)
        if request.headers.get("tus-resumable") != VERSION:
            raise ProblemError(412, f"Tus-Resumable: {VERSION} is needed", None, _OFFER)

    def _find(self, request: Request, upload_id: str) -> Upload:
        self._enter(request)
        try:
            return self._uploads[upload_id]
        except KeyError:
            raise not_found("upload") from None


async def _receive(
    request: Request, upload: Upload, checksum: Callable[[bytes], bool] | None
) -> None:
    start = upload.file.mark()
    digest = hashlib.sha256()
    try:
        async for piece in request.stream():
            if upload.file.size_bytes + len(piece) > upload.length_bytes:
                start.restore()
                raise ProblemError(413, "more than Upload-Length", "too_large", _TUS)
            upload.file.write(piece)
            if checksum is not None:
                digest.update(piece)
    except ClientDisconnect:
        if checksum is not None:
            start.restore()
        raise
    if checksum is not None and not checksum(digest.digest()):
        start.restore()
        raise ProblemError(460, "the checksum differs", "checksum", _TUS)


def _checksum(request: Request) -> Callable[[bytes], bool] | None:
    given = request.headers.get("upload-checksum")
    if given is None:
        return None
    algorithm, _, encoded = given.partition(" ")
    try:
        expected = base64.b64decode(encoded, validate=True)
    except binascii.Error as exc:
        raise ProblemError(400, "Upload-Checksum: bad base64", None, _TUS) from exc
    if algorithm != "sha256":
        raise ProblemError(400, f"Upload-Checksum: {algorithm:.40}", None, _TUS)
    return lambda digest: hmac.compare_digest(digest, expected)


def _count(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdecimal()):
        raise ProblemError(400, f"{header}: expected a number", None, _TUS)
    return int(text)


def _last_segment(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]
