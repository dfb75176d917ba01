"""The configuration in words, made from the model: reference and example; pure."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit

from aitbc_aps_miner.config.keys import Key, Table, tables

_HEAD = """\
# Configuration of aitbc-aps-miner. Every key may be changed while the daemon runs.
# A line that is commented out shows the default. Durations are seconds, or texts
# like "90s", "24h", "7d". AITBC_MINER__SECTION__KEY in the environment wins over
# the file, for example AITBC_MINER__HEARTBEAT__INTERVAL_S=30.
"""

_EXAMPLES = {
    ("node_id",): "node-1",
    ("coordinator", "base_url"): "https://coordinator.example/api/v1",
}
_ABSENT = {
    "path": '"/path"',
    "URL": '"https://host.example/path"',
}
"""What a commented key without a default shows, by its kind."""


def example_text(values: Mapping[tuple[str, ...], Any] | None = None) -> str:
    """Give a whole commented config; keys in `values` are set, others by default.

    Without `values` it is config.toml.example.
    """
    chosen = _EXAMPLES if values is None else values
    blocks = [_HEAD.rstrip("\n")]
    for table in tables():
        blocks += _example_table(table, chosen)
    return "\n".join(blocks) + "\n"


def reference_markdown() -> str:
    """Give every key with type, default and meaning as Markdown tables."""
    return "\n".join(line for table in tables() for line in _reference_table(table))


def _example_table(
    table: Table, values: Mapping[tuple[str, ...], Any]
) -> Iterator[str]:
    if not table.keys:
        return
    if table.path:
        yield f"\n# {table.title}\n[{'.'.join(table.path)}]"
    for key in table.keys:
        yield ""
        words = f"{key.description} ({key.kind})"
        yield textwrap.fill(words, 88, initial_indent="# ", subsequent_indent="#   ")
        if key.path in values:
            yield f"{key.path[-1]} = {tomlkit.item(values[key.path]).as_string()}"
        else:
            yield f"# {key.path[-1]} = {_default(key)}"


def _default(key: Key) -> str:
    return key.default or f"{_ABSENT[key.kind]}  # absent by default"


def _reference_table(table: Table) -> Iterator[str]:
    if not table.keys:
        return
    yield f"### `[{'.'.join(table.path)}]`" if table.path else "### Top of the file"
    yield ""
    yield table.title
    yield ""
    yield "| key | takes | default | meaning |"
    yield "|---|---|---|---|"
    for key in table.keys:
        default = "required" if key.required else f"`{key.default}`"
        if not key.required and key.default is None:
            default = "absent"
        cells = (f"`{key.path[-1]}`", key.kind, default, key.description)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
