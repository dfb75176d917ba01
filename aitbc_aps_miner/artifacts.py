"""Takes a payload's results out of its reach: moved, judged, hashed, made durable.

A name is only a claim until the file behind it was opened beneath our own directory
without following a link. Whatever is odd is refused by its kind before anything is
read, and judged again after the move, when no payload can exchange it any more.
"""

import contextlib
import errno
import hashlib
import mimetypes
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ArtifactFile,
    ArtifactSpec,
    ExitCause,
    ExitFacts,
    Manifest,
)
from aitbc_aps_miner.ports import Workspace
from aitbc_aps_miner.util import fs

STDOUT_FILE = "logs/stdout.bin"
"""Where a runner leaves standard output alone, its secrets masked by then."""
RESULT_FILE = "result.json"
"""A python task's return value, in `output/`."""
STORE = ".artifacts"

_MAX_DEPTH = 32
_MAX_FOLDERS = 10_000
_MAX_PATH_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_OUR_TROUBLE = frozenset(
    {
        *fs.FULL,
        *(errno.EIO, errno.EROFS, errno.ESTALE),
        *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    }
)
"""What this machine does wrong, whatever the payload left."""
_TYPES = mimetypes.MimeTypes()
"""Python's own table: the same on every machine."""


class ArtifactCollector:
    """Collects what the manifest declares, or a python task's whole output."""

    def __init__(self, *, max_files: int = 1000, max_total_mb: float = 10240) -> None:
        self._max_files = max_files
        self._max_total_mb = max_total_mb
        self.ignored: list[str] = []
        """What undeclared files were left out by the latest `collect`, and why."""

    def collect(
        self, manifest: Manifest, workspace: Workspace, facts: ExitFacts
    ) -> tuple[ArtifactFile, ...]:
        """Move, size, hash and fsync the artifacts.

        Raises JobError: E_ARTIFACT, and E_NORES for trouble with the node's disk.
        """
        self.ignored = []
        with _disk_errors(), _root_of(workspace) as root_fd:
            with contextlib.suppress(FileExistsError):
                os.mkdir(STORE, 0o700, dir_fd=root_fd)
            with fs.opened(STORE, dir_fd=root_fd) as store_fd:
                taker = _Taker(root_fd=root_fd, store_fd=store_fd)
                files = tuple(self._collected(manifest, facts, taker))
                os.fsync(store_fd)
        return files

    def _collected(
        self, manifest: Manifest, facts: ExitFacts, taker: "_Taker"
    ) -> Iterator[ArtifactFile]:
        for spec in manifest.artifacts:
            taken = taker.take(spec, ("work", "output"))
            if taken is None and _stdout_counts(manifest, facts):
                taken = taker.fill_from_stdout(spec, facts)
            if taken is None:
                raise _refused(spec.path, "was declared and is not there")
            yield taken
        if manifest.runner == "python":
            yield from self._output_of_task(manifest, taker)

    def _output_of_task(
        self, manifest: Manifest, taker: "_Taker"
    ) -> Iterator[ArtifactFile]:
        paths = {RESULT_FILE}
        if not manifest.artifacts:
            paths |= self._undeclared(taker.root_fd)
        left_mb = self._max_total_mb
        for path in sorted(paths - {spec.path for spec in manifest.artifacts}):
            guess = _TYPES.guess_type(path)[0] or ArtifactSpec.type
            spec = ArtifactSpec(path=path, type=guess, max_mb=left_mb)
            taken = taker.take(spec, ("output",))
            if taken is not None:
                left_mb -= taken.size_bytes / (1 << 20)
                yield taken

    def _undeclared(self, root_fd: int) -> set[str]:
        """Find every regular file under `output/`, going into no link."""
        found: set[str] = set()
        folders = ["output"]
        for seen, folder in enumerate(folders):
            if seen >= _MAX_FOLDERS:
                raise _refused("output", f"has more than {_MAX_FOLDERS} folders")
            with _folder(root_fd, folder) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}"
                    self._sort_in(entry, path, folders, found)
        return found

    def _sort_in(
        self,
        entry: "os.DirEntry[str]",
        path: str,
        folders: list[str],
        found: set[str],
    ) -> None:
        reason = _unfit_name(path)
        if reason is None and entry.is_dir(follow_symlinks=False):
            folders.append(path)
            return
        if reason is None and not entry.is_file(follow_symlinks=False):
            reason = "no regular file"
        if reason is not None:
            if len(self.ignored) < self._max_files:
                self.ignored.append(f"{path!a}: {reason}")
            return
        found.add(path.removeprefix("output/"))
        if len(found) > self._max_files:
            raise _refused("output", f"has more than {self._max_files} files")


