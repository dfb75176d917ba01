"""Nobody who logs waits: full pipes, stopped terminals, hung disks block a thread."""

import io
import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from aitbc_aps_miner.util import log_queue
from aitbc_aps_miner.util.log_queue import QueuedSink
from aitbc_aps_miner.util.log_sink import StreamSink, render_json

QUICK_S = 2.0
"""What takes a few milliseconds, on a machine that has a lot to do."""


class Held:
    """A sink whose writes hang, as on a dead disk, until they are let go."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.go = threading.Event()
        self.hangs = threading.Event()
        self.closed = threading.Event()
        self.problem: str | None = None

    def render(self, record: Mapping[str, Any]) -> bytes:
        return render_json(record)

    def put(self, line: bytes) -> str | None:
        self.hangs.set()
        assert self.go.wait(20)
        self.lines.append(json.loads(line)["event"])
        return self.problem

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def held() -> Iterator[Held]:
    """Give a sink that hangs; let it go in the end."""
    sink = Held()
    yield sink
    sink.go.set()


def queued(sink: Any, **more: Any) -> QueuedSink[Any]:
    """Put a queue before a sink."""
    return QueuedSink(sink, dropped=lambda count: record(f"dropped {count}"), **more)


def record(event: str) -> dict[str, Any]:
    """One shaped record."""
    return {
        "ts": "2023-11-14T22:13:20.078Z",
        "level": "info",
        "node_id": "n",
        "job_id": None,
        "event": event,
        "attrs": {},
    }


def test_lines_come_out_in_order(held: Held) -> None:
    """One thread writes what many may say."""
    queue = queued(held)
    held.go.set()
    for number in range(100):
        queue.write(record(str(number)))
    assert queue.flush(20)
    assert held.lines == [str(number) for number in range(100)]


def test_a_hung_disk_holds_nobody_up(held: Held) -> None:
    """Neither a line nor the wait at the end; when it goes again nothing is missing."""
    queue = queued(held)
    began = time.monotonic()
    queue.write(record("one"))
    queue.write(record("two"))
    assert queue.flush(0.05) is False
    assert time.monotonic() - began < QUICK_S
    held.go.set()
    assert queue.flush(20)
    assert held.lines == ["one", "two"]


def test_lines_without_room_are_counted_where_they_are_missing(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the later ones gets in before the count is told."""
    line = len(render_json(record("0")))
    monkeypatch.setattr(log_queue, "MAX_WAITING_BYTES", 3 * line)
    queue = queued(held)
    queue.write(record("0"))
    assert held.hangs.wait(20)
    for number in range(1, 9):
        queue.write(record(str(number)))
    held.go.set()
    assert queue.flush(20)
    queue.write(record("9"))
    assert queue.flush(20)
    assert held.lines == ["0", "1", "2", "3", "dropped 5", "9"]


def test_an_end_writes_what_waits_and_lets_go_of_the_sink(held: Held) -> None:
    """In time, or when it goes again; a latecomer is written, too."""
    queue = queued(held)
    queue.write(record("one"))
    began = time.monotonic()
    queue.close(0.05)
    assert time.monotonic() - began < QUICK_S
    assert not held.closed.is_set()
    held.go.set()
    assert held.closed.wait(20)
    queue.close(20)
    queue.write(record("late"))
    assert queue.flush(20)
    assert held.lines == ["one", "late"]


def test_a_sink_that_wrote_nothing_is_closed_at_once(held: Held) -> None:
    """There is no thread to be waited for."""
    queued(held).close()
    assert held.closed.is_set()


def test_a_sink_that_fails_is_told_of(held: Held) -> None:
    """By the thread that wrote."""
    told: list[str] = []
    held.problem = "disk on fire"
    held.go.set()
    queue = queued(held, failed=told.append)
    queue.write(record("one"))
    assert queue.flush(20)
    assert told == ["disk on fire"]


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    """Everything is there in order once somebody reads."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines, os.fdopen(writer, "w") as stream:
        queue = queued(StreamSink(stream, json_lines=True))
        began = time.monotonic()
        for number in range(5000):
            queue.write(record(str(number)))
        assert time.monotonic() - began < QUICK_S
        assert not queue.flush(0.05)
        seen = [json.loads(lines.readline())["event"] for _ in range(5000)]
        assert seen == [str(number) for number in range(5000)]
        assert queue.flush(20)


def test_a_stopped_terminal_holds_nobody_up() -> None:
    """Ctrl-S stops the thread, Ctrl-Q lets it go on."""
    master, slave = pty.openpty()
    with ExitStack() as stack:
        screen = stack.enter_context(os.fdopen(master, "rb", buffering=0))
        stream = stack.enter_context(os.fdopen(slave, "w"))
        queue = queued(StreamSink(stream, json_lines=True))
        termios.tcflow(slave, termios.TCOOFF)
        queue.write(record("one"))
        assert not queue.flush(0.05)
        termios.tcflow(slave, termios.TCOON)
        assert queue.flush(20)
        assert b"one" in screen.read(4096)


def test_a_forked_child_writes_by_itself() -> None:
    """Its parent's thread and waiting lines are not its own, nor is a held lock."""
    program = """
import os, sys, threading
from aitbc_aps_miner.util import log
class Settings:
    level, json_lines, path = "info", True, None
log.configure(Settings(), "n")
log.get_logger().info("parent.first")
queue = log._router.stdout
assert log.flush(10)
held, go = threading.Event(), threading.Event()
def hold():
    with queue._changed:
        held.set()
        go.wait(10)
threading.Thread(target=hold).start()
held.wait(10)
pid = os.fork()
if pid == 0:
    log.get_logger().info("child.alive")
    os._exit(0 if log.flush(10) else 1)
go.set()
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
log.get_logger().info("parent.last")
assert log.flush(10)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == ["parent.first", "child.alive", "parent.last"]


def test_a_line_has_the_form_of_the_moment_it_was_said() -> None:
    """An edit of `logging.json` changes no line that waits already."""
    out = io.StringIO()
    stream = StreamSink(out, json_lines=True)
    queue = queued(stream)
    queue.write(record("one"))
    stream.json_lines = False
    queue.write(record("two"))
    assert queue.flush(20)
    one, two = out.getvalue().splitlines()
    assert json.loads(one)["event"] == "one"
    assert two.endswith("info    two")
