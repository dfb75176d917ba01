"""Loading: every problem at once, each with key, line, expected, given and remedy."""

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.config.load import (
    MAX_BYTES,
    config_warnings,
    load_file,
    load_text,
)
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.errors import ConfigError, Problem

DATA = Path(__file__).parent / "data" / "config"

GOOD = """\
node_id = "n1"
[coordinator]
base_url = "https://c.example/api/v1"
"""


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Give what is wrong with a text."""
    with pytest.raises(ConfigError) as caught:
        load_text(text, environ or {})
    return list(caught.value.problems)


def told(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Give the sentences about a text."""
    return [str(problem) for problem in problems(text, environ)]


def test_two_keys_are_a_whole_config() -> None:
    """Everything but the node's name and its coordinator has a default."""
    config = load_text(GOOD, {})
    assert (config.node_id, config.heartbeat.interval_s) == ("n1", 15)


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    """Wrong types, ranges, choices, unknown and clashing keys are told together."""
    expected = (DATA / "broken.problems.txt").read_text().splitlines()
    assert told((DATA / "broken.toml").read_text()) == expected


def test_missing_keys_say_where_they_belong() -> None:
    """An empty file lacks the name and the section of the coordinator."""
    assert [(one.key, one.line, one.remedy) for one in problems("")] == [
        ("node_id", None, "add node_id = … at the top of the file"),
        ("coordinator", None, "add [coordinator] with base_url"),
    ]


def test_a_missing_key_of_a_section_names_the_section() -> None:
    """The remedy says under which header the key belongs."""
    (problem,) = problems('node_id = "n"\n[coordinator]\n')
    assert problem == Problem(
        key="coordinator.base_url",
        line=None,
        expected="URL",
        given="nothing",
        remedy="add base_url = … under [coordinator]",
    )


def test_a_section_written_as_a_value_is_told_without_its_value() -> None:
    """What stands where a section belongs may be a secret."""
    (problem,) = problems('node_id = "n"\ncoordinator = "s3cret"\n')
    assert problem == Problem(
        key="coordinator",
        line=2,
        expected="a section [coordinator]",
        given="a text",
        remedy="write [coordinator] on its own line",
    )


@pytest.mark.parametrize(
    "text",
    [
        GOOD + 'auth_token = "s3cret with blanks"',
        GOOD + 'auth_token = ["s3cret"]',
        GOOD + 'auth_tokn = "s3cret"',
        GOOD + '[secrets]\nx = "s3cret"',
        GOOD.replace("https://", "https://me:s3cret@"),
        GOOD + 'auth_token = "file:s3cret"',
    ],
)
def test_a_secret_is_never_shown(text: str) -> None:
    """Neither a bad token, nor an unknown key's value, nor a URL's password."""
    assert "s3cret" not in "\n".join(told(text))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("auth_token", '"env:"', '"env:" and the name of an environment variable'),
        ("auth_token", '"env:A B"', '"env:" and the name of an environment variable'),
        ("auth_token", '"file:rel"', '"file:" and an absolute path'),
        ("auth_token", '""', "visible ASCII characters without blanks"),
        ("ca_file", '""', "a path, not empty and without control characters"),
        ("ca_file", '"a\\u0000"', "a path, not empty and without control characters"),
        ("timeout_s", "0", "duration above 0"),
        ("timeout_s", "nan", "duration above 0"),
        ("timeout_s", "inf", "duration above 0"),
        ("timeout_s", "true", "duration above 0"),
        ("timeout_s", "1979-05-27", "duration above 0"),
        ("timeout_s", '"99999999w"', "duration above 0"),
        ("tls_verify", "1", "true or false"),
        ("api", '"node"', 'one of "node-v1"'),
    ],
)
def test_forms_are_checked(key: str, value: str, expected: str) -> None:
    """Each value that cannot be right is told with what would be."""
    found = problems(f"{GOOD}{key} = {value}")
    assert [(one.key, one.line, one.expected) for one in found] == [
        (f"coordinator.{key}", 4, expected)
    ]


