"""Where log lines end: a stream or a file that may vanish, fill up or be rotated.

A sink's write never raises; it may block, so the daemon keeps its sinks behind a queue
(log_queue.py). One thread at a time. Rendering is chosen here: JSON lines for machines,
one readable line for people.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

LINE_MAX = 262_144
"""Characters of one JSON line; many values of allowed size must not add up further."""

_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "1;31"}


class Sink(Protocol):
    """Takes records: gives each its form, then puts it where it belongs."""

    def render(self, record: Mapping[str, Any]) -> bytes:
        """Give a record's line."""
        ...

    def put(self, line: bytes) -> str | None:
        """Write one line; give a problem once when writing starts to fail."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


def render_json(record: Mapping[str, Any]) -> bytes:
    """Give one JSON line; lone surrogates become escapes, which is still JSON."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    if len(text) > LINE_MAX:
        shorter = {**record, "attrs": {"truncated": text[:8192]}}
        text = json.dumps(shorter, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def render_pretty(record: Mapping[str, Any], *, colours: bool) -> bytes:
    """Give a line for people: local order, values as `key=value`, traceback below."""

    def paint(code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colours else text

    attrs = dict(record["attrs"])
    exception = attrs.pop("exception", None)
    if record["job_id"] is not None:
        attrs = {"job_id": record["job_id"], **attrs}
    fields = " ".join(f"{paint('36', _plain(k))}={_word(v)}" for k, v in attrs.items())
    level = record["level"]
    head = (
        f"{paint('2', record['ts'][11:])} {paint(_COLOURS[level], f'{level:<7}')} "
        f"{paint('1', _plain(record['event']))}"
    )
    text = f"{head} {fields}" if fields else head
    if exception is not None:
        below = "\n".join(map(_plain, str(exception).split("\n")))
        text = f"{text}\n{below}"
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _word(value: Any) -> str:
    harmless = isinstance(value, str) and value.isprintable()
    if harmless and value and " " not in value:
        return str(value)
    # json.dumps escapes every control character but DEL.
    return json.dumps(value, ensure_ascii=not harmless).replace("\x7f", "\\u007f")


def _plain(text: str) -> str:
    """Take the terminal's control characters out: names may come from the wire."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class StreamSink:
    """Standard output, or any text stream; a reader that went away is tolerated."""

    def __init__(self, stream: TextIO, *, json_lines: bool) -> None:
        self.json_lines = json_lines
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._fd: int | None
        try:
            self._fd = stream.fileno()
        except (OSError, ValueError):
            self._fd = None

    def render(self, record: Mapping[str, Any]) -> bytes:
        """Give JSON unless a person reads it."""
        if self.json_lines and not self._is_terminal:
            return render_json(record)
        return render_pretty(record, colours=self._is_terminal)

    def put(self, line: bytes) -> str | None:
        """Write one line, or lose it."""
        # EPIPE (reader gone), ENOSPC (redirected to a full disk), EAGAIN, a closed
        # stream: there is nowhere left to say it, and the work goes on.
        with contextlib.suppress(OSError, ValueError):
            self._put(line)
        return None

    def close(self) -> None:
        """Leave the stream to its owner."""

    def _put(self, line: bytes) -> None:
        if self._fd is None:
            self._stream.write(line.decode())
            self._stream.flush()
            return
        # Past the stream's buffer: what stays in it after EPIPE would make the
        # interpreter's exit fail.
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


class FileSink:
    """A file of JSON lines, opened again when rotation has moved it away.

    O_APPEND makes copytruncate harmless; one write per line keeps the lines of several
    processes whole. A file that cannot be written is tried again with every line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._failing = False
        self._torn = False

    def render(self, record: Mapping[str, Any]) -> bytes:
        """Give JSON."""
        return render_json(record)

    def put(self, line: bytes) -> str | None:
        """Write one line; give the problem once when the file starts to fail."""
        try:
            self._put(line)
        except OSError as exc:
            self.close()
            was_failing, self._failing = self._failing, True
            return None if was_failing else (exc.strerror or str(exc))
        self._failing = False
        return None

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def _put(self, line: bytes) -> None:
        fd = self._current_fd()
        # After a half-written line (disk full) the next one starts on its own line.
        data = b"\n" + line if self._torn else line
        written = os.write(fd, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, "no space left for a whole line")

    def _current_fd(self) -> int:
        if self._fd is not None:
            if self._is_same_file(self._fd):
                return self._fd
            self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # O_NONBLOCK: a FIFO without a reader must fail, not block the daemon.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o640)
        self._torn = self._torn and os.fstat(self._fd).st_size > 0
        return self._fd

    def _is_same_file(self, fd: int) -> bool:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(fd)
        return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)
