"""python.py and python_child.py: tasks as jobs of a workspace."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from runner_fakes import FakeWatch, FakeWorkspace, essence

from aitbc_aps_miner.config.model import PythonRunner as PythonConfig
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import (
    ExitCause,
    ExitFacts,
    Manifest,
    Progress,
    Reservation,
)
from aitbc_aps_miner.runners import python as subject
from aitbc_aps_miner.runners.containment import Containment
from aitbc_aps_miner.runners.environment import environment
from aitbc_aps_miner.runners.python import PythonRunner

CPU = Reservation(kind="cpu")
ADD = """
def run(a: int, b: float = 1.5, *, tags: list[str] | None = None):
    return {"sum": a + b, "tags": tags}
"""


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage see into the child, whose environment is made from nothing."""
    coverage = {name: os.environ[name] for name in os.environ if "COVERAGE" in name}

    def measured(*args: Any) -> Mapping[str, str]:
        return environment(*args) | coverage

    monkeypatch.setattr(subject, "environment", measured)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Make a task path with a package `tasks`."""
    (tmp_path / "path" / "tasks").mkdir(parents=True)
    return tmp_path / "path" / "tasks"


@pytest.fixture
def runner(tmp_path: Path, tasks: Path) -> Iterator[PythonRunner]:
    """Take tasks from a package and from a directory of modules."""
    (tmp_path / "modules").mkdir()
    config = PythonConfig(task_paths=(tasks.parent, tmp_path / "modules"))
    with Containment(prepare=True) as containment:
        yield PythonRunner(config, containment)


@pytest.fixture
def workspace(tmp_path: Path) -> FakeWorkspace:
    """Make an empty directory of a job."""
    (tmp_path / "job").mkdir()
    return FakeWorkspace(tmp_path / "job")


def _manifest(task: str | None, **fields: Any) -> Manifest:
    basis = {"job_id": "job-1", "runner": "python", "timeout_s": 9, "task": task}
    return Manifest(**{**basis, **fields})


def _run(
    runner: PythonRunner,
    workspace: FakeWorkspace,
    task: str = "tasks.t:run",
    **params: Any,
) -> ExitFacts:
    manifest = _manifest(task, params=params)
    runner.check(manifest)
    return runner.run(manifest, workspace, CPU, FakeWatch(), lambda _: None)


def _result(workspace: FakeWorkspace) -> Any:
    return json.loads((workspace.root / "output" / "result.json").read_text())


@pytest.mark.parametrize("name", ["t", "tasks.t", "tasks.t:run"])
def test_a_task_returns_json(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace, name: str
) -> None:
    """Parameters go in by name, the return value becomes output/result.json."""
    (tasks / "t.py").write_text(ADD)
    facts = _run(runner, workspace, name, a=2, tags=["ä"])
    assert essence(facts) == (ExitCause.EXITED, 0, None, True)
    assert facts.error is None
    assert _result(workspace) == {"sum": 3.5, "tags": ["ä"]}
    assert list(tasks.iterdir()) == [tasks / "t.py"]  # no bytecode beside it


def test_a_task_may_be_a_package_or_a_module_of_a_plain_directory(
    runner: PythonRunner, tasks: Path, tmp_path: Path, workspace: FakeWorkspace
) -> None:
    """Helpers beside a task can be imported, relatively too."""
    (tmp_path / "modules" / "deep").mkdir()
    (tmp_path / "modules" / "deep" / "__init__.py").write_text(
        "from .part import value\nfrom tasks.other import more\nimport other\n"
        "def run():\n    return value + more\n"
    )
    (tmp_path / "modules" / "deep" / "part.py").write_text("value = 40")
    (tmp_path / "modules" / "other.py").write_text("more = 2")
    assert _run(runner, workspace, "deep").error is None
    assert _result(workspace) == 42


def test_a_task_works_in_work_and_is_isolated(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace
) -> None:
    """Its directory, its interpreter, its streams; nothing of the miner's paths."""
    (tasks / "t.py").write_text(
        "import os, sys\n"
        "def run():\n"
        "    print('printed')\n"
        "    return [os.getcwd(), sys.flags.isolated, sys.stdin.read(), sys.argv[1:],\n"
        "            sys.path[0], sorted(k for k in os.environ if 'PYTHON' in k)]\n"
    )
    assert _run(runner, workspace).error is None
    work, path = str(workspace.root / "work"), str(tasks.parent)
    assert _result(workspace) == [work, 1, "", [], path, []]
    assert workspace.exec_log.read_text() == "printed\n"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "a is missing"),
        ({"a": 1, "c": 2, "d": 3}, "c is unknown; d is unknown"),
        ({"a": "1"}, "a must be int, given str"),
        ({"a": True}, "a must be int, given bool"),
        ({"a": 1, "b": None}, "b must be float, given NoneType"),
        ({"a": 1, "tags": "x"}, "tags must be list[str] | None, given str"),
    ],
)
def test_parameters_must_fit_the_function(
    runner: PythonRunner,
    tasks: Path,
    workspace: FakeWorkspace,
    params: Mapping[str, Any],
    words: str,
) -> None:
    """The job fails as a wrong manifest, with what is wrong, before the task runs."""
    (tasks / "t.py").write_text(ADD)
    with pytest.raises(JobError) as caught:
        _run(runner, workspace, **params)
    assert caught.value.code is ErrorCode.E_MANIFEST
    assert caught.value.message.endswith(f"cannot be called: {words}")
    assert not (workspace.root / "output" / "result.json").exists()


