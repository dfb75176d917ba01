"""Third parties' hooks: found without being imported, called one event at a time."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from aitbc_aps_miner import hooks
from aitbc_aps_miner.channel import Channel

MODULE = """
HEARD = []

def on_job_started(event):
    HEARD.append(event)

def on_job_failed(event):
    raise ValueError("not mine")
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package with one hook, as pip does."""
    (tmp_path / "their_hooks.py").write_text(MODULE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[{hooks.GROUP}]\ntheirs = their_hooks\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_hooks", None)


def call(event: str) -> Any:
    """Call the hook as its process does."""
    channel = cast("Channel", None)
    return hooks.call(
        channel, entry_point="theirs", event=event, payload={"job_id": "a"}
    )


def test_hooks_are_named_without_being_imported() -> None:
    """The daemon runs none of their code."""
    assert hooks.discover() == ("theirs",)
    assert "their_hooks" not in sys.modules


def test_a_hook_hears_its_event() -> None:
    """As a plain object of its own."""
    assert call("on_job_started") == {"called": True}
    assert sys.modules["their_hooks"].HEARD == [{"job_id": "a"}]


def test_a_hook_without_a_function_for_an_event_is_not_called() -> None:
    """It cares for others."""
    assert call("on_job_finished") == {"called": False}


def test_what_a_hook_raises_ends_its_own_process_only() -> None:
    """The executor reports it."""
    with pytest.raises(ValueError, match="not mine"):
        call("on_job_failed")
