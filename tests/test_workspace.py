"""A job's directory: durable in the right order, one owner, gone when it should be."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from aitbc_aps_miner.errors import (
    AttemptHereError,
    ErrorCode,
    WorkspaceBusyError,
    WorkspaceError,
)
from aitbc_aps_miner.models import (
    ArtifactFile,
    JobState,
    Manifest,
    Origin,
    Outcome,
    Reservation,
)
from aitbc_aps_miner.util import fs
from aitbc_aps_miner.workspace import Workspace, Workspaces, read_control
from aitbc_aps_miner.workspace.record import (
    Claim,
    Moment,
    Record,
    outcome_from_json,
    without_secrets,
)

ORIGIN = Origin(api="node-v1", base_url="https://c.example/api/v1", node_id="node-1")
RESERVATION = Reservation(kind="gpu", cpu_threads=2, gpu_uuids=("GPU-1",), vram_mb=512)
RAW = {"job_id": "job-1", "runner": "cli", "timeout_s": 5, "secrets": {"KEY": "s3cr"}}


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@dataclass
class FakeClock:
    """Clocks that stand until they are told to go."""

    now: float = 1000.0

    def realtime(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands."""
    return FakeClock()


@pytest.fixture
def home(tmp_path: Path, clock: FakeClock) -> Workspaces:
    """Give a root that does not exist yet."""
    return Workspaces(tmp_path / "jobs", clock)


def _claim(home: Workspaces, job_id: str = "job-1", attempt: int = 1) -> Workspace:
    manifest = Manifest(job_id=job_id, attempt=attempt, runner="cli", timeout_s=5)
    return home.claim(manifest, RAW, ORIGIN, RESERVATION)


def _outcome(**changes: Any) -> Outcome:
    plain = Outcome(
        job_id="job-1",
        attempt=1,
        succeeded=True,
        exit_code=0,
        timings={"RUNNING": 1.5},
        artifacts=(
            ArtifactFile(
                path="a.txt",
                type="text/plain",
                size_bytes=1,
                sha256="00",
                stored=".artifacts/1",
            ),
        ),
        receipt={"signature": {"alg": "Ed25519"}},
    )
    return replace(plain, **changes)


def _record(home: Workspaces, job_id: str = "job-1") -> Record:
    found = home.find(job_id)
    assert found is not None
    assert found.record is not None
    return found.record


def test_a_claim_is_complete_and_holds_no_secret(home: Workspaces) -> None:
    """Every part is there before claim returns, private, without secret values."""
    workspace = _claim(home)
    assert workspace.state is JobState.PULLING
    assert _names(workspace.root) == [
        ".artifacts",
        "input",
        "job.json",
        "lock",
        "logs",
        "output",
        "state.json",
        "work",
    ]
    assert workspace.root.stat().st_mode & 0o777 == 0o700
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert "s3cr" not in (workspace.root / "job.json").read_text()
    assert workspace.load_claim() == Claim(
        job_id="job-1",
        attempt=1,
        raw={"job_id": "job-1", "runner": "cli", "timeout_s": 5},
        secret_names=("KEY",),
        origin=ORIGIN,
        reservation=RESERVATION,
        claimed_at="2023-11-14T22:30:00.000Z",
    )
    assert _names(home.root) == [".trash", "job-1"]


