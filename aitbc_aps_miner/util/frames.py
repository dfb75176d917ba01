"""Frames between processes: four bytes of length, then one JSON object.

JSON and not pickle, since what a tick says must never run code in the daemon; capped,
since a broken length must never become an allocation.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

MAX_FRAME_BYTES = 8 * 1024 * 1024
"""Far above any configuration or manifest, far below what would hurt."""

_HEADER = struct.Struct(">I")
_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class FrameError(ValueError):
    """The bytes are no frame, or what should become one cannot."""


def encode(frame: Mapping[str, Any]) -> bytes:
    """Give the bytes of `frame`. Raises FrameError when JSON can't say it."""
    try:
        body = _compact(frame).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise FrameError(f"not expressible as JSON: {exc}") from exc
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(body)} bytes, at most {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(body)) + body


def decode(body: bytes) -> dict[str, Any]:
    """Read one frame without its header. Raises FrameError when it is none."""
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise FrameError(f"not JSON: {exc}") from exc
    if not isinstance(frame, dict) or not isinstance(frame.get("kind"), str):
        raise FrameError("not an object with a kind")
    return frame


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_inside_frame(self) -> bool:
        """Whether the stream ended, if it ended now, in the middle of a frame."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take `data`, give the frames complete now. Raises FrameError."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(decode(bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return frames
