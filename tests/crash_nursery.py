"""Forks processes that run one job, die on the way, or settle what is left of it.

A program of its own without threads: a line of JSON in says what to fork, a line out
that it ended. Every child leaves its findings in a file.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
from crash_power import Disk, cut, forget_boot
from crash_steps import Step, Steps
from tick_site import Line, Site, quiet_log

from aitbc_aps_miner import job
from aitbc_aps_miner.models import JobState, Reservation
from aitbc_aps_miner.util import fs
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.workspace import Workspaces, jobdir, lock

MAX_ROUNDS = 12
START_S = 5

# Not counted, and so counting goes on in the child, too.
_fork = os.fork


@dataclass(frozen=True, kw_only=True)
class Case:
    """One job on one node, and how its process ends."""

    home: str
    commands: str
    base_url: str
    token: str
    raw: Mapping[str, Any]
    settings: Mapping[str, Any]
    cancelled: bool = False
    """Its daemon says so as soon as the payload runs."""
    last: tuple[str, int] | None = None
    """The step before which the process is killed."""
    power: str | None = None
    """What the disk keeps then; None for everything."""
    then: int | None = None
    """The step at which what settles it is killed, or what it runs again."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.raw["job_id"])

    @property
    def place(self) -> Path:
        """The node's directory."""
        return Path(self.home)

    @property
    def found_at(self) -> Path:
        """Where children write what they found."""
        return Path(f"{self.home}.json")

    @property
    def runs_at(self) -> Path:
        """Where payloads write that they ran."""
        return Path(f"{self.home}.runs")

    @property
    def kept_at(self) -> Path:
        """What the disk keeps of the workspaces."""
        return Path(f"{self.home}.kept")

    @property
    def runs(self) -> list[str]:
        """What payloads have written."""
        return self.runs_at.read_text().split() if self.runs_at.exists() else []

    def site(self) -> Site:
        """Give the node."""
        return Site(
            self.place,
            self.base_url,
            self.token,
            runners={"cli": {"allowlist_dir": self.commands}},
            **self.settings,
        )

    def to_json(self) -> str:
        """Put it on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read it."""
        last = data["last"]
        return cls(**{**data, "last": None if last is None else tuple(last)})


class _Daemon(Line):
    """A line to a daemon that lives: what can wait is left to its ticks."""

    closed = False

    def detach(self) -> None:
        """Do what a job's channel does: nothing here."""


def run_job(case: Case) -> None:
    """Run the job as its process does, then deliver what waits, up to the last step."""
    site = case.site()
    last = None if case.last is None else Step(*case.last)
    disk = Disk(site.root)
    steps = Steps(case.place, case.job_id, last, lambda: _power_off(case, disk))
    if case.power is not None:
        site.root.mkdir()
        steps.synced = disk.synced
    _when_it_runs(case, site, steps)
    steps.install()
    # `job_of` of a pull's report; everything but the slot is as it came.
    told = {
        "raw": case.raw,
        "origin": asdict(site.origin),
        "reservation": asdict(Reservation(kind="cpu", cpu_threads=1)),
        "root": str(site.root),
    }
    report = _run(site, told, resume=False)
    if report["state"] == JobState.RETRY_WAIT:
        _let_go(site.root / case.job_id / "lock")
        report = site.deliver(case.job_id)
    steps._off = True
    found = {"report": report, "steps": steps.trail}
    case.found_at.write_text(json.dumps(found))


def settle(case: Case) -> None:
    """Start again after a crash: sweep and obey until all is quiet."""
    if case.power is not None:
        if not case.kept_at.exists():
            msg = "the process did not get to its last step"
            raise AssertionError(msg)
        for process in _processes(case):
            process.kill()
            process.wait(5)
        cut(case.place / "jobs", case.kept_at)
        forget_boot(jobdir)
    site = case.site()
    before = _facts(case, site)
    if case.then is not None:
        Steps(case.place, case.job_id, case.then, lambda: None).install()
    deeds: list[Any] = []
    orphans: list[str] = []
    for _ in range(MAX_ROUNDS):
        report = site.sweep(orphans=orphans)
        orphans = report["orphans"]
        deed = _deed(report)
        deeds.append(deed)
        if not deed:
            break
        if not _obey(case, site, report):
            before = _facts(case, site)  # the later crash decides
    # No claim takes so long: what is left of a dead one may go.
    Workspaces(site.root, _Later()).tidy(budget_s=5)
    found = {"before": before, "deeds": deeds, "after": _facts(case, site)}
    case.found_at.write_text(json.dumps(found))