@pytest.mark.parametrize(
    ("section", "line", "good"),
    [
        ("status", 'listen = "127.0.0.1:0"', True),
        ("status", 'listen = "[::1]:8479"', True),
        ("status", 'listen = ""', True),
        ("status", 'listen = "127.0.0.1:99999"', False),
        ("status", 'listen = "8479"', False),
        ("network", 'inputs = ["*", "*.example.org", "10.0.0.1", "::1"]', True),
        ("network", 'inputs = ["https://example.org"]', False),
        ("network", 'inputs = ["ex*mple.org"]', False),
        ("network", 'jobs = ["*:443", "*.example.org:*", "h:1"]', True),
        ("network", 'jobs = ["a*:443"]', False),
        ("network", 'jobs = ["host"]', False),
        ("network", 'jobs = ["host:0"]', False),
        ("probe", 'dcgm_url = "http://[::1]:9400/metrics"', True),
        ("probe", 'dcgm_url = "http://host:0/metrics"', False),
        ("probe", 'dcgm_url = "http://host/metrics?x"', False),
        ("workspace", 'root = "/"', False),
        ("workspace", "disk_low_pct = 95", False),
        ("workspace", "disk_low_pct = 95\ndisk_high_pct = 96", True),
    ],
)
def test_addresses_and_marks(section: str, line: str, good: bool) -> None:
    """Host patterns, addresses, URLs and marks are taken or refused by form."""
    text = f"{GOOD}[{section}]\n{line}\n"
    if good:
        assert load_text(text, {}).node_id == "n1"
    else:
        assert [one.line for one in problems(text)] == [5]


def test_a_clash_with_a_bad_key_is_not_told() -> None:
    """A bad mark must not make its good neighbour look wrong."""
    text = GOOD + '[workspace]\ndisk_high_pct = "98"\ndisk_low_pct = 95\n'
    assert [one.key for one in problems(text)] == ["workspace.disk_high_pct"]


def test_a_clash_with_a_default_says_so() -> None:
    """The shown side may not be in the file at all."""
    (problem,) = problems(GOOD + "[workspace]\ndisk_high_pct = 50\n")
    assert (problem.key, problem.line, problem.given) == (
        "workspace.disk_low_pct",
        4,
        "its default 80",
    )


def test_a_clash_is_told_beside_a_missing_section() -> None:
    """Also when the required keys are not there at all."""
    text = "[heartbeat.backoff]\nmin_s = 9\nmax_s = 8\n[workspace]\nroot = 3"
    assert [one.key for one in problems(text)] == [
        "node_id",
        "coordinator",
        "heartbeat.backoff.min_s",
        "workspace.root",
    ]


@pytest.mark.parametrize(
    ("text", "line", "given"),
    [
        ("a = 1\nb = = 2\n", 2, "invalid value at column 5"),
        ('a = 1\n[x\nb = "', 2, None),
        ("a = 1\na = 2\n", 2, "cannot overwrite a value at column 6"),
        ('a = 1\nb = """\n', 3, "unterminated string at the end of the file"),
        ("a = " + "9" * 5000, 1, "a number of thousands of digits"),
        ("a = " + "[" * 100_000, None, "values nested too deeply"),
    ],
)
def test_a_syntax_error_has_its_line(
    text: str, line: int | None, given: str | None
) -> None:
    """What is no TOML at all is told with its place."""
    (problem,) = problems(text)
    assert (problem.key, problem.line, problem.expected) == ("", line, "TOML")
    assert given in (None, problem.given)