def test_a_claim_is_synced_before_it_gets_its_name(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """job.json, its directory, and after the rename the root are synced, in order."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(fd: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name[:10]}")
        fsync(fd)

    def spy_rename(self: Path, target: Path) -> Path:
        events.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    _claim(home)
    assert events == [
        "fsync .job.json.",
        "fsync .claim.job",
        "rename job-1",
        "fsync jobs",
    ]


@pytest.mark.parametrize(
    "job_id", ["", "../x", "a/b", ".hidden", "a..b", "x" * 129, "a\0b", "é", "a\n"]
)
def test_no_path_is_made_of_a_bad_job_id(home: Workspaces, job_id: str) -> None:
    """A name that does not match its pattern never touches a path."""
    with pytest.raises(WorkspaceError, match="not a job id"):
        _claim(home, job_id)
    with pytest.raises(WorkspaceError, match="not a job id"):
        home.open(job_id)
    assert not home.root.exists()


def test_the_same_attempt_is_here_already(home: Workspaces) -> None:
    """The caller learns how far the attempt is that it wanted to claim."""
    workspace = _claim(home, attempt=2)
    with pytest.raises(AttemptHereError) as refused:
        _claim(home, attempt=2)
    assert (refused.value.attempt, refused.value.state, refused.value.delivered) == (
        2,
        "PULLING",
        False,
    )
    workspace.record(_outcome())
    workspace.mark_delivered(_outcome())
    workspace.close()
    with pytest.raises(AttemptHereError) as refused:
        _claim(home, attempt=1)
    assert (refused.value.attempt, refused.value.state, refused.value.delivered) == (
        2,
        "DONE",
        True,
    )


def test_a_higher_attempt_replaces_a_dead_one(home: Workspaces) -> None:
    """The old directory goes to the trash as soon as its lock is free."""
    old = _claim(home)
    (old.root / "work" / "old").write_text("x")
    with pytest.raises(WorkspaceBusyError):
        _claim(home, attempt=2)
    assert (old.root / "work" / "old").exists()
    old.close()
    new = _claim(home, attempt=2)
    assert not (new.root / "work" / "old").exists()
    assert _record(home).attempt == 2
    assert home.tidy(budget_s=5)
    assert _names(home.root / ".trash") == []


def test_one_process_holds_the_lock(home: Workspaces) -> None:
    """Another process cannot open a job at work; the lock ends with its holder."""
    workspace = _claim(home)
    program = (
        "import sys; from pathlib import Path\n"
        "from aitbc_aps_miner.workspace import Workspaces\n"
        "from aitbc_aps_miner.util.clock import SystemClock\n"
        "from aitbc_aps_miner.errors import WorkspaceBusyError\n"
        "home = Workspaces(Path(sys.argv[1]), SystemClock())\n"
        "try:\n    home.open('job-1')\n"
        "except WorkspaceBusyError:\n    print('busy')\n"
        "else:\n    print('mine')\n"
    )

    def ask() -> str:
        command = [sys.executable, "-c", program, str(home.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    found = home.find("job-1")
    assert found is not None
    assert found.lock_held
    assert ask() == "busy"
    workspace.close()
    workspace.close()
    assert ask() == "mine"
    found = home.find("job-1")
    assert found is not None
    assert not found.lock_held


def test_transitions_are_kept_with_their_times(
    home: Workspaces, clock: FakeClock
) -> None:
    """The history, the seconds per state and the facts of adoption survive."""
    workspace = _claim(home)
    clock.now += 1
    workspace.enter(JobState.ACKED, slot=3)
    clock.now += 2
    workspace.enter(JobState.PREP)
    clock.now += 4
    workspace.note(cgroup="/x")
    workspace.mark_spawn(deadline_boottime=99.5)
    clock.now += 8
    assert workspace.timings() == {"PULLING": 1, "ACKED": 2, "PREP": 4, "RUNNING": 8}
    workspace.close()
    record = _record(home)
    assert record.spawned
    assert [line.state for line in record.history] == [
        JobState.PULLING,
        JobState.ACKED,
        JobState.PREP,
        JobState.RUNNING,
    ]
    assert record.facts["pid"] == os.getpid()
    assert {key: record.facts[key] for key in ("slot", "cgroup")} == {
        "slot": 3,
        "cgroup": "/x",
    }
    assert record.facts["deadline_boottime"] == 99.5
    reopened = home.open("job-1")
    assert reopened.record_now == record
    first = json.loads((reopened.root / "state.json").read_text())["history"][0]
    assert first["at"] == "2023-11-14T22:30:00.000Z"


def test_what_a_promise_needs_is_synced(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain renames before the spawn mark; synced bytes until the outcome is."""
    workspace = _claim(home)
    synced: list[int] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)

    def cost(call: Any, *args: Any) -> int:
        synced.clear()
        call(*args)
        return len(synced)

    assert [
        cost(workspace.enter, JobState.ACKED),
        cost(workspace.mark_spawn),
        cost(workspace.enter, JobState.RUNNING),
        cost(workspace.record, _outcome()),
        cost(workspace.enter, JobState.UPLOADING),
        cost(workspace.mark_delivered, _outcome()),
        cost(workspace.enter, JobState.UPLOADING),
    ] == [0, 2, 1, 2, 0, 2, 1]


