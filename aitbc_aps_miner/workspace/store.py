"""All jobs' directories under one root: claimed, locked, looked at, taken away.

Layout of `<root>/<job-id>/`::

    job.json      the claim: manifest, origin, reservation; durable before the ack
    state.json    the state with its history; durable where a promise needs it
    outcome.json  what happened; durable before anyone is told
    lock          flock held as long as the job's process lives
    input/ work/ output/ logs/ .artifacts/    the bytes
    .control.json what the daemon tells a running job

Beside the jobs lie `.trash/`, what is being deleted, and `.damaged/`, what was found in
a job's place and can't be read as one.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from aitbc_aps_miner.errors import (
    AttemptHereError,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.models import Manifest, Origin, Reservation
from aitbc_aps_miner.ports import Clock
from aitbc_aps_miner.util import fs, log
from aitbc_aps_miner.workspace import lock
from aitbc_aps_miner.workspace.jobdir import (
    CONTROL,
    DROP_BUDGET_S,
    FOLDERS,
    SETTLED_MODE,
    Workspace,
    discard,
    explained,
    first_record,
    load_record,
    moment_of,
    process_facts,
    read_control,
    to_bytes,
)
from aitbc_aps_miner.workspace.record import Claim, Record, without_secrets

_JOB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DAMAGED = ".damaged"
_CLAIMING = ".claim."
_STALE_CLAIM_S = 600
"""No claim takes this long: its process is dead."""
_DAMAGE = frozenset(
    {errno.EACCES, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EPERM}
)
"""What stays so however often it is read; any other error is the disk's, not the
job's."""

_log = log.get_logger()


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """What a scan found of one job."""

    job_id: str
    record: Record | None
    """None when `damaged`."""
    outcome_recorded: bool = False
    lock_held: bool = False
    """Its process lives; not asked for delivered jobs, nothing depends on it there."""
    damaged: str | None = None
    unreadable: bool = False
    """Its files may be whole, but could not be read now."""

    @property
    def delivered(self) -> bool:
        """Whether the coordinator has the outcome, or never will."""
        return self.record is not None and self.record.settled


class Glance(NamedTuple):
    """What one stat tells of a job."""

    job_id: str
    settled: bool
    """Whether nothing is owed any more; False also for a damaged one."""
    written_at: float
    """CLOCK_REALTIME of the last transition; 0 when there is no state.json."""


