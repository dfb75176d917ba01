"""Checks a result's bytes against its metadata."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aitbc_aps_miner.reference_coordinator.multipart import Form
from aitbc_aps_miner.reference_coordinator.problems import ProblemError, invalid
from aitbc_aps_miner.reference_coordinator.records import StoredFile
from aitbc_aps_miner.reference_coordinator.spool import SpoolFile
from aitbc_aps_miner.reference_coordinator.uploads import Uploads
from aitbc_aps_miner.reference_coordinator.wire import parse_json

_FILENAME_PREFIX = "artifacts/"


def read_metadata(text: str) -> dict[str, Any]:
    """Parse the metadata field; ProblemError 400 or 422."""
    metadata = parse_json(text)
    if not isinstance(metadata, dict):
        raise invalid("metadata: expected a JSON object", "metadata")
    return metadata


def fingerprint(metadata: Mapping[str, Any]) -> str:
    """Give what makes two results the same outcome: exit code and artifacts.

    Timings and resource use may differ between two sends of one outcome.
    """
    artifacts = sorted(
        [str(entry.get("path")), str(entry.get("sha256"))]
        for entry in _entries(metadata)
    )
    said = json.dumps(["result", metadata.get("exit_code"), artifacts])
    return hashlib.sha256(said.encode()).hexdigest()


def collect(
    form: Form, metadata: Mapping[str, Any], uploads: Uploads
) -> list[StoredFile]:
    """Give the result's files, each as its metadata says; ProblemError 422.

    A part that the metadata does not name, the execution log, is taken as it is.
    """
    parts = {
        name.removeprefix(_FILENAME_PREFIX): (kind, file)
        for name, kind, file in form.files
    }
    stored = []
    for entry in _entries(metadata):
        path, kind = entry.get("path"), entry.get("type")
        if not isinstance(path, str):
            raise invalid(f"metadata: artifact without a path: {entry!r:.200}")
        url = entry.get("upload_url")
        _, file = parts.pop(path, (None, None))
        if isinstance(url, str):
            file = uploads.finished(url)
        if file is None:
            raise invalid(f"artifact {path!r}: neither part nor upload", "missing")
        _verify(path, entry, file)
        stored.append(_stored(path, str(kind or "application/octet-stream"), file))
    stored += [_stored(path, kind, file) for path, (kind, file) in parts.items()]
    return stored


def _entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = metadata.get("artifacts", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise invalid("metadata: artifacts: expected a list of objects", "metadata")
    return entries


def _verify(path: str, entry: Mapping[str, Any], file: SpoolFile) -> None:
    given = {"bytes": file.size_bytes, "sha256": file.sha256}
    for name, value in given.items():
        # [spec] demands both; what is not said can't be compared.
        if name in entry and entry[name] != value:
            raise ProblemError(
                422,
                f"artifact {path!r}: {name}: metadata says {entry[name]!r:.100}, "
                f"received {value}",
                "digest_mismatch",
            )


def _stored(path: str, kind: str, file: SpoolFile) -> StoredFile:
    return StoredFile(
        path=path,
        type=kind,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        file=file.path,
    )
