"""Rows about a disk full of leftovers: what start-up and the sweep cost then."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_table import Row
from bench_tools import Scale, in_turn, median, timed, wait_until
from bench_world import Daemon, LikeTheDaemon, Site

from aitbc_aps_miner.slots import Capacity
from aitbc_aps_miner.util import fs

_SETTLED_MODE = 0o400


def leftovers(scale: Scale, directory: Path) -> list[Row]:
    """Sweep and start with very many settled workspaces, and with none."""
    count = int(scale.of(100_000, 300))
    rounds = scale.rounds(5)
    starts = scale.rounds(3)
    with Site(directory) as site:
        model = _settled_job(site)
        empty_start = _starts(site, starts)
        with LikeTheDaemon(site) as node:
            (empty,) = in_turn(rounds, lambda: _sweep(site, node))
            _multiply(model, count)
            full, names = in_turn(
                rounds,
                lambda: _sweep(site, node),
                lambda: timed(lambda: _list(site.root)),
            )
        full_start = _starts(site, starts)
        fs.remove_tree(site.root)
    extra_us = (median(full) - median(empty)) / count * 1e6
    return [
        Row(
            name=f"sweep tick with {count:,} settled workspaces",
            measured=f"{median(full):.2f} s",
            reference=f"with one: {median(empty) * 1e3:.1f} ms",
            rounds=rounds,
            notes=(
                f"{extra_us:.1f} µs for each, one stat included",
                f"listing their names takes {median(names) * 1e3:.0f} ms",
            ),
        ),
        Row(
            name=f"daemon's start to its first accepted job with {count:,} of them",
            measured=f"{median(full_start):.2f} s",
            reference=f"with one: {median(empty_start):.2f} s",
            ratio=median(full_start) / median(empty_start),
            rounds=starts,
        ),
    ]


def _settled_job(site: Site) -> Path:
    """Let a real daemon make one; the others are its copies."""
    job_id = site.submit()
    with Daemon(site):
        wait_until(lambda: site.state_of(job_id) == "succeeded", 60, "a settled job")
    return site.root / job_id


def _multiply(model: Path, count: int) -> None:
    """Copy what a sweep looks at: the directory, its claim and its state."""
    claim = (model / "job.json").read_bytes()
    state = json.loads((model / "state.json").read_bytes())
    root_fd = os.open(model.parent, os.O_RDONLY)
    try:
        for number in range(count):
            name = f"leftover-{number}"
            os.mkdir(name, 0o700, dir_fd=root_fd)
            _write(root_fd, f"{name}/job.json", claim, 0o600)
            data = json.dumps({**state, "job_id": name}).encode()
            _write(root_fd, f"{name}/state.json", data, _SETTLED_MODE)
    finally:
        os.close(root_fd)


def _write(dir_fd: int, path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=dir_fd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _sweep(site: Site, node: LikeTheDaemon) -> float:
    capacity = asdict(Capacity(cpu_slots=2, gpu_slots=0, cpu_threads=2))
    kwargs: dict[str, Any] = {
        "roots": [str(site.root)],
        "held": [],
        "adopted": [],
        "orphans": [],
        "capacity": capacity,
        "takes_work": True,
        "evidence": {},
    }
    return timed(
        lambda: node.call("aitbc_aps_miner.sweep:sweep", **site.tick_kwargs(), **kwargs)
    )


def _list(root: Path) -> None:
    with os.scandir(root) as entries:
        for _ in entries:
            pass


def _starts(site: Site, rounds: int) -> list[float]:
    """Give the seconds from a daemon's exec until it has a waiting job acked."""
    taken = []
    for _ in range(rounds):
        job_id = site.submit()
        began = time.monotonic()
        with Daemon(site):
            wait_until(
                lambda: site.state_of(job_id) not in ("queued", "leased"),  # noqa: B023  called at once
                120,
                "the first job is acked",
            )
            taken.append(time.monotonic() - began)
            wait_until(lambda: site.state_of(job_id) == "succeeded", 60, "it is done")  # noqa: B023  likewise
    return taken
