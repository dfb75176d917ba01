"""What the README says of the code is what the code says."""

import ast
import re
from pathlib import Path

import pytest
from readme import README, made_parts, part

import aitbc_aps_miner

PACKAGE = Path(aitbc_aps_miner.__file__).parent


@pytest.mark.parametrize("name", sorted(made_parts()))
def test_made_parts_are_up_to_date(name: str) -> None:
    """`python tests/readme.py` would change nothing."""
    assert part(README.read_text(), name) == made_parts()[name]


def test_follow_one_job_names_files_that_exist() -> None:
    """Every file in the table is there."""
    text = README.read_text()
    table = text.partition("### Follow one job")[2].partition("\n\n`lifecycle.py`")[0]
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", table)) - {"input/", "work/"}
    assert {name for name in named if not (PACKAGE / name).exists()} == set()
    assert len(named) > 15


def test_every_module_has_a_charter() -> None:
    """The first line of each module says what happens there."""
    bare = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert bare == []
