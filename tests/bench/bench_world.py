"""What rows measure against: a coordinator, a configuration, an executor, a daemon.

Everything is real: the reference coordinator and the daemon are child processes, the
executor is built as the daemon builds its own.
"""

import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import structlog
import tomli_w

from aitbc_aps_miner import daemon, world
from aitbc_aps_miner.config.source import ConfigSource
from aitbc_aps_miner.executor import (
    Isolated,
    PoolSettings,
    ProcessExecutor,
)
from aitbc_aps_miner.probe.host import probe_host
from aitbc_aps_miner.reference_coordinator.samples import DATA
from aitbc_aps_miner.util import proc
from aitbc_aps_miner.util.clock import SystemClock

NODE = "bench-node"
TOKEN = "bench-bootstrap"
_HERE = Path(__file__).parent
_START_S = 30.0


class Site:
    """A coordinator and a directory with a configuration for it; a context manager."""

    def __init__(self, directory: Path, **sections: Mapping[str, Any]) -> None:
        self.directory = directory
        self.root = directory / "jobs"
        self._sections = sections
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.base_url = stack.enter_context(_coordinator(self.directory))
            self.client = stack.enter_context(
                httpx.Client(base_url=self.base_url, trust_env=False, timeout=60)
            )
            self.config = self._write_config()
            self.source = ConfigSource(self.config, {}, SystemClock())
            self.token = self._register()
            self.client.headers["Authorization"] = f"Bearer {self.token}"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def post(self, path: str, **body: Any) -> Any:
        """Call the coordinator on the one kept connection."""
        reply = self.client.post(path, json=body)
        return reply.raise_for_status().json()

    def submit(self) -> str:
        """Queue an echo job; give its id."""
        return str(self.post("/jobs", **ECHO)["job_id"])

    def pull(self) -> dict[str, Any]:
        """Take the next job as the node would."""
        jobs = self.post("/jobs/pull", **PULL)["jobs"]
        manifest: dict[str, Any] = jobs[0]
        return manifest

    def state_of(self, job_id: str) -> str:
        """Say how far a job is at the coordinator."""
        return str(self.client.get(f"/jobs/{job_id}").json()["state"])

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection of the leanest client there is."""
        place = urlsplit(self.base_url)
        return http.client.HTTPConnection(str(place.hostname), place.port)

    def tick_kwargs(self) -> dict[str, Any]:
        """Give what the daemon would tell a tick (briefing.py), checked now."""
        return {
            "config": self.source.check().json,
            "token": self.token,
            "extensions": None,
        }

    def heartbeat_kwargs(self) -> dict[str, Any]:
        """Give what the daemon would tell a heartbeat."""
        return {
            **self.tick_kwargs(),
            "digest": self.source.current.digest,
            "host": self._host,
            "gpus": [],
            "running": [],
            "slots_free": {"cpu": 2, "gpu": 0},
            "draining": False,
        }

    @functools.cached_property
    def _host(self) -> dict[str, Any]:
        return asdict(probe_host(self.directory))

    def _register(self) -> str:
        reply = self.client.post(
            "/nodes/register",
            json={"node_id": NODE},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        return str(reply.raise_for_status().json()["node_token"])

    def _write_config(self) -> Path:
        allowlists = self.directory / "allowlist.d"
        shutil.copytree(DATA / "allowlist.d", allowlists, dirs_exist_ok=True)
        for path in allowlists.glob("*.yaml"):
            path.chmod(0o644)  # one that others may write is refused
        settings: dict[str, Any] = {
            "node_id": NODE,
            "coordinator": {"base_url": self.base_url, "auth_token": TOKEN},
            "runners": {"cli": {"allowlist_dir": str(allowlists)}},
            "workspace": {"root": str(self.root)},
            "status": {"listen": ""},
            "network": {"private": True},
            **self._sections,
        }
        config = self.directory / "config.toml"
        config.write_text(tomli_w.dumps(settings))
        config.chmod(0o600)
        return config


def _path() -> list[str]:
    """Name where zygotes import from beside what is installed: here, too."""
    given = os.environ.get("PYTHONPATH")
    return [str(_HERE), *([given] if given else [])]


class LikeTheDaemon:
    """The daemon's executor with its zygote; a context manager."""

    def __init__(self, site: Site) -> None:
        os.environ.update(world.tls_environ(site.source.current.config.coordinator))
        self.messages: list[tuple[str, Any]] = []
        self.executor = ProcessExecutor(
            on_message=lambda _job_id, name, said: self.messages.append((name, said)),
            settings=PoolSettings(
                zygote=replace(
                    daemon.ZYGOTE,
                    preload=(*daemon.PRELOAD, "bench_inside"),
                    environ={**os.environ, "PYTHONPATH": os.pathsep.join(_path())},
                )
            ),
            log=structlog.wrap_logger(structlog.PrintLogger(sys.stderr)),
        )

    def __enter__(self) -> Self:
        self.executor.open()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.executor.shutdown(wait=False)

    def call(self, ref: str, /, deadline_s: float = 60, **kwargs: Any) -> Any:
        """Run one function in a process of its own; give what it returned."""
        call = Isolated(ref=ref, deadline_s=deadline_s, kwargs=kwargs)
        return self.executor.call(call).unwrap()


class Daemon:
    """The real daemon as a child of this process; a context manager."""

    def __init__(self, site: Site) -> None:
        self.log = site.directory / "daemon.log"
        self._site = site

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "aitbc_aps_miner", str(self._site.config)]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The daemon's own process."""
        return self._process.pid

    def family(self) -> dict[str, list[int]]:
        """Name its processes: daemon, zygote, and what was forked from that."""
        zygotes = proc.children(self.pid)
        forks = [pid for zygote in zygotes for pid in proc.children(zygote)]
        return {"daemon": [self.pid], "zygote": zygotes, "forks": forks}

    def has_said(self, event: str) -> bool:
        """Whether its log has that event."""
        return f'"{event}"' in self.log.read_text()


ECHO: dict[str, Any] = {
    "runner": "cli",
    "requirements": {"gpu": False, "vram_mb": 0, "cpu_threads": 1},
    "timeout_s": 120,
    "input": {"urls": [], "inline": {}},
    "command": "echo",
    "args": ["hello", "world"],
    "artifacts": [{"path": "output.txt", "type": "text/plain", "max_mb": 1}],
}
"""The specification's own sample job."""

PULL: dict[str, Any] = {
    "node_id": NODE,
    "filters": {
        "runners": ["cli"],
        "gpu": False,
        "vram_mb_free": 0,
        "cpu_slots_free": 2,
        "models": [],
    },
    "max_jobs": 1,
}


@contextlib.contextmanager
def _coordinator(directory: Path) -> Iterator[str]:
    argv = [sys.executable, "-m", "aitbc_aps_miner.reference_coordinator"]
    argv += ["--listen", "127.0.0.1:0", "--bootstrap-token", TOKEN]
    with subprocess.Popen(
        [*argv, "--spool", str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http\S+", process.stdout.readline())
            if found is None:
                raise RuntimeError("the coordinator does not start")
            yield found.group()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_START_S)


def bodies_of(reply: http.client.HTTPResponse) -> Any:
    """Read an answer whole, so that its connection can be used again."""
    data = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {data!r:.200}")
    return json.loads(data)
