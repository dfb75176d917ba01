"""The node's Ed25519 key: made once, guarded by its file mode, never shown.

The file is the 32-byte seed of RFC 8032, nothing else. A file that cannot be used is
an error with its remedy; a new key in its place would be another node.
"""

import base64
import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aitbc_aps_miner.errors import IdentityError
from aitbc_aps_miner.util import fs

SEED_BYTES = 32


class Identity:
    """A key pair that can sign."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public_key_b64url = b64url(public)

    def sign(self, message: bytes) -> bytes:
        """Give the 64-byte signature of `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity(public_key={self.public_key_b64url}, seed=***)"


def load_or_create(path: Path) -> Identity:
    """Load the key at `path`; make it when there is none. Raises IdentityError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return _load(path)
        _create(path)
        return _load(path)
    except OSError as exc:
        raise IdentityError(
            f"identity {path}: {exc.strerror or exc}; make it a file of this user's "
            "or set security.identity_file to another path"
        ) from exc


def b64url(data: bytes) -> str:
    """Write base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _load(path: Path) -> Identity:
    # Links are followed on purpose: secret stores mount files as links.
    with fs.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        _check_guarded(path, os.fstat(fd))
        seed = os.read(fd, SEED_BYTES + 1)
    if len(seed) != SEED_BYTES:
        raise IdentityError(
            f"identity {path}: expected {SEED_BYTES} bytes, given {len(seed)} or more; "
            "restore it from a backup, or remove it to become a new node"
        )
    return Identity(seed)


def _check_guarded(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IdentityError(f"identity {path}: not a regular file; name another path")
    if found.st_uid != os.geteuid():
        raise IdentityError(
            f"identity {path}: belongs to uid {found.st_uid}, expected "
            f"{os.geteuid()}; chown it, or run as its owner"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise IdentityError(
            f"identity {path}: mode {mode:04o} lets others at the key, expected "
            f"0600; chmod 600 {path}, and consider the key known if others had access"
        )


def _create(path: Path) -> None:
    """Put a complete file in place, or leave the one that another process put there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fs.write_durable(draft, secrets.token_bytes(SEED_BYTES))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
        fs.fsync_dir(path.parent)
