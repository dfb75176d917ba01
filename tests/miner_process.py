"""The real daemon as a child process that a test can edit, ask, signal and restart."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
import tomli_w
import yaml

from aitbc_aps_miner.reference_coordinator.demo_files import free_port

PROGRAMS = Path(__file__).parent / "programs"

PATIENCE_S = 20.0
"""Deadline of what takes a fraction of a second; CI is slow."""
_LOOK_S = 0.02

FIELDS = {"ts", "level", "node_id", "job_id", "event", "attrs"}

TASKS = {
    "greet": """
        from pathlib import Path

        def run(name: str, times: int = 1) -> dict:
            Path("../output/greeting.txt").write_text(f"hello {name}\\n" * times)
            return {"greeted": name}
    """,
    "odd": """
        import os
        from pathlib import Path

        def run(kind: str) -> None:
            {
                "symlink": lambda: os.symlink("/etc/passwd", "out.bin"),
                "fifo": lambda: os.mkfifo("out.bin"),
                "hardlink": lambda: (
                    Path("first").write_text("x"), os.link("first", "out.bin")
                ),
                "large": lambda: Path("out.bin").write_bytes(bytes(2 << 20)),
                "missing": lambda: None,
            }[kind]()
    """,
    "hold": """
        import os
        import time
        from pathlib import Path

        def run(until: str, stamp: str = "") -> dict:
            print("holding", flush=True)
            if stamp:
                with open(stamp, "a") as file:
                    file.write(f"{os.getpid()}\\n")
            while not Path(until).exists():
                time.sleep(0.02)
            return {"held": True}
    """,
    "grow": """
        import time
        from pathlib import Path

        def run(until: str, megabytes: int) -> None:
            hoard = [b"x" * (1 << 20) for _ in range(megabytes)]
            print("fed", flush=True)
            while not Path(until).exists():
                time.sleep(0.02)
            del hoard
            time.sleep(1.5)
            hoard = [b"x" * (1 << 20) for _ in range(megabytes)]
            time.sleep(30)
    """,
}
"""`hold` runs until the file `until` exists and adds a line to `stamp` per run."""


class Miner:
    """One daemon in a directory of its own, with fast intervals.

    `sections` are merged over the defaults: `Miner(path, url, pull={"wait_s": 0})`.
    A context: starts at entry; at exit ends and leaves no process, or fails.
    """

    def __init__(
        self,
        directory: Path,
        base_url: str,
        *,
        token: str = "demo-token",
        environ: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        self.directory = directory
        self.config = directory / "config.toml"
        self.root = directory / "jobs"
        self.document = self._document(base_url, token)
        self.lines: list[dict[str, Any]] = []
        """Every line of the log so far, of all starts."""
        self.noise: list[str] = []
        """What came on standard output and is no JSON."""
        self._environ = dict(environ or {})
        self._said = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._pids: list[int] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._write_samples()
        merge(self.document, sections)
        self.config.write_text(tomli_w.dumps(self.document))

    def _document(self, base_url: str, token: str) -> dict[str, Any]:
        return {
            "node_id": "n1",
            "daemon": {"on_sigterm": "leave", "drain_s": 10},
            "coordinator": {
                "base_url": base_url,
                "auth_token": token,
                "timeout_s": 5,
            },
            "heartbeat": {"interval_s": 1, "backoff": {"min_s": 0.2, "max_s": 1}},
            "pull": {"interval_s": 0.1, "wait_s": 5},
            "sweep": {"interval_s": 1},
            "probe": {"interval_s": 5},
            "runners": {
                "cli": {"allowlist_dir": str(self.directory / "allowlist.d")},
                "python": {"task_paths": [str(self.directory)]},
            },
            "resources": {
                "max_concurrent_cpu": 4,
                "max_concurrent_gpu": 0,
                "mem_soft_mb": 512,
                "grace_s": 0.5,
            },
            "workspace": {"root": str(self.root)},
            "status": {"listen": f"127.0.0.1:{free_port(0)}"},
            "network": {"private": True},
        }

    def _write_samples(self) -> None:
        anything = {"pattern": r"[\w./-]+", "allow_paths": True}
        commands: dict[str, tuple[str | None, list[Any]]] = {
            "echo": (shutil.which("echo"), [["[^-].*"]]),
            "cat": (shutil.which("cat"), [anything]),
            "false": (shutil.which("false"), []),
            "sleep": (shutil.which("sleep"), [["[0-9.]+"]]),
            "zoo": (sys.executable, [anything]),
        }
        for name, (path, args) in commands.items():
            document = {"command": {"path": path}, "args": args, "max_output_mb": 64}
            file = self.directory / "allowlist.d" / f"{name}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(yaml.safe_dump(document))
            file.chmod(0o644)  # root trusts nothing that others could have written
            # A file this new is watched for a moment first; these stand still.
            os.utime(file, (0, 0))
        for name, text in TASKS.items():
            file = self.directory / "tasks" / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(line[8:] for line in text.splitlines()))

    # Life ---------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The daemon that was started last."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return self.process.pid

    def start(self) -> None:
        """Start a daemon; does not wait for anything."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aitbc_aps_miner", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._environ},
        )
        self._pids.append(self._process.pid)
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait until the daemon has ended, give its exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until the daemon has ended by itself; give its exit code."""
        code = self.process.wait(timeout_s)
        assert self._reader is not None
        # Nothing that outlives the daemon may hold on to its standard output.
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), f"who holds stdout? {self.processes()}"
        return code

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End this daemon and start the next one."""
        self.end(number)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_event("node.registered", "heartbeat.not_offered")
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.process.poll() is None:
                self.end()
            if kind is None:
                self.wait_until(lambda: not self.processes(), self._leftovers)
        finally:
            if kind is not None:
                print("\n".join(map(json.dumps, self.lines[-60:])), *self.noise)  # noqa: T201 - shown by pytest with the failure
            self._kill_all()

    def _leftovers(self) -> str:
        return f"left over: {[words_of(pid) for pid in self.processes()]}"

    def _kill_all(self) -> None:
        for pid in (*self._pids[-1:], *self.processes()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE_S)
            assert self._process.stdout is not None
        if self._reader is not None:
            self._reader.join(PATIENCE_S)

    def processes(self) -> list[int]:
        """List what was started by these daemons and lives, but for the daemon."""
        return [pid for pid in self._living() if pid != self.process.pid]

    def _living(self) -> Iterator[int]:
        marks = [f"--daemon={pid}" for pid in self._pids]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            words = words_of(int(entry.name))
            # An empty command line: a zombie, or one of the kernel's threads.
            if words and (set(marks) & set(words) or self._is_payload(entry)):
                yield int(entry.name)

    def _is_payload(self, entry: Path) -> bool:
        with contextlib.suppress(OSError):
            if str(self.directory).encode() in (entry / "environ").read_bytes():
                return True
        with contextlib.suppress(OSError):
            return (entry / "cwd").readlink().is_relative_to(self.directory)
        return False

    # What it says ---------------------------------------------------------------

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                with self._said:
                    try:
                        self.lines.append(json.loads(line))
                    except ValueError:
                        self.noise.append(line.decode(errors="replace"))
                    self._said.notify_all()

    def events(
        self, *names: str, after: int = 0, **wanted: Any
    ) -> list[dict[str, Any]]:
        """Give the lines of these events whose attributes are as `wanted`."""
        return [line for line in self.lines[after:] if _fits(line, names, wanted)]

    def wait_event(
        self,
        *names: str,
        after: int = 0,
        timeout_s: float = PATIENCE_S,
        **wanted: Any,
    ) -> dict[str, Any]:
        """Wait for the first such event among the lines from number `after` on."""
        found: list[dict[str, Any]] = []

        def seen() -> bool:
            found[:] = self.events(*names, after=after, **wanted)
            return bool(found)

        self.wait_until(seen, lambda: f"no {names} {wanted}", timeout_s)
        return found[0]

    def wait_until(
        self,
        is_true: Callable[[], bool],
        say: Callable[[], str] = lambda: "",
        timeout_s: float = PATIENCE_S,
    ) -> None:
        """Wait until something holds; looks at each line and now and then."""
        until = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > until:
                tail = "\n".join(map(json.dumps, self.lines[-15:]))
                raise TimeoutError(f"after {timeout_s} s: {say()}\n{tail}")
            with self._said:
                self._said.wait(_LOOK_S)

    @property
    def mark(self) -> int:
        """How many lines there are; for `after`."""
        return len(self.lines)

    @property
    def status_url(self) -> str:
        """Where the status server listens by the configuration."""
        return f"http://{self.document['status']['listen']}"

    def healthz(self) -> dict[str, Any]:
        """Give /healthz; empty while there is no answer."""
        with contextlib.suppress(httpx.TransportError):
            body: dict[str, Any] = httpx.get(
                f"{self.status_url}/healthz", timeout=PATIENCE_S
            ).json()
            return body
        return {}

    def wait_healthz(self, **wanted: Any) -> dict[str, Any]:
        """Wait until /healthz has these values; give all of it."""
        seen: dict[str, Any] = {}

        def fits() -> bool:
            seen.clear()
            seen.update(self.healthz())
            return wanted.items() <= seen.items()

        self.wait_until(fits, lambda: f"{wanted} is not in {seen}")
        return seen

    # Its configuration ------------------------------------------------------------

    def edit(self, how: str = "rename", **sections: Any) -> float:
        """Merge `sections` into the file; give the monotonic time of the edit."""
        merge(self.document, sections)
        return self.write(tomli_w.dumps(self.document), how)

    def write(self, text: str, how: str = "rename") -> float:
        """Write the file anew; `how`: "rename", "truncate" or "symlink"."""
        if how == "truncate":
            self.config.write_text(text)
        elif how == "rename":
            self._exchange(lambda new: new.write_text(text))
        else:
            # As a ConfigMap does: the file is a link into a directory that is new.
            version = self.directory / f"..{time.monotonic_ns()}"
            version.mkdir()
            (version / self.config.name).write_text(text)
            self._exchange(lambda new: new.symlink_to(version / self.config.name))
        return time.monotonic()

    def _exchange(self, make: Callable[[Path], object]) -> None:
        new = self.config.with_suffix(".new")
        make(new)
        new.rename(self.config)

    # Its processes and files --------------------------------------------------------

    def zygote(self) -> psutil.Process:
        """Give the zygote of the daemon that runs."""
        (zygote,) = psutil.Process(self.pid).children()
        return zygote

    def payloads(self, job_id: str) -> list[psutil.Process]:
        """List the processes whose environment names the job."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environ = process.environ()
                ours = environ.get("HOME", "").startswith(str(self.directory))
                if ours and environ.get("AITBC_JOB_ID") == job_id:
                    found.append(process)
        return found

    def wait_payload(self, job_id: str) -> psutil.Process:
        """Wait until a job's payload runs; give its main process."""
        found: list[psutil.Process] = []

        def runs() -> bool:
            found[:] = self.payloads(job_id)
            log = self.file(job_id, "logs/exec.log")
            return bool(found) and log.exists() and log.stat().st_size > 0

        self.wait_until(runs, lambda: f"no payload of {job_id}: {found}")
        return found[0]

    def job_process(self, job_id: str) -> psutil.Process:
        """Give the process that looks after a running job."""
        return psutil.Process(int(self.state(job_id)["facts"]["pid"]))

    def file(self, job_id: str, name: str) -> Path:
        """Name a file of a job's workspace."""
        return self.root / job_id / name

    def state(self, job_id: str) -> dict[str, Any]:
        """Give a job's state.json."""
        return self.json(job_id, "state.json")

    def json(self, job_id: str, name: str) -> dict[str, Any]:
        """Give a file of a job's workspace."""
        content: dict[str, Any] = json.loads(self.file(job_id, name).read_text())
        return content


