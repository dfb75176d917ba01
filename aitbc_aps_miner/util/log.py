"""One log for the whole node: structlog events shaped, scrubbed and written as lines.

Every line is `{ts, level, node_id, job_id, event, attrs{}}`. Three places write it::

    daemon        configure()        → standard output and the configured file
    tick          configure_child()  → a dict to the daemon, whose emit() writes it
    job process   configure_file()   → a file in the job's workspace

A log call never raises and never harms: a full disk, a closed pipe or a value that
cannot be printed costs the line at most. Where lines go is the business of log_sink,
what a value may look like that of log_value.
"""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from time import CLOCK_REALTIME, clock_gettime
from typing import Any, Protocol, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from aitbc_aps_miner.util.log_sink import FileSink, Sink, StreamSink
from aitbc_aps_miner.util.log_value import VALUE_MAX, Scrubber, clean, clip

__all__ = [
    "LogSettings",
    "Scrubber",
    "add_secrets",
    "configure",
    "configure_child",
    "configure_file",
    "emit",
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
        self.stdout: StreamSink | None = None
        self.file: FileSink | None = None
        self.now: Callable[[], float] = lambda: clock_gettime(CLOCK_REALTIME)

    def write(self, record: dict[str, Any]) -> None:
        """Write to standard output and the file; say once when the file fails."""
        if self.stdout is not None:
            self.stdout.write(record)
        if self.file is None:
            return
        problem = self.file.write(record)
        if problem is not None and self.stdout is not None:
            attrs = {"path": str(self.file.path), "problem": problem}
            self.stdout.write(self.record("warning", "log.file_failed", attrs))

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
    _router.stdout = StreamSink(stream or sys.stdout, json_lines=settings.json_lines)
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
        _router.stdout.json_lines = settings.json_lines
    if _router.file is None or _router.file.path != settings.path:
        if _router.file is not None:
            _router.file.close()
        _router.file = None if settings.path is None else FileSink(settings.path)


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
    """Log to a file only, as a job process does that owns none of the daemon's fds."""
    _install()
    _close_sinks()
    _router.rank = _rank(level)
    _router.node_id = node_id
    _router.job_id = job_id
    _router.scrubber = Scrubber(secrets)
    _router.file = FileSink(path)
    _router.deliver = _router.write


def add_secrets(secrets: Iterable[str]) -> None:
    """Mask these too from now on: a token that was just given, an edited secret."""
    for secret in secrets:
        _router.scrubber.add(secret)


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


def _close_sinks() -> None:
    sinks: tuple[Sink | None, ...] = (_router.stdout, _router.file)
    for sink in sinks:
        if sink is not None:
            sink.close()
    _router.stdout = _router.file = None


class _Bridge(logging.Handler):
    """Brings what libraries say through stdlib logging into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            text = str(record.msg)  # a library's format that does not fit its args
        log = get_logger()
        say = log.error if record.levelno >= logging.ERROR else log.warning
        say(
            "library.message",
            logger=record.name,
            message=text,
            exc_info=record.exc_info,
        )


def _install() -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _hand_over],
        # Our own rank decides, because it changes while loggers live on.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Bridge) for handler in root.handlers):
        root.addHandler(_Bridge(logging.WARNING))
    root.setLevel(logging.WARNING)
