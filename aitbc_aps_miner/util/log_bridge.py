"""Brings what libraries say through stdlib logging into the same lines as our own."""

import logging

import structlog


def install() -> None:
    """Hand warnings and errors of every library to structlog; twice is once."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Bridge) for handler in root.handlers):
        root.addHandler(_Bridge(logging.WARNING))
    root.setLevel(logging.WARNING)


class _Bridge(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            text = str(record.msg)  # a library's format that does not fit its args
        log = structlog.get_logger()
        say = log.error if record.levelno >= logging.ERROR else log.warning
        say(
            "library.message",
            logger=record.name,
            message=text,
            exc_info=record.exc_info,
        )
