"""One job's directory in the hands of the process that holds its lock.

state.json is durable where a promise needs it and a plain rename elsewhere. A missing
or empty state.json means that nothing past the claim became durable: from the spawn
mark to the recorded outcome its bytes are synced before each rename.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aitbc_aps_miner.errors import WorkspaceError
from aitbc_aps_miner.models import ArtifactFile, JobState, Outcome
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util import fs
from aitbc_aps_miner.workspace.record import (
    Claim,
    Entered,
    Moment,
    Record,
    outcome_from_json,
    outcome_to_json,
)

CONTROL = ".control.json"
FOLDERS = ("input", "work", "output", "logs", ".artifacts")
DROP_BUDGET_S = 5
"""What is not deleted by then is the sweep's."""
SETTLED_MODE = 0o400
"""state.json's mode once nothing is owed: one stat tells, and it comes and goes with
the content in one rename."""

_PAYLOADS = ("input", "work")
"""What only a payload needs: nothing of it is read once the payload has ended."""
_KEPT_BURIED = frozenset({"state.json", "outcome.json", "lock"})


class Workspace:
    """One job's directory; whoever holds this object holds the job's lock."""

    def __init__(self, root: Path, lock_fd: int, record: Record, clock: Clock) -> None:
        self.root = root
        self._lock_fd = lock_fd
        self._clock = clock
        self._record = record
        self._recorded = (root / "outcome.json").exists()

    @property
    def state(self) -> JobState:
        """The state entered last."""
        return self._record.state

    @property
    def record_now(self) -> Record:
        """All that state.json says."""
        return self._record

    @property
    def exec_log(self) -> Path:
        """`logs/exec.log`: what the payload printed."""
        return self.root / "logs" / "exec.log"

    def artifact_path(self, artifact: ArtifactFile) -> Path:
        """Where the bytes of a collected artifact lie."""
        return self.root / artifact.stored

    def enter(self, state: JobState, **facts: Any) -> None:
        """Move to `state` with its time; `facts` are kept for adoption.

        A plain rename, but synced where an empty file would hide a spawn mark or a
        delivery after a power cut.
        """
        self._save(self._entered(state, facts))

    def note(self, **facts: Any) -> None:
        """Keep facts for adoption (cgroup, deadline_boottime, …) in any state."""
        self._save(replace(self._record, facts={**self._record.facts, **facts}))

    def mark_spawn(self, **facts: Any) -> None:
        """Make durable that a payload may run from now on (state RUNNING)."""
        entered = self._entered(JobState.RUNNING, facts)
        self._save(replace(entered, spawned=True), durable=True)

    def timings(self) -> Mapping[str, float]:
        """Seconds spent in each state so far."""
        return self._record.timings(self._now())

    def record(self, outcome: Outcome) -> None:
        """Make the outcome durable; nobody is told before this returns.

        A disk that the job itself filled is freed of what only its payload needed.
        """
        what, path = "cannot record the outcome", self.root / "outcome.json"
        with explained(what):
            data = to_bytes(outcome_to_json(outcome))
        self._store(what, lambda: fs.write_durable(path, data), payload_ended=True)
        self._recorded = True

    def load_outcome(self) -> Outcome | None:
        """Give the recorded outcome. Raises WorkspaceError when it is damaged."""
        with explained("cannot read the outcome"):
            try:
                return outcome_from_json(fs.read_json(self.root / "outcome.json"))
            except FileNotFoundError:
                return None

    def load_claim(self) -> Claim:
        """Give what job.json says. Raises WorkspaceError."""
        with explained("cannot read job.json"):
            return Claim.from_json(fs.read_json(self.root / "job.json"))

    def mark_delivered(self, outcome: Outcome) -> None:
        """Make durable that the coordinator has it, and drop the inputs."""
        self._end(outcome, delivered_at=self._now().realtime, dropped=None)
        with explained("cannot drop the inputs"):
            self._make_room()

    def mark_dropped(self, outcome: Outcome, reason: str) -> None:
        """Note that nobody will take the outcome; it is kept for the owner."""
        self._end(outcome, delivered_at=None, dropped=reason)

    def renew(self) -> None:
        """Empty the folders of an attempt that is to be run again.

        Orders given to the earlier one are void: it may have been told to stop.
        """
        with explained("cannot renew"):
            (self.root / CONTROL).unlink(missing_ok=True)
            for folder in FOLDERS:
                self._discard(self.root / folder)
                (self.root / folder).mkdir(mode=0o700)

    def bury(self) -> None:
        """Keep only what recognises the job when it is handed out again."""
        buried = replace(self._record, buried=True)
        try:
            self._save(buried, durable=True)
        except WorkspaceError:
            self._discard_files()  # a full disk has no room for the mark before
            self._save(buried, durable=True)
        self._discard_files()

    def forget(self) -> None:
        """Remove the directory: the job never was ours."""
        with explained("cannot forget"):
            self._discard(self.root)
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _now(self) -> Moment:
        return moment_of(self._clock)

    def _make_room(self) -> None:
        for folder in _PAYLOADS:
            self._discard(self.root / folder)

    def _discard_files(self) -> None:
        with explained("cannot bury"):
            for entry in list(self.root.iterdir()):
                if entry.name not in _KEPT_BURIED:
                    self._discard(entry)

    def _discard(self, path: Path) -> None:
        trash = self.root.parent / fs.TRASH
        discard(path, trash, self._clock, budget_s=DROP_BUDGET_S)

    def _entered(self, state: JobState, facts: Mapping[str, Any]) -> Record:
        now = self._now()
        return self._record.entered(state, now, {**process_facts(), **facts})

    def _end(
        self, outcome: Outcome, *, delivered_at: float | None, dropped: str | None
    ) -> None:
        state = JobState.DONE if outcome.succeeded else JobState.FAILED
        ended = replace(
            self._entered(state, {}),
            delivered_at=delivered_at,
            dropped=dropped,
            outcome_sha256=self._outcome_sha256(),
        )
        self._save(ended, durable=True)

    def _outcome_sha256(self) -> str | None:
        with contextlib.suppress(OSError):
            return hashlib.sha256((self.root / "outcome.json").read_bytes()).hexdigest()
        return None

    def _save(self, record: Record, *, durable: bool = False) -> None:
        fragile = (record.spawned and not self._recorded) or (
            record.delivered_at is not None
        )
        data = to_bytes(record.to_json())
        path = self.root / "state.json"
        mode = SETTLED_MODE if record.settled else 0o600

        def write() -> None:
            fs.replace(path, data, sync=fragile or durable, mode=mode)
            if durable:
                fs.fsync_dir(self.root)

        what = f"cannot store the state {record.state}"
        self._store(what, write, payload_ended=self._recorded)
        self._record = record

    def _store(
        self, what: str, write: Callable[[], None], *, payload_ended: bool
    ) -> None:
        """Write; a disk that is full of the payload's bytes is freed of them first."""
        with explained(what):
            try:
                write()
            except FileNotFoundError as exc:
                raise WorkspaceError(f"{what}: its workspace was removed") from exc
            except OSError as exc:
                if not payload_ended or exc.errno not in fs.FULL:
                    raise
                self._make_room()
                write()


