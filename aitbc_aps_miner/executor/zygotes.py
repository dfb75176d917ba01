"""The daemon's ends of one zygote and of its spares; decides nothing about tasks."""

import array
import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitbc_aps_miner import kill
from aitbc_aps_miner.executor.task import (
    RunningTask,
    Task,
    TaskEnd,
    TaskOutcome,
    ZygoteSettings,
)
from aitbc_aps_miner.sandbox.cgroup import Cgroup
from aitbc_aps_miner.util import frames, proc
from aitbc_aps_miner.zygote import MAX_MESSAGE_BYTES

GROUP_PREFIX = "aps"
"""Groups are named aps-<pid of the zygote>-<number>."""

_SEND_TIMEOUT_S = 2
"""A spare reads its task at once; one that doesn't for so long is as good as dead."""
_MAX_REPLY_BYTES = 64 * 1024
"""Fits into a socket's buffer, so that a reply never makes the daemon wait."""
_MAX_REASON = 4096
_CLOSE_TIMEOUT_S = 0.3
_READ_BYTES = 16 * 1024
_generations = itertools.count(1)


class Spare:
    """One forked process, waiting for its task or running it."""

    def __init__(
        self, zygote: "ZygoteProcess", message: Mapping[str, Any], fds: list[int]
    ) -> None:
        sock_fd, self.pidfd, self.evidence_fd = fds
        self.zygote = zygote
        self.pid = int(message["pid"])
        cgroup = message["cgroup"]
        self.group = Cgroup(path=Path(cgroup)) if cgroup else None
        self.sock = socket.socket(fileno=sock_fd)
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0)
        )
        self.decoder = frames.Decoder()
        self.task: Task | None = None
        self.is_dead = False
        self.detached = False
        self.linger_until: float | None = None
        """When it has to be gone, after its task's end was told."""
        self.status_until: float | None = None
        """How long the zygote may take to tell the exit status of the dead process."""
        self.status: Mapping[str, Any] | None = None
        """What it told: then the tree below is dead and the group removed."""
        self._write_lock = threading.Lock()

    @property
    def due_at(self) -> float | None:
        """When something has to be done about it (CLOCK_MONOTONIC)."""
        if self.status_until is not None:
            return self.status_until
        return self.task.due_at if self.task is not None else self.linger_until

    def send(self, data: bytes) -> bool:
        """Write a whole frame; False when the process is gone or doesn't read."""
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        return True

    def describe(self, task: Task) -> RunningTask:
        """Describe the running `task` for others."""
        return RunningTask(
            job_id=task.job_id,
            pid=self.pid,
            started_at_monotonic=task.started_at,
            deadline_at_monotonic=task.due_at,
            cgroup=self.group.path if self.group else None,
            detached=self.detached,
        )

    def answer(self, number: Any, answer: Any) -> None:
        """Reply to an ask of its task: now, or when the Future `answer` is done."""
        if isinstance(answer, Future):
            answer.add_done_callback(lambda done: self._reply_with(number, done))
        else:
            self._reply(number, answer)

    def _reply_with(self, number: Any, done: Future[Any]) -> None:
        exc = done.exception()
        if exc is None:
            self._reply(number, done.result())
        else:
            self._refuse(number, f"{type(exc).__name__}: {exc}")

    def _reply(self, number: Any, payload: Any) -> None:
        try:
            self._write({"kind": "reply", "id": number, "payload": payload})
        except frames.FrameError as exc:
            self._refuse(number, str(exc))

    def _refuse(self, number: Any, why: str) -> None:
        self._write({"kind": "refused", "id": number, "message": why[:_MAX_REASON]})

    def read(self) -> bytes | None:
        """Give what is there to be read: b"" at the end, None when there is nothing."""
        try:
            return self.sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def has_data(self) -> bool:
        """Whether something is there to be read."""
        try:
            return bool(self.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except OSError:
            return False

    def traceback(self) -> str:
        """Ask the hung process where it hangs."""
        return kill.take_traceback(self.pidfd, self.evidence_fd)

    def kill(self) -> bool:
        """Kill it with everything below it; whether nothing is left."""
        return kill.end_tree(self.pid, self.pidfd, self.group)

    def clean_up(self) -> None:
        """Kill what is left of it, unless its zygote has told that nothing is."""
        if self.status is None or self.zygote.is_dead:
            self.kill()
            kill.end_group(self.group)
            # Ours to reap when its zygote is gone and we adopt orphans.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)

    def died(self) -> TaskOutcome:
        """Describe a death without a result."""
        status = self.status or {}
        code, signum = status.get("code"), status.get("signal")
        if self.decoder.is_inside_frame:
            end, why = TaskEnd.GARBLED, "the process ended inside a frame"
        elif signum is not None:
            end, why = TaskEnd.DIED, f"the process was killed by {_signal_name(signum)}"
        elif code is not None:
            end, why = TaskEnd.DIED, f"the process left without a result, code {code}"
        else:
            end, why = TaskEnd.DIED, status.get("message", "the process is gone")
        evidence = kill.read_evidence(self.evidence_fd)
        return TaskOutcome(
            end=end, message=why, traceback=evidence, exit_code=code, signal=signum
        )

    def close(self) -> None:
        """Give the descriptors back; a waiting spare ends by it."""
        self.sock.close()
        os.close(self.pidfd)
        os.close(self.evidence_fd)

    def _write(self, frame: Mapping[str, Any]) -> None:
        """Write without ever waiting: a child that doesn't read is cut off."""
        data = frames.encode(frame)
        if len(data) > _MAX_REPLY_BYTES:
            raise frames.FrameError(f"{len(data)} bytes, at most {_MAX_REPLY_BYTES}")
        with self._write_lock, contextlib.suppress(OSError):
            try:
                sent = self.sock.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self.sock.shutdown(socket.SHUT_RDWR)


@dataclass(kw_only=True, eq=False)
class ZygoteProcess:
    """One generation: the process and its control socket."""

    generation: int
    process: subprocess.Popen[bytes]
    pidfd: int
    control: socket.socket
    log_fd: int
    """What it wrote to stdout and stderr, which is little: why it died."""
    is_ready: bool = False
    is_dead: bool = False
    waiting_since: list[float] = field(default_factory=list)
    """When each spare was asked for that hasn't come yet; at first, its start."""

    @classmethod
    def start(cls, settings: ZygoteSettings, base: Cgroup | None) -> "ZygoteProcess":
        """Execute a zygote. It ends when the calling *thread* does (prctl(2))."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log_fd = os.memfd_create("zygote")
        try:
            with theirs:
                process = subprocess.Popen(
                    _command(settings, base, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=settings.environ,
                )
        except OSError:
            ours.close()
            os.close(log_fd)
            raise
        ours.setblocking(False)
        return cls(
            generation=next(_generations),
            process=process,
            pidfd=os.pidfd_open(process.pid),
            control=ours,
            log_fd=log_fd,
        )

    def request_spare(self, now: float) -> None:
        """Ask for one more spare."""
        name = f"{GROUP_PREFIX}-{self.process.pid}-{next(_generations)}"
        message = frames.encode({"kind": "spare", "name": name})[4:]
        self.waiting_since.append(now)
        # A full or broken socket shows as a spare that doesn't come.
        try:
            self.control.send(message)
        except OSError:
            return

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Take one message with its descriptors; None when there is none now.

        Raises FrameError when the zygote is gone or writes rubbish.
        """
        room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            # Not socket.recv_fds, which ignores its flags on Python 3.11.
            data, ancillary, _, _ = self.control.recvmsg(MAX_MESSAGE_BYTES, room, flags)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise frames.FrameError(str(exc)) from exc
        if not data:
            raise frames.FrameError("it closed its socket")
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        return frames.decode(data), list(fds)

    def last_words(self) -> str:
        """Give the last line that it wrote to stderr: the error that ended it."""
        return kill.read_evidence(self.log_fd).strip().rpartition("\n")[2]

    def kill(self) -> None:
        """Kill the zygote alone; its waiting spares and ticks die by PDEATHSIG."""
        proc.send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let it end, reap it, give the descriptors back."""
        self.control.close()
        try:
            self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        os.close(self.pidfd)
        os.close(self.log_fd)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _command(
    settings: ZygoteSettings, base: Cgroup | None, control_fd: int
) -> list[str]:
    return [
        settings.python,
        "-P",  # the working directory is no place to import from
        "-m",
        "aitbc_aps_miner.zygote",
        f"--control-fd={control_fd}",
        f"--daemon={os.getpid()}",
        f"--cgroup={base.path if base else ''}",
        f"--preload={','.join(settings.preload)}",
        f"--warm={settings.warm}",
        f"--rehearse={settings.rehearse}",
    ]
