"""Rows about jobs: one through the whole machinery, many, and picking one up."""

import hashlib
import json
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from bench_table import Row
from bench_ticks import NoLine
from bench_tools import Scale, in_turn, median, ms, timed, wait_until
from bench_world import NODE, PULL, Daemon, LikeTheDaemon, Site, bodies_of

from aitbc_aps_miner import intake
from aitbc_aps_miner.manifest import parse
from aitbc_aps_miner.models import Reservation
from aitbc_aps_miner.world import World

PICKUP_LIMIT = 2.0

_BOUNDARY = "bench-boundary"
_JOB_TIMEOUT_S = 120.0
_QUIET_S = 0.03


def echo_job(scale: Scale, directory: Path) -> list[Row]:
    """Time one job from pulled to delivered, with and without what fsync costs."""
    rounds = scale.rounds(50)
    with Site(directory) as site, LikeTheDaemon(site) as node:
        jobs = _Echoes(site, node)
        whole, unsynced, bare = in_turn(
            rounds,
            lambda: jobs.run(fsync=True),
            lambda: jobs.run(fsync=False),
            jobs.bare,
        )
        told = jobs.told[-rounds:]
    return [
        Row(
            name="echo job from pulled to delivered",
            measured=ms(whole),
            reference=f"same calls and command in a bare loop: {ms(bare)}",
            ratio=median(whole) / median(bare),
            rounds=rounds,
            notes=(
                f"without the fsyncs {ms(unsynced)}",
                _fsyncs(told),
                _stages(told),
                "modules imported after the fork: "
                + (", ".join(told[-1]["imported"]) or "none"),
            ),
        )
    ]


class _Echoes:
    """Echo jobs, run by a job process or by a loop that does nothing else."""

    def __init__(self, site: Site, node: LikeTheDaemon) -> None:
        self._site = site
        self._node = node
        self._world = World(NoLine(), site.source.check().json, site.token)
        self._bare = Bare(site)
        self.told: list[dict[str, Any]] = []

    def run(self, *, fsync: bool) -> float:
        """Run one in a job process, as the daemon starts it."""
        self._site.submit()
        raw = self._site.pull()
        job = intake.job_of(
            self._world,
            parse(raw, max_timeout_s=_JOB_TIMEOUT_S),
            raw,
            Reservation(kind="cpu"),
            root=str(self._world.config.workspace.root),
        )
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        told = self._node.call(
            "bench_inside:echo_job",
            fsync=fsync,
            began_boottime=began,
            job=job,
            resume=False,
            **self._site.tick_kwargs(),
        )
        took_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began
        if told["report"]["state"] != "DONE":
            raise RuntimeError(f"an echo job ended as {told['report']}")
        if fsync:
            history = _history(self._site, raw["job_id"])
            self.told.append({**told, "stages": _seconds(history, began, took_s)})
        return took_s

    def bare(self) -> float:
        """Do the same calls and the same command, and nothing to keep any of it."""
        self._site.submit()
        raw = self._site.pull()
        return timed(lambda: self._bare.run(raw))


class Bare:
    """A worker that only calls, runs and answers, on one kept connection."""

    def __init__(self, site: Site) -> None:
        self._connection = site.connect()
        self._auth = {"Authorization": f"Bearer {site.token}"}

    def pull(self) -> list[dict[str, Any]]:
        """Take one job, if there is any."""
        jobs: list[dict[str, Any]] = self._post("jobs/pull", PULL)["jobs"]
        return jobs

    def run(self, raw: Mapping[str, Any]) -> None:
        """Acknowledge a job, run its command, submit what it printed."""
        job_id = str(raw["job_id"])
        self._post("jobs/ack", {"job_id": job_id, "node_id": NODE})
        printed = _run_echo(raw["args"])
        metadata = {
            "node_id": NODE,
            "exit_code": 0,
            "artifacts": [
                {
                    "path": "output.txt",
                    "type": "text/plain",
                    "bytes": len(printed),
                    "sha256": hashlib.sha256(printed).hexdigest(),
                }
            ],
        }
        body = b"".join(
            [
                _part("job_id", job_id.encode()),
                _part("metadata", json.dumps(metadata).encode()),
                _part("artifact", printed, "artifacts/logs/exec.log"),
                _part("artifact", printed, "artifacts/output.txt"),
                f"--{_BOUNDARY}--\r\n".encode(),
            ]
        )
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        self._send("jobs/result", body, kind)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send(path, json.dumps(body).encode(), "application/json")

    def _send(self, path: str, body: bytes, kind: str) -> Any:
        headers = {**self._auth, "Content-Type": kind}
        self._connection.request("POST", f"/api/v1/{path}", body, headers)
        return bodies_of(self._connection.getresponse())


def jobs_per_second(scale: Scale, directory: Path) -> list[Row]:
    """Let the real daemon and two bare loops empty the same queue."""
    count = int(scale.of(100, 6))
    with Site(directory, heartbeat={"interval_s": 60}) as site:
        bare_s = timed(lambda: _empty_with_two_loops(site, count))
        job_ids = [site.submit() for _ in range(count)]
        with Daemon(site):
            wait_until(
                lambda: site.state_of(job_ids[-1]) == "succeeded", 60, "the last job"
            )
            _wait_for_all(site, job_ids)
        histories = [_history(site, job_id) for job_id in job_ids]
        began = min(_boottime(history[0]) for history in histories)
        daemon_s = max(_boottime(history[-1]) for history in histories) - began
        stages = _stages([{"stages": _stages_of(history)} for history in histories])
    return [
        Row(
            name="jobs per second, two slots, real daemon",
            measured=f"{count / daemon_s:.0f} jobs/s",
            reference=f"two bare loops: {count / bare_s:.0f} jobs/s",
            ratio=bare_s / daemon_s,
            rounds=count,
            notes=(f"of each job {stages}",),
        )
    ]


