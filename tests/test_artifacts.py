"""Results are taken out of the payload's reach, and nothing else ever is."""

import errno
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner import artifacts
from aitbc_aps_miner.artifacts import ArtifactCollector
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ArtifactFile,
    ArtifactSpec,
    ExitCause,
    ExitFacts,
    Manifest,
    Origin,
    Reservation,
)
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.workspace import Workspace, Workspaces

EXITED = ExitFacts(cause=ExitCause.EXITED, exit_code=0)


@dataclass
class Payload:
    """A workspace with what a payload may have left in it."""

    workspace: Workspace
    outside: Path

    @property
    def root(self) -> Path:
        return self.workspace.root

    def collect(
        self,
        *specs: ArtifactSpec | str,
        runner: str = "cli",
        facts: ExitFacts = EXITED,
        collector: ArtifactCollector | None = None,
    ) -> tuple[ArtifactFile, ...]:
        manifest = Manifest(
            job_id="job-1",
            runner=runner,
            timeout_s=5,
            artifacts=tuple(
                ArtifactSpec(path=spec) if isinstance(spec, str) else spec
                for spec in specs
            ),
        )
        collector = collector or ArtifactCollector()
        return collector.collect(manifest, self.workspace, facts)


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    """Give a claimed job and a place outside of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    manifest = Manifest(job_id="job-1", runner="cli", timeout_s=5)
    workspace = Workspaces(tmp_path / "jobs", SystemClock()).claim(
        manifest,
        {},
        Origin(api="node-v1", base_url="http://c", node_id="n"),
        Reservation(kind="cpu"),
    )
    return Payload(workspace, outside)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_declared_files_are_moved_and_described(payload: Payload) -> None:
    """work/ comes before output/; the file is ours and out of reach afterwards."""
    (payload.root / "work" / "a.txt").write_text("from work")
    (payload.root / "work" / "a.txt").chmod(0)
    (payload.root / "output" / "a.txt").write_text("from output")
    (payload.root / "output" / "sub").mkdir()
    (payload.root / "output" / "sub" / "b").write_bytes(b"b" * 10)
    files = payload.collect(ArtifactSpec(path="a.txt", type="text/plain"), "sub/b")
    assert files == (
        ArtifactFile(
            path="a.txt",
            type="text/plain",
            size_bytes=9,
            sha256=_sha256(b"from work"),
            stored=".artifacts/1",
        ),
        ArtifactFile(
            path="sub/b",
            type="application/octet-stream",
            size_bytes=10,
            sha256=_sha256(b"b" * 10),
            stored=".artifacts/2",
        ),
    )
    assert not (payload.root / "work" / "a.txt").exists()
    stored = payload.workspace.artifact_path(files[0])
    assert stored.read_text() == "from work"
    assert stored.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a file")
def test_a_file_of_another_uid_becomes_ours(payload: Payload) -> None:
    """A payload that ran as a slot's uid leaves nothing that is still its own."""
    path = payload.root / "work" / "a"
    path.write_text("x")
    os.chown(path, 12345, 12345)
    (file,) = payload.collect("a")
    assert payload.workspace.artifact_path(file).stat().st_uid == 0


def _link(payload: Payload) -> None:
    (payload.root / "work" / "a").symlink_to(payload.outside / "precious")


def _dangling(payload: Payload) -> None:
    (payload.root / "work" / "a").symlink_to("nowhere")


def _hard_link(payload: Payload) -> None:
    os.link(payload.outside / "precious", payload.root / "work" / "a")


def _fifo(payload: Payload) -> None:
    os.mkfifo(payload.root / "work" / "a")


def _directory(payload: Payload) -> None:
    (payload.root / "work" / "a").mkdir()


def _socket(payload: Payload) -> None:
    with socket.socket(socket.AF_UNIX) as server, payload_cwd(payload):
        server.bind("a")


def _large(payload: Payload) -> None:
    with (payload.root / "work" / "a").open("wb") as file:
        file.truncate((1 << 20) + 1)


