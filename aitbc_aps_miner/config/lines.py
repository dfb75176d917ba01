"""On which line of a TOML text each key stands; tomllib does not tell.

The text is known to be valid TOML, so a scanner of tokens is enough: it follows
tables, arrays of tables, dotted and quoted keys, inline tables and arrays, and skips
everything inside strings and comments.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<skip>    [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<text>  \"""(?:[^\\]|\\.)*?\"""(?:"{0,2})
               | '''.*?'''(?:'{0,2})
               | "(?:[^"\\\n]|\\.)*"
               | '[^'\n]*' )
    | (?P<sign>  [\[\]{}=,.] )
    | (?P<bare>  [^\s\[\]{}=,."'\#]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Give the line, counted from 1, of every table, key and array item.

    `text` must be valid TOML. Tables and keys that a header or a dotted key only
    implies stand where they are first implied.
    """
    scanner = _Scanner(text)
    scanner.run()
    return scanner.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Give the line of `path`, or of the innermost key around it that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


@dataclass
class _Frame:
    """An array or inline table that is being read."""

    path: Path
    index: int | None
    """The next item of an array; None for an inline table."""
    wants_item: bool = True
    """False inside a value: `1.5` is three tokens and one item."""


@dataclass
class _Scanner:
    text: str
    lines: dict[Path, int] = field(default_factory=dict)
    table: Path = ()
    counts: dict[Path, int] = field(default_factory=dict)
    """How often each array of tables was opened."""

    def run(self) -> None:
        tokens = self._tokens()
        for sign, line in tokens:
            if sign == "[":
                self._header(tokens, line)
            elif sign != "\n":
                self._statement(tokens, sign, line)

    def _tokens(self) -> Iterator[tuple[str, int]]:
        line = 1
        for match in _TOKEN.finditer(self.text):
            if match.lastgroup != "skip":
                yield match[0], line
            line += match[0].count("\n")

    def _header(self, tokens: Iterator[tuple[str, int]], line: int) -> None:
        first = next(tokens)[0]
        is_array = first == "["
        if is_array:
            first = next(tokens)[0]
        names = self._names(tokens, first, "]")
        if is_array:
            next(tokens)
        path = self._resolve(names[:-1])
        self.table = (*path, names[-1])
        if is_array:
            index = self.counts.get(self.table, 0)
            self.counts[self.table] = index + 1
            self.table = (*self.table, index)
        self._note(self.table, line)
        self.lines[self.table] = line

    def _resolve(self, names: list[str]) -> Path:
        """Walk from the top; an array of tables means its newest table."""
        path: Path = ()
        for name in names:
            path = (*path, name)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def _statement(
        self, tokens: Iterator[tuple[str, int]], first: str, line: int
    ) -> None:
        path = (*self.table, *self._names(tokens, first, "="))
        self._note(path, line)
        stack = self._opened(next(tokens)[0], path)
        for sign, at_line in tokens:
            if not stack:
                if sign == "\n":
                    return
            elif sign in ("]", "}"):
                stack.pop()
            elif sign == ",":
                stack[-1].wants_item = True
            elif sign != "\n" and stack[-1].wants_item:
                stack += self._item(tokens, stack[-1], sign, at_line)

    def _item(
        self,
        tokens: Iterator[tuple[str, int]],
        frame: _Frame,
        sign: str,
        line: int,
    ) -> list[_Frame]:
        """Note an array's item or an inline table's pair; give what it opens."""
        frame.wants_item = False
        if frame.index is None:
            path = (*frame.path, *self._names(tokens, sign, "="))
            sign = next(tokens)[0]
        else:
            path = (*frame.path, frame.index)
            frame.index += 1
        self._note(path, line)
        return self._opened(sign, path)

    @staticmethod
    def _opened(sign: str, path: Path) -> list[_Frame]:
        if sign == "[":
            return [_Frame(path, 0)]
        return [_Frame(path, None)] if sign == "{" else []

    @staticmethod
    def _names(tokens: Iterator[tuple[str, int]], first: str, end: str) -> list[str]:
        names = [_name(first)]
        while (sign := next(tokens)[0]) != end:
            if sign != ".":
                names.append(_name(sign))
        return names

    def _note(self, path: Path, line: int) -> None:
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], line)


def _name(token: str) -> str:
    if token[0] in "\"'":
        return str(tomllib.loads(f"name = {token}")["name"])
    return token