class _Later(SystemClock):
    """The clocks, an hour later."""

    def realtime(self) -> float:
        return super().realtime() + 3600


def _run(site: Site, told: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    channel: Any = _Daemon()
    return job.run(channel, **site.access, job=told, resume=resume)


def _let_go(path: Path) -> None:
    """Close our descriptors of a file, as the end of the job's process does."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            fd = int(link.name)
            is_pin = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH  # crash_power's
            if link.readlink() == path and not is_pin:
                os.close(fd)


def _when_it_runs(case: Case, site: Site, steps: Steps) -> None:
    """See to it that the payload has processes to leave; cancel it, if it is to be."""

    def started() -> None:
        until = time.monotonic() + START_S
        while not case.runs and time.monotonic() < until:
            time.sleep(0.001)
        if case.cancelled:
            site.workspaces.write_control(case.job_id, {"cancel": True})

    steps.on["payload started"] = started


def _power_off(case: Case, disk: Disk) -> None:
    if case.power is not None:
        disk.keep(case.power, case.kept_at)


def _deed(report: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in report.items() if value}
    told.pop("disk_used_pct", None)
    if "run" in told:
        told["run"] = [one["job_id"] for one in told["run"]]
    return told


def _obey(case: Case, site: Site, report: Mapping[str, Any]) -> bool:
    """Do what a sweep asks for; False when a job that ran again has died."""
    statuses = [fork(partial(_rerun, case, told)) for told in report["run"]]
    for job_id in report["deliver"]:
        site.deliver(job_id)
    for job_id in report["resend"]:
        site.deliver(job_id, resend=True)
    return not any(statuses)


def _rerun(case: Case, told: Mapping[str, Any]) -> None:
    site = case.site()
    steps = Steps(case.place, case.job_id, None, lambda: None)
    _when_it_runs(case, site, steps)
    steps.install()
    _run(site, told, resume=not told.get("fresh", False))


def _facts(case: Case, site: Site) -> dict[str, Any]:
    path = site.root / case.job_id
    found = site.workspaces.find(case.job_id)
    record = None if found is None else found.record
    outcome = None
    if (path / "outcome.json").exists():
        outcome = fs.read_json(path / "outcome.json")["code"]
    return {
        "here": found is not None,
        "damaged": None if found is None else found.damaged,
        "state": None if record is None else record.state,
        "spawned": record is not None and record.spawned,
        "recorded": found is not None and found.outcome_recorded,
        "code": outcome,
        "delivered": found is not None and found.delivered,
        "dropped": None if record is None else record.dropped,
        "locked": lock.is_held(path),
        "processes": [str(process) for process in _processes(case)],
        "root": _names_in(site.root),
        "secret_in": _holders(case),
        "runs": case.runs,
    }


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _processes(case: Case) -> list[psutil.Process]:
    """List what lives of payloads of this node."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            home = process.environ().get("HOME", "")
            is_dead = process.status() == psutil.STATUS_ZOMBIE
            if home.startswith(f"{case.home}/") and not is_dead:
                found.append(process)
    return found


def _holders(case: Case) -> list[str]:
    """List the files that hold the node's token or a secret of the job."""
    words = [case.token, "demo-token", *case.raw.get("secrets", {}).values()]
    found = []
    for path in case.place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [str(path) for word in words if word.encode() in data]
    return found


def fork(child: Callable[[], None]) -> int:
    """Run `child` in a fork of this process; give its wait status."""
    pid = _fork()
    if pid == 0:
        code = 1
        try:
            with quiet_log():
                child()
            code = 0
        except BaseException:  # noqa: BLE001  a fork must never return into its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """Fork what each line asks for."""
    with quiet_log():
        pass  # what it warms up is warm in every fork
    children = {"run": run_job, "settle": settle}
    for line in sys.stdin:
        asked = json.loads(line)
        case = Case.from_json(asked["case"])
        status = fork(partial(children[asked["what"]], case))
        print(status, flush=True)  # noqa: T201  the answer to whoever started us


if __name__ == "__main__":
    main()
