"""The command line: `python -m aitbc_aps_miner.reference_coordinator`.

Only options and words; server.py serves. The libraries of the extra `coordinator` are
imported late, so that their absence can be told in words.
"""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from aitbc_aps_miner.util.clock import SystemClock

if TYPE_CHECKING:
    from aitbc_aps_miner.reference_coordinator.rules import Rules

_EXIT_USAGE = 2
_REMEDY = "pip install 'aitbc-aps-miner[coordinator]'"

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.command()
def serve(
    *,
    listen: Annotated[
        str, typer.Option(help="Address to listen on, HOST:PORT; port 0 takes any.")
    ] = "127.0.0.1:8470",
    bootstrap_token: Annotated[
        str,
        typer.Option(
            envvar="REFERENCE_COORDINATOR_TOKEN",
            help="Token that nodes register with.",
        ),
    ] = "demo-token",  # noqa: S107 - a default to be seen, no secret
    lease_s: Annotated[
        float, typer.Option(min=0.1, help="How long a job is a node's without a word.")
    ] = 60,
    token_ttl_s: Annotated[
        float, typer.Option(min=0.1, help="How long a node token serves.")
    ] = 3600,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Attempts that a job gets.")
    ] = 3,
    spec_only: Annotated[
        bool,
        typer.Option(
            "--spec-only",
            help="Speak the bare specification: no leases, queries, long poll, "
            "uploads or idempotency.",
        ),
    ] = False,
    no_registration: Annotated[
        bool,
        typer.Option(
            "--no-registration",
            help="Answer 404 to register and heartbeat; the bootstrap token serves "
            "for every call.",
        ),
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            writable=True,
            help="Where to make the directory for uploaded files; it is removed at "
            "the end. Default: the system's temporary directory.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Certificate chain as PEM."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The certificate's key as PEM."),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(help="error, warning, info (every request) or debug."),
    ] = "warning",
) -> None:
    """Run a coordinator for demos, tests and task developers, NOT for production.

    Jobs, nodes and artifacts are forgotten when it ends, and whoever reaches its port
    may submit jobs. It speaks the node API v1 under /api/v1 and shows nodes and jobs
    on a page at /. Submit with POST /api/v1/jobs; break calls on purpose with
    POST /api/v1/faults, such as {"call": "result", "kind": "drop_reply", "count": 1}.
    """
    if (tls_cert is None) != (tls_key is None):
        _refuse("--tls-cert and --tls-key go together: give both or neither")
    if log_level not in {"error", "warning", "info", "debug"}:
        _refuse(f"--log-level: expected error, warning, info or debug: {log_level}")
    rules = _rules(
        bootstrap_token=bootstrap_token,
        lease_s=lease_s,
        token_ttl_s=token_ttl_s,
        max_attempts=max_attempts,
        spec_only=spec_only,
        no_registration=no_registration,
    )
    settings = {
        "log_level": log_level,
        "ssl_certfile": tls_cert,
        "ssl_keyfile": tls_key,
    }
    _serve(*_host_and_port(listen), rules, spool, settings)


def main() -> None:
    """Start from the command line."""
    cli(prog_name="python -m aitbc_aps_miner.reference_coordinator")


def _rules(**given: Any) -> "Rules":
    try:
        import fastapi  # noqa: F401, PLC0415 - its absence is told in words below
        import python_multipart  # noqa: F401, PLC0415 - likewise
    except ImportError as exc:
        _refuse(f"{exc.name} is not installed; the coordinator needs it: {_REMEDY}")
    from aitbc_aps_miner.reference_coordinator.rules import Rules  # noqa: PLC0415 - late

    return Rules(**given)


def _serve(
    host: str, port: int, rules: "Rules", spool: Path | None, settings: dict[str, Any]
) -> None:
    from aitbc_aps_miner.reference_coordinator import app, server  # noqa: PLC0415 - late
    from aitbc_aps_miner.reference_coordinator.spool import Spool  # noqa: PLC0415 - late
    from aitbc_aps_miner.reference_coordinator.state import State  # noqa: PLC0415 - late

    try:
        sock = server.listen(host, port)
    except OSError as exc:
        _refuse(f"--listen {host}:{port}: {exc.strerror or exc}; choose another one")
    scheme = "https" if settings["ssl_certfile"] else "http"
    name = f"[{host}]" if ":" in host else host
    origin = f"{scheme}://{name}:{sock.getsockname()[1]}"

    def say_so() -> None:
        typer.echo(
            f"reference coordinator listening on {origin}/api/v1 (page: {origin}/); "
            "its state is in memory only"
        )
        sys.stdout.flush()

    with sock, Spool(spool) as files:
        application = app.Application(State(rules, SystemClock()), files)
        running = server.Server(application, say_so, **settings)
        asyncio.run(running.serve(sockets=[sock]))


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - ports
        _refuse(f"--listen: expected HOST:PORT, given {address!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"reference coordinator: {message}", err=True)
    raise typer.Exit(_EXIT_USAGE)


if __name__ == "__main__":
    main()
