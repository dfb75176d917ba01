"""A client of the reference coordinator: submits jobs, reads them, downloads artifacts.

Used by the demo and by submitters. Every failure is a ClientError in words.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from aitbc_aps_miner.errors import MinerError

PREFIX = "/api/v1"
_TIMEOUT_S = 20
_CHUNK_BYTES = 1 << 20


class ClientError(MinerError):
    """The coordinator could not be reached, or it said no."""


class Client:
    """One coordinator; a context manager that closes its connections."""

    def __init__(self, base_url: str) -> None:
        """Take the coordinator's URL, with or without the API prefix."""
        self.base_url = base_url.rstrip("/").removesuffix(PREFIX)
        # A proxy of the environment is never meant for a coordinator close by.
        self._http = httpx.Client(
            base_url=self.base_url + PREFIX, timeout=_TIMEOUT_S, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def submit(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job; give what the coordinator knows of it."""
        return self._call("POST", "/jobs", json=manifest)

    def job(self, job_id: str) -> dict[str, Any]:
        """Give all about one job."""
        return self._call("GET", f"/jobs/{quote(job_id)}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for a job's end."""
        return self._call("POST", f"/jobs/{quote(job_id)}/cancel")

    def nodes(self) -> list[dict[str, Any]]:
        """List the nodes that ever called."""
        nodes: list[dict[str, Any]] = self._call("GET", "/nodes")["nodes"]
        return nodes

    def artifact_url(self, job_id: str, path: str) -> str:
        """Give the address of an artifact, also of one that is yet to come."""
        return f"{self.base_url}{PREFIX}{_artifact(job_id, path)}"

    def download(self, job_id: str, path: str, target: Path) -> str:
        """Write an artifact to `target`; give its SHA-256 as received."""
        digest = hashlib.sha256()
        try:
            with (
                self._http.stream("GET", _artifact(job_id, path)) as answer,
                target.open("wb") as file,
            ):
                if answer.is_error:
                    answer.read()
                    raise ClientError(_words(answer))
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        except (httpx.HTTPError, OSError) as exc:
            raise ClientError(f"{path} of {job_id}: {exc}") from exc
        return digest.hexdigest()

    def _call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **rest)
        except httpx.HTTPError as exc:
            raise ClientError(f"{self.base_url}: {exc}") from exc
        if answer.is_error:
            raise ClientError(_words(answer))
        try:
            content = answer.json()
        except ValueError as exc:
            raise ClientError(f"{answer.url}: the answer is not JSON") from exc
        if not isinstance(content, dict):
            raise ClientError(f"{answer.url}: the answer is not an object")
        return content


def _artifact(job_id: str, path: str) -> str:
    return f"/jobs/{quote(job_id)}/artifacts/{quote(path)}"


def _words(answer: httpx.Response) -> str:
    """Put a refusal in words: the problem's detail where there is one."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    return f"{answer.url}: {answer.status_code}: {detail}"
