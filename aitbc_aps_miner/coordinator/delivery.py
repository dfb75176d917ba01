"""An outcome on its way to the coordinator: result by multipart and tus, or failure."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitbc_aps_miner.coordinator.multipart import FilePart, Multipart
from aitbc_aps_miner.coordinator.retry import check_refused, retrying
from aitbc_aps_miner.coordinator.text import dumps
from aitbc_aps_miner.coordinator.transport import Body, Transport
from aitbc_aps_miner.coordinator.tus import TusUploader
from aitbc_aps_miner.coordinator.wire import Taken, read_answer
from aitbc_aps_miner.errors import (
    ErrorCode,
    JobGoneError,
    RefusedError,
    WorkspaceError,
)
from aitbc_aps_miner.models import ArtifactFile, Outcome

LOG_PATH = "logs/exec.log"

_FINAL = 409
"""Already final: success for us."""
_GONE = frozenset({404, 410})
_FOR_GOOD = frozenset({0, 400, 413, 415, 422})
"""What condemns this outcome. Any other refusal (a redirect, a 405) is of the server's
making and may pass: the outcome is kept and tried again."""
_BY_OTHER_WAY = frozenset({413, 422})
"""What an upload by tus may get around."""
_TAIL_BYTES = 4096
_TRIES = 2
"""One repeat at once, for a connection that broke; more is the delivery tick's."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One file of a result; `entry` is its line in the metadata."""

    entry: Mapping[str, Any]
    path: Path
    upload_url: str | None = field(default=None)

    @property
    def size_bytes(self) -> int:
        return int(self.entry["bytes"])

    def part(self) -> FilePart:
        return FilePart(
            field="artifact",
            filename=f"artifacts/{self.entry['path']}",
            content_type=self.entry["type"],
            path=self.path,
            size_bytes=self.size_bytes,
        )

    def line(self) -> dict[str, Any]:
        url = {} if self.upload_url is None else {"upload_url": self.upload_url}
        return {**self.entry, **url}