def _missing(payload: Payload) -> None:
    """Leave nothing at all."""


class payload_cwd:  # noqa: N801  reads as the function that it is used as
    """Work in the payload's directory: socket paths are short."""

    def __init__(self, payload: Payload) -> None:
        self._new = payload.root / "work"
        self._old = Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self._new)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._old)


ODD = {
    _link: "a symbolic link",
    _dangling: "a symbolic link",
    _hard_link: "has 2 names",
    _fifo: "a FIFO",
    _directory: "a directory",
    _socket: "a socket",
    _large: "larger than 1 MiB",
    _missing: "is not there",
}


@pytest.mark.parametrize("make", list(ODD))
def test_odd_artifacts_are_refused(payload: Payload, make: object) -> None:
    """Each is named for what it is; nothing outside is read or moved."""
    assert callable(make)
    make(payload)
    with pytest.raises(JobError) as refused:
        payload.collect(ArtifactSpec(path="a", max_mb=1))
    assert refused.value.code is ErrorCode.E_ARTIFACT
    assert ODD[make] in refused.value.message
    assert list((payload.root / ".artifacts").iterdir()) == []
    assert (payload.outside / "precious").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a file")
def test_a_device_is_refused(payload: Payload) -> None:
    """A device node is no file, whatever it would give."""
    os.mknod(payload.root / "work" / "a", 0o600 | 0o020000, os.makedev(1, 5))
    with pytest.raises(JobError, match="a device"):
        payload.collect("a")


