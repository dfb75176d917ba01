"""Reads multipart/form-data straight into spool files, hashing on the way.

Starlette's own form would read each file a second time for its digest.
"""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from aitbc_aps_miner.reference_coordinator.problems import ProblemError, invalid
from aitbc_aps_miner.reference_coordinator.spool import Spool, SpoolFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 1 << 20
MAX_PARTS = 2000


class Form:
    """The fields and files of one body; the files go on exit unless kept."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str, SpoolFile]] = []
        """Filename, content type and bytes, in the order of the body."""
        self._fields: dict[str, bytearray] = {}
        self._is_kept = False

    def field(self, name: str) -> str:
        """Give a field's text; ProblemError 422 when it is missing."""
        try:
            return self._fields[name].decode()
        except KeyError:
            raise invalid(f"form field {name!r} is missing", "missing_field") from None
        except UnicodeDecodeError as exc:
            raise invalid(f"form field {name!r} is not UTF-8") from exc

    def keep(self) -> None:
        """Let the files outlive this form."""
        self._is_kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, _, file in self.files:
            if self._is_kept:
                file.close()
            else:
                file.discard()


async def read_form(request: Request, spool: Spool) -> Form:
    """Read the whole body; ProblemError 400, 413 or 415 when it is not a form."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ProblemError(415, "expected multipart/form-data", "not_multipart")
    with contextlib.ExitStack() as stack:
        reader = _Reader(spool)
        stack.enter_context(reader.form)
        try:
            parser = MultipartParser(boundary, reader.callbacks())
            async for piece in request.stream():
                parser.write(piece)
            parser.finalize()
        except FormParserError as exc:
            raise ProblemError(400, f"broken multipart: {exc}", "multipart") from exc
        if not reader.is_complete:
            raise ProblemError(400, "the last boundary is missing", "multipart")
        stack.pop_all()
        return reader.form


class _Reader:
    """Turns the parser's events into a form."""

    def __init__(self, spool: Spool) -> None:
        self.form = Form()
        self.is_complete = False
        self._spool = spool
        self._headers: dict[bytes, bytes] = {}
        self._name = bytearray()
        self._value = bytearray()
        self._parts = 0
        self._sink: Callable[[memoryview], None] = _limited(bytearray())

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ProblemError(413, f"more than {MAX_PARTS} parts", "too_large")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _open(self) -> None:
        _, options = parse_options_header(
            self._headers.get(b"content-disposition", b"")
        )
        name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" not in options:
            text = self.form._fields.setdefault(name, bytearray())
            self._sink = _limited(text)
            return
        file = self._spool.new()
        kind = self._headers.get(b"content-type", b"application/octet-stream")
        filename = options[b"filename"].decode(errors="replace")
        self.form.files.append((filename, kind.decode("latin-1"), file))
        self._sink = file.write

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._sink(memoryview(data)[start:end])

    def _end(self) -> None:
        self.is_complete = True


def _limited(text: bytearray) -> Callable[[memoryview], None]:
    def add(piece: memoryview) -> None:
        text.extend(piece)
        if len(text) > MAX_FIELD_BYTES:
            raise ProblemError(
                413, f"a form field is over {MAX_FIELD_BYTES} bytes", "too_large"
            )

    return add