@dataclass(kw_only=True)
class _Taker:
    """Moves files into the store, numbered in the order in which they come."""

    root_fd: int
    store_fd: int
    count: int = 0

    def take(self, spec: ArtifactSpec, folders: tuple[str, ...]) -> ArtifactFile | None:
        """Take the first file of that path; None when no folder has it."""
        for folder in folders:
            with _refusing_links(spec.path):
                *parents, name = fs.plain_parts(spec.path)
                try:
                    with _folder(self.root_fd, "/".join((folder, *parents))) as fd:
                        return self._take_from(fd, name, spec)
                except FileNotFoundError:
                    continue
        return None

    def fill_from_stdout(
        self, spec: ArtifactSpec, facts: ExitFacts
    ) -> ArtifactFile | None:
        """Copy standard output; None when there is none."""
        if facts.detail.get("stdout_truncated"):
            raise _refused(spec.path, "would be standard output, which is too large")
        if facts.stdout_bytes > _max_bytes(spec):
            raise _too_large(spec)
        try:
            source = fs.open_beneath(self.root_fd, STDOUT_FILE, os.O_RDONLY)
        except FileNotFoundError:
            return None
        stored = self._next_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with os.fdopen(source, "rb") as file:
            _judge(os.fstat(source), spec)
            target = fs.open_beneath(self.store_fd, stored, flags)
            with os.fdopen(target, "w+b") as out:
                shutil.copyfileobj(file, out, _CHUNK_BYTES)
                out.flush()
                return self._described(target, spec, stored, source="stdout")

    def _take_from(self, parent_fd: int, name: str, spec: ArtifactSpec) -> ArtifactFile:
        with fs.opened(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent_fd) as handle:
            before = os.fstat(handle)
            _judge(before, spec)
            stored = self._next_name()
            os.rename(name, stored, src_dir_fd=parent_fd, dst_dir_fd=self.store_fd)
            _make_ours(handle, before)
        fd = fs.open_beneath(self.store_fd, stored, os.O_RDONLY)
        try:
            after = os.fstat(fd)
            _judge(after, spec)
            if not os.path.samestat(before, after):
                raise _refused(spec.path, "was exchanged while it was collected")
            return self._described(fd, spec, stored, source="file")
        finally:
            os.close(fd)

    def _described(
        self, fd: int, spec: ArtifactSpec, stored: str, *, source: str
    ) -> ArtifactFile:
        os.lseek(fd, 0, os.SEEK_SET)
        digest = hashlib.sha256()
        size_bytes = 0
        while chunk := os.read(fd, _CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > _max_bytes(spec):
                raise _too_large(spec)
        os.fsync(fd)
        return ArtifactFile(
            path=spec.path,
            type=spec.type,
            size_bytes=size_bytes,
            sha256=digest.hexdigest(),
            stored=f"{STORE}/{stored}",
            source=source,
        )

    def _next_name(self) -> str:
        self.count += 1
        return str(self.count)


def _stdout_counts(manifest: Manifest, facts: ExitFacts) -> bool:
    return (
        len(manifest.artifacts) == 1
        and manifest.artifacts[0].type == "text/plain"
        and facts.cause is ExitCause.EXITED
        and facts.exit_code == 0
    )


def _judge(found: os.stat_result, spec: ArtifactSpec) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refused(spec.path, f"is {_kind(found.st_mode)}, not a regular file")
    if found.st_nlink != 1:
        raise _refused(spec.path, f"has {found.st_nlink} names: it may be foreign")
    if found.st_size > _max_bytes(spec):
        raise _too_large(spec)


def _make_ours(handle: int, found: os.stat_result) -> None:
    """Take the file from another uid and make it readable, whatever its mode."""
    path = Path(f"/proc/self/fd/{handle}")  # an O_PATH descriptor has no fchmod
    if found.st_uid != os.geteuid():
        os.chown(path, os.geteuid(), os.getegid())
    path.chmod(0o600)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _unfit_name(path: str) -> str | None:
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    if not path.isprintable():
        return "the name has control characters"
    if size > _MAX_PATH_BYTES or path.count("/") > _MAX_DEPTH:
        return "the path is too long"
    return None


def _max_bytes(spec: ArtifactSpec) -> int:
    return int(spec.max_mb * (1 << 20))


def _refused(path: str, words: str) -> JobError:
    return JobError(ErrorCode.E_ARTIFACT, f"artifact {path} {words}", {"path": path})


def _too_large(spec: ArtifactSpec) -> JobError:
    return _refused(spec.path, f"is larger than {spec.max_mb:g} MiB")


@contextlib.contextmanager
def _folder(root_fd: int, path: str) -> Iterator[int]:
    fd = fs.open_beneath(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _refusing_links(path: str) -> Iterator[None]:
    try:
        yield
    except ValueError as exc:
        raise _refused(path, "is not a plain relative path") from exc
    except NotADirectoryError as exc:
        raise _refused(path, "leads through a link or a file") from exc


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        words = exc.strerror or str(exc)
        ours = exc.errno in _OUR_TROUBLE
        code = ErrorCode.E_NORES if ours else ErrorCode.E_ARTIFACT
        raise JobError(code, f"the results cannot be collected: {words}") from exc


@contextlib.contextmanager
def _root_of(workspace: Workspace) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            root_fd = stack.enter_context(fs.opened(workspace.root))
        except FileNotFoundError as exc:
            lack = "the results cannot be collected: its workspace was removed"
            raise JobError(ErrorCode.E_NORES, lack) from exc
        yield root_fd
