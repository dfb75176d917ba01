"""Receipts: one canonical form, signed, and nothing in them can be changed."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.identity import Identity
from aitbc_aps_miner.models import ArtifactFile, Manifest, Outcome
from aitbc_aps_miner.receipt import Signer, canonical, manifest_digest, verify

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "identity.json").read_text()
)["jcs_rfc8785"]
IDENTITY = Identity(bytes(range(32)))
MANIFEST = Manifest(job_id="job-1", attempt=2, runner="cli", timeout_s=5)
OUTCOME = Outcome(
    job_id="job-1",
    attempt=2,
    succeeded=False,
    code=ErrorCode.E_EXIT,
    exit_code=3,
    timings={"RUNNING": 1.25},
    resources={"cpu_s": 0.5},
    artifacts=(
        ArtifactFile(
            path="a", type="t", size_bytes=1, sha256="00", stored=".artifacts/1"
        ),
    ),
    sandbox="bwrap",
    cleanup={"tree_empty": True},
)


class FakeClock:
    """A clock that stands."""

    def realtime(self) -> float:
        return 1_700_000_000.25

    def monotonic(self) -> float:
        return 0.0

    def boottime(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError


SIGNER = Signer(
    IDENTITY,
    node_id="node-1",
    version="0.1.0",
    clock=FakeClock(),
    manifest_digest="ab" * 32,
)


@pytest.mark.parametrize("vector", VECTORS["documents"], ids=lambda one: one["name"])
def test_documents_have_the_standards_form(vector: dict[str, Any]) -> None:
    """The RFC 8785 author's own documents, byte for byte."""
    value = json.loads(vector["input_json"])
    assert canonical(value).hex() == vector["canonical_hex"]


@pytest.mark.parametrize("vector", VECTORS["numbers"], ids=lambda one: one["jcs"])
def test_numbers_have_the_standards_form(vector: dict[str, Any]) -> None:
    """RFC 8785 appendix B."""
    (number,) = struct.unpack(">d", bytes.fromhex(vector["ieee754_hex"]))
    assert canonical(number).decode() == vector["jcs"]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", {"a": object()}]
)
def test_what_has_no_form_is_an_error(value: Any) -> None:
    """NaN, infinities, large integers, half characters, strangers."""
    with pytest.raises(ValueError, match="canonical"):
        canonical(value)


def test_a_receipt_says_all_and_is_signed() -> None:
    """Whole value, signature checked with the node's key and with the named one."""
    receipt = SIGNER.sign_receipt(OUTCOME, MANIFEST)
    signature = receipt["signature"]
    assert {key: value for key, value in receipt.items() if key != "signature"} == {
        "version": "0.1.0",
        "node_id": "node-1",
        "job_id": "job-1",
        "attempt": 2,
        "runner": "cli",
        "manifest_digest": "ab" * 32,
        "succeeded": False,
        "code": "E_EXIT",
        "exit_code": 3,
        "artifacts": [{"path": "a", "sha256": "00", "bytes": 1}],
        "timings": {"RUNNING": 1.25},
        "resources": {"cpu_s": 0.5},
        "sandbox": "bwrap",
        "cleanup": {"tree_empty": True},
        "issued_at": "2023-11-14T22:13:20.250Z",
    }
    assert signature["alg"] == "Ed25519"
    assert signature["key_id"] == IDENTITY.public_key_b64url
    assert verify(receipt)
    assert verify(receipt, IDENTITY.public_key_b64url)
    assert not verify(receipt, Identity(bytes(32)).public_key_b64url)
    assert verify(json.loads(json.dumps(receipt)))


@given(st.sampled_from(sorted(SIGNER.sign_receipt(OUTCOME, MANIFEST))), st.text())
def test_no_member_can_be_changed(member: str, value: str) -> None:
    """Another value, or a member left out, breaks the signature."""
    receipt = dict(SIGNER.sign_receipt(OUTCOME, MANIFEST))
    if receipt[member] != value:
        assert not verify({**receipt, member: value})
    del receipt[member]
    assert not verify(receipt)


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "HMAC"},
        {"key_id": None},
        {"key_id": "é"},
        {"key_id": "AAAA"},
        {"sig": "****"},
        {"sig": "AAAA"},
    ],
)
def test_a_broken_signature_is_just_wrong(change: dict[str, Any]) -> None:
    """Rubbish from the wire is answered, not raised."""
    receipt = SIGNER.sign_receipt(OUTCOME, MANIFEST)
    assert not verify({**receipt, "signature": {**receipt["signature"], **change}})


def test_a_receipt_with_no_form_is_a_defect() -> None:
    """A NaN in the measurements is ours, and said so."""
    odd = Outcome(job_id="j", attempt=1, succeeded=True, resources={"x": float("nan")})
    with pytest.raises(JobError) as refused:
        SIGNER.sign_receipt(odd, MANIFEST)
    assert refused.value.code is ErrorCode.E_INTERNAL


def test_the_digest_of_a_manifest_leaves_secrets_out() -> None:
    """Secrets and signature do not count, the order of members neither."""
    digest = manifest_digest({"b": 1, "a": 2})
    assert digest == (
        "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    )
    assert manifest_digest({"a": 2, "secrets": {"K": "v"}, "b": 1}) == digest
    assert manifest_digest({"a": 2, "manifest_sig": {}, "b": 1}) == digest
    assert manifest_digest({"a": 2**60}) is None
