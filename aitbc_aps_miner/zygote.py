"""The process that every tick and job process is forked from.

Exec'd by the daemon (executor_zygote.py) with one control socket. Imports everything
once, then stays single-threaded and forks *spares* on request: processes that wait,
ready, for one task each (zygote_child.py). A spare's socket, pidfd and evidence file
go to the daemon; its end is reaped here, its leftovers are killed here.

Control messages are JSON objects, one per datagram: in `spare` {name}; out `ready`
{}, `spare` {name, pid, cgroup} with three descriptors, `exited` {pid, code, signal}.
"""

import argparse
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aitbc_aps_miner import kill, zygote_child
from aitbc_aps_miner.sandbox.cgroup import Cgroup
from aitbc_aps_miner.util import frames, proc

MAX_MESSAGE_BYTES = 64 * 1024

_FOR_TERMINALS = ("click", "pygments", "rich")
"""What httpx and structlog import wherever they find it, for terminals: an eighth of
the memory whose page tables every fork has to copy."""


@dataclass(frozen=True, kw_only=True)
class _Spare:
    """What the zygote keeps of a spare: enough to reap it and to end its tree."""

    pid: int
    pidfd: int
    group: Cgroup | None


class Zygote:
    """Forks spares until the daemon is gone."""

    def __init__(
        self,
        control: socket.socket,
        base: Cgroup | None,
        rehearse: Callable[[], object],
    ) -> None:
        self._control = control
        self._base = base
        self._rehearse = rehearse
        self._pid = os.getpid()
        self._spares: dict[int, _Spare] = {}
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)

    def serve(self) -> None:
        """Answer requests and reap spares until the control socket closes."""
        self._send({"kind": "ready"})
        while True:
            for fd, _ in self._epoll.poll():
                if fd in self._spares:
                    self._reap(self._spares[fd])
                elif not self._take_request():
                    return

    def stop(self) -> None:
        """Let `serve` return, as if the daemon had closed its end."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all spares and their trees, except jobs that live on their own."""
        for spare in self._spares.values():
            # A spare's session is the zygote's until it detaches itself.
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(spare.pid) != spare.pid:
                    kill.end_tree(spare.pid, spare.pidfd, spare.group)
                    kill.end_group(spare.group)

    def _take_request(self) -> bool:
        try:
            message = self._control.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return False
        if not message:
            return False
        self._fork(str(frames.decode(message)["name"]))
        return True

    def _fork(self, name: str) -> None:
        _check_single_threaded()
        group = self._make_group(name)
        ours, childs = socket.socketpair()
        evidence_fd = os.memfd_create(name)
        pid = os.fork()
        if pid == 0:
            try:
                self._leave(ours)
                zygote_child.live(childs, evidence_fd, group, self._pid, self._rehearse)
            finally:
                os._exit(70)  # there must never be two zygotes
        spare = _Spare(pid=pid, pidfd=os.pidfd_open(pid), group=group)
        self._spares[spare.pidfd] = spare
        self._epoll.register(spare.pidfd, select.EPOLLIN)
        with ours, childs:
            self._send(
                {
                    "kind": "spare",
                    "name": name,
                    "pid": pid,
                    "cgroup": str(group.path) if group else None,
                },
                (ours.fileno(), spare.pidfd, evidence_fd),
            )
        os.close(evidence_fd)

    def _leave(self, ours: socket.socket) -> None:
        """Close, in the child, what is the zygote's."""
        ours.close()
        self._control.close()
        self._epoll.close()
        for pidfd in self._spares:
            os.close(pidfd)

    def _make_group(self, name: str) -> Cgroup | None:
        """Make the spare's group; a base that vanished must not end the node."""
        if self._base is not None:
            with contextlib.suppress(OSError):
                return self._base.child(name)
        return None

    def _reap(self, spare: _Spare) -> None:
        self._epoll.unregister(spare.pidfd)
        del self._spares[spare.pidfd]
        result = os.waitid(os.P_PID, spare.pid, os.WEXITED)
        os.close(spare.pidfd)
        kill.end_group(spare.group)
        own = {spare.pid for spare in self._spares.values()}
        kill.end_orphans(lambda: [p for p in proc.children(self._pid) if p not in own])
        exited = result is not None and result.si_code == os.CLD_EXITED
        status = result.si_status if result is not None else None
        self._send(
            {
                "kind": "exited",
                "pid": spare.pid,
                "code": status if exited else None,
                "signal": None if exited else status,
            }
        )

    def _send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        # A daemon that is gone is noticed by the next read.
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)


def main(argv: Sequence[str] | None = None) -> int:
    """Be a zygote; the arguments come from executor_zygote.py."""
    args = _parse(argv)
    # SIGTERM and not SIGKILL, so that trees of running ticks can still be ended.
    if not proc.die_with_parent(args.daemon, signal.SIGTERM):
        return 0
    proc.set_name("aps-zygote")
    proc.hide_memory()
    proc.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything(args)
    control = socket.socket(fileno=args.control_fd)
    control.set_inheritable(False)
    base = Cgroup(path=Path(args.cgroup)) if args.cgroup else None
    rehearse = zygote_child.resolve(args.rehearse) if args.rehearse else lambda: None
    zygote = Zygote(control, base, rehearse)
    signal.signal(signal.SIGTERM, lambda _signum, _frame: zygote.stop())
    try:
        zygote.serve()
    finally:
        zygote.close()
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aitbc_aps_miner.zygote")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--daemon", type=int, required=True, help="its pid")
    parser.add_argument("--cgroup", default="", help="group of all spares' groups")
    parser.add_argument("--preload", default="", help="modules, with commas between")
    parser.add_argument("--warm", default="", help="module:function to call once")
    parser.add_argument("--rehearse", default="", help="the same, in each spare")
    return parser.parse_args(argv)


def _import_everything(args: argparse.Namespace) -> None:
    with _hidden(_FOR_TERMINALS):
        for name in filter(None, args.preload.split(",")):
            zygote_child.resolve(f"{name}:__name__")
        if args.warm:
            zygote_child.resolve(args.warm)()
    # Frozen objects are never visited by a child's collector, which would copy
    # their pages; no collection here from now on leaves holes to be filled.
    gc.disable()
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Let packages look as if they were not installed; functions may want them."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # means "not to be found"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _check_single_threaded() -> None:
    """Refuse to fork with threads: their locks would stay locked in the child."""
    threads = os.listdir("/proc/self/task")  # noqa: PTH208  20 µs less than pathlib
    if len(threads) != 1:
        raise RuntimeError(
            f"the zygote must have one thread to fork, it has {len(threads)}; "
            "a preloaded module starts threads when it is imported"
        )


if __name__ == "__main__":
    raise SystemExit(main())
