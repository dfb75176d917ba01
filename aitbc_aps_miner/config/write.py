"""Writes a configuration file: never over another one unasked, never half."""

import os
import secrets
from pathlib import Path


def write_config(path: Path, text: str, *, force: bool, private: bool) -> None:
    """Write `text` to `path`; `private` makes it readable by its owner only.

    A symlink stays one, its target is replaced. Raises FileExistsError without
    `force`, OSError when it cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600 if private else 0o644)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        if force:
            temporary.replace(target)
        else:
            # a link, unlike a rename, refuses a name that came up meanwhile
            target.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
