"""Secrets by reference: found, refused with words, never shown."""

import os
from pathlib import Path

import pytest

from aitbc_aps_miner.config.diff import Change, difference
from aitbc_aps_miner.config.load import load_text
from aitbc_aps_miner.config.secrets import mask, resolve
from aitbc_aps_miner.errors import ConfigError

GOOD = 'node_id = "n"\ncoordinator.base_url = "http://localhost"\n'


def refusal(ref: str, environ: dict[str, str] | None = None) -> str:
    """Give the sentence that a reference ends in."""
    with pytest.raises(ConfigError) as caught:
        resolve(ref, environ or {})
    return str(caught.value)


def test_references_are_followed(tmp_path: Path) -> None:
    """A variable, a file without its last line break, or the secret itself."""
    (tmp_path / "token").write_bytes(b"from-file\r\n")
    found = [
        resolve(ref, {"TOKEN": "from-env"})
        for ref in ("env:TOKEN", f"file:{tmp_path}/token", "literal:x")
    ]
    assert found == ["from-env", "from-file", "literal:x"]


def test_a_missing_variable_is_named() -> None:
    """So that the owner knows what to set, and that a restart is needed."""
    assert refusal("env:TOKEN") == (
        "coordinator.auth_token: expected a secret, given the environment variable "
        "TOKEN, which is not set or empty; set TOKEN in the daemon's environment and "
        "start it again"
    )


def test_a_file_that_gives_no_secret_says_why(tmp_path: Path) -> None:
    """Missing, empty, a FIFO, too large; never a wait."""
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    os.mkfifo(tmp_path / "fifo")
    reasons = [
        refusal(f"file:{tmp_path}/{name}").partition(";")[0].partition(str(tmp_path))[2]
        for name in ("none", "empty", "large", "fifo")
    ]
    assert reasons == [
        "/none: no such file",
        "/empty, which is empty",
        "/large: more than 65536 bytes",
        "/fifo: a FIFO",
    ]


@pytest.mark.parametrize("secret", ["s3c ret", "s3c\nret", "s3c\0ret", "s3crät"])
def test_what_cannot_stand_in_a_header_is_refused(secret: str) -> None:
    """Without showing it."""
    assert "s3c" not in refusal("env:TOKEN", {"TOKEN": secret})
    assert "s3c" not in refusal(secret)


def test_nothing_is_no_secret() -> None:
    """An empty text refers to nothing."""
    assert "given nothing" in refusal("")


def test_only_references_may_be_shown() -> None:
    """A literal becomes ***."""
    shown = [mask(ref) for ref in ("env:A", "file:/a", "abc")]
    assert shown == ["env:A", "file:/a", "***"]


def test_the_difference_goes_key_by_key() -> None:
    """Both sides as TOML in the order of the file; a token's change without it."""
    old = load_text(
        GOOD + 'coordinator.auth_token = "s3cret-1"\nworkspace.keep_failed = "7d"', {}
    )
    new = load_text(
        'node_id = "m"\n[coordinator]\nbase_url = "http://localhost"\n'
        'auth_token = "s3cret-2"\nca_file = "/ca"\n'
        '[workspace]\nkeep_failed = "36h"\n[heartbeat]\ninterval_s = 0.5\n'
        '[network]\ninputs = ["a", "b"]\n[logging]\njson = false',
        {},
    )
    assert difference(old, new) == (
        Change(key="node_id", old='"n"', new='"m"'),
        Change(key="coordinator.auth_token", old='"***"', new='"***"'),
        Change(key="coordinator.ca_file", old="absent", new='"/ca"'),
        Change(key="heartbeat.interval_s", old="15", new="0.5"),
        Change(key="workspace.keep_failed", old='"7d"', new='"36h"'),
        Change(key="logging.json", old="true", new="false"),
        Change(key="network.inputs", old='["*"]', new='["a", "b"]'),
    )


def test_equal_configs_do_not_differ() -> None:
    """However they are written."""
    left = load_text(GOOD + "sweep.interval_s = 120", {})
    right = load_text(GOOD + 'sweep = { interval_s = "2m" }', {})
    assert difference(left, right) == ()
