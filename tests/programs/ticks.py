"""Functions for the executor's tests: a few good ones and a zoo of bad ones."""

import ctypes
import os
import random
import signal
import struct
import sys
import threading
import time
from pathlib import Path

SHARED = random.Random(7)


def echo(channel, **kwargs):
    return kwargs


def nothing(channel):
    return None


def who(channel):
    return {"pid": os.getpid(), "ppid": os.getppid()}


def comms(channel):
    return [Path(f"/proc/{pid}/comm").read_text() for pid in (os.getppid(), "self")]


def draws(channel):
    return [random.random() for _ in range(3)]


def chatter(channel, names):
    for name in names:
        channel.send(name, {"n": name})
    return "said"


def ask(channel, question, payload=None, timeout_s=5):
    try:
        return {"answer": channel.ask(question, payload, timeout_s=timeout_s)}
    except Exception as exc:
        return {"error": type(exc).__name__, "message": str(exc)}


def ask_in_threads(channel, count):
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(channel.ask("double", n)))
        for n in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)


def print_a_lot(channel):
    print("junk " * 1000, flush=True)
    os.write(1, b"\x00\x00\x00\x05junk!")
    os.write(2, b"\xff" * 100)
    return "clean"


def spin(channel):
    while True:
        pass


def sleep(channel, seconds=60):
    time.sleep(seconds)


def sleep_with_config(channel, config):
    time.sleep(60)


def hang_in_c(channel):
    """Ignore SIGTERM and never come back from C, holding the interpreter lock."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(60)


def leave(channel, code):
    os._exit(code)


def kill_itself(channel, signum):
    os.kill(os.getpid(), signum)


def crash(channel):
    ctypes.string_at(0)


def write_junk(channel, how):
    junk = {
        "length": b"\xff\xff\xff\xff and more",
        "json": struct.pack(">I", 5) + b"{nope",
        "list": struct.pack(">I", 2) + b"[]",
        "kind": struct.pack(">I", 15) + b'{"kind":"other"',
        "unknown": struct.pack(">I", 14) + b'{"kind":"huh"}',
        "fields": struct.pack(">I", 17) + b'{"kind":"result"}',
    }[how]
    os.write(channel.fileno(), junk)
    time.sleep(60)


def half_a_frame(channel):
    os.write(channel.fileno(), struct.pack(">I", 100) + b'{"kind"')
    os._exit(0)


def giant(channel, megabytes):
    return "x" * (megabytes << 20)


def return_object(channel):
    return object()


def close_everything(channel):
    os.closerange(0, 1000)


class UnpicklableError(Exception):
    def __init__(self):
        self.lock = threading.Lock()

    def __reduce__(self):
        raise TypeError("no")

    def __str__(self):
        raise RuntimeError("no words either")


class HostileError(BaseException):
    def __getattribute__(self, name):
        if name in {"__cause__", "__notes__", "__context__"}:
            raise RuntimeError(name)
        return super().__getattribute__(name)


def raise_it(channel, what):
    raise {
        "value": ValueError("a value"),
        "unpicklable": UnpicklableError(),
        "hostile": HostileError("hostile"),
        "exit": SystemExit(4),
        "interrupt": KeyboardInterrupt(),
    }[what]


def family(channel, count=3, then="hang"):
    """Leave daemonised descendants that ignore SIGTERM, then do `then`."""
    pids = []
    for _ in range(count):
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pid = os.fork()
            if pid == 0:
                os.close(write)
                while True:
                    time.sleep(60)
            os.write(write, str(pid).encode())
            os._exit(0)
        pids.append(int(os.read(read, 20)))
        os.wait()
    channel.send("family", pids)
    if then == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)
    if then == "die":
        os._exit(9)
    return pids


def go_detached(channel, then="wait", path=None):
    """Detach, say so, wait for an answer or a file, return."""
    channel.detach()
    channel.send("detached", os.getpid())
    if then == "family":
        return family(channel, 2, "return")
    while not os.path.exists(path):
        time.sleep(0.01)
    channel.send("going", os.getpid())  # must not raise when nobody hears
    with open(path, "a") as file:
        file.write(f"done closed={channel.closed} sid={os.getsid(0) == os.getpid()}")
    return "detached result"


def warm():
    SHARED.warmed = True


def start_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def is_warm(channel):
    return getattr(SHARED, "warmed", False)


def dispositions(channel):
    return [
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        signal.getsignal(signal.SIGINT) == signal.SIG_DFL,
        sorted(os.readlink(f"/proc/self/fd/{n}") for n in range(3)),
        len(os.listdir("/proc/self/task")),
    ]


def start_daemon_then_wait():
    """Be a daemon (run as a program): an executor with three running tasks."""
    from aitbc_aps_miner.executor import (
        Isolated,
        PoolSettings,
        ProcessExecutor,
        ZygoteSettings,
    )

    cgroups, path = sys.argv[1] == "cgroups", sys.argv[2]

    heard = []

    def on_message(job_id, name, payload):
        heard.append((name, payload))

    executor = ProcessExecutor(
        on_message=on_message,
        settings=PoolSettings(
            zygote=ZygoteSettings(preload=("ticks",)), use_cgroups=cgroups
        ),
    )
    executor.open()
    for isolated in (
        Isolated(ref="ticks:family", kwargs={"count": 2}),
        Isolated(ref="ticks:go_detached", kwargs={"path": path}),
    ):
        threading.Thread(target=executor.call, args=(isolated,), daemon=True).start()
    while len(heard) < 2:
        time.sleep(0.01)
    for name, payload in heard:
        print(name, payload, flush=True)
    print("zygote", executor._pool._generations._current.process.pid, flush=True)
    for task in executor.running().values():
        print("task", task.pid, flush=True)
    print("ready", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    start_daemon_then_wait()