@pytest.mark.parametrize(
    "path", ["../precious", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\0"]
)
def test_a_path_that_escapes_is_refused(payload: Payload, path: str) -> None:
    """The collector does not rely on others to have checked the path."""
    with pytest.raises(JobError, match="not a plain relative path"):
        payload.collect(path)


@given(st.text(alphabet="./ab\0é", min_size=1, max_size=10))
def test_no_path_reaches_outside(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    """Every path is either a file below work/ or refused."""
    root = tmp_path_factory.mktemp("ws")
    for folder in ("work", "output", "logs"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        (root / name).write_text("outside")
        (root / "work" / name).write_text("inside")
    manifest = Manifest(
        job_id="j", runner="cli", timeout_s=1, artifacts=(ArtifactSpec(path=path),)
    )

    class Place:
        pass

    place = Place()
    place.root = root  # type: ignore[attr-defined]  # all that a collector needs
    try:
        taken = ArtifactCollector().collect(manifest, place, EXITED)  # type: ignore[arg-type]  # as above
    except JobError as error:
        seen = str(error.code)
    else:
        seen = taken[0].sha256
    assert seen in {"E_ARTIFACT", _sha256(b"inside")}
    assert (root / "a").read_text() == (root / "b").read_text() == "outside"


def test_a_folder_that_is_a_link_leads_nowhere(payload: Payload) -> None:
    """Neither a folder on the way nor work/ itself may be a link."""
    (payload.root / "work" / "sub").symlink_to(payload.outside)
    with pytest.raises(JobError, match="leads through a link"):
        payload.collect("sub/precious")
    (payload.root / "work" / "sub").unlink()
    (payload.root / "work").rmdir()
    (payload.root / "work").symlink_to(payload.outside)
    with pytest.raises(JobError, match="leads through a link"):
        payload.collect("precious")
    assert (payload.outside / "precious").exists()


def test_a_file_exchanged_before_the_move_is_refused(
    payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged and what was moved have to be the same file."""
    victim = payload.root / "work" / "a"
    victim.write_text("judged")
    rename = os.rename

    def exchange(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        rename(victim, payload.root / "work" / "kept")
        victim.write_text("other")
        rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", exchange)
    with pytest.raises(JobError, match="exchanged"):
        payload.collect("a")


def _stdout(payload: Payload, data: bytes) -> ExitFacts:
    (payload.root / "logs" / "stdout.bin").write_bytes(data)
    return ExitFacts(cause=ExitCause.EXITED, exit_code=0, stdout_bytes=len(data))


TEXT = ArtifactSpec(path="output.txt", type="text/plain", max_mb=0.001)


def test_standard_output_fills_the_one_text_artifact(payload: Payload) -> None:
    """`echo hello world` with output.txt declared gives that file."""
    facts = _stdout(payload, b"hello world\n")
    assert payload.collect(TEXT, facts=facts) == (
        ArtifactFile(
            path="output.txt",
            type="text/plain",
            size_bytes=12,
            sha256=_sha256(b"hello world\n"),
            stored=".artifacts/1",
            source="stdout",
        ),
    )


def test_a_written_file_wins_over_standard_output(payload: Payload) -> None:
    """Standard output only stands in for a file that is not there."""
    facts = _stdout(payload, b"noise")
    (payload.root / "work" / "output.txt").write_text("real")
    (file,) = payload.collect(TEXT, facts=facts)
    assert (file.source, file.sha256) == ("file", _sha256(b"real"))


@pytest.mark.parametrize(
    ("specs", "facts", "words"),
    [
        ((TEXT,), ExitFacts(cause=ExitCause.EXITED, exit_code=1), "is not there"),
        ((TEXT,), ExitFacts(cause=ExitCause.DEADLINE, exit_code=0), "is not there"),
        ((TEXT, ArtifactSpec(path="b", type="text/plain")), EXITED, "is not there"),
        ((ArtifactSpec(path="a.bin"),), EXITED, "is not there"),
        (
            (TEXT,),
            ExitFacts(cause=ExitCause.EXITED, exit_code=0, stdout_bytes=2000),
            "larger",
        ),
        (
            (TEXT,),
            ExitFacts(
                cause=ExitCause.EXITED,
                exit_code=0,
                detail={"stdout_truncated": True},
            ),
            "too large",
        ),
    ],
)
def test_standard_output_counts_only_in_its_one_case(
    payload: Payload, specs: tuple[ArtifactSpec, ...], facts: ExitFacts, words: str
) -> None:
    """Another exit, another type, another number of artifacts, too much: refused."""
    _stdout(payload, b"hello")
    with pytest.raises(JobError, match=words):
        payload.collect(*specs, facts=facts)


def test_standard_output_that_is_missing_or_odd_is_refused(payload: Payload) -> None:
    """The stand-in is judged like every other file."""
    with pytest.raises(JobError, match="is not there"):
        payload.collect(TEXT)
    (payload.root / "logs" / "stdout.bin").symlink_to(payload.outside / "precious")
    with pytest.raises(JobError, match="E_ARTIFACT"):
        payload.collect(TEXT)


def test_a_task_without_declarations_gives_its_whole_output(payload: Payload) -> None:
    """Every regular file under output/ and the return value, in order; types told."""
    output = payload.root / "output"
    (output / "sub" / "deep").mkdir(parents=True)
    (output / "sub" / "deep" / "x.bin").write_bytes(b"x")
    (output / "a.txt").write_text("a")
    (output / "result.json").write_text("1")
    (output / "link").symlink_to(payload.outside / "precious")
    (output / "dir-link").symlink_to(payload.outside)
    os.mkfifo(output / "fifo")
    (output / "new\nline").write_text("x")
    Path(os.fsdecode(os.fsencode(output) + b"/\xff")).write_text("x")
    (output / ("d" * 200) / ("e" * 200) / ("f" * 200)).mkdir(parents=True)
    long = output / ("d" * 200) / ("e" * 200) / ("f" * 200)
    (long / ("g" * 200) / ("h" * 200)).mkdir(parents=True)
    (long / ("g" * 200) / ("h" * 200) / ("i" * 200)).write_text("x")
    collector = ArtifactCollector()
    files = payload.collect(runner="python", collector=collector)
    assert [(file.path, file.type) for file in files] == [
        ("a.txt", "text/plain"),
        ("result.json", "application/json"),
        ("sub/deep/x.bin", "application/octet-stream"),
    ]
    assert sorted(note.rpartition(": ")[2] for note in collector.ignored) == [
        "no regular file",
        "no regular file",
        "no regular file",
        "the name has control characters",
        "the name is not UTF-8",
        "the path is too long",
    ]


def test_a_task_with_declarations_gives_them_and_its_result(payload: Payload) -> None:
    """The return value is an artifact in any case, and only once."""
    output = payload.root / "output"
    for name in ("a", "b", "result.json"):
        (output / name).write_text(name)
    files = payload.collect("a", runner="python")
    assert [file.path for file in files] == ["a", "result.json"]
    (output / "result.json").write_text("again")
    files = payload.collect("result.json", runner="python")
    assert [file.path for file in files] == ["result.json"]


def test_too_much_undeclared_output_is_refused(payload: Payload) -> None:
    """The number of files and their sum are capped; a hard link is foreign."""
    output = payload.root / "output"
    for number in range(4):
        (output / str(number)).write_bytes(b"x" * 1024)
    with pytest.raises(JobError, match="more than 3 files"):
        payload.collect(runner="python", collector=ArtifactCollector(max_files=3))
    with pytest.raises(JobError, match="larger than"):
        payload.collect(
            runner="python", collector=ArtifactCollector(max_total_mb=3 / 1024)
        )
    os.link(payload.outside / "precious", output / "foreign")
    with pytest.raises(JobError, match="2 names"):
        payload.collect(runner="python")


def test_too_many_folders_are_refused(
    payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload cannot keep the collector walking for ever."""
    for number in range(4):
        (payload.root / "output" / str(number)).mkdir()
    monkeypatch.setattr(artifacts, "_MAX_FOLDERS", 3)
    with pytest.raises(JobError, match="folders"):
        payload.collect(runner="python")


def test_what_the_disk_refuses_is_the_jobs_error(payload: Payload) -> None:
    """A store that cannot be written to is E_ARTIFACT with the system's words."""
    (payload.root / ".artifacts").rmdir()
    (payload.root / ".artifacts").write_text("in the way")
    with pytest.raises(JobError, match="Not a directory"):
        payload.collect()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ErrorCode.E_NORES),
        (errno.EDQUOT, ErrorCode.E_NORES),
        (errno.EIO, ErrorCode.E_NORES),
        (errno.EROFS, ErrorCode.E_NORES),
        (errno.ENAMETOOLONG, ErrorCode.E_ARTIFACT),
    ],
)
def test_trouble_of_the_nodes_own_disk_is_not_the_jobs_fault(
    payload: Payload, monkeypatch: pytest.MonkeyPatch, number: int, code: ErrorCode
) -> None:
    """Elsewhere the same payload succeeds: E_NORES may be tried again."""
    (payload.root / "work" / "a").write_bytes(b"x")

    def refuse(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(JobError, match="cannot be collected") as caught:
        payload.collect(ArtifactSpec(path="a"))
    assert caught.value.code is code


def test_a_workspace_that_was_removed_is_not_the_jobs_fault(payload: Payload) -> None:
    """Somebody cleaned up on the node."""
    payload.root.rename(payload.root.with_name("gone"))
    with pytest.raises(JobError, match="its workspace was removed") as caught:
        payload.collect(ArtifactSpec(path="a"))
    assert caught.value.code is ErrorCode.E_NORES


def test_a_file_that_grows_while_it_is_hashed_is_refused(
    payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read counts, not what was announced."""
    path = payload.root / "work" / "a"
    path.write_bytes(b"x" * 1024)
    grower = path.open("ab", buffering=0)
    monkeypatch.setattr(artifacts, "_CHUNK_BYTES", 512)
    read = os.read

    def growing(fd: int, size: int) -> bytes:
        grower.write(b"y" * 512)
        return read(fd, size)

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(JobError, match="larger than"):
        payload.collect(ArtifactSpec(path="a", max_mb=0.01))
    grower.close()
