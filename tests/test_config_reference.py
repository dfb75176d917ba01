"""Example and reference: complete, valid, and the same as the model says."""

import re
import tomllib
from pathlib import Path

from aitbc_aps_miner.config.keys import keys, sections, tables
from aitbc_aps_miner.config.load import load_text
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.reference import example_text, reference_markdown

EXAMPLE = Path(__file__).parent.parent / "config.toml.example"


def uncommented(text: str) -> str:
    """Give the example with every key in force."""
    return re.sub(r"(?m)^# (\w+ = )", r"\1", text)


def test_the_checked_in_example_is_the_generated_one() -> None:
    """If not: aitbc-aps-miner config example > config.toml.example."""
    assert EXAMPLE.read_text() == example_text()


def test_the_example_shows_the_defaults() -> None:
    """As it stands, and with every default uncommented, it is the same config."""
    text = "".join(
        line
        for line in uncommented(example_text()).splitlines(keepends=True)
        if "# absent by default" not in line
    )
    assert load_text(text, {}) == load_text(example_text(), {})


def test_the_example_names_every_key() -> None:
    """Uncommented, it holds exactly the keys of the model."""
    data = tomllib.loads(uncommented(example_text()))
    for key in keys().values():
        value = data
        for name in key.path:
            value = value[name]
    assert load_text(uncommented(example_text()), {}).node_id == "node-1"


def test_the_example_takes_values() -> None:
    """As `init` uses it."""
    values = {
        ("node_id",): 'a"b',
        ("runners", "python", "task_paths"): ["/a", "/b"],
        ("logging", "json"): False,
    }
    data = tomllib.loads(example_text(values))
    assert (data["node_id"], data["runners"], data["logging"]) == (
        'a"b',
        {"cli": {}, "python": {"task_paths": ["/a", "/b"]}},
        {"json": False},
    )
    assert data["coordinator"] == {}


def test_the_reference_has_a_row_for_every_key() -> None:
    """And every row has four cells."""
    rows = [line for line in reference_markdown().splitlines() if line[:3] == "| `"]
    assert len(rows) == len(keys())
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert '| `keep_failed` | duration | `"7d"` | files of delivered failures |' in rows


def test_every_key_is_described() -> None:
    """And reachable in a Config by its attributes."""
    config = load_text(example_text(), {})
    for key in keys().values():
        assert key.description
        assert key.required or key.value(config) is not None or key.default is None
    assert all(table.title for table in tables())
    assert ("heartbeat", "backoff") in sections()


def test_one_key_is_secret() -> None:
    """Masking goes by this mark."""
    assert [key.dotted for key in keys().values() if key.secret] == [
        "coordinator.auth_token"
    ]


def test_attributes_and_names_differ_only_by_alias() -> None:
    """`logging.json` would hide a method of the model."""
    differing = [key.path for key in keys().values() if key.path != key.attributes]
    assert differing == [("logging", "json")]
    assert Config.model_fields.keys() >= {"node_id", "logging"}
