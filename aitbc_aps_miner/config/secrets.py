"""Secrets by reference: "env:NAME", "file:/path", or the secret itself.

The configuration holds references, so that it can be logged, compared and handed on;
what they stand for is looked up by whoever needs it, and kept nowhere here.
"""

import os
import re
from collections.abc import Mapping

from aitbc_aps_miner.config.read import Unreadable, read_small
from aitbc_aps_miner.errors import ConfigError, Problem

MASK = "***"
_MAX_BYTES = 64 * 1024
_KEY = "coordinator.auth_token"


def resolve(
    ref: str, environ: Mapping[str, str] = os.environ, *, key: str = _KEY
) -> str:
    """Give the secret that `ref` stands for.

    A file's trailing line break is not part of it. Raises ConfigError, naming `key`
    and what to do, when there is none or when it could not stand in an HTTP header.
    """
    scheme, _, rest = ref.partition(":")
    if scheme == "env":
        secret = environ.get(rest, "")
        given = f"the environment variable {rest}, which is not set or empty"
        remedy = f"set {rest} in the daemon's environment and start it again"
    elif scheme == "file":
        secret, given = _from_file(rest)
        remedy = f"write the secret into {rest}, readable by the daemon's user"
    else:
        secret, given, remedy = ref, "nothing", "write a secret or a reference"
    if not secret:
        raise _error(key, given, remedy)
    if not re.fullmatch(r"[!-~]+", secret):
        raise _error(
            key,
            f"{mask(ref)}, which holds blanks, line breaks or other characters",
            "remove everything that is not part of the secret",
        )
    return secret


def is_reference(ref: str) -> bool:
    """Whether `ref` only says where the secret is."""
    return ref.startswith(("env:", "file:"))


def mask(ref: str) -> str:
    """Give what may be shown of `ref`: a reference as it is, a secret as ***."""
    return ref if is_reference(ref) else MASK


def _from_file(path: str) -> tuple[str, str]:
    """Give the secret in a file, and what to say when there is none."""
    content = read_small(path, _MAX_BYTES)
    if isinstance(content, Unreadable):
        return "", f"{path}: {content.reason}"
    secret = content.decode("utf-8", "replace").rstrip("\r\n")
    return secret, f"{path}, which is empty"


def _error(key: str, given: str, remedy: str) -> ConfigError:
    problem = Problem(
        key=key, line=None, expected="a secret", given=given, remedy=remedy
    )
    return ConfigError((problem,))
