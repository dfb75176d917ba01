"""channel.py over a real socket pair, the test being the daemon."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aitbc_aps_miner.channel import AskRefusedError, Channel, ChannelClosedError
from aitbc_aps_miner.util import frames

LARGE = "x" * 300_000
"""More than fits into a socket's buffer."""


class Daemon:
    """The other end: reads frames, writes frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = frames.Decoder()
        self._frames: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        """Give the next frame."""
        while not self._frames:
            data = self.sock.recv(65536)
            assert data, "the channel closed"
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def write(self, **frame: Any) -> None:
        """Send a frame."""
        self.sock.sendall(frames.encode(frame))


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Daemon]]:
    """Give both ends of a channel."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield Channel(theirs), Daemon(ours)
        ours.close()


def in_thread(work: Any) -> threading.Thread:
    """Run `work` beside the test."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_what_is_sent_arrives(ends: tuple[Channel, Daemon]) -> None:
    """`send` is one frame."""
    channel, daemon = ends
    channel.send("progress", {"pct": 5})
    assert daemon.read() == {
        "kind": "message",
        "name": "progress",
        "payload": {"pct": 5},
    }


def test_large_frames_of_many_threads_never_mix(ends: tuple[Channel, Daemon]) -> None:
    """Those larger than the socket's buffer stay whole beside others."""
    channel, daemon = ends
    threads = [
        in_thread(lambda n=n: channel.finish({"kind": "result", "value": [n, LARGE]}))
        for n in range(4)
    ]
    received = sorted(daemon.read()["value"] for _ in threads)
    assert received == [[n, LARGE] for n in range(4)]


def test_large_news_reach_a_daemon_that_reads(ends: tuple[Channel, Daemon]) -> None:
    """They wait a moment for the room that they need."""
    channel, daemon = ends
    thread = in_thread(lambda: channel.send("log", LARGE))
    assert daemon.read()["payload"] == LARGE
    thread.join(10)


def test_news_never_wait_for_a_daemon_that_does_not_read(
    ends: tuple[Channel, Daemon],
) -> None:
    """As while it is stopped: what finds no room is dropped, whole and in order."""
    channel, daemon = ends
    channel.send("large", LARGE)  # torn: the rest of it goes before anything else
    began = time.monotonic()
    for number in range(10_000):
        channel.send("log", [number, "x" * 100])
    assert time.monotonic() - began < 2.0
    with pytest.raises(TimeoutError):
        channel.ask("token", timeout_s=0.01)

    thread = in_thread(lambda: channel.finish({"kind": "result", "value": 7}))
    received = [daemon.read()]
    while received[-1]["kind"] != "result":
        received.append(daemon.read())
    thread.join(10)
    assert [frame["name"] for frame in received[:-1]] == ["large"]
    channel.send("log", "again")
    assert daemon.read()["payload"] == "again"


def test_small_news_fill_the_buffer_and_stay_in_order(
    ends: tuple[Channel, Daemon],
) -> None:
    """What was there first is what arrives."""
    channel, daemon = ends
    for number in range(10_000):
        channel.send("log", number)
    in_thread(lambda: channel.finish({"kind": "result", "value": None}))
    received = [daemon.read()]
    while received[-1]["kind"] != "result":
        received.append(daemon.read())
    payloads = [frame["payload"] for frame in received[:-1]]
    assert 100 < len(payloads) < 10_000
    assert payloads == list(range(len(payloads)))


def test_a_last_frame_waits_no_longer_than_its_time(
    ends: tuple[Channel, Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job process ends, whether its daemon ever wakes up or not."""
    channel, _ = ends
    monkeypatch.setattr("aitbc_aps_miner.channel._LAST_WAIT_S", 0.05)
    for number in range(10_000):
        channel.send("log", number)
    began = time.monotonic()
    channel.finish({"kind": "result", "value": LARGE})
    assert 0.05 <= time.monotonic() - began < 5


def test_replies_find_their_askers_in_any_order(ends: tuple[Channel, Daemon]) -> None:
    """Each ask gets its own reply, also when they come the wrong way round."""
    channel, daemon = ends
    answers: dict[str, Any] = {}
    threads = [
        in_thread(lambda n=n: answers.update({n: channel.ask("token", n)}))
        for n in ("a", "b")
    ]
    for asked in sorted((daemon.read() for _ in threads), key=lambda f: -f["id"]):
        daemon.write(kind="reply", id=asked["id"], payload=asked["payload"] * 2)
    for thread in threads:
        thread.join(10)
    assert answers == {"a": "aa", "b": "bb"}


def test_an_ask_that_cannot_be_answered_says_why(ends: tuple[Channel, Daemon]) -> None:
    """A refusal is an error of that ask."""
    channel, daemon = ends
    thread = in_thread(
        lambda: daemon.write(kind="refused", id=daemon.read()["id"], message="no token")
    )
    with pytest.raises(AskRefusedError, match="no token"):
        channel.ask("token")
    thread.join(10)


def test_an_ask_times_out_and_its_late_reply_harms_nobody(
    ends: tuple[Channel, Daemon],
) -> None:
    """TimeoutError; the next ask gets its own reply, not the late one."""
    channel, daemon = ends
    with pytest.raises(TimeoutError, match="no answer to slow"):
        channel.ask("slow", timeout_s=0.01)
    late = daemon.read()
    daemon.write(kind="reply", id=late["id"], payload="late")

    def answer() -> None:
        daemon.write(kind="reply", id=daemon.read()["id"], payload="in time")

    thread = in_thread(answer)
    assert channel.ask("quick") == "in time"
    thread.join(10)


def test_a_daemon_that_goes_fails_open_asks_and_later_ones(
    ends: tuple[Channel, Daemon],
) -> None:
    """ChannelClosedError, at once."""
    channel, daemon = ends

    def leave() -> None:
        daemon.read()
        daemon.sock.close()

    thread = in_thread(leave)
    for _ in range(2):
        with pytest.raises(ChannelClosedError):
            channel.ask("token", timeout_s=10)
    thread.join(10)
    assert channel.closed


def test_saying_something_to_nobody_is_quiet(ends: tuple[Channel, Daemon]) -> None:
    """EPIPE never leaves `send`; `closed` tells it, also without any send."""
    channel, daemon = ends
    seen = [channel.closed]
    daemon.sock.close()
    seen.append(channel.closed)
    assert seen == [False, True]
    channel.send("progress", 1)
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        other = Channel(theirs)
        other.send("progress", 1)
        other.send("progress", 2)
        assert other.closed
    assert Channel(theirs).closed  # a socket that the function itself closed


def test_garbled_replies_close_the_channel(ends: tuple[Channel, Daemon]) -> None:
    """Rubbish from the daemon is as good as none."""
    channel, daemon = ends

    def garble() -> None:
        daemon.read()
        daemon.sock.sendall(b"\xff" * 8)

    thread = in_thread(garble)
    with pytest.raises(ChannelClosedError):
        channel.ask("token")
    thread.join(10)


def test_the_task_comes_first_and_the_end_of_the_stream_is_none(
    ends: tuple[Channel, Daemon],
) -> None:
    """`receive_task` waits for a frame, or for nothing more to come."""
    channel, daemon = ends
    daemon.write(kind="task", func="a:b", kwargs={})
    assert channel.receive_task() == {"kind": "task", "func": "a:b", "kwargs": {}}
    daemon.sock.close()
    assert channel.receive_task() is None