def test_an_outcome_comes_back_as_it_was(home: Workspaces) -> None:
    """What was recorded is what is delivered after a restart."""
    workspace = _claim(home)
    assert workspace.load_outcome() is None
    outcome = _outcome(succeeded=False, code=ErrorCode.E_EXIT, detail={"a": [1]})
    workspace.record(_outcome())
    workspace.record(outcome)
    assert workspace.load_outcome() == outcome
    workspace.close()
    found = home.find("job-1")
    assert found is not None
    assert found.outcome_recorded
    assert not found.delivered


def test_delivery_drops_the_inputs_and_keeps_the_results(home: Workspaces) -> None:
    """input/ and work/ go; logs, artifacts and outcome stay for the owner."""
    workspace = _claim(home)
    (workspace.root / "input" / "big").write_text("x")
    workspace.exec_log.write_text("log")
    workspace.record(_outcome())
    workspace.mark_delivered(_outcome())
    assert workspace.state is JobState.DONE
    assert _names(workspace.root) == [
        ".artifacts",
        "job.json",
        "lock",
        "logs",
        "outcome.json",
        "output",
        "state.json",
    ]
    record = workspace.record_now
    assert record.delivered_at == 1_700_001_000.0
    assert record.outcome_sha256 is not None
    assert workspace.artifact_path(_outcome().artifacts[0]) == (
        workspace.root / ".artifacts" / "1"
    )


def test_a_dropped_outcome_is_final_and_kept(home: Workspaces) -> None:
    """Nobody will take it: nothing is owed, everything stays for the owner."""
    workspace = _claim(home)
    outcome = _outcome(succeeded=False, code=ErrorCode.E_EXIT)
    workspace.record(outcome)
    workspace.mark_dropped(outcome, "404")
    workspace.close()
    found = home.find("job-1")
    assert found is not None
    assert found.delivered
    assert found.record is not None
    assert (found.record.state, found.record.dropped) == (JobState.FAILED, "404")
    assert (home.root / "job-1" / "input").is_dir()


def test_a_buried_job_is_still_recognised(home: Workspaces) -> None:
    """Only state, outcome and lock outlive the files."""
    workspace = _claim(home)
    workspace.record(_outcome())
    workspace.mark_delivered(_outcome())
    workspace.bury()
    workspace.close()
    assert _names(home.root / "job-1") == [
        "lock",
        "outcome.json",
        "state.json",
    ]
    assert _record(home).buried
    with pytest.raises(AttemptHereError):
        _claim(home)


def test_a_forgotten_job_can_be_claimed_again(home: Workspaces) -> None:
    """Forgetting leaves nothing, not even a tombstone."""
    _claim(home).forget()
    assert home.find("job-1") is None
    assert list(home.names()) == []
    _claim(home)


def test_a_rerun_starts_with_empty_folders(home: Workspaces) -> None:
    """What the first run left is gone, also where it put a link, and its orders."""
    workspace = _claim(home)
    (workspace.root / "work" / "old").write_text("x")
    (workspace.root / "output").rmdir()
    (workspace.root / "output").symlink_to("/etc")
    home.write_control("job-1", {"cancel": True})
    workspace.renew()
    assert read_control(workspace.root) == {}
    assert [_names(workspace.root / name) for name in ("work", "output")] == [
        [],
        [],
    ]
    assert not (workspace.root / "output").is_symlink()


