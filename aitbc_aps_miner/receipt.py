"""What the node states about a job, in one form and signed.

The signature is Ed25519 over the RFC 8785 canonical JSON of the receipt without its
member `signature`; anyone with the public key can check it without this project.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.identity import Identity, b64url
from aitbc_aps_miner.models import ArtifactFile, Manifest, Outcome
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util.words import utc_text

ALGORITHM = "Ed25519"


class Signer:
    """Signs this node's receipts of one job."""

    def __init__(
        self,
        identity: Identity,
        *,
        node_id: str,
        version: str,
        clock: Clock,
        manifest_digest: str | None = None,
    ) -> None:
        self._identity = identity
        self._node_id = node_id
        self._version = version
        self._clock = clock
        self._manifest_digest = manifest_digest

    def sign_receipt(self, outcome: Outcome, manifest: Manifest) -> Mapping[str, Any]:
        """Give the signed receipt of `outcome`.

        Raises JobError E_INTERNAL when a value in it has no canonical form (NaN, an
        integer that a double cannot hold).
        """
        receipt = {
            "version": self._version,
            "node_id": self._node_id,
            "job_id": manifest.job_id,
            "attempt": manifest.attempt,
            "runner": manifest.runner,
            "manifest_digest": self._manifest_digest,
            "succeeded": outcome.succeeded,
            "code": None if outcome.code is None else outcome.code.value,
            "exit_code": outcome.exit_code,
            "artifacts": [_artifact(file) for file in outcome.artifacts],
            "timings": dict(outcome.timings),
            "resources": dict(outcome.resources),
            "sandbox": outcome.sandbox,
            "cleanup": dict(outcome.cleanup),
            "issued_at": utc_text(self._clock.realtime()),
        }
        try:
            message = canonical(receipt)
        except ValueError as exc:
            raise JobError(
                ErrorCode.E_INTERNAL, f"the receipt cannot be signed: {exc}"
            ) from exc
        signature = {
            "alg": ALGORITHM,
            "key_id": self._identity.public_key_b64url,
            "sig": b64url(self._identity.sign(message)),
        }
        return {**receipt, "signature": signature}


def canonical(value: Any) -> bytes:
    """Write RFC 8785 canonical JSON; ValueError for what has no such form."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as exc:
        raise ValueError(f"no canonical JSON: {exc}") from exc


def manifest_digest(raw: Mapping[str, Any]) -> str | None:
    """Give the SHA-256 of a manifest without `manifest_sig` and `secrets`.

    Secrets are left out because a receipt is for anyone to read and a digest of
    something short can be guessed. None when the manifest has no canonical form.
    """
    left_out = {"manifest_sig", "secrets"}
    plain = {key: value for key, value in raw.items() if key not in left_out}
    try:
        return hashlib.sha256(canonical(plain)).hexdigest()
    except ValueError:
        return None


def verify(receipt: Mapping[str, Any], public_key: str | None = None) -> bool:
    """Whether the receipt is signed by `public_key` (base64url).

    Without `public_key` by the key that it names itself: that tells that nothing was
    changed, not who signed.
    """
    signature = receipt.get("signature")
    if not isinstance(signature, Mapping) or signature.get("alg") != ALGORITHM:
        return False
    key_id = signature.get("key_id")
    if public_key is not None and key_id != public_key:
        return False
    signed = {key: value for key, value in receipt.items() if key != "signature"}
    try:
        key = Ed25519PublicKey.from_public_bytes(_unb64url(key_id))
        key.verify(_unb64url(signature.get("sig")), canonical(signed))
    except (InvalidSignature, ValueError):
        return False
    return True


def _artifact(file: ArtifactFile) -> dict[str, Any]:
    return {"path": file.path, "sha256": file.sha256, "bytes": file.size_bytes}


def _unb64url(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("not base64url")  # noqa: TRY004  callers know ValueError only
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise ValueError(f"not base64url: {exc}") from exc
