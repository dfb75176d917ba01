"""argv → command → exit code; what commands do is elsewhere."""

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aitbc_aps_miner import __version__
from aitbc_aps_miner.cli_config import config_app, init
from aitbc_aps_miner.errors import ConfigError, MinerError
from aitbc_aps_miner.exit_codes import ExitCode
from aitbc_aps_miner.util import stdio

app = typer.Typer(
    name="aitbc-aps-miner",
    help="Rent this machine's CPUs and GPUs to the AITBC job network.",
    epilog="Start with [bold]aitbc-aps-miner init[/bold], check with "
    "[bold]config check[/bold], then [bold]run[/bold]. A path alone means run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app)
app.command("init")(init)

ConfigPath = Annotated[
    Path,
    typer.Argument(
        help="The TOML configuration.", metavar="CONFIG.TOML", envvar="AITBC_CONFIG"
    ),
]


class TickName(StrEnum):
    """The ticks that can be run by hand."""

    HEARTBEAT = "heartbeat"
    """Say that the node lives; registers first."""
    PROBE = "probe"
    """Look at the machine."""
    PULL = "pull"
    """Ask for jobs and admit or refuse them; a running daemon starts them."""
    SWEEP = "sweep"
    """Look after the workspaces."""


@app.callback(invoke_without_command=True)
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    """Rent this machine's CPUs and GPUs to the AITBC job network."""
    if version:
        typer.echo(f"aitbc-aps-miner {__version__}")
        raise typer.Exit


@app.command()
def run(config: ConfigPath) -> None:
    """Run the daemon in the foreground until a signal ends it.

    SIGTERM leaves: running jobs go on and the next daemon adopts them. Ctrl-C drains:
    they get daemon.drain_s to end. A second signal ends it at once.
    """
    # `--help` and shell completion must not pay for the daemon's imports.
    from aitbc_aps_miner.config.source import ConfigSource  # noqa: PLC0415
    from aitbc_aps_miner.daemon import Daemon  # noqa: PLC0415
    from aitbc_aps_miner.roots import Roots  # noqa: PLC0415
    from aitbc_aps_miner.util import log  # noqa: PLC0415
    from aitbc_aps_miner.util.clock import SystemClock  # noqa: PLC0415

    source = ConfigSource(config, os.environ, SystemClock())
    settings = source.current.config
    roots = Roots(settings.workspace.root)
    try:
        taken = roots.take()
    except OSError as error:
        raise MinerError(
            f"workspace.root {settings.workspace.root} can't be used: {error}; "
            "name a directory that this user may write"
        ) from error
    if not taken:
        _fail(
            f"another daemon holds {settings.workspace.root}; stop it, or give this "
            "one a workspace.root of its own",
            ExitCode.LOCKED,
        )
    log.configure(settings.logging, settings.node_id)
    try:
        Daemon(source, roots).run()
    finally:
        log.flush()


@app.command()
def probe(
    config: Annotated[
        Path | None,
        typer.Argument(help="The TOML configuration; its probe and tag settings."),
    ] = None,
) -> None:
    """Print what this node would tell a coordinator of itself, as JSON."""
    from aitbc_aps_miner.by_hand import describe  # noqa: PLC0415

    typer.echo(_pretty(describe(config)))


@app.command()
def tick(
    name: Annotated[TickName, typer.Argument(help="Which one.")],
    config: ConfigPath,
) -> None:
    """Run one tick by hand and print its report."""
    from aitbc_aps_miner.by_hand import run_tick  # noqa: PLC0415

    report = run_tick(str(name), config)
    typer.echo(_pretty(report))
    if "error" in report:
        raise typer.Exit(ExitCode.UNREACHABLE)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)


def _fail(words: str, code: ExitCode) -> None:
    Console(stderr=True).print(f"[bold red]error[/] {words}", highlight=False)
    raise typer.Exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; give the exit code."""
    stdio.fill()  # before anything is opened
    args = list(sys.argv[1:] if argv is None else argv)
    command = typer.main.get_command(app)
    if args and args[0].endswith(".toml"):
        args.insert(0, "run")
    try:
        # Standalone, as only then it handles its own exceptions: their classes are
        # click's or typer's own, depending on the version.
        command.main(args, prog_name="aitbc-aps-miner")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except ConfigError as error:
        words = "\n".join(f"  {problem}" for problem in error.problems)
        print(f"the configuration cannot be used:\n{words}", file=sys.stderr)  # noqa: T201
        return ExitCode.CONFIG
    except MinerError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return ExitCode.FAILURE
    return ExitCode.OK  # pragma: no cover - standalone always exits
