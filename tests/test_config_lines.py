"""Lines of keys in every shape that TOML has."""

import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.config.lines import key_lines, line_of

TEXT = '''\
# a comment with [brackets] = "and quotes"
top = 1
"quo ted".'x.y' = 2     # dotted and quoted

[a]
text = """
[not.a.table]
key = 1 \\"""
""""" # two quotes more than its end
raw = \'\'\'
x = 1\'\'\'
list = [
  1.5, # one item, three tokens
  "a, b]",
  [1, 2],
  { x = 1, y.z = [
    3 ] },
  1979-05-27 07:32:00, ]
after = { k = "}", l = { m = 1.0 } }
[ b . "c" ]
d.e = true
[[f]]
g = 1
[[f]]
g = 2
[f.h]
i = 1
[[f.j]]
k = 1
[b]
z = ""
'''


def test_every_key_has_its_line() -> None:
    """Tables, arrays of tables, inline tables, dotted and quoted keys, items."""
    assert tomllib.loads(TEXT)
    assert key_lines(TEXT) == {
        ("top",): 2,
        ("quo ted",): 3,
        ("quo ted", "x.y"): 3,
        ("a",): 5,
        ("a", "text"): 6,
        ("a", "raw"): 10,
        ("a", "list"): 12,
        ("a", "list", 0): 13,
        ("a", "list", 1): 14,
        ("a", "list", 2): 15,
        ("a", "list", 2, 0): 15,
        ("a", "list", 2, 1): 15,
        ("a", "list", 3): 16,
        ("a", "list", 3, "x"): 16,
        ("a", "list", 3, "y"): 16,
        ("a", "list", 3, "y", "z"): 16,
        ("a", "list", 3, "y", "z", 0): 17,
        ("a", "list", 4): 18,
        ("a", "after"): 19,
        ("a", "after", "k"): 19,
        ("a", "after", "l"): 19,
        ("a", "after", "l", "m"): 19,
        ("b",): 30,
        ("b", "c"): 20,
        ("b", "c", "d"): 21,
        ("b", "c", "d", "e"): 21,
        ("f",): 22,
        ("f", 0): 22,
        ("f", 0, "g"): 23,
        ("f", 1): 24,
        ("f", 1, "g"): 25,
        ("f", 1, "h"): 26,
        ("f", 1, "h", "i"): 27,
        ("f", 1, "j"): 28,
        ("f", 1, "j", 0): 28,
        ("f", 1, "j", 0, "k"): 29,
        ("b", "z"): 31,
    }


@pytest.mark.parametrize(
    ("path", "line"),
    [(("a", "list", 9, "x"), 12), (("a", "nothing"), 5), (("none",), None)],
)
def test_what_has_no_line_takes_the_one_around_it(
    path: tuple[str | int, ...], line: int | None
) -> None:
    """An item of a list or a missing key stands where its parent stands."""
    assert line_of(key_lines(TEXT), path) == line


def test_line_breaks_of_windows_count_once() -> None:
    """CR LF ends one line."""
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


@pytest.mark.parametrize("text", ["", "a = 1", "[a]", "[[a]]", "a = []", "a = {}"])
def test_a_text_may_end_anywhere(text: str) -> None:
    """The last line needs no line break."""
    assert set(key_lines(text).values()) <= {1}


_TEXTS = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.datetimes() | _TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner),
    max_leaves=20,
)


def paths(
    value: object, path: tuple[str | int, ...] = ()
) -> set[tuple[str | int, ...]]:
    """Give the path of everything inside a value."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    inside = [paths(item, (*path, name)) for name, item in items]
    return {path}.union(*inside)


@given(st.dictionaries(_TEXTS, _VALUES), st.booleans())
def test_nothing_of_any_document_is_missed(
    data: dict[str, object], multiline: bool
) -> None:
    """The scanner finds what the parser finds, no more and no less."""
    text = tomli_w.dumps(data, multiline_strings=multiline)
    assert set(key_lines(text)) == paths(tomllib.loads(text)) - {()}
