"""The parts of README.md that are made from the code; run it to write them."""

import enum
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from aitbc_aps_miner.config.reference import reference_markdown
from aitbc_aps_miner.errors import ErrorCode
from aitbc_aps_miner.exit_codes import ExitCode

README = Path(__file__).parent.parent / "README.md"

Member = TypeVar("Member", bound=enum.Enum)


def made_parts() -> dict[str, str]:
    """Give each made part by the name of its markers."""
    return {
        "error codes": _table(
            "| code | meaning | another attempt may help |\n|---|---|---|",
            (
                f"| `{code}` | {words} | {'yes' if code.retryable else 'no'} |"
                for code, words in _documented(ErrorCode)
            ),
        ),
        "exit codes": _table(
            "| exit code | meaning |\n|---|---|",
            (f"| {code.value} | {words} |" for code, words in _documented(ExitCode)),
        ),
        "config reference": reference_markdown().strip(),
    }


def part(text: str, name: str) -> str:
    """Give what stands between the markers of `name`."""
    return _between(text, name)[1].strip()


def with_part(text: str, name: str, body: str) -> str:
    """Give the text with `body` between the markers of `name`."""
    before, _, after = _between(text, name)
    return f"{before}\n{body}\n{after}"


def _between(text: str, name: str) -> tuple[str, str, str]:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    body, found, after = rest.partition(end)
    if not found:
        raise LookupError(f"README.md has no markers for {name!r}")
    return before + start, body, end + after


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, *rows])


def _documented(closed_set: type[Member]) -> list[tuple[Member, str]]:
    """Give each member with the sentence that stands below it in the source."""
    source = inspect.getsource(closed_set)
    words = dict(
        re.findall(r"^    (\w+) = .*\n    \"\"\"(.*?)\"\"\"", source, re.MULTILINE)
    )
    return [(member, words[member.name]) for member in closed_set]


if __name__ == "__main__":
    text = README.read_text()
    for name, body in made_parts().items():
        text = with_part(text, name, body)
    README.write_text(text)
