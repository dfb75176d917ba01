"""Old YAML configurations: every key has its place, nothing is lost silently."""

import re
from pathlib import Path

import pytest
import tomli_w
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.config.load import load_text
from aitbc_aps_miner.config.yaml_import import (
    MAX_CHARACTERS,
    import_yaml,
    new_node_id,
)
from aitbc_aps_miner.errors import ConfigError

OLD = (Path(__file__).parent / "data" / "config" / "old.yaml").read_text()
SMALL = "node_id: n\ncoordinator: {base_url: 'http://localhost'}\n"


def problems(text: str) -> list[tuple[str, int | None, str]]:
    """Give key, line and what was given of each problem."""
    with pytest.raises(ConfigError) as caught:
        import_yaml(text)
    return [(one.key, one.line, one.given) for one in caught.value.problems]


def test_every_key_of_the_old_form_has_its_place() -> None:
    """Only the placeholder and the case of the level change, and both are noted."""
    data, notes = import_yaml(OLD)
    expected = yaml.safe_load(OLD)
    node_id = data["node_id"]
    assert re.fullmatch(r"node-[0-9a-f]{8}", node_id)
    expected["node_id"] = node_id
    expected["logging"]["level"] = "info"
    assert data == expected
    assert notes == [
        f"node_id: 'node-<shortid>' became '{node_id}'",
        "logging.level: 'INFO' became 'info'",
    ]


def test_the_result_is_a_config() -> None:
    """Written as TOML it loads, with the old values."""
    config = load_text(tomli_w.dumps(import_yaml(OLD)[0]), {})
    assert (config.coordinator.timeout_s, config.workspace.keep_failed) == (
        20,
        7 * 86400,
    )


def test_what_is_unknown_or_empty_is_dropped_with_a_note() -> None:
    """A value is never shown: it may be a secret."""
    text = SMALL + "runners: {python: {venv: }}\nsweeep: {interval_s: s3cret}\nx: 1\n"
    data, notes = import_yaml(text)
    assert data == {
        "node_id": "n",
        "coordinator": {"base_url": "http://localhost"},
        "runners": {"python": {}},
    }
    assert notes == [
        "runners.python.venv: dropped, it has no value",
        "sweeep: dropped, no such key is known; the nearest known one is sweep",
        "x: dropped, no such key is known",
    ]


def test_plain_slips_are_mended() -> None:
    """A number as id and one path where a list belongs."""
    text = SMALL.replace("node_id: n", "node_id: 17")
    data, notes = import_yaml(text + "runners: {python: {task_paths: /t}}\n")
    assert (data["node_id"], data["runners"]["python"]["task_paths"]) == ("17", ["/t"])
    assert notes == [
        "node_id: 17 became '17'",
        "runners.python.task_paths: '/t' became ['/t']",
    ]


def test_values_that_cannot_be_used_have_their_line_in_the_yaml() -> None:
    """All at once, as for TOML."""
    text = SMALL + "heartbeat:\n  interval_s: soon\nresources: 3\ntags: [~]\n"
    assert problems(text) == [
        ("heartbeat.interval_s", 4, '"soon"'),
        ("resources", 5, "a whole number"),
        ("tags[0]", 6, "nothing"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2", 2),
        ("- 1\n- 2", 1),
        ("a: !!python/object:os.system {}", 1),
        ("a: 1\nb: !!binary c2VjcmV0", 2),
        ("a: !!set {b}", 1),
        ("a: !!int ''", None),
        ("a: 2024-13-45", None),
        ("a: \0", None),
        ("[" * 20_000, None),
        ("#" * (MAX_CHARACTERS + 1), None),
        ("a: &a [*a]", None),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 12)),
            None,
        ),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(
                f"a{n}: &a{n} {{<<: [{f'*a{n - 1},' * 9}]}}\n" for n in range(1, 12)
            ),
            None,
        ),
    ],
)
def test_hostile_yaml_ends_in_words(text: str, line: int | None) -> None:
    """Broken, executable, endless or exploding documents."""
    ((key, at_line, _),) = problems(text)
    assert (key, at_line) == ("", line)


def test_an_empty_document_lacks_everything() -> None:
    """It is YAML, but no configuration."""
    assert [key for key, _, _ in problems("")] == ["node_id", "coordinator"]


@given(st.text())
def test_any_text_is_imported_or_explained(text: str) -> None:
    """No other exception than ConfigError."""
    assert problems(text)


@pytest.mark.parametrize(
    ("stem", "made"),
    [
        ("node-", "node-0a1b2c3d"),
        ("", "node-0a1b2c3d"),
        ("..é_host.x", "host-x-0a1b2c3d"),
        ("x" * 300, "x" * 100 + "-0a1b2c3d"),
    ],
)
def test_a_made_up_id_is_always_valid(stem: str, made: str) -> None:
    """Whatever it is made from."""
    assert new_node_id(stem, lambda _: "0a1b2c3d") == made
    load_text(f'node_id = "{made}"\ncoordinator.base_url = "http://localhost"', {})