def read_control(root: Path) -> dict[str, Any]:
    """Give what the daemon told the job in the workspace `root`; {} for nothing."""
    try:
        control = fs.read_json(root / CONTROL, max_bytes=1 << 20)
    except (OSError, ValueError):
        return {}
    return control if isinstance(control, dict) else {}


def first_record(claim: Claim, now: Moment, facts: Mapping[str, Any]) -> Record:
    """Give the record of a claim that got no further yet."""
    return Record(
        job_id=claim.job_id,
        attempt=claim.attempt,
        origin=claim.origin,
        reservation=claim.reservation,
        history=(Entered(state=JobState.PULLING, moment=now),),
        facts=facts,
    )


def load_record(path: Path) -> Record:
    """Read state.json, else what job.json says of a claim that got no further."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise ValueError("is not a directory")
    try:
        data = fs.read_capped(path / "state.json", max_bytes=1 << 20)
    except FileNotFoundError:
        data = b""
    if data:
        record = Record.from_json(json.loads(data))
    else:
        claim = Claim.from_json(fs.read_json(path / "job.json"))
        birth = (path / "job.json").stat().st_mtime
        moment = Moment(realtime=birth, boottime=0.0, boot_id="")
        record = first_record(claim, moment, {})
    if record.job_id != path.name:
        raise ValueError(f"belongs to {record.job_id}")
    return record


def moment_of(clock: Clock) -> Moment:
    """Give this instant on all clocks."""
    return Moment(
        realtime=clock.realtime(), boottime=clock.boottime(), boot_id=_boot_id()
    )


def discard(path: Path, trash: Path, clock: Clock, *, budget_s: float) -> bool:
    """Take a tree away at once; whether it could be deleted in time."""
    return fs.remove_tree(
        path, trash=trash, budget_s=budget_s, monotonic=clock.monotonic
    )


def to_bytes(data: Any) -> bytes:
    """Write compact JSON."""
    return json.dumps(data, separators=(",", ":")).encode()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the file system says into a WorkspaceError with its words."""
    try:
        yield
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, "OSError")
        raise WorkspaceError(f"{what}: {exc.strerror or exc} ({name})") from exc
    except (ValueError, TypeError, RecursionError) as exc:
        raise WorkspaceError(f"{what}: {exc}") from exc


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def process_facts() -> dict[str, Any]:
    """Name this process for ever: pid, start time (field 22 of stat) and boot."""
    after_name = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")
    start_time = int(after_name[2].split()[19])
    return {"pid": os.getpid(), "start_time": start_time, "boot_id": _boot_id()}