@pytest.mark.parametrize(
    ("source", "params"),
    [
        ("def run(a: dict, b: bool, c: str): return 1", {"a": {}, "b": True, "c": ""}),
        ("def run(*args, **rest: int): return len(rest)", {"x": 1}),
        ("def run(a: 'Unknown'): return 1", {"a": 3}),
        ("import typing\ndef run(a: typing.Optional[int]): return 1", {"a": None}),
        ("import pathlib\ndef run(a: pathlib.Path): return 1", {"a": "x"}),
    ],
)
def test_other_signatures_are_no_obstacle(
    runner: PythonRunner,
    tasks: Path,
    workspace: FakeWorkspace,
    source: str,
    params: Mapping[str, Any],
) -> None:
    """Only simple annotations are checked."""
    (tasks / "t.py").write_text(source)
    assert _run(runner, workspace, **params).error is None
    assert _result(workspace) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def other(): pass", "tasks.t has no function run"),
        ("def run(a, /): pass", "run(a, /) cannot be called: "),
    ],
)
def test_what_has_no_callable_run_is_refused(
    runner: PythonRunner,
    tasks: Path,
    workspace: FakeWorkspace,
    source: str,
    words: str,
) -> None:
    """In words, as a wrong manifest."""
    (tasks / "t.py").write_text(source)
    with pytest.raises(JobError) as caught:
        _run(runner, workspace)
    assert caught.value.message.startswith(words)


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise KeyError('gone')", "KeyError", "'gone'"),
        ("import sys; sys.exit(0)", "SystemExit", "ended its interpreter with 0"),
        ("return {1, 2}", "ResultError", "a set, is no JSON"),
        ("return float('nan')", "ResultError", "a float, is no JSON"),
        ("return 'x' * 2000", "ResultError", "takes 2002 bytes as JSON; 1000 are"),
        ("import nothere", "ModuleNotFoundError", "No module named 'nothere'"),
        ("class E(Exception):\n  def __str__(s): 1/0\n raise E", "E", "cannot be had"),
        ("import os; os._exit(0)", "NoResult", "ended before the task returned"),
    ],
)
def test_a_tasks_error_comes_home(  # noqa: PLR0917 - fixtures and a table
    runner: PythonRunner,
    tasks: Path,
    workspace: FakeWorkspace,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    kind: str,
    message: str,
) -> None:
    """Type, message and the task's own part of the traceback."""
    monkeypatch.setattr(subject, "RESULT_MAX_BYTES", 1000)
    (tasks / "t.py").write_text(f"def run():\n {body}\n")
    facts = _run(runner, workspace)
    assert facts.error is not None
    assert facts.error["type"] == kind
    assert message in facts.error["message"]
    assert "python_child.py" not in facts.error.get("traceback", "")
    assert not (workspace.root / "output" / "result.json").exists()


def test_an_error_does_not_carry_a_secret_home(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace
) -> None:
    """Neither its text nor the log shows it."""
    (tasks / "t.py").write_text(
        "import os\ndef run(): raise ValueError(os.environ['API_KEY'])\n"
    )
    manifest = _manifest("t", secrets={"API_KEY": "very-secret"})
    facts = runner.run(manifest, workspace, CPU, FakeWatch(), lambda _: None)
    assert facts.error is not None
    assert facts.error["message"] == "***"
    assert "very-secret" not in str(facts)
    assert "very-secret" not in workspace.exec_log.read_text()