@pytest.mark.parametrize(
    ("content", "line", "given"),
    [
        (b"a = 1\nb = '\xff'\n", 2, "the byte 0xff, which is none"),
        (b"a = 1\nb = '\0'\n", 2, "a NUL byte"),
        (b"\xef\xbb\xbfa = 1\n", 1, "a file that begins with one"),
        (b"#" * (MAX_BYTES + 1), None, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_bytes_that_are_no_text(
    content: bytes, line: int | None, given: str, tmp_path: Path
) -> None:
    """Encodings, NUL, marks and size each get their words."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_file(path, {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.given.removeprefix(f"{path}: ")) == (line, given)


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    """A FIFO without a writer, a directory, a socket, a device, a circle, nothing."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    reasons = {}
    paths = ["fifo", ".", "socket", "/dev/null", "circle", "none", "file/x", "a\0b"]
    for name in [*paths, "n" * 300]:
        with pytest.raises(ConfigError) as caught:
            load_file(os.path.join(tmp_path, name), {})  # noqa: PTH118 - NUL, "."
        reasons[name[:10]] = caught.value.problems[0].given.rpartition(": ")[2]
    assert reasons == {
        "fifo": "a FIFO",
        ".": "a directory",
        "socket": "a socket or a device without a driver",
        "/dev/null": "a device",
        "circle": "a circle of symbolic links",
        "none": "no such file",
        "file/x": "a path that leads through a file",
        "a\0b": "a path with a NUL character",
        "n" * 10: "a name that is too long",
    }


def test_a_readable_file_loads(tmp_path: Path) -> None:
    """Through a symlink as well."""
    (tmp_path / "real.toml").write_text(GOOD)
    (tmp_path / "config.toml").symlink_to("real.toml")
    assert stat.S_ISLNK((tmp_path / "config.toml").lstat().st_mode)
    assert load_file(tmp_path / "config.toml", {}).node_id == "n1"


def test_a_key_with_line_breaks_cannot_forge_a_line() -> None:
    """Names of unknown keys are quoted and shortened."""
    (line,) = told(f'"a\\nb{"x" * 99}" = 1\n' + GOOD)
    assert "\n" not in line
    assert len(line) < 200


@pytest.mark.parametrize(
    ("extra", "warned"),
    [
        ("", []),
        ('auth_token = "abc"', ["coordinator.auth_token stands"]),
        ("tls_verify = false", ["coordinator.tls_verify = false"]),
        ("[network]\nprivate = true", ["network.private = true"]),
    ],
)
def test_warnings(extra: str, warned: list[str]) -> None:
    """What is allowed and yet risky is said."""
    off = "[runners]\ncli.enable = false\npython.enable = false\n"
    config = load_text(f"{GOOD}{extra}\n{off}", {})
    found = config_warnings(config)
    assert [
        words[: len(start)] for words, start in zip(found, warned, strict=True)
    ] == (warned)


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("localhost:1", False),
        ("a.localhost", False),
        ("127.0.0.5", False),
        ("[::1]:8", False),
        ("10.0.0.1", True),
        ("c.example", True),
    ],
)
def test_http_to_another_machine_is_warned_of(host: str, warned: bool) -> None:
    """On loopback nobody listens in."""
    config = load_text(f'node_id = "n"\ncoordinator.base_url = "http://{host}/v1"', {})
    assert any("unencrypted" in words for words in config_warnings(config)) == warned


def test_runners_without_anything_to_run_are_warned_of() -> None:
    """Both runners are on by default and offer nothing by default."""
    assert [words.split()[0] for words in config_warnings(load_text(GOOD, {}))] == [
        "runners.cli",
        "runners.python",
    ]


def test_a_config_survives_the_way_to_a_child() -> None:
    """JSON by alias gives the same config back."""
    config = load_text(GOOD + '[logging]\njson = false\npath = "/l"\n', {})
    assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config


_TEXTS = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.dates() | _TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner),
    max_leaves=5,
)


def loads_or_is_explained(text: str) -> bool:
    """Whether a text is a config, or ends in an error that says why not."""
    try:
        load_text(text, {})
    except ConfigError as exc:
        return len(exc.problems) > 0
    return True


@given(st.text())
def test_any_text_loads_or_is_explained(text: str) -> None:
    """No other exception than ConfigError, and never without a problem."""
    assert loads_or_is_explained(text)


@given(st.sampled_from(["node_id", "coordinator", "heartbeat", "runners"]), _VALUES)
def test_any_values_load_or_are_explained(name: str, value: object) -> None:
    """Valid TOML of any shape."""
    assert loads_or_is_explained(
        tomli_w.dumps({name: value, "sweep": {"interval_s": -1}})
    )


def test_the_identity_lies_beside_the_workspaces_unless_named() -> None:
    """It must survive when workspaces are swept."""
    found = [
        load_text(GOOD + extra, {}).identity_path
        for extra in (
            '[workspace]\nroot = "/a/jobs"',
            '[security]\nidentity_file = "/k"',
        )
    ]
    assert found == [Path("/a/identity.key"), Path("/k")]