def merge(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change keys of nested tables; the others stay."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            merge(document.setdefault(key, {}), value)
        else:
            document[key] = value


def words_of(pid: int) -> list[str]:
    """Give a process's command line; none for a zombie."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").split("\0")[:-1]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return bool(words_of(pid))


def _fits(
    line: Mapping[str, Any], names: Iterable[str], wanted: Mapping[str, Any]
) -> bool:
    known = {**line["attrs"], "job_id": line["job_id"]}
    return line["event"] in names and all(
        known.get(key) == value for key, value in wanted.items()
    )


def task_manifest(job_id: str, task: str, **more: Any) -> dict[str, Any]:
    """Give a python job; `more` are parameters, or fields of the manifest."""
    fields = {"timeout_s", "artifacts", "input", "requirements", "idempotent"}
    return {
        "job_id": job_id,
        "runner": "python",
        "task": f"tasks.{task}",
        "timeout_s": 60,
        "params": {key: more[key] for key in more.keys() - fields},
        **{key: more[key] for key in more.keys() & fields},
    }


def cli_manifest(job_id: str, command: str, *args: str, **more: Any) -> dict[str, Any]:
    """Give a job that runs an allowed command."""
    return {
        "job_id": job_id,
        "runner": "cli",
        "command": command,
        "args": list(args),
        "timeout_s": 60,
        **more,
    }


def zoo_manifest(job_id: str, program: str, *args: str, **more: Any) -> dict[str, Any]:
    """Give a job that runs one of tests/programs."""
    return cli_manifest(job_id, "zoo", str(PROGRAMS / f"{program}.py"), *args, **more)
