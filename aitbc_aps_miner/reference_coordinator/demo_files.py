"""What the demo writes: its configuration and copies of the samples to play with."""

import contextlib
import fcntl
import os
import shutil
import socket
from pathlib import Path

import tomlkit
import yaml

from aitbc_aps_miner.errors import MinerError
from aitbc_aps_miner.reference_coordinator.rules import Rules
from aitbc_aps_miner.reference_coordinator.samples import DATA

HOST = "127.0.0.1"
_HEADER = (
    "The demo's miner reads this file while it runs: change a value, save, and watch.",
    "Each start of the demo writes it anew.",
)


class DemoError(MinerError):
    """The demo cannot run here; the message says why and what to do."""


class DemoFiles:
    """The demo's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.config = self.root / "config.toml"
        self.allowlists = self.root / "allowlist.d"
        self.jobs = self.root / "jobs"
        self.results = self.root / "results"
        self.miner_log = self.root / "miner.log"
        self.coordinator_log = self.root / "coordinator.log"

    def lock(self) -> int:
        """Take the directory for this demo; keep the descriptor. Raises DemoError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise DemoError(f"{self.root} cannot be used: {exc}; try --dir") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise DemoError(
                f"another demo runs in {self.root}; end it, or choose another --dir"
            ) from None
        return fd

    def write(self, *, base_url: str, status: str) -> None:
        """Copy the samples and write the configuration."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("allowlist.d", "tasks"):
            shutil.copytree(
                DATA / name, self.root / name, dirs_exist_ok=True, ignore=ignored
            )
        for path in self.allowlists.glob("*.yaml"):
            # A miner that runs as root refuses what others could have written.
            path.chmod(0o644)
            _use_this_machines_program(path)
        document = _config(self, base_url=base_url, status=status)
        self.config.write_text(tomlkit.dumps(document))


def free_port(preferred: int) -> int:
    """Give a port that nobody listens at now, `preferred` if it is one."""
    for port in (preferred, 0):
        with (
            contextlib.suppress(OSError),
            socket.create_server((HOST, port)) as listener,
        ):
            found: int = listener.getsockname()[1]
            return found
    raise DemoError(f"no port is free at {HOST}")


def _use_this_machines_program(allowlist: Path) -> None:
    """Set the allowlist's path to where the program lies here."""
    text = allowlist.read_text()
    given = yaml.safe_load(text)["command"]["path"]
    found = shutil.which(Path(given).name)
    if found is not None:
        allowlist.write_text(text.replace(f"path: {given}", f"path: {found}"))


def _config(files: DemoFiles, *, base_url: str, status: str) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    for line in _HEADER:
        document.add(tomlkit.comment(line))
    document["node_id"] = "demo-node"
    sections: dict[str, dict[str, object]] = {
        "daemon": {"on_sigterm": "drain", "drain_s": 10},
        "coordinator": {"base_url": base_url, "auth_token": Rules().bootstrap_token},
        "heartbeat": {"interval_s": 2},
        "pull": {"interval_s": 1},
        "sweep": {"interval_s": 5},
        "runners.cli": {"allowlist_dir": str(files.allowlists)},
        "runners.python": {"task_paths": [str(files.root)]},
        "resources": {"max_concurrent_cpu": 2, "cpu_nice": 10, "mem_soft_mb": 2048},
        "workspace": {"root": str(files.jobs), "keep_success": "1h"},
        "logging": {"level": "info", "json": False},
        "status": {"listen": status},
        # A job that outlives a killed demo must not look for its coordinator for days.
        "results": {"keep_trying": "1m"},
        # Inputs come from the coordinator, which is on this very machine.
        "network": {"private": True},
    }
    for dotted, values in sections.items():
        table = document
        *outer, last = dotted.split(".")
        for name in outer:
            table = table.setdefault(name, tomlkit.table(is_super_table=True))
        table[last] = tomlkit.item(values)
    return document