def test_a_crash_is_a_signal_and_no_exception(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace
) -> None:
    """The log holds the traceback of the crash."""
    (tasks / "t.py").write_text("import os\ndef run():\n    os.abort()\n")
    facts = _run(runner, workspace)
    assert essence(facts) == (ExitCause.EXITED, None, 6, True)
    assert facts.error is None
    assert "in run" in workspace.exec_log.read_text()


def test_a_task_tells_its_progress(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace
) -> None:
    """Percent and a note, by a helper module that is always there."""
    (tasks / "t.py").write_text(
        "from aitbc_task import progress\n"
        "def run():\n"
        "    progress(40, 'epoch 2 of 5')\n"
        "    import time; time.sleep(0.3)\n"
    )
    heard: list[Progress] = []
    manifest = _manifest("t")
    runner.run(manifest, workspace, CPU, FakeWatch(), heard.append)
    assert heard == [Progress(pct=40, note="epoch 2 of 5")]


@pytest.mark.parametrize("report", ["[1]", "{", '{"pct": "many"}', '{"pct": NaN}'])
def test_a_strange_progress_file_is_the_tasks_affair(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace, report: str
) -> None:
    """Nothing is reported, nothing breaks."""
    (tasks / "t.py").write_text(
        "import time\n"
        "def run():\n"
        f"    open('.progress.json', 'w').write({report!r})\n"
        "    time.sleep(0.3)\n"
    )
    heard: list[Progress] = []
    facts = runner.run(_manifest("t"), workspace, CPU, FakeWatch(), heard.append)
    assert (facts.exit_code, heard) == (0, [])


@pytest.mark.parametrize(
    "task",
    [
        None,
        "",
        "nope",
        "os",
        "tasks.nope:run",
        "tasks.t:other",
        "tasks.__init__",
        "__main__",
        "../t",
        "a..b",
        "T",
        "t\n",
        "x" * 200,
    ],
)
def test_only_tasks_of_the_task_paths_are_run(
    runner: PythonRunner, tasks: Path, task: str | None
) -> None:
    """By name, never by path; nothing of the standard library."""
    (tasks / "t.py").write_text(ADD)
    (tasks / "__init__.py").touch()
    with pytest.raises(JobError) as caught:
        runner.check(_manifest(task))
    assert caught.value.code is ErrorCode.E_DENY


def test_params_must_be_json_and_small(
    runner: PythonRunner, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the manifest's, so they are E_MANIFEST."""
    (tasks / "t.py").write_text(ADD)
    monkeypatch.setattr(subject, "PARAMS_MAX_BYTES", 100)
    for params, words in (
        ({"a": float("inf")}, "params are no JSON"),
        ({"a": "x" * 100}, "params take 109 bytes; 100 are allowed"),
    ):
        with pytest.raises(JobError, match=words) as caught:
            runner.check(_manifest("t", params=params))
        assert caught.value.code is ErrorCode.E_MANIFEST


def test_the_configured_environment_is_used(
    tmp_path: Path, tasks: Path, workspace: FakeWorkspace
) -> None:
    """Its interpreter runs the task; a missing one is a refusal."""
    (tasks / "t.py").write_text("import sys\ndef run(): return sys.prefix\n")
    venv = tmp_path / "venv"
    config = PythonConfig(task_paths=(tasks.parent,), venv=venv)
    with Containment(prepare=True) as containment:
        runner = PythonRunner(config, containment)
        with pytest.raises(JobError, match="no interpreter for tasks") as caught:
            runner.check(_manifest("t"))
        assert caught.value.code is ErrorCode.E_DENY
        (venv / "bin").mkdir(parents=True)
        base = Path(sys.executable).resolve()
        (venv / "bin" / "python").symlink_to(base)
        (venv / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        assert _run(runner, workspace).error is None
    assert _result(workspace) == str(venv)


def test_a_deadline_counts_more_than_the_report(
    runner: PythonRunner, tasks: Path, workspace: FakeWorkspace
) -> None:
    """An exception on the way out does not hide why the task had to end."""
    (tasks / "t.py").write_text(
        "import signal, time\n"
        "def end(*_): raise ValueError('ended')\n"
        "def run():\n"
        "    signal.signal(signal.SIGTERM, end)\n"
        "    time.sleep(60)\n"
    )
    facts = runner.run(
        _manifest("t"), workspace, CPU, FakeWatch(0.4, grace_s=5), lambda _: None
    )
    assert essence(facts) == (ExitCause.DEADLINE, 1, None, True)
    assert facts.error is None