@pytest.mark.parametrize("content", [b"", None])
def test_a_state_lost_with_the_power_is_a_bare_claim(
    home: Workspaces, content: bytes | None
) -> None:
    """An empty or missing state.json means that only the claim is durable."""
    workspace = _claim(home)
    workspace.close()
    state = workspace.root / "state.json"
    state.unlink()
    if content is not None:
        state.write_bytes(content)
    record = _record(home)
    assert (record.state, record.spawned, record.origin) == (
        JobState.PULLING,
        False,
        ORIGIN,
    )
    home.open("job-1").enter(JobState.ACKED)
    assert _record(home).state is JobState.ACKED


def _damage_text(path: Path) -> None:
    (path / "state.json").write_text("{")


def _damage_history(path: Path) -> None:
    data = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**data, "history": []}))


def _damage_types(path: Path) -> None:
    data = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**data, "attempt": "1"}))


def _damage_kind(path: Path) -> None:
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")


def _damage_owner(path: Path) -> None:
    data = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**data, "job_id": "other"}))


def _damage_all(path: Path) -> None:
    for name in ("state.json", "job.json"):
        (path / name).unlink()


def _damage_claim(path: Path) -> None:
    (path / "state.json").unlink()
    (path / "job.json").write_text("[]")


def _damage_link(path: Path) -> None:
    moved = path.with_name(".moved")
    path.rename(moved)
    path.symlink_to(moved)


@pytest.mark.parametrize(
    "damage",
    [
        _damage_text,
        _damage_history,
        _damage_types,
        _damage_kind,
        _damage_owner,
        _damage_all,
        _damage_claim,
        _damage_link,
    ],
)
def test_damage_is_reported_and_removable(home: Workspaces, damage: Any) -> None:
    """A damaged workspace has its reason, and cannot be opened, but removed."""
    workspace = _claim(home)
    workspace.close()
    damage(workspace.root)
    found = home.find("job-1")
    assert found is not None
    assert found.record is None
    assert found.damaged
    assert not found.delivered
    assert not found.unreadable
    with pytest.raises(WorkspaceError):
        home.open("job-1")
    assert home.remove("job-1")
    assert home.find("job-1") is None


def test_a_claim_moves_what_is_damaged_out_of_its_way(
    home: Workspaces, clock: FakeClock
) -> None:
    """Each time to a name of its own, for the owner to see until it expires."""
    for _ in range(2):
        (home.root / "job-1" / "output").mkdir(parents=True)
        _claim(home).close()
        assert _record(home).job_id == "job-1"
        home.remove("job-1")
    first, second = _names(home.root / ".damaged")
    assert (first, second[:6]) == ("job-1", "job-1.")
    assert (home.root / ".damaged" / "job-1" / "output").is_dir()
    assert list(home.names()) == []
    born = (home.root / ".damaged" / "job-1").lstat().st_ctime
    clock.now = born - 1_700_000_000 + 59
    home.expire_damaged(60)
    assert len(_names(home.root / ".damaged")) == 2
    clock.now += 60
    home.expire_damaged(60)
    assert _names(home.root / ".damaged") == []


def test_a_damaged_job_whose_process_lives_stays(home: Workspaces) -> None:
    """Its process may still deliver."""
    workspace = _claim(home)
    (workspace.root / "state.json").write_text("{")
    with pytest.raises(WorkspaceBusyError):
        _claim(home, attempt=2)
    workspace.close()
    _claim(home, attempt=2).close()
    assert _names(home.root / ".damaged") == ["job-1"]


