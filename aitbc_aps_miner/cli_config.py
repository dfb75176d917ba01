"""`aitbc-aps-miner config …` and `init`: checks, imports, writes configurations.

Only words and exit codes; what is right or wrong is decided in the config package.
"""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tomli_w
import typer
from rich.console import Console

from aitbc_aps_miner.config.diff import shown
from aitbc_aps_miner.config.keys import keys
from aitbc_aps_miner.config.load import (
    MAX_BYTES,
    config_warnings,
    load_file,
    load_text,
)
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.read import Unreadable, read_small
from aitbc_aps_miner.config.reference import example_text, reference_markdown
from aitbc_aps_miner.config.secrets import is_reference, resolve
from aitbc_aps_miner.config.write import write_config
from aitbc_aps_miner.config.yaml_import import import_yaml, new_node_id
from aitbc_aps_miner.errors import ConfigError
from aitbc_aps_miner.exit_codes import ExitCode

KeyPath = tuple[str, ...]

_NODE_ID: KeyPath = ("node_id",)
_BASE_URL: KeyPath = ("coordinator", "base_url")
_AUTH_TOKEN: KeyPath = ("coordinator", "auth_token")
_ROOT: KeyPath = ("workspace", "root")
_ALLOWLIST_DIR: KeyPath = ("runners", "cli", "allowlist_dir")
_TASK_PATHS: KeyPath = ("runners", "python", "task_paths")

config_app = typer.Typer(
    name="config",
    help="Check, import and explain configurations.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@config_app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The TOML file to check.")],
) -> None:
    """Check a configuration and show what it sets.

    Prints [bold]every[/bold] problem at once, with line and remedy.
    Variables AITBC_MINER__SECTION__KEY count as they do for the daemon.
    """
    try:
        config = load_file(path, os.environ)
    except ConfigError as exc:
        _refuse(exc, path)
    _say(f"OK  {path}", "bold green")
    for line in _summary(config):
        _say(f"    {line}")
    for words in config_warnings(config):
        _warn(words)
    try:
        resolve(config.coordinator.auth_token)
    except ConfigError as exc:
        _warn(f"in this environment, {exc}")


@config_app.command("import")
def import_(
    old: Annotated[Path, typer.Argument(help="The YAML configuration to convert.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the TOML; default stdout."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output file if it exists.")
    ] = False,
) -> None:
    """Convert a YAML configuration to TOML.

    What was changed or dropped is noted on standard error; a value that
    cannot be used is a problem with its line, and nothing is written.
    """
    content = read_small(old, MAX_BYTES)
    if isinstance(content, Unreadable):
        _fail(f"{old}: {content.reason}", ExitCode.USAGE)
    try:
        data, notes = import_yaml(content.decode("utf-8", "replace"))
    except ConfigError as exc:
        _refuse(exc, old)
    for note in notes:
        _warn(note, "note")
    text = tomli_w.dumps(data)
    if output is None:
        typer.echo(text, nl=False)
    else:
        _write(output, text, force=force)


@config_app.command()
def reference() -> None:
    """Print every key with type, default and meaning, as Markdown."""
    typer.echo(reference_markdown(), nl=False)


@config_app.command()
def example() -> None:
    """Print a complete, commented configuration (config.toml.example)."""
    typer.echo(example_text(), nl=False)


def init(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the configuration.")
    ] = Path("config.toml"),
    node_id: Annotated[
        str | None, typer.Option(help="Name of this node; default: one is made up.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The coordinator, https://host/api/v1.")
    ] = None,
    auth_token: Annotated[
        str | None,
        typer.Option(help="env:NAME, file:/path or the token itself."),
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="Directory where jobs live.")
    ] = None,
    allowlist_dir: Annotated[
        Path | None, typer.Option(help="Directory of allowlisted commands.")
    ] = None,
    task_path: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of Python tasks; may be given several times."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output file if it exists.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing, take the defaults.")
    ] = False,
) -> None:
    """Write a new configuration, with every key explained in it.

    On a terminal it asks for what no option gives. The file is checked
    before it is written, and readable by you alone if it holds the token.
    """
    given: dict[KeyPath, Any] = {
        _NODE_ID: node_id,
        _BASE_URL: base_url,
        _AUTH_TOKEN: auth_token,
        _ROOT: _absolute(workspace),
        _ALLOWLIST_DIR: _absolute(allowlist_dir),
        _TASK_PATHS: [str(path.absolute()) for path in task_path or []] or None,
    }
    if output.exists() and not force:
        _fail(f"{output} exists; --force replaces it", ExitCode.USAGE)
    values = _answers(given, ask=sys.stdin.isatty() and not yes)
    text = example_text(values)
    try:
        config = load_text(text, {})
    except ConfigError as exc:
        _refuse(exc, output)
    private = not is_reference(config.coordinator.auth_token)
    _write(output, text, force=force, private=private)
    for words in config_warnings(config):
        _warn(words)
    _say(f"Start it with: aitbc-aps-miner run {output}", err=True)


