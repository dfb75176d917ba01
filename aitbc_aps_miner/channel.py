"""The child's end of its socket to the daemon: say something, ask something.

Frames from here (util.frames): `message` {name, payload}, `ask` {id, name, payload},
`detached`, and the last one, `result` {value} or `raised` {type, message, traceback}.
Frames to here: `task` {func, kwargs}, then `reply` {id, payload} or `refused` {id,
message}. The daemon may be gone at any moment: saying something never raises for it.
"""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from aitbc_aps_miner.errors import MinerError
from aitbc_aps_miner.util import frames, proc

_READ_BYTES = 16 * 1024


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
        """Tell the daemon; quietly nothing when it is gone.

        Raises FrameError when `payload` isn't JSON-able.
        """
        self._send({"kind": "message", "name": kind, "payload": payload})

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        """Ask the daemon and give its answer.

        Raises ChannelClosedError when it is gone, TimeoutError when it doesn't answer
        in time, AskRefusedError when it can't.
        """
        number = next(self._ids)
        answer: Future[Any] = Future()
        with self._send_lock:
            self._asked[number] = answer
            self._start_reader()
        self._send({"kind": "ask", "id": number, "name": kind, "payload": payload})
        if self._closed:
            self._fail_asked()
        try:
            return answer.result(timeout_s)
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
        self._send({"kind": "detached"})

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
        """Send the last frame. Raises FrameError when it isn't JSON-able."""
        self._send(frame)

    def _send(self, frame: Mapping[str, Any]) -> None:
        data = frames.encode(frame)
        with self._send_lock:
            if self._closed:
                return
            try:
                self._sock.sendall(data)
            except OSError:
                # Half a frame may be out: nothing may follow it.
                self._closed = True

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
