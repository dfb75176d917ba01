"""One input on its way to the disk: capped, hashed, resumable; no network here."""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aitbc_aps_miner.util import fs

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Mismatch(Exception):  # noqa: N818  an observation, not a failure of ours
    """The bytes are not what was announced; the text says how."""


def parse_content_range(value: str) -> tuple[int, int | None] | None:
    """Give (first byte, whole length if told) of a Content-Range; None for none."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    return int(match[1]), None if match[3] == "*" else int(match[3])


class InputFile:
    """`.name.part` in the input directory until it is whole, then `name`.

    A context: what is not finished when it ends is removed. Raises Mismatch for bytes
    that are not as announced, OSError for what the disk refuses.
    """

    def __init__(
        self,
        name: str,
        input_fd: int,
        *,
        cap_bytes: int,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> None:
        fs.plain_parts(name)
        self._name = name
        self._part = f".{name}.part"
        self._input_fd = input_fd
        self._cap_bytes = cap_bytes if size_bytes is None else size_bytes
        self._size_bytes = size_bytes
        self._sha256 = sha256
        self._total: int | None = None
        self._validator: str | None = None
        self.received = 0
        self.was_resumed = False
        self._digest = hashlib.sha256()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=input_fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._fd = fs.open_beneath(input_fd, self._part, flags, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._input_fd)

    def resume_headers(self) -> Mapping[str, str]:
        """Give the headers that ask for the rest, or start over and give none.

        With neither a validator nor a digest two parts of different files could be
        joined unnoticed.
        """
        if self.received and self._validator:
            return {
                "Range": f"bytes={self.received}-",
                "If-Range": self._validator,
            }
        if self.received and self._sha256:
            return {"Range": f"bytes={self.received}-"}
        self.restart()
        return {}

    def restart(self) -> None:
        """Forget every byte."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self._total = None
        self._validator = None
        self.received = 0
        self.was_resumed = False

    def expect(self, headers: Mapping[str, str]) -> None:
        """Take note of the length and the validator of a whole answer."""
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            self._total = int(length)
            self._refuse_over_cap(self._total)
            self._refuse_other_size(self._total)
        etag = headers.get("etag", "")
        strong = etag.startswith('"')  # a weak one does not promise the same bytes
        self._validator = etag if strong else headers.get("last-modified")

    def goes_on_with(self, content_range: tuple[int, int | None] | None) -> bool:
        """Whether a partial answer is the rest of this very file."""
        if content_range is None or not self.received:
            return False
        first, total = content_range
        same = self._total is None or total is None or total == self._total
        if first != self.received or not same:
            return False
        self.was_resumed = True
        self._total = self._total or total
        return True

    def write(self, data: bytes) -> None:
        """Append and hash. Raises Mismatch at the cap."""
        self._refuse_over_cap(self.received + len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.received += len(data)

    def is_short(self) -> bool:
        """Whether bytes are missing that were announced."""
        announced = self._total if self._size_bytes is None else self._size_bytes
        return announced is not None and self.received < announced

    def digest_matches(self) -> bool:
        """Whether the bytes have the announced digest, if one was announced."""
        return self._sha256 is None or self._digest.hexdigest() == self._sha256.lower()

    def finish(self) -> None:
        """Give the file its name. Raises Mismatch for a wrong size or digest."""
        self._refuse_other_size(self.received)
        if not self.digest_matches():
            raise Mismatch(
                f"has the digest {self._digest.hexdigest()}, "
                f"announced was {self._sha256}"
            )
        os.rename(
            self._part,
            self._name,
            src_dir_fd=self._input_fd,
            dst_dir_fd=self._input_fd,
        )

    def _refuse_over_cap(self, size_bytes: int) -> None:
        if size_bytes > self._cap_bytes:
            raise Mismatch(f"has more than the {self._cap_bytes} bytes it may have")

    def _refuse_other_size(self, size_bytes: int) -> None:
        if self._size_bytes is not None and size_bytes != self._size_bytes:
            raise Mismatch(f"has {size_bytes} bytes, announced were {self._size_bytes}")
