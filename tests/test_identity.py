"""The node's key: the standard's own vectors, one file, never a second one."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aitbc_aps_miner.errors import IdentityError
from aitbc_aps_miner.identity import Identity, b64url, load_or_create

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "identity.json").read_text()
)


@pytest.mark.parametrize(
    "vector", VECTORS["ed25519_rfc8032"]["vectors"], ids=lambda vector: vector["name"]
)
def test_the_standards_signatures_come_out(vector: dict[str, Any]) -> None:
    """RFC 8032 section 7.1, byte for byte."""
    identity = Identity(bytes.fromhex(vector["seed_hex"]))
    signature = identity.sign(bytes.fromhex(vector["message_hex"]))
    assert signature.hex() == vector["signature_hex"]
    public = bytes.fromhex(vector["public_key_hex"])
    assert identity.public_key_b64url == b64url(public)


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    """The second start has the key of the first; only its owner can read it."""
    path = tmp_path / "new" / "identity.key"
    first = load_or_create(path)
    second = load_or_create(path)
    assert first.public_key_b64url == second.public_key_b64url
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 32
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_two_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Whoever comes second takes the key of the first."""
    path = tmp_path / "identity.key"
    barrier = threading.Barrier(8)
    keys: list[str] = []

    def start() -> None:
        barrier.wait()
        keys.append(load_or_create(path).public_key_b64url)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The remedy is named, the file stays as it is."""
    path = tmp_path / "identity.key"
    load_or_create(path)
    before = path.read_bytes()
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_or_create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 100])
def test_a_damaged_key_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    """A new key would be another node: a person decides."""
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="expected 32 bytes"):
        load_or_create(path)
    assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a file")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    """Somebody who owns the file can know and change the key."""
    path = tmp_path / "identity.key"
    load_or_create(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(IdentityError, match="belongs to uid 12345"):
        load_or_create(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory or a FIFO is no key, a folder that is a file holds none."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("", "fifo"):
        with pytest.raises(IdentityError, match="not a regular file"):
            load_or_create(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match=r"security\.identity_file"):
        load_or_create(tmp_path / "file" / "identity.key")


def test_a_mounted_secret_may_be_a_link(tmp_path: Path) -> None:
    """Secret stores mount their files as links; the target is what is judged."""
    key = load_or_create(tmp_path / "real.key")
    (tmp_path / "identity.key").symlink_to("real.key")
    linked = load_or_create(tmp_path / "identity.key")
    assert linked.public_key_b64url == key.public_key_b64url


def test_the_seed_is_never_shown() -> None:
    """A log line with an identity in it gives nothing away."""
    seed = bytes(range(32))
    shown = repr(Identity(seed)) + str(vars(Identity(seed)))
    assert seed.hex() not in shown
    assert b64url(seed) not in shown
    assert "***" in shown
