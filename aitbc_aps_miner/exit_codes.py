"""How the program ends: the closed set of exit codes."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What an exit code of `aitbc-aps-miner` means."""

    OK = 0
    """Everything asked for was done."""
    FAILURE = 1
    """Something went wrong that no other code names; the message says what."""
    USAGE = 2
    """The command line is wrong."""
    CONFIG = 3
    """The configuration cannot be used; every problem was printed."""
    LOCKED = 4
    """Another daemon holds the workspace."""
    UNREACHABLE = 5
    """The coordinator could not be reached."""
    JOBS_FAILED = 6
    """The daemon ran well, but not every job succeeded."""
    INTERRUPTED = 130
    """Ctrl-C ended it."""