def default_root(euid: int, home: Path) -> Path:
    """Give the workspace root that a user can write: the system's or their own."""
    if euid == 0:
        return Path("/var/lib/aitbc/miner/jobs")
    return home / ".local" / "state" / "aitbc" / "miner" / "jobs"


def _answers(given: Mapping[KeyPath, Any], *, ask: bool) -> dict[KeyPath, Any]:
    """Complete what the options gave by questions or by defaults."""
    defaults = {
        _NODE_ID: new_node_id(socket.gethostname().partition(".")[0]),
        _AUTH_TOKEN: "env:MINER_AUTH",
        _ROOT: str(default_root(os.geteuid(), Path.home())),
    }
    values = {}
    for path, value in given.items():
        if value is not None:
            values[path] = value
        elif ask:
            values[path] = _ask(path, defaults.get(path))
        else:
            values[path] = defaults.get(path)
    if values[_BASE_URL] is None:
        _fail("--base-url is needed: the coordinator's URL", ExitCode.USAGE)
    return {path: value for path, value in values.items() if value is not None}


def _ask(path: KeyPath, default: str | None) -> Any:
    """Ask until the answer is one that the configuration takes."""
    key = keys()[path]
    optional = default is None and not key.required
    hint = " (Enter for none)" if optional else ""

    def checked(text: str) -> str:
        value = [text] if path == _TASK_PATHS else text
        trial = {_NODE_ID: "node", _BASE_URL: "http://localhost", path: value}
        if text or not optional:
            try:
                load_text(example_text(trial), {})
            except ConfigError as exc:
                raise typer.BadParameter(
                    f"expected {exc.problems[0].expected}"
                ) from exc
        return text

    answer = typer.prompt(
        f"{key.description}{hint}",
        default="" if optional else default,
        show_default=not optional,
        value_proc=checked,
        err=True,
    )
    if not answer:
        return None
    return [answer] if path == _TASK_PATHS else answer


def _summary(config: Config) -> list[str]:
    """Give what the configuration sets differently from the defaults."""
    lines = [
        f"{key.dotted} = {value}"
        for key in keys().values()
        if (value := shown(key, config)) != (key.default or "absent")
    ]
    return [*lines, f"and {len(keys()) - len(lines)} keys at their defaults"]


def _absolute(path: Path | None) -> str | None:
    # the daemon may be started from anywhere
    return None if path is None else str(path.absolute())


def _write(path: Path, text: str, *, force: bool, private: bool = False) -> None:
    try:
        write_config(path, text, force=force, private=private)
    except FileExistsError:
        _fail(f"{path} exists; --force replaces it", ExitCode.USAGE)
    except OSError as exc:
        _fail(f"{path}: {(exc.strerror or str(exc)).lower()}", ExitCode.FAILURE)
    _say(f"Wrote {path}", err=True)


def _refuse(error: ConfigError, path: Path) -> NoReturn:
    _say(f"{len(error.problems)} problem(s) in {path}", "bold red", err=True)
    for problem in error.problems:
        _say(f"    {problem}", err=True)
    raise typer.Exit(ExitCode.CONFIG)


def _fail(words: str, code: ExitCode) -> NoReturn:
    _say(f"error: {words}", "bold red", err=True)
    raise typer.Exit(code)


def _warn(words: str, kind: str = "warning") -> None:
    _say(f"{kind}: {words}", "yellow", err=True)


def _say(words: str, style: str | None = None, *, err: bool = False) -> None:
    # values are no markup, and lines stay whole for grep
    console = Console(stderr=err, soft_wrap=True)
    console.print(words, style=style, markup=False, highlight=False, emoji=False)