class Delivery:
    """Submits outcomes of one node."""

    def __init__(
        self,
        transport: Transport,
        node_id: str,
        *,
        uploads_offered: Callable[[], bool],
        resumable_above_bytes: float,
    ) -> None:
        self._transport = transport
        self._node_id = node_id
        self._uploads_offered = uploads_offered
        self._resumable_above_bytes = resumable_above_bytes

    def result(
        self,
        outcome: Outcome,
        open_artifact: Callable[[ArtifactFile], Path],
        log: Path,
    ) -> None:
        """Submit a success; see ports.Coordinator.deliver."""
        try:
            items = [_log_item(log)] + [
                _Item(entry=_entry(artifact), path=open_artifact(artifact))
                for artifact in outcome.artifacts
            ]
            self._send(outcome, items)
        except WorkspaceError as error:
            # What was collected is no more: no repetition brings it back.
            raise RefusedError(str(error), status=0) from error

    def fail(self, outcome: Outcome, log: Path) -> None:
        """Submit a failure; see ports.Coordinator.deliver."""
        tail = _tail(log)
        self.fail_with(
            outcome.job_id,
            outcome.attempt,
            outcome.code or ErrorCode.E_INTERNAL,
            outcome.message,
            {
                **outcome.detail,
                "exit_code": outcome.exit_code,
                "timings": outcome.timings,
                "resources": outcome.resources,
                "receipt": outcome.receipt,
                "sandbox": outcome.sandbox,
                "cleanup": outcome.cleanup,
                **({"log_tail": tail} if tail else {}),
            },
        )

    def fail_with(
        self,
        job_id: str,
        attempt: int,
        code: ErrorCode,
        message: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Submit a failure in the contract's words."""
        value = {
            "job_id": job_id,
            "error_code": code,
            "error_msg": message,
            "logs_ref": f"{self._node_id}/{job_id}/{LOG_PATH}",
            "node_id": self._node_id,
            "attempt": attempt,
            "retryable": code.retryable,
            "detail": detail,
        }
        self._post("jobs/fail", f"{job_id}:{attempt}", json=value)

    def _send(self, outcome: Outcome, items: list[_Item]) -> None:
        large = [item.size_bytes > self._resumable_above_bytes for item in items]
        tus = any(large) and self._uploads_offered()
        if tus:
            items = self._uploaded(outcome, items, large)
        try:
            self._post_result(outcome, items)
        except RefusedError as refused:
            rest = [item.upload_url is None for item in items[1:]]
            other_way = refused.status in _BY_OTHER_WAY and any(rest)
            if not (other_way and (tus or self._uploads_offered())):
                raise
            everything = self._uploaded(outcome, items, [False, *rest])
            self._post_result(outcome, everything)

    def _uploaded(
        self, outcome: Outcome, items: list[_Item], chosen: list[bool]
    ) -> list[_Item]:
        """Upload the chosen items and give all, with their URLs."""
        uploader = TusUploader(self._transport)
        return [
            _Item(
                entry=item.entry,
                path=item.path,
                upload_url=uploader.upload(
                    item.path,
                    item.size_bytes,
                    {
                        "filename": str(item.entry["path"]),
                        "filetype": str(item.entry["type"]),
                        "job_id": outcome.job_id,
                        "attempt": str(outcome.attempt),
                        "sha256": str(item.entry["sha256"]),
                    },
                ),
            )
            if choose
            else item
            for item, choose in zip(items, chosen, strict=True)
        ]

    def _post_result(self, outcome: Outcome, items: list[_Item]) -> None:
        metadata = {
            "node_id": self._node_id,
            "attempt": outcome.attempt,
            "exit_code": outcome.exit_code,
            "timings": outcome.timings,
            "resources": outcome.resources,
            "log": items[0].line(),
            "artifacts": [item.line() for item in items[1:]],
            "receipt": outcome.receipt,
            "sandbox": outcome.sandbox,
            "cleanup": outcome.cleanup,
            "detail": outcome.detail,
        }
        fields = {"job_id": outcome.job_id, "metadata": dumps(metadata).decode()}
        parts = [item.part() for item in items if item.upload_url is None]
        body = Multipart(fields, parts)
        self._post("jobs/result", outcome.idempotency_key, body=body)

    def _post(
        self, path: str, key: str, *, json: Any = None, body: Body | None = None
    ) -> None:
        # An unusable job id may be nothing a header can carry: then without a key.
        sendable = key.isascii() and key.isprintable()
        headers = {"Idempotency-Key": key} if sendable else {}

        def once() -> None:
            reply = self._transport.call(
                "POST",
                path,
                json=json,
                body=body,
                headers=headers,
                expect=frozenset({_FINAL}),
            )
            if reply.status != _FINAL:
                # A portal's page comes with 200, too: it has not taken anything.
                read_answer(Taken, reply)

        try:
            retrying(
                once,
                clock=self._transport.clock,
                tries=_TRIES,
                within_s=self._transport.timeout_s,
            )
        except RefusedError as refused:
            if refused.status in _GONE:
                raise JobGoneError(str(refused)) from refused
            raise check_refused(refused, _FOR_GOOD) from refused


def _entry(artifact: ArtifactFile) -> dict[str, Any]:
    stdout = {"source": "stdout"} if artifact.source == "stdout" else {}
    return {
        "path": artifact.path,
        "type": artifact.type,
        "bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        **stdout,
    }


def _log_item(log: Path) -> _Item:
    """Give the execution log; an empty one where there is none.

    A coordinator of the specification alone demands one file in every result.
    """
    path = log if log.is_file() else Path(os.devnull)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            size_bytes = file.tell()
    except OSError as error:
        raise WorkspaceError(f"{log.name} cannot be read: {error}") from error
    entry = {
        "path": LOG_PATH,
        "type": "text/plain",
        "bytes": size_bytes,
        "sha256": digest.hexdigest(),
    }
    return _Item(entry=entry, path=path)


def _tail(log: Path) -> str:
    """Give the end of the log: what a job's owner asks for first after a failure."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