class Workspaces:
    """All jobs' directories under one root."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.root = root
        self._clock = clock

    def claim(
        self, manifest: Manifest, raw: Any, origin: Origin, reservation: Reservation
    ) -> Workspace:
        """Make the job's directory and its job.json durable, and lock it.

        A later attempt replaces what is here of an earlier one; whoever claims it
        has ended the earlier one's processes. Raises AttemptHereError,
        WorkspaceBusyError when the earlier attempt is alive, WorkspaceError when it
        cannot be stored.
        """
        job_id = _checked(manifest.job_id)
        now = moment_of(self._clock)
        manifest_json, secret_names = without_secrets(raw)
        claim = Claim(
            job_id=job_id,
            attempt=manifest.attempt,
            raw=manifest_json,
            secret_names=secret_names,
            origin=origin,
            reservation=reservation,
            claimed_at=now.text,
        )
        with explained(f"cannot claim {job_id}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._trash.mkdir(mode=0o700, exist_ok=True)  # a full disk needs it there
            self._refuse_repeat(claim)
            return self._make(claim, first_record(claim, now, process_facts()))

    def open(self, job_id: str) -> Workspace:
        """Lock a job's directory. Raises WorkspaceBusyError or WorkspaceError."""
        path = self.root / _checked(job_id)
        with explained(f"cannot open {job_id}"):
            lock_fd = lock.take(path, self._clock)
            try:
                return Workspace(path, lock_fd, load_record(path), self._clock)
            except BaseException:
                os.close(lock_fd)
                raise

    def names(self) -> Iterator[str]:
        """Give the ids of all jobs that have a directory, in no order."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                if _JOB_ID.fullmatch(entry.name):
                    yield entry.name

    def glance(self) -> Iterator[Glance]:
        """Look at every job with one stat: enough to know which ones to read."""
        with contextlib.suppress(FileNotFoundError), fs.opened(self.root) as root_fd:
            for job_id in self.names():
                yield _glance(job_id, root_fd)

    def scan(self, *, settled: bool = True) -> Iterator[StoredJob]:
        """Read every job, or only those that are not settled."""
        for seen in self.glance():
            if seen.settled and not settled:
                continue
            found = self.find(seen.job_id)
            if found is not None:
                yield found

    def find(self, job_id: str) -> StoredJob | None:
        """Look at one job; None when it has no directory."""
        path = self.root / _checked(job_id)
        try:
            record = load_record(path)
        except FileNotFoundError:
            # Without job.json it is no claim of ours, or it went away meanwhile.
            return _damaged(job_id, "job.json is missing") if path.exists() else None
        except ValueError as exc:
            return _damaged(job_id, str(exc))
        except OSError as exc:
            found = _damaged(job_id, str(exc))
            return replace(found, unreadable=exc.errno not in _DAMAGE)
        found = StoredJob(job_id=job_id, record=record, outcome_recorded=True)
        if found.delivered:
            return found
        return replace(
            found,
            outcome_recorded=(path / "outcome.json").exists(),
            lock_held=lock.is_held(path),
        )

    def remove(self, job_id: str, *, budget_s: float = DROP_BUDGET_S) -> bool:
        """Remove a job's directory, damaged or not; whether all of it is gone.

        Its name is free in any case. Raises WorkspaceBusyError when it is in use.
        """
        path = self.root / _checked(job_id)
        with explained(f"cannot remove {job_id}"), contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                stack.callback(os.close, lock.take(path, self._clock))
            return self._discard(path, budget_s=budget_s)

    def set_aside(self, job: StoredJob) -> None:
        """Move what can't be read as a job out of its place, for the owner to see.

        Raises WorkspaceBusyError when a process holds its lock, WorkspaceError when
        it can't be moved or may be whole.
        """
        path, aside = self.root / _checked(job.job_id), self.root / DAMAGED / job.job_id
        if job.unreadable:
            raise WorkspaceError(f"{job.job_id} can't be read: {job.damaged}")
        with explained(f"cannot set {job.job_id} aside"), contextlib.ExitStack() as end:
            with contextlib.suppress(OSError):  # no lock that can be held
                end.callback(os.close, lock.take(path, self._clock))
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            if os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}.{secrets.token_hex(4)}")
            path.rename(aside)
        _log.warning(
            "job.damaged", job_id=job.job_id, reason=job.damaged, moved_to=str(aside)
        )

    def expire_damaged(self, keep_s: float) -> None:
        """Throw away what was set aside longer than `keep_s` ago."""
        with explained("cannot expire what is damaged"):
            for path in (self.root / DAMAGED).glob("*"):
                # A rename sets it, and nobody else can.
                if self._clock.realtime() - path.lstat().st_ctime > keep_s:
                    self._discard(path, budget_s=0)

    def tidy(self, *, budget_s: float) -> bool:
        """Delete what removals, dead claims and dead writers left; whether all is gone.

        A file of ours beneath the root, `.name`, is written as `..name.<random>` first.
        """
        with explained("cannot tidy up"):
            for path in self.root.glob(".*"):
                if not path.name.startswith((_CLAIMING, "..")):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    age_s = self._clock.realtime() - path.lstat().st_mtime
                    if age_s > _STALE_CLAIM_S:
                        self._discard(path, budget_s=0)
            return fs.empty_trash(
                self._trash, budget_s=budget_s, monotonic=self._clock.monotonic
            )

    def write_control(self, job_id: str, control: Mapping[str, Any]) -> None:
        """Tell a running job: `cancel`, `limits`; keys not named stay as they are."""
        path = self.root / _checked(job_id)
        with explained(f"cannot reach {job_id}"), fs.opened(path) as dir_fd:
            fcntl.flock(dir_fd, fcntl.LOCK_EX)  # two ticks may speak at once
            merged = {**read_control(path), **control}
            fs.replace(CONTROL, json.dumps(merged).encode(), dir_fd=dir_fd)

    @property
    def _trash(self) -> Path:
        return self.root / fs.TRASH

    def _discard(self, path: Path, *, budget_s: float = DROP_BUDGET_S) -> bool:
        return discard(path, self._trash, self._clock, budget_s=budget_s)

    def _refuse_repeat(self, claim: Claim) -> None:
        found = self.find(claim.job_id)
        if found is None:
            return
        if found.record is None:
            self.set_aside(found)
            return
        if found.record.attempt >= claim.attempt:
            raise AttemptHereError(
                claim.job_id,
                attempt=found.record.attempt,
                state=found.record.state,
                delivered=found.delivered,
            )
        self.remove(claim.job_id, budget_s=0)

    def _make(self, claim: Claim, record: Record) -> Workspace:
        """Build the directory under a name of ours, then give it the job's name.

        A crash on the way leaves no half workspace, and of two processes that claim
        the same job one is refused by the rename.
        """
        path = self.root / claim.job_id
        draft = self.root / f"{_CLAIMING}{claim.job_id}.{secrets.token_hex(4)}"
        draft.mkdir(mode=0o700)
        lock_fd = -1
        try:
            for folder in FOLDERS:
                (draft / folder).mkdir(mode=0o700)
            lock_fd = os.open(draft / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fs.replace(draft / "state.json", to_bytes(record.to_json()))
            fs.write_durable(draft / "job.json", to_bytes(claim.to_json()))
            draft.rename(path)
            fs.fsync_dir(self.root)
            return Workspace(path, lock_fd, record, self._clock)
        except BaseException as exc:
            if lock_fd >= 0:
                os.close(lock_fd)
            with contextlib.suppress(OSError):
                self._discard(draft)
            if isinstance(exc, OSError) and exc.errno in {
                errno.ENOTEMPTY,
                errno.EEXIST,
            }:
                raise WorkspaceBusyError(f"{claim.job_id} was just claimed") from exc
            raise


def _glance(job_id: str, root_fd: int) -> Glance:
    try:
        seen = os.stat(f"{job_id}/state.json", dir_fd=root_fd, follow_symlinks=False)
    except OSError:
        return Glance(job_id, settled=False, written_at=0.0)
    settled = stat.S_IMODE(seen.st_mode) == SETTLED_MODE
    return Glance(job_id, settled=settled, written_at=seen.st_mtime)


def _damaged(job_id: str, reason: str) -> StoredJob:
    return StoredJob(job_id=job_id, record=None, damaged=reason)


def _checked(job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise WorkspaceError(f"{job_id[:200]!r} is not a job id")
    return job_id
