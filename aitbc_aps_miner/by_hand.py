"""What people do by hand with a configuration: describe the node, run one tick.

No daemon is asked: a tick run here registers by itself and runs in this process.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aitbc_aps_miner import __version__, sweep, tasks
from aitbc_aps_miner.channel import ChannelClosedError
from aitbc_aps_miner.config.load import load_file
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.node import Node
from aitbc_aps_miner.probe.capabilities import capabilities
from aitbc_aps_miner.probe.gpu import probe_gpus
from aitbc_aps_miner.probe.host import probe_host
from aitbc_aps_miner.runners import enabled_kinds
from aitbc_aps_miner.util.clock import SystemClock


class NoDaemon:
    """The line of a tick that no daemon listens to; logs go to standard error."""

    closed = True

    def send(self, kind: str, payload: Any = None) -> None:
        """Show a log record; anything else is news for nobody."""
        if kind == "log":
            print(json.dumps(payload, default=str), file=sys.stderr)  # noqa: T201

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:  # noqa: ARG002  nobody hears it
        """Refuse: there is nobody to ask."""
        raise ChannelClosedError("no daemon is running this tick")


def describe(path: Path | None) -> Mapping[str, Any]:
    """Give the capability descriptor of this machine; nothing is written."""
    if path is None:
        config = Config.model_validate(
            {"node_id": os.uname().nodename, "coordinator": {"base_url": "http://none"}}
        )
    else:
        config = load_file(path, os.environ)
    gpus = probe_gpus(config.probe)
    return {
        **capabilities(
            config,
            probe_host(config.workspace.root),
            gpus.gpus,
            version=__version__,
            runners=enabled_kinds(config),
            public_key=None,
        ),
        "gpu_source": gpus.source,
        "notes": list(gpus.notes),
    }


def run_tick(name: str, path: Path) -> Mapping[str, Any]:
    """Run one tick on the configuration in `path` and give its report."""
    config = load_file(path, os.environ)
    given = {"config": config.model_dump_json(by_alias=True)}
    line = NoDaemon()
    if name == "probe":
        return tasks.probe(line, **given)
    facts = tasks.probe(line, **given)
    access: dict[str, Any] = {**given, "token": None, "extensions": None}
    node = Node(
        clock=SystemClock(),
        cpu_slots=config.resources.max_concurrent_cpu,
        gpu_slots=config.resources.max_concurrent_gpu,
        host=facts["host"],
        gpus=tasks.gpus_of(facts["gpus"]),
    )
    capacity = node.capacity()
    if name == "heartbeat":
        return tasks.heartbeat(
            line,
            **access,
            digest="",
            host=facts["host"],
            gpus=facts["gpus"],
            running=[],
            slots_free={"cpu": capacity.cpu_free, "gpu": capacity.gpu_free},
            draining=False,
        )
    roots = [str(config.workspace.root)]
    if name == "pull":
        return tasks.pull(
            line, **access, roots=roots, capacity=asdict(capacity), held=[]
        )
    return sweep.sweep(
        line,
        **access,
        roots=roots,
        held=[],
        adopted=[],
        orphans=[],
        capacity=asdict(capacity),
        takes_work=not config.owner.paused,
        evidence={},
    )
