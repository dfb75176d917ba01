"""One log for the whole node: structlog events shaped, scrubbed and written as lines.

Every line is `{ts, level, node_id, job_id, event, attrs{}}`. Three places write it::

    daemon        configure()        → standard output and the configured file
    tick          configure_child()  → a dict to the daemon, whose emit() writes it
    job process   configure_file()   → a file in the job's workspace

A log call never raises and never harms: a full disk, a closed pipe or a value that
cannot be printed costs the line at most. In the daemon it never waits either: a pipe
that nobody reads or a disk that hangs blocks a thread of log_queue. Where lines go is
the business of log_sink, what a value may look like that of log_value.
"""

import contextlib
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from aitbc_aps_miner.util import log_bridge
from aitbc_aps_miner.util.log_queue import END_S, QueuedSink
from aitbc_aps_miner.util.log_sink import FileSink, StreamSink
from aitbc_aps_miner.util.log_value import VALUE_MAX, Scrubber, clean, clip

__all__ = [
    "LogSettings",
    "Scrubber",
    "add_secrets",
    "configure",
    "configure_child",
    "configure_file",
    "emit",
    "flush",
    "get_logger",
    "reconfigure",
]

_RANKS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ALIASES = {"warn": "warning", "exception": "error", "critical": "error"}
_TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_EVENT_MAX = 200  # an event's name is a few dotted words; the rest belongs in attrs
_TRACEBACK_MAX = VALUE_MAX - 1  # some 100 frames; the end of a traceback says most


class LogSettings(Protocol):
    """What `[logging]` of the configuration says."""

    @property
    def level(self) -> str:
        """Least level that is written."""
        ...

    @property
    def json_lines(self) -> bool:
        """Whether standard output gets JSON lines; a terminal never does."""
        ...

    @property
    def path(self) -> Path | None:
        """The file beside standard output; always JSON lines."""
        ...


class _Router:
    """Where events of this process go; one per process, as structlog has one setup."""

    def __init__(self) -> None:
        self.rank = _RANKS["info"]
        self.node_id = ""
        self.job_id: str | None = None
        self.scrubber = Scrubber()
        self.deliver: Callable[[dict[str, Any]], None] = lambda _record: None
        self.stdout: QueuedSink[StreamSink] | None = None
        self.file: QueuedSink[FileSink] | None = None
        self.direct: FileSink | None = None
        self.now: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_REALTIME)

    def write(self, record: dict[str, Any]) -> None:
        """Queue for standard output and the file."""
        if self.stdout is not None:
            self.stdout.write(record)
        if self.file is not None:
            self.file.write(record)

    def file_failed(self, path: Path, problem: str) -> None:
        """Say on standard output that the file can't be written."""
        if self.stdout is not None:
            attrs = {"path": str(path), "problem": problem}
            self.stdout.write(self.record("warning", "log.file_failed", attrs))

    def dropped(self, lines: int) -> dict[str, Any]:
        """Shape the line that stands for those that found no room."""
        return self.record("warning", "log.dropped", {"lines": lines})

    def record(
        self, level: str, event: str, attrs: Mapping[str, Any], ts: str | None = None
    ) -> dict[str, Any]:
        """Shape one line; `job_id` is taken out of `attrs`."""
        rest = {key: value for key, value in attrs.items() if key != "job_id"}
        job_id = attrs.get("job_id", self.job_id)
        return {
            "ts": ts or _timestamp(self.now()),
            "level": level,
            "node_id": self.node_id,
            "job_id": None if job_id is None else clip(str(job_id), _EVENT_MAX),
            "event": clip(self.scrubber.scrub(event), _EVENT_MAX),
            "attrs": clean(rest, self.scrubber),
        }


_router = _Router()


def get_logger(**bound: Any) -> FilteringBoundLogger:
    """Give a logger with `bound` fields in every event."""
    return cast("FilteringBoundLogger", structlog.get_logger(**bound))


