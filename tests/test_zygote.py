"""zygote.py as a process of its own, the test being the daemon."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aitbc_aps_miner import zygote_child
from aitbc_aps_miner.util import frames, proc
from aitbc_aps_miner.zygote import MAX_MESSAGE_BYTES, _hidden

PROGRAMS = str(Path(__file__).parent / "programs")


@contextmanager
def zygote(
    *options: str, daemon: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run a zygote; give it and its control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    command = [sys.executable, "-m", "aitbc_aps_miner.zygote"]
    command += [f"--control-fd={theirs.fileno()}", f"--daemon={daemon or os.getpid()}"]
    with (
        ours,
        subprocess.Popen(
            [*command, *options],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": PROGRAMS},
        ) as process,
    ):
        theirs.close()
        yield process, ours
        ours.close()


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Give the next message and its descriptors."""
    data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
    return frames.decode(data), fds


def test_a_spare_runs_one_task_and_its_exit_is_told() -> None:
    """Socket, pidfd and evidence file come with it; SIGINT to the zygote is nothing."""
    with zygote("--preload=ticks,json") as (process, control):
        assert receive(control)[0] == {"kind": "ready"}
        process.send_signal(signal.SIGINT)
        control.send(b'{"kind":"spare","name":"one"}')
        message, fds = receive(control)
        pid = message["pid"]
        assert message == {"kind": "spare", "name": "one", "pid": pid, "cgroup": None}
        with socket.socket(fileno=fds[0]) as sock:
            task = {"kind": "task", "func": "ticks:who", "kwargs": {}}
            sock.sendall(frames.encode(task))
            decoder = frames.Decoder()
            told: list[dict[str, Any]] = []
            while data := sock.recv(65536):
                told += decoder.feed(data)
        who = {"pid": pid, "ppid": process.pid}
        assert told == [{"kind": "result", "value": who}]
        exited = {"kind": "exited", "pid": pid, "code": 0, "signal": None}
        assert receive(control)[0] == exited
        for fd in fds[1:]:
            os.close(fd)


def test_ps_tells_what_each_process_does() -> None:
    """A spare is one until its task comes, and then has that task's name."""
    with zygote("--preload=ticks") as (_, control):
        receive(control)
        control.send(b'{"kind":"spare","name":"one"}')
        message, fds = receive(control)
        comm = Path(f"/proc/{message['pid']}/comm")
        until = time.monotonic() + 20
        while comm.read_text() != "aps-spare\n":
            assert time.monotonic() < until, comm.read_text()
        with socket.socket(fileno=fds[0]) as sock:
            sock.sendall(
                frames.encode({"kind": "task", "func": "ticks:comms", "kwargs": {}})
            )
            (told,) = frames.Decoder().feed(sock.recv(65536))
        assert told["value"] == ["aps-zygote\n", "aps-comms\n"]
        for fd in fds[1:]:
            os.close(fd)


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("aitbc_aps_miner.tasks:heartbeat", "aps-heartbeat"),
        ("aitbc_aps_miner.job:run", "aps-job"),
        ("aitbc_aps_miner.hooks:call", "aps-hooks"),
        ("", "aps-"),
    ],
)
def test_a_process_is_named_after_its_function(ref: str, name: str) -> None:
    """Or after its module, where the function's name tells nothing."""
    assert zygote_child._name(ref) == name


@pytest.mark.parametrize("how", ["closed socket", "SIGTERM"])
def test_the_end_of_the_daemon_ends_zygote_and_idle_spares(how: str) -> None:
    """Either way of hearing of it is enough."""
    with zygote() as (process, control):
        receive(control)
        control.send(b'{"kind":"spare","name":"one"}')
        message, fds = receive(control)
        if how == "SIGTERM":
            process.terminate()
        else:
            control.close()
        assert process.wait(20) == 0
        assert not proc.is_alive(message["pid"])
        for fd in fds:
            os.close(fd)


def test_threads_in_the_zygote_are_refused() -> None:
    """A fork beside threads may inherit their locks for ever."""
    with zygote("--preload=ticks", "--warm=ticks:start_thread") as (process, control):
        receive(control)
        control.send(b'{"kind":"spare","name":"one"}')
        _, stderr = process.communicate(timeout=20)
        assert "must have one thread to fork, it has 2" in stderr
        assert process.returncode == 1


def test_a_zygote_of_a_daemon_that_is_gone_already_ends() -> None:
    """It was too late to be told by a signal."""
    with zygote(daemon=1) as (process, control):
        assert process.wait(20) == 0
        assert control.recv(1) == b""


def test_a_hidden_package_is_there_again_for_functions() -> None:
    """Preloading does without it; a function that wants it gets it."""
    sys.modules.pop("colorsys", None)
    with _hidden(("colorsys", "sys")):
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("sys") is sys
    assert importlib.import_module("colorsys").__name__ == "colorsys"
