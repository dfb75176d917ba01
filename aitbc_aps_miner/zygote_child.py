"""The life of one spare: get ready, wait for a task, run it, say how it ended, exit.

Runs in a process forked from the zygote and never returns from `live`. Nothing of a
function's misbehaviour goes further than its own frame: what it raises becomes text
here, what it prints goes nowhere.
"""

import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from aitbc_aps_miner.channel import Channel
from aitbc_aps_miner.kill import TRACEBACK_SIGNAL
from aitbc_aps_miner.sandbox.cgroup import PAYLOAD, SUPERVISOR, Cgroup
from aitbc_aps_miner.util import frames, proc

_EXIT_DELAY_S = 0.001
"""Tearing down our memory takes 0.6 ms in the kernel, often on the very core where
the daemon was just woken for our last frame: let it read that first."""

_MAX_TEXT = 64 * 1024
_SAY_NOTHING = ("run", "call")
"""Names of functions that don't tell what they do; their modules' names do."""


def live(
    sock: socket.socket,
    evidence_fd: int,
    group: Cgroup | None,
    zygote_pid: int,
    rehearse: Callable[[], object],
) -> NoReturn:
    """Be a spare until the task, or the daemon, has ended."""
    code = 0
    try:
        _get_ready(evidence_fd, group, zygote_pid)
        _walk_through()
        rehearse()
        channel = Channel(sock)
        task = channel.receive_task()
        if task is not None:
            proc.set_name(_name(str(task.get("func"))))
            _report(channel, run(channel, task))
            time.sleep(_EXIT_DELAY_S)
    except BaseException:  # noqa: BLE001  the last border: only exit codes leave here
        code = 70  # EX_SOFTWARE
    # Not sys.exit: the zygote's atexit handlers and buffers are not ours, and
    # threads that the function left behind must not keep us.
    os._exit(code)


def run(channel: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    """Run the function that `task` names; give the frame that tells its end."""
    try:
        function = resolve(task["func"])
        return {"kind": "result", "value": function(channel, **task["kwargs"])}
    except BaseException as exc:  # noqa: BLE001  the border of a task, SystemExit too
        return raised(exc)


def resolve(ref: str) -> Callable[..., Any]:
    """Import the function that "package.module:name" refers to."""
    module, _, name = ref.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def raised(exc: BaseException) -> dict[str, Any]:
    """Describe any exception at all, also one whose own methods raise."""
    try:
        message = str(exc)
    except BaseException:  # noqa: BLE001  it is the function's code that runs here
        message = "(its __str__ raises)"
    try:
        text = "".join(traceback.format_exception(exc))
    except BaseException:  # noqa: BLE001  and here: __repr__, __cause__, notes
        text = "".join(traceback.format_tb(exc.__traceback__))
    return {
        "kind": "raised",
        "type": type(exc).__qualname__,
        "message": message[:_MAX_TEXT],
        "traceback": text[-_MAX_TEXT:],
    }


def _name(ref: str) -> str:
    """Say in a word what a process does: `aps-heartbeat`, or `aps-job` for job:run."""
    module, _, function = ref.partition(":")
    is_said = function not in _SAY_NOTHING
    return f"aps-{function if is_said else module.rpartition('.')[2]}"


def _report(channel: Channel, answer: dict[str, Any]) -> None:
    try:
        channel.finish(answer)
    except frames.FrameError as exc:
        value = answer.get("value")
        what = TypeError(f"result of type {type(value).__qualname__} is {exc}")
        channel.finish(raised(what))
    with contextlib.suppress(Exception):
        # Into /dev/null; but a file that the function put there deserves it.
        sys.stdout.flush()
        sys.stderr.flush()


def _get_ready(evidence_fd: int, group: Cgroup | None, zygote_pid: int) -> None:
    """Do what can be done beforehand: nothing of it is paid for by a task."""
    if not proc.die_with_parent(zygote_pid):
        os._exit(0)
    proc.set_name("aps-spare")
    proc.adopt_orphans()
    if group is not None:
        # Before idling: migrating a process that sleeps can take 10 ms, and so does
        # making a group while another spare migrates.
        group.child(PAYLOAD)
        group.child(SUPERVISOR).join()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    faulthandler.enable(evidence_fd)
    faulthandler.register(TRACEBACK_SIGNAL, evidence_fd, all_threads=True)
    # The module `random` seeds itself anew after a fork; other generators must be
    # made by the tasks, never at import.
    gc.enable()


def _walk_through() -> None:
    """Run one task of nothing, so that the pages it needs are copied beforehand."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frames.encode({"kind": "task", "func": _WARM_UP, "kwargs": {}}))
        channel = Channel(theirs)
        _report(channel, run(channel, channel.receive_task() or {}))


def _nothing(_channel: object) -> None:
    """Be the task that warms a spare up."""


_WARM_UP = f"{__name__}:{_nothing.__name__}"