def pick_up(scale: Scale, directory: Path) -> list[Row]:
    """Time from submitting a job to its arrival at a node that waits for one."""
    rounds = scale.rounds(50)
    with Site(directory) as site, LikeTheDaemon(site) as node:
        waiting = _Waiting(site, node)
        pickups, trips = in_turn(
            rounds,
            waiting.pick_up,
            waiting.round_trip,
        )
    ratio = median(pickups) / median(trips)
    accepted = _accepted_by_daemon(directory / "daemon", rounds)
    return [
        Row(
            name="pick-up of a job submitted while idle (long poll)",
            measured=ms(pickups),
            reference=f"one HTTP round trip: {ms(trips)}",
            ratio=ratio,
            target=f"≤ {PICKUP_LIMIT:g}",
            met=ratio <= PICKUP_LIMIT,
            rounds=rounds,
            notes=(
                f"until the real daemon had it acked, durably claimed: {ms(accepted)}",
            ),
        )
    ]


class _Waiting:
    """A tick that holds a long poll open, started anew for every job."""

    def __init__(self, site: Site, node: LikeTheDaemon) -> None:
        self._site = site
        self._node = node

    def pick_up(self) -> float:
        """Submit one job to a coordinator that holds our pull; both ends are ours."""
        with ThreadPoolExecutor(1) as threads:
            kwargs = {**self._site.tick_kwargs(), "body": PULL}
            self._node.messages.clear()
            polling = threads.submit(
                self._node.call, "bench_inside:long_poll", **kwargs
            )
            wait_until(lambda: bool(self._node.messages), 10, "the pull is sent")
            time.sleep(_QUIET_S)  # until it is held at the coordinator
            began = time.monotonic()
            self._site.submit()
            answer = polling.result()
        if len(answer["jobs"]) != 1:
            raise RuntimeError(f"one job was submitted, {answer['jobs']} came")
        took_s: float = answer["at"] - began
        return took_s

    def round_trip(self) -> float:
        """Make one small call after as much silence."""
        time.sleep(_QUIET_S)
        return timed(lambda: self._site.post("/nodes/heartbeat", node_id=NODE))


def _accepted_by_daemon(directory: Path, rounds: int) -> list[float]:
    """Give the seconds until the ack, by the coordinator's own milliseconds."""
    taken = []
    with Site(directory, heartbeat={"interval_s": 60}) as site, Daemon(site):
        for number in range(rounds + 1):
            job_id = site.submit()
            wait_until(
                lambda: site.state_of(job_id) == "succeeded",  # noqa: B023  called at once
                60,
                f"{job_id} is delivered",
            )
            history = site.client.get(f"/jobs/{job_id}").json()["history"]
            at = {step["state"]: datetime.fromisoformat(step["at"]) for step in history}
            if number:  # the first one waits for the daemon's start
                taken.append((at["acked"] - at["queued"]).total_seconds())
            time.sleep(0.15)  # until it pulls again, and all is quiet
    return taken


def _run_echo(args: list[str]) -> bytes:
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_CLOSE, read)]
    pid = os.posix_spawn("/bin/echo", ["echo", *args], {}, file_actions=actions)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        printed = pipe.read()
    os.waitpid(pid, 0)
    return printed


def _part(name: str, data: bytes, filename: str | None = None) -> bytes:
    more = f'; filename="{filename}"\r\nContent-Type: text/plain' if filename else ""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}'
    return head.encode() + b"\r\n\r\n" + data + b"\r\n"


def _empty_with_two_loops(site: Site, count: int) -> None:
    for _ in range(count):
        site.submit()

    def loop() -> None:
        worker = Bare(site)
        while jobs := worker.pull():
            worker.run(jobs[0])

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait_for_all(site: Site, job_ids: list[str]) -> None:
    for job_id in job_ids:
        wait_until(lambda: site.state_of(job_id) == "succeeded", 60, job_id)  # noqa: B023  called at once


def _history(site: Site, job_id: str) -> list[dict[str, Any]]:
    path = site.root / job_id / "state.json"
    history: list[dict[str, Any]] = json.loads(path.read_text())["history"]
    return history


def _stages_of(history: list[dict[str, Any]]) -> dict[str, float]:
    began = _boottime(history[0])
    return _seconds(history, began, _boottime(history[-1]) - began)


def _seconds(
    history: Sequence[Mapping[str, Any]], began: float, took_s: float
) -> dict[str, float]:
    """Give the seconds before the claim, in each state, and after the last one."""
    moments = [("start", began), *((str(h["state"]), _boottime(h)) for h in history)]
    ends = [at for _, at in moments[1:]] + [began + took_s]
    return {state: end - at for (state, at), end in zip(moments, ends, strict=True)}


def _boottime(line: Mapping[str, Any]) -> float:
    return float(line["boottime"])


def _stages(told: list[dict[str, Any]]) -> str:
    names = list(told[-1]["stages"])
    medians = {n: statistics.median(t["stages"][n] for t in told) for n in names}
    return ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in medians.items())


def _fsyncs(told: list[dict[str, Any]]) -> str:
    count = statistics.median(each["fsyncs"] for each in told)
    took_s = statistics.median(each["fsync_s"] for each in told)
    return f"{count:.0f} fsyncs take {took_s * 1e3:.1f} ms"
