"""The child's end of its socket to the daemon: say something, ask something.

Frames from here (util.frames): `message` {name, payload}, `ask` {id, name, payload},
`detached`, and the last one, `result` {value} or `raised` {type, message, traceback}.
Frames to here: `task` {func, kwargs}, then `reply` {id, payload} or `refused` {id,
message}. The daemon may be gone at any moment, or be stopped and read nothing: saying
something never raises and never waits for it. Only a question and the last frame may
wait, for a time.
"""

import contextlib
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from aitbc_aps_miner.errors import MinerError
from aitbc_aps_miner.util import frames, proc

_READ_BYTES = 16 * 1024
_TORN_WAIT_S = 0.05
"""News larger than the socket's buffer: a daemon that reads takes the rest at once."""
_LAST_WAIT_S = 30.0
"""As long as a question waits by default; then the last frame is given up."""


class ChannelClosedError(MinerError):
    """The daemon is gone, or its end of the channel is."""


class AskRefusedError(MinerError):
    """The daemon could not answer; the message is its reason."""


class Channel:
    """One child's line to the daemon; every method may be used from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._closed = False
        self._send_lock = threading.Lock()
        self._unsent = memoryview(b"")
        """The rest of a frame that is partly out: it goes before any other."""
        self._decoder = frames.Decoder()
        self._early: list[dict[str, Any]] = []
        self._ids = itertools.count(1)
        self._asked: dict[int, Future[Any]] = {}
        self._reader: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether the daemon is gone; looks when nobody else is reading."""
        if not self._closed and self._reader is None:
            with contextlib.suppress(BlockingIOError):
                self._closed = self._peek() == b""
        return self._closed

    def fileno(self) -> int:
        """Give the socket's descriptor."""
        return self._sock.fileno()

    def send(self, kind: str, payload: Any = None) -> None:
        """Tell the daemon; quietly nothing when it is gone or doesn't read.

        Raises FrameError when `payload` isn't JSON-able.
        """
        self._send({"kind": "message", "name": kind, "payload": payload})

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        """Ask the daemon and give its answer.

        Raises ChannelClosedError when it is gone, TimeoutError when it doesn't answer
        in time, AskRefusedError when it can't.
        """
        deadline = time.monotonic() + timeout_s
        number = next(self._ids)
        answer: Future[Any] = Future()
        with self._send_lock:
            self._asked[number] = answer
            self._start_reader()
        ask = {"kind": "ask", "id": number, "name": kind, "payload": payload}
        try:
            self._send(ask, timeout_s)
            if self._closed:
                self._fail_asked()
            return answer.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError as exc:
            raise TimeoutError(f"no answer to {kind} in {timeout_s} s") from exc
        finally:
            self._asked.pop(number, None)

    def detach(self) -> None:
        """Outlive daemon and zygote from now on: session and life of our own."""
        proc.outlive_parent()
        # A group leader, which only a detached process is, may not call it again.
        with contextlib.suppress(PermissionError):
            os.setsid()
        self._send({"kind": "detached"}, _LAST_WAIT_S)

    def receive_task(self) -> dict[str, Any] | None:
        """Wait for the first frame; None when the daemon went away instead.

        Raises FrameError when it is garbled.
        """
        while not self._early:
            data = self._read()
            if not data:
                return None
            self._early += self._decoder.feed(data)
        return self._early.pop(0)

    def finish(self, frame: Mapping[str, Any]) -> None:
        """Send the last frame; wait for a daemon that doesn't read, but not for ever.

        Raises FrameError when it isn't JSON-able.
        """
        self._send(frame, _LAST_WAIT_S)

    def _send(self, frame: Mapping[str, Any], wait_s: float = 0) -> None:
        """Write the whole frame or, when there is no room for `wait_s`, nothing."""
        data = memoryview(frames.encode(frame))
        until = time.monotonic() + wait_s
        is_taken = False
        while True:
            # Never held while waiting: news must not queue up behind a question.
            with self._send_lock:
                self._flush()
                if not (is_taken or self._unsent or self._closed):
                    self._unsent, is_taken = data, True
                    self._flush()
                if self._closed or (is_taken and not self._unsent):
                    return
                if is_taken and not wait_s:
                    wait_s = _TORN_WAIT_S
                    until = time.monotonic() + wait_s
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            self._await_room(left_s)

    def _flush(self) -> None:
        """Write what there is room for; the caller holds the lock."""
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent, socket.MSG_DONTWAIT)
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            return
        except OSError:
            self._closed = True

    def _await_room(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.poll(timeout_s * 1000)

    def _start_reader(self) -> None:
        """Start reading replies; most ticks never ask and never pay for a thread."""
        if self._reader is None:
            self._reader = threading.Thread(
                target=self._read_replies, name="channel", daemon=True
            )
            self._reader.start()

    def _read_replies(self) -> None:
        with contextlib.suppress(frames.FrameError):
            while data := self._read():
                for frame in self._decoder.feed(data):
                    self._answer(frame)
        self._closed = True
        self._fail_asked()

    def _answer(self, frame: Mapping[str, Any]) -> None:
        answer = self._asked.pop(frame.get("id", 0), None)
        if answer is None:
            return  # asked no longer: it timed out
        if frame["kind"] == "reply":
            answer.set_result(frame.get("payload"))
        else:
            answer.set_exception(AskRefusedError(str(frame.get("message"))))

    def _fail_asked(self) -> None:
        for number in list(self._asked):
            answer = self._asked.pop(number, None)
            if answer is not None:
                answer.set_exception(ChannelClosedError("the daemon is gone"))

    def _read(self) -> bytes:
        try:
            return self._sock.recv(_READ_BYTES)
        except OSError:
            return b""

    def _peek(self) -> bytes:
        try:
            return self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise
        except OSError:
            return b""