def configure(
    settings: LogSettings,
    node_id: str,
    *,
    stream: TextIO | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """Log to `stream` (standard output if None) and the configured file."""
    _install()
    _close_sinks()
    out = StreamSink(stream or sys.stdout, json_lines=settings.json_lines)
    _router.stdout = QueuedSink(out, dropped=_router.dropped)
    _router.deliver = _router.write
    _router.job_id = None
    _router.scrubber = Scrubber(secrets)
    reconfigure(settings, node_id)


def reconfigure(settings: LogSettings, node_id: str | None = None) -> None:
    """Take over edited settings: level, form and file, from the next event on."""
    _router.rank = _rank(settings.level)
    if node_id is not None:
        _router.node_id = node_id
    if _router.stdout is not None:
        _router.stdout.sink.json_lines = settings.json_lines
    before, path = _router.file, settings.path
    if before is not None and before.sink.path == path:
        return
    _router.file = None if path is None else _queued_file(path)
    if before is not None:
        before.close()


def configure_child(
    send: Callable[[dict[str, Any]], None],
    *,
    node_id: str = "",
    level: str = "debug",
    secrets: Iterable[str] = (),
) -> None:
    """Log by handing each record to `send`; the daemon passes it to `emit`."""
    _install()
    _close_sinks()
    _router.rank = _rank(level)
    _router.node_id = node_id
    _router.job_id = None
    _router.scrubber = Scrubber(secrets)
    _router.deliver = send


def configure_file(
    path: Path,
    *,
    node_id: str,
    job_id: str | None = None,
    level: str = "info",
    secrets: Iterable[str] = (),
) -> None:
    """Log to a file only, as a job process does that owns none of the daemon's fds.

    Without a queue: its lines are evidence and must be out before it dies, and a disk
    that hangs holds up everything else that a job does in its workspace, too.
    """
    _install()
    _close_sinks()
    _router.rank = _rank(level)
    _router.node_id = node_id
    _router.job_id = job_id
    _router.scrubber = Scrubber(secrets)
    _router.direct = sink = FileSink(path)
    lock = threading.Lock()

    def deliver(record: dict[str, Any]) -> None:
        with lock:
            sink.put(sink.render(record))

    _router.deliver = deliver


def add_secrets(secrets: Iterable[str]) -> None:
    """Mask these too from now on: a token that was just given, an edited secret."""
    for secret in secrets:
        _router.scrubber.add(secret)


def flush(timeout_s: float = END_S) -> bool:
    """Wait until all lines are written; False when they aren't in time."""
    until = time.monotonic() + timeout_s
    # The file first: when it fails, standard output gets a line more. And not `all`,
    # which would leave standard output out when the file's disk hangs.
    is_written = True
    for sink in (_router.file, _router.stdout):
        if sink is not None:
            is_written &= sink.flush(max(0.0, until - time.monotonic()))
    return is_written


def emit(event: Mapping[str, Any]) -> None:
    """Write a child's record; what it says about itself is checked, never trusted."""
    level = _level(event.get("level"))
    if _RANKS[level] < _router.rank:
        return
    given = event.get("attrs")
    attrs: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    if isinstance(job_id := event.get("job_id"), str):
        attrs["job_id"] = job_id
    ts = event.get("ts")
    if not (isinstance(ts, str) and _TS.fullmatch(ts)):
        ts = None
    name = event.get("event")
    name = name if isinstance(name, str) and name else "child.event_malformed"
    _router.deliver(_router.record(level, name, attrs, ts))


def _hand_over(
    _logger: Any, method: str, event_dict: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    """Last structlog processor: the event ends here, in our own sinks."""
    level = _level(method)
    if _RANKS[level] >= _router.rank:
        # The border of logging: losing a line is better than failing the work that
        # it tells of (`deliver` may be a channel to a daemon that is gone).
        with contextlib.suppress(Exception):
            _router.deliver(_shape(level, event_dict))
    raise structlog.DropEvent


def _shape(level: str, event_dict: MutableMapping[str, Any]) -> dict[str, Any]:
    fields = dict(event_dict)
    event = str(fields.pop("event", ""))
    exception = _exception_text(fields.pop("exc_info", None))
    if exception is not None:
        fields["exception"] = exception
    return _router.record(level, event, fields)


def _exception_text(exc_info: Any) -> str | None:
    if exc_info is None or exc_info is False:
        return None
    if isinstance(exc_info, BaseException):
        error: Any = exc_info
    elif isinstance(exc_info, tuple) and len(exc_info) > 1:
        error = exc_info[1]
    else:
        error = sys.exc_info()[1]
    if not isinstance(error, BaseException):
        return None
    # Scrubbed before it is cut, or the cut could leave half a secret behind.
    text = _router.scrubber.scrub("".join(traceback.format_exception(error)).rstrip())
    return text if len(text) <= _TRACEBACK_MAX else "…" + text[-_TRACEBACK_MAX:]


def _timestamp(now: float) -> str:
    moment = datetime.fromtimestamp(now, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _level(name: object) -> str:
    text = str(name)
    text = _ALIASES.get(text, text)
    return text if text in _RANKS else "info"


def _rank(level: str) -> int:
    return _RANKS[_level(level)]


def _queued_file(path: Path) -> QueuedSink[FileSink]:
    return QueuedSink(
        FileSink(path),
        dropped=_router.dropped,
        failed=lambda problem: _router.file_failed(path, problem),
    )


def _close_sinks() -> None:
    # The file first: what it says at its end goes to standard output.
    for sink in (_router.direct, _router.file, _router.stdout):
        if sink is not None:
            sink.close()
    _router.direct = _router.file = _router.stdout = None


def _install() -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _hand_over],
        # Our own rank decides, because it changes while loggers live on.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=False,
    )
    log_bridge.install()
