"""The environment's say: AITBC_MINER__SECTION__KEY over the file."""

import pytest

from aitbc_aps_miner.config.load import load_text
from aitbc_aps_miner.errors import ConfigError, Problem

GOOD = 'node_id = "n"\ncoordinator.base_url = "http://localhost"\n'


def test_values_are_toml_or_text() -> None:
    """Numbers, truths and lists as TOML; texts with or without quotes."""
    config = load_text(
        GOOD,
        {
            "AITBC_MINER__NODE_ID": "007",
            "AITBC_MINER__COORDINATOR__BASE_URL": '"https://c.example/v1"',
            "AITBC_MINER__HEARTBEAT__BACKOFF__MIN_S": "3",
            "AITBC_MINER__WORKSPACE__KEEP_FAILED": "2d",
            "AITBC_MINER__RUNNERS__CLI__ENABLE": "false",
            "AITBC_MINER__NETWORK__INPUTS": '["a.example"]',
            "AITBC_MINER__LOGGING__JSON": "false",
            "AITBC_MINER__OWNER__PAUSED": "true",
            "AITBC_MINER_": "not ours",
            "PATH": "/bin",
        },
    )
    assert (
        config.node_id,
        config.coordinator.base_url,
        config.heartbeat.backoff.min_s,
        config.workspace.keep_failed,
        config.runners.cli.enable,
        config.network.inputs,
        config.logging.json_lines,
        config.owner.paused,
    ) == (
        "007",
        "https://c.example/v1",
        3,
        2 * 86400,
        False,
        ("a.example",),
        False,
        True,
    )


def test_required_keys_may_come_from_the_environment_alone() -> None:
    """An empty file is enough in a container."""
    environ = {
        "AITBC_MINER__NODE_ID": "n",
        "AITBC_MINER__COORDINATOR__BASE_URL": "http://localhost",
    }
    assert load_text("", environ).node_id == "n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "AITBC_MINER__SWEEP__INTERVALL_S",
            "a variable for a known key, perhaps AITBC_MINER__SWEEP__INTERVAL_S",
        ),
        (
            "AITBC_MINER__SWEEP",
            "a variable for a known key of this section, like AITBC_MINER__SWEEP__KEY",
        ),
        ("AITBC_MINER__", "a variable for a known key"),
        ("AITBC_MINER__ZZZZ__QQQQ", "a variable for a known key"),
    ],
)
def test_an_unknown_variable_is_a_problem(name: str, expected: str) -> None:
    """It names the nearest known one and never shows the value."""
    with pytest.raises(ConfigError) as caught:
        load_text(GOOD, {name: "s3cret"})
    assert caught.value.problems == (
        Problem(
            key=name.removeprefix("AITBC_MINER__").lower().replace("__", "."),
            line=None,
            expected=expected,
            given=f"the environment variable {name}",
            remedy=f"rename {name} or unset it",
        ),
    )


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("soon", '"soon"'),
        ("1\nnode_id = 2", '"1\\nnode_id = 2"'),
        ("1\nx = 2", '"1\\nx = 2"'),
        ("\udcff", '"\\udcff"'),
        ("[" * 5000, '"' + "[" * 58 + "…"),
    ],
)
def test_a_wrong_value_names_its_variable(value: str, given: str) -> None:
    """The line of the file would mislead, so there is none."""
    environ = {"AITBC_MINER__SWEEP__INTERVAL_S": value}
    with pytest.raises(ConfigError) as caught:
        load_text(GOOD + "sweep.interval_s = 5\n", environ)
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("sweep.interval_s", None)
    assert problem.given == (
        f"{given} (from the environment, AITBC_MINER__SWEEP__INTERVAL_S)"
    )


def test_a_secret_from_the_environment_is_never_shown() -> None:
    """A bad token is masked whatever it came from."""
    with pytest.raises(ConfigError) as caught:
        load_text(GOOD, {"AITBC_MINER__COORDINATOR__AUTH_TOKEN": "s3cret x"})
    assert "s3cret" not in str(caught.value)
    assert caught.value.problems[0].given.startswith("*** (from the environment")


def test_a_section_that_is_no_table_keeps_its_own_problem() -> None:
    """The override of a key inside does not hide it."""
    with pytest.raises(ConfigError) as caught:
        load_text(GOOD + "sweep = 3\n", {"AITBC_MINER__SWEEP__INTERVAL_S": "3"})
    assert [one.key for one in caught.value.problems] == ["sweep"]