def test_what_can_not_be_read_now_may_be_whole(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk is no damage of the job: it stays where it is."""
    _claim(home).close()

    def broken(*_args: Any, **_more: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(fs, "read_capped", broken)
        found = home.find("job-1")
        assert found is not None
        assert (found.record, found.unreadable) == (None, True)
        with pytest.raises(WorkspaceError, match="can't be read"):
            _claim(home, attempt=2)
    assert _record(home).attempt == 1


def test_a_disk_filled_by_the_payload_gives_room_for_the_outcome(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the payload needed goes; before its end nothing does."""
    workspace = _claim(home)
    (workspace.root / "work" / "junk").write_text("x")
    replace_file = fs.replace

    def full(*args: Any, **more: Any) -> None:
        if (workspace.root / "work").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(*args, **more)

    monkeypatch.setattr(fs, "replace", full)
    with pytest.raises(WorkspaceError, match="ENOSPC"):
        workspace.enter(JobState.UPLOADING)
    assert (workspace.root / "work" / "junk").exists()
    workspace.record(_outcome())
    workspace.enter(JobState.UPLOADING)
    assert workspace.load_outcome() == _outcome()


def test_a_workspace_that_was_removed_is_named_so(home: Workspaces) -> None:
    """A person did it: no other words say what happened."""
    workspace = _claim(home)
    workspace.root.rename(home.root / ".gone")
    with pytest.raises(WorkspaceError, match="its workspace was removed"):
        workspace.mark_spawn()
    with pytest.raises(WorkspaceError, match="its workspace was removed"):
        workspace.record(_outcome())


def test_a_damaged_outcome_is_an_error(home: Workspaces) -> None:
    """A half outcome is never delivered."""
    workspace = _claim(home)
    (workspace.root / "outcome.json").write_text('{"job_id": "job-1"}')
    with pytest.raises(WorkspaceError, match="cannot read the outcome"):
        workspace.load_outcome()
    with pytest.raises(ValueError, match="no outcome"):
        outcome_from_json([])


def test_a_scan_sees_all_jobs_and_nothing_else(home: Workspaces) -> None:
    """Names of ours and strangers' files are passed over; odd jobs are reported."""
    assert list(home.scan()) == []
    _claim(home, "job-1")
    _claim(home, "job-2").close()
    (home.root / ".daemon.lock").write_text("")
    (home.root / "lost+found").mkdir()
    (home.root / "file").write_text("")
    (home.root / "lockless").mkdir()
    found = {job.job_id: job for job in home.scan()}
    assert {name: (job.lock_held, job.damaged) for name, job in found.items()} == {
        "job-1": (True, None),
        "job-2": (False, None),
        "file": (False, "is not a directory"),
        "lockless": (False, "job.json is missing"),
    }
    (home.root / "job-2" / "lock").unlink()
    two = home.find("job-2")
    assert two is not None
    assert not two.lock_held


def test_one_stat_tells_what_is_owed(home: Workspaces) -> None:
    """A settled job need not be read; a resend that fails makes no debt again."""
    owed = _claim(home, "job-1")
    done = _claim(home, "job-2")
    (home.root / "job-3").mkdir()
    done.record(_outcome())
    assert not any(seen.settled for seen in home.glance())
    done.mark_delivered(_outcome())
    owed.enter(JobState.ACKED)
    done.enter(JobState.RETRY_WAIT)
    seen = {one.job_id: one for one in home.glance()}
    assert {name: one.settled for name, one in seen.items()} == {
        "job-1": False,
        "job-2": True,
        "job-3": False,
    }
    assert seen["job-3"].written_at == 0
    assert seen["job-1"].written_at == (owed.root / "state.json").stat().st_mtime
    assert {job.job_id for job in home.scan(settled=False)} == {"job-1", "job-3"}
    assert {job.job_id for job in home.scan()} == {"job-1", "job-2", "job-3"}
    assert list(Workspaces(home.root / "none", FakeClock()).glance()) == []


def test_what_dead_claims_left_is_tidied_up(home: Workspaces) -> None:
    """Only drafts older than any claim are taken; young ones may be at work."""
    _claim(home)
    (home.root / ".claim.job-9.aa" / "input").mkdir(parents=True)
    os.utime(home.root / ".claim.job-9.aa", (0, 0))
    (home.root / "..writable.0a1b2c").write_text("")  # a sweep died with it
    os.utime(home.root / "..writable.0a1b2c", (0, 0))
    young = home.root / ".claim.job-8.aa"
    young.mkdir()
    os.utime(young, (1_700_000_999, 1_700_000_999))
    assert home.tidy(budget_s=5)
    assert _names(home.root) == [".claim.job-8.aa", ".trash", "job-1"]


def test_control_is_merged_and_read(home: Workspaces) -> None:
    """A cancel is not lost to a later change of limits."""
    workspace = _claim(home)
    assert read_control(workspace.root) == {}
    home.write_control("job-1", {"cancel": True})
    home.write_control("job-1", {"limits": {"nice": 5}})
    assert read_control(workspace.root) == {"cancel": True, "limits": {"nice": 5}}
    (workspace.root / ".control.json").write_text("[]")
    assert read_control(workspace.root) == {}
    with pytest.raises(WorkspaceError, match="ENOENT"):
        home.write_control("nobody", {"cancel": True})


def test_the_file_systems_words_reach_the_caller(tmp_path: Path) -> None:
    """What cannot be stored is a WorkspaceError that says why."""
    (tmp_path / "jobs").write_text("in the way")
    home = Workspaces(tmp_path / "jobs", FakeClock())
    with pytest.raises(WorkspaceError, match=r"cannot claim job-1: .*(EEXIST)"):
        _claim(home)


def test_a_failed_claim_leaves_nothing(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full in the middle of a claim keeps no half workspace."""
    home.root.mkdir()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match="ENOSPC"):
        _claim(home)
    assert _names(home.root) == [".trash"]


def test_of_two_claims_one_wins(
    home: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename decides between two processes that claim the same job at once."""
    _claim(home)
    monkeypatch.setattr(home, "_refuse_repeat", lambda claim: None)
    with pytest.raises(WorkspaceBusyError, match="just claimed"):
        _claim(home)


@dataclass
class BusyClock(FakeClock):
    """A clock whose pauses are used by others."""

    meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.meanwhile()


def test_a_short_look_at_the_lock_is_waited_for(home: Workspaces) -> None:
    """A scan that just holds the lock does not make the job busy."""
    scan = _claim(home)
    other = Workspaces(home.root, BusyClock(meanwhile=scan.close))
    other.open("job-1").close()


def test_a_directory_replaced_under_the_lock_is_noticed(home: Workspaces) -> None:
    """A lock on a directory that has lost its name is no lock on the job."""
    holder = _claim(home)

    def replace_it() -> None:
        (home.root / "job-1").rename(home.root / ".gone")
        (home.root / "job-1").mkdir()
        holder.close()

    with pytest.raises(WorkspaceBusyError, match="replaced"):
        Workspaces(home.root, BusyClock(meanwhile=replace_it)).open("job-1")


def test_a_long_history_keeps_its_ends(home: Workspaces, clock: FakeClock) -> None:
    """Weeks of delivery tries do not let the file grow, and no second is lost."""
    workspace = _claim(home)
    for _ in range(200):
        clock.now += 1
        workspace.enter(JobState.UPLOADING)
        clock.now += 1
        workspace.enter(JobState.RETRY_WAIT, tries=1)
    record = _record(home)
    assert len(record.history) == 64
    assert record.history[0].state is JobState.PULLING
    assert record.state is JobState.RETRY_WAIT
    assert sum(workspace.timings().values()) == 400


def test_seconds_are_counted_across_a_reboot() -> None:
    """Boot clocks of two boots are never compared; time never runs backwards."""
    before = Moment(realtime=100, boottime=5000, boot_id="a")
    after = Moment(realtime=160, boottime=10, boot_id="b")
    assert after.seconds_since(before) == 60
    assert before.seconds_since(after) == 0
    assert replace(after, boot_id="a").seconds_since(before) == 0


def test_a_manifest_that_is_no_object_has_no_secrets() -> None:
    """Whatever came over the wire can be written down."""
    assert without_secrets([1]) == ([1], ())
    assert without_secrets({"secrets": None, "a": 1}) == ({"a": 1}, ())
