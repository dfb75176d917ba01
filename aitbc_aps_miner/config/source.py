"""The configuration as it stands now: sees edits of the file, keeps the last good one.

A check is one `stat`. A change is *taken* only when the file stood still: equal stat
before and after the read, and again, with equal bytes, at least SETTLE_S later. Many
prefixes of a TOML file are valid TOML, so without that wait a half-written file
could win. Nothing here waits: a take that is begun is ended by a later check.

    still ── stat differs ──> pending ── stood still for SETTLE_S ──> taken, still
                                └─ moved: begin again

Timestamps are coarse (4 ms on ext4, up to 2 s elsewhere): an edit right after a read
can leave the stat as it was. So for DOUBT_S after a file was first seen the bytes
are compared too, the last time when that span is over.
"""

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from aitbc_aps_miner.config.load import MAX_BYTES, load_bytes
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.read import Unreadable, read_small
from aitbc_aps_miner.config.secrets import mask
from aitbc_aps_miner.errors import ConfigError, Problem

SETTLE_S = 0.5
DOUBT_S = 2.0

_IDLE_S = 1.0
"""An edit is in force within _IDLE_S + SETTLE_S and a bit: less than 2 s."""
_PENDING_S = 0.25
_SOON_S = 0.01

# Device, inode, size, mtime and ctime in ns; an errno where there is no file. ctime
# shows what restores the mtime (cp -p, rsync -t) and a chmod that makes it readable.
_Mark = tuple[int, ...] | int


class MonotonicClock(Protocol):
    """The one clock this module needs."""

    def monotonic(self) -> float:
        """Seconds that never step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The configuration in force; the same object as long as nothing changed."""

    config: Config
    json: str = field(repr=False)
    """The config for a child process: `Config.model_validate_json` reads it."""
    digest: str
    """12 hex digits of the SHA-256 of `json` with secrets masked (config_hash)."""
    problems: tuple[Problem, ...]
    """What is wrong with the file as it stands, if anything."""
    loaded_at_monotonic: float
    """When this config, or its problems, were taken."""
    generation: int
    """1 at start; one more for each different config that came into force."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One reading of the file, with what it was marked by."""

    mark: _Mark
    content: bytes | Unreadable
    seen_at: float
    """Monotonic time right after it was read."""


class ConfigSource:
    """Watches one file; a symlink is followed anew at every check.

    At the start the file is taken as it stands, and ConfigError raised when it cannot
    be used; later on the last good config stays and the problems are shown. Threads
    may share it: while one is checking, the others get the snapshot in force.
    """

    def __init__(
        self, path: Path | str, environ: Mapping[str, str], clock: MonotonicClock
    ) -> None:
        self.path = os.fspath(path)
        self._environ = dict(environ)
        self._clock = clock
        self._checking = threading.Lock()
        self._taken = self._look(_mark(self.path))
        self._pending: _Look | None = None
        self._doubting = True
        config = load_bytes(self._taken.content, self.path, self._environ)
        self._current = _snapshot(config, self._taken.seen_at, generation=1)

    @property
    def current(self) -> Snapshot:
        """The snapshot in force, without looking at the file."""
        return self._current

    def check(self) -> Snapshot:
        """Look at the file and give the snapshot in force; never wait or raise."""
        if self._checking.acquire(blocking=False):
            try:
                self._check()
            finally:
                self._checking.release()
        return self._current

    def next_check_s(self) -> float:
        """Give the seconds after which a check is due."""
        pending = self._pending
        if pending is None:
            return _IDLE_S
        left_s = pending.seen_at + SETTLE_S - self._clock.monotonic()
        return min(_PENDING_S, max(_SOON_S, left_s))

    def _check(self) -> None:
        if self._pending is not None:
            self._settle(self._pending)
            return
        mark = _mark(self.path)
        if mark != self._taken.mark:
            self._pending = self._look(mark)
        elif self._doubting:
            self._compare(mark)

    def _compare(self, mark: _Mark) -> None:
        """Compare the bytes, as the stat alone cannot be trusted yet."""
        now = self._clock.monotonic()
        look = self._look(mark)
        if look.content != self._taken.content:
            self._pending = look
        elif now >= self._taken.seen_at + DOUBT_S:
            # what could not be opened may become readable without a new stat
            self._doubting = isinstance(look.content, Unreadable)

    def _settle(self, pending: _Look) -> None:
        """End the take when the file stood still for long enough, else begin again."""
        now = self._clock.monotonic()
        mark = _mark(self.path)
        if mark != pending.mark:
            self._pending = self._look(mark)
        elif now >= pending.seen_at + SETTLE_S:
            again = self._look(mark)
            if again.content == pending.content and _mark(self.path) == mark:
                self._pending = None
                self._take(pending)
            else:
                self._pending = again

    def _take(self, look: _Look) -> None:
        before, self._taken, self._doubting = self._taken, look, True
        if look.content == before.content:
            return
        old, now = self._current, self._clock.monotonic()
        try:
            config = load_bytes(look.content, self.path, self._environ)
        except ConfigError as exc:
            self._current = replace(old, problems=exc.problems, loaded_at_monotonic=now)
            return
        if config != old.config:
            self._current = _snapshot(config, now, old.generation + 1)
        elif old.problems:
            self._current = replace(old, problems=(), loaded_at_monotonic=now)

    def _look(self, mark: _Mark) -> _Look:
        content = read_small(self.path, MAX_BYTES)
        return _Look(mark=mark, content=content, seen_at=self._clock.monotonic())


def _mark(path: str) -> _Mark:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path would double the cost
    except OSError as exc:
        return exc.errno or 0
    except ValueError:  # a NUL character in the path
        return 0
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def _snapshot(config: Config, now: float, generation: int) -> Snapshot:
    masked = config.coordinator.model_copy(
        update={"auth_token": mask(config.coordinator.auth_token)}
    )
    shown = config.model_copy(update={"coordinator": masked})
    return Snapshot(
        config=config,
        json=config.model_dump_json(by_alias=True),
        digest=hashlib.sha256(_dump(shown)).hexdigest()[:12],
        problems=(),
        loaded_at_monotonic=now,
        generation=generation,
    )


def _dump(config: Config) -> bytes:
    return config.model_dump_json(by_alias=True).encode()
