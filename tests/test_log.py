"""The log: one shape for every line, nothing secret, and never a reason to fail."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode
from aitbc_aps_miner.util import log, log_queue
from aitbc_aps_miner.util.log_sink import FileSink, Sink, StreamSink
from aitbc_aps_miner.util.log_value import Scrubber, clean

TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The [logging] section as the log sees it."""

    level: str = "info"
    json_lines: bool = True
    path: Path | None = None


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    """Give every test a log of its own and leave none behind."""
    before = log._router
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log._router = log._Router()
    yield
    log._close_sinks()
    log._router = before
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Out(io.StringIO):
    """A stand-in for standard output, read when everything was written to it."""

    def getvalue(self) -> str:
        """Give what the log's thread wrote."""
        assert log.flush(10)
        return super().getvalue()


@pytest.fixture
def out() -> io.StringIO:
    """Give a stand-in for standard output."""
    return Out()


def read(path: Path) -> str:
    """Give what the log's thread wrote to a file."""
    assert log.flush(10)
    return path.read_text()


def lines(text: str) -> list[dict[str, Any]]:
    """Every line as JSON, its time checked and taken out."""
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert TS.fullmatch(record.pop("ts"))
    return records


def test_a_line_has_exactly_the_six_fields(out: io.StringIO) -> None:
    """A line is ts, level, node_id, job_id, event and attrs, and nothing else."""
    log.configure(Settings(), "node-1", stream=out)
    log._router.now = lambda: 1_700_000_000.0789
    log.get_logger(job_id="j-1").info("job.finished", code="OK", wall_s=1.5)
    assert json.loads(out.getvalue()) == {
        "ts": "2023-11-14T22:13:20.078Z",
        "level": "info",
        "node_id": "node-1",
        "job_id": "j-1",
        "event": "job.finished",
        "attrs": {"code": "OK", "wall_s": 1.5},
    }


def test_a_line_without_a_job_says_null(out: io.StringIO) -> None:
    """No job means job_id null, not a missing field."""
    log.configure(Settings(), "n", stream=out)
    log.get_logger().warning("disk.low")
    assert lines(out.getvalue()) == [
        {
            "level": "warning",
            "node_id": "n",
            "job_id": None,
            "event": "disk.low",
            "attrs": {},
        }
    ]


def test_standard_output_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a stream the lines go to the process's standard output."""
    log.configure(Settings(), "n")
    log.get_logger().info("daemon.started")
    assert log.flush(10)
    assert json.loads(capfd.readouterr().out)["event"] == "daemon.started"


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["d", "i", "w", "e", "c"]),
        ("info", ["i", "w", "e", "c"]),
        ("warning", ["w", "e", "c"]),
        ("error", ["e", "c"]),
    ],
)
def test_the_level_is_the_least_that_is_written(
    out: io.StringIO, level: str, expected: list[str]
) -> None:
    """Events below the level are dropped."""
    log.configure(Settings(level=level), "n", stream=out)
    logger = log.get_logger()
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logger.error("e")
    logger.critical("c")
    assert [line["event"] for line in lines(out.getvalue())] == expected


def test_settings_change_live(out: io.StringIO, tmp_path: Path) -> None:
    """A logger made before reconfigure obeys the new level, form, file and node."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    log.configure(Settings(path=first), "old", stream=out)
    logger = log.get_logger()
    logger.debug("hidden")
    logger.info("one")
    settings = Settings(level="debug", json_lines=False, path=second)
    log.reconfigure(settings, "new")
    logger.debug("two")
    log.reconfigure(Settings(level="debug"))
    logger.debug("three")
    seen = [(r["event"], r["node_id"]) for r in lines(read(first))]
    assert seen == [("one", "old")]
    seen = [(r["event"], r["node_id"]) for r in lines(read(second))]
    assert seen == [("two", "new")]
    one, two, three = out.getvalue().splitlines()
    assert (json.loads(one)["event"], json.loads(three)["event"]) == ("one", "three")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}Z debug   two", two)


def test_a_line_without_room_is_counted_in_the_log(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of the usual shape stands for it."""
    log.configure(Settings(), "n", stream=out)
    with monkeypatch.context() as patched:
        patched.setattr(log_queue, "MAX_WAITING_BYTES", 0)
        log.get_logger().info("too.much")
    assert log.flush(10)
    log.get_logger().info("fits")
    events = [(line["event"], line["attrs"]) for line in lines(out.getvalue())]
    assert events == [("log.dropped", {"lines": 1}), ("fits", {})]


def test_an_edit_of_something_else_leaves_the_file_open(tmp_path: Path) -> None:
    """What waits for it goes on waiting in the same queue."""
    settings = Settings(path=tmp_path / "log")
    log.configure(settings, "n", stream=io.StringIO())
    before = log._router.file
    log.reconfigure(settings, "other")
    assert log._router.file is before


def test_a_terminal_gets_colours_and_no_json() -> None:
    """On a terminal a line is for people, also where JSON is configured."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        log.configure(Settings(), "n", stream=terminal)
        log.get_logger().info("job.started", job_id="j", cmd="a b")
        text = os.read(master, 4096).decode()
        log._close_sinks()
    os.close(master)
    assert "\x1b[1mjob.started\x1b[0m" in text
    assert text.rstrip().endswith('job_id\x1b[0m=j \x1b[36mcmd\x1b[0m="a b"')


def test_pretty_lines_keep_control_characters_away(out: io.StringIO) -> None:
    """Text from the wire cannot drive the owner's terminal or forge a line."""
    log.configure(Settings(json_lines=False), "n", stream=out)
    log.get_logger().info(
        "ev\x1b[2J", **{"k\n": "\x1b]0;x\x07", "z": "\x7f \u202e", "f": ["a\x9b"]}
    )
    (line,) = out.getvalue().splitlines()
    assert line.isprintable()


def test_pretty_lines_show_the_traceback_below(out: io.StringIO) -> None:
    """A traceback is readable text in pretty form, not one escaped word."""
    log.configure(Settings(json_lines=False), "n", stream=out)
    try:
        int("broken\x1b\x9b")
    except ValueError:
        log.get_logger().exception("tick.failed")
    first, *_, last = out.getvalue().splitlines()
    assert first.endswith("error   tick.failed")
    assert last.startswith("ValueError: invalid literal")
    assert last.isprintable()


@pytest.mark.parametrize("form", ["true", "instance", "tuple"])
def test_exceptions_become_text(out: io.StringIO, form: str) -> None:
    """Every way to hand over an exception gives the same text in attrs."""
    log.configure(Settings(), "n", stream=out)
    try:
        os.environ["MISSING_IN_EVERY_ENVIRONMENT"]
    except KeyError as exc:
        info = {"true": True, "instance": exc, "tuple": sys.exc_info()}[form]
        log.get_logger().error("tick.failed", exc_info=info)
    (record,) = lines(out.getvalue())
    assert record["attrs"]["exception"].splitlines()[-1] == (
        "KeyError: 'MISSING_IN_EVERY_ENVIRONMENT'"
    )


@pytest.mark.parametrize("info", [False, True, (None, None, None), "odd"])
def test_no_exception_gives_no_field(out: io.StringIO, info: object) -> None:
    """An exc_info without an exception behind it is left out."""
    log.configure(Settings(), "n", stream=out)
    log.get_logger().error("x", exc_info=info)
    assert lines(out.getvalue())[0]["attrs"] == {}


def test_a_long_traceback_keeps_its_end(out: io.StringIO) -> None:
    """What says most about a failure, the end, survives the cap."""
    log.configure(Settings(), "n", stream=out)
    error = ValueError("x" * 30_000 + " the end")
    log.get_logger().error("tick.failed", exc_info=error)
    text = lines(out.getvalue())[0]["attrs"]["exception"]
    assert text.endswith(" the end")
    assert len(text) < 10_000


def test_secrets_are_masked_everywhere(out: io.StringIO) -> None:
    """A secret is masked in names, values, keys, nested data and tracebacks."""
    secret = 's3cr3t/"token"'
    log.configure(Settings(), "n", stream=out, secrets=[secret])
    log.add_secrets(["late-secret", "abc"])
    log.get_logger().info(
        f"event {secret}",
        plain=f"Bearer {secret}",
        nested={"list": [f"x{secret}y", {secret: "late-secret"}]},
        other=Path(secret),
        url="https://h/?t=s3cr3t%2F%22token%22",
        body=json.dumps({"auth": secret}),
        exc_info=ValueError(f"refused {secret}"),
        short="abc",
    )
    text = out.getvalue()
    assert "s3cr3t" not in text
    assert "late-secret" not in text
    (record,) = lines(text)
    assert record["event"] == "event ***"
    assert record["attrs"]["nested"] == {"list": ["x***y", {"***": "***"}]}
    assert record["attrs"]["exception"] == "ValueError: refused ***"
    assert record["attrs"]["short"] == "abc"


def test_a_secret_that_begins_with_another_is_masked_whole() -> None:
    """The longer secret wins, so that no tail of it stays readable."""
    scrubber = Scrubber(["token", "token-of-the-node"])
    assert scrubber.scrub("a token-of-the-node b token") == "a *** b ***"


class Hostile:
    """An object whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_any_value_becomes_bounded_json() -> None:
    """Values that are not JSON become text, long ones are cut and say so."""
    deep: list[Any] = []
    deep.append(deep)
    value = {
        "bytes": b"\xff",
        "nan": float("nan"),
        "huge": 10**5000,
        "hostile": Hostile(),
        "long": "x" * 9000,
        "many": list(range(150)),
        "keys": {n: n for n in range(150)},
        "set": {1},
        "path": Path("/a"),
        "code": ErrorCode.E_OOM,
        "none": None,
        "yes": True,
    }
    result = clean(value, Scrubber())
    keys = result.pop("keys")
    assert (len(keys), keys["…"]) == (101, "+50 keys")
    many = result.pop("many")
    assert (len(many), many[-1]) == (101, "… (+50)")
    assert result == {
        "bytes": "b'\\xff'",
        "nan": "nan",
        "huge": "<int of 16610 bits>",
        "hostile": "<unprintable Hostile>",
        "long": "x" * 8192 + "… (+808)",
        "set": [1],
        "path": "PosixPath('/a')",
        "code": "E_OOM",
        "none": None,
        "yes": True,
    }
    assert clean(deep, Scrubber()) == [[[[[["[[...]]"]]]]]]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.text(alphabet=st.characters(categories=["Cs", "Cc", "L"]))
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    st.text(min_size=1, max_size=300),
)  # fmt: skip - one strategy per line would hide that it is one value
def test_whatever_is_logged_is_one_line_of_json(value: Any, event: str) -> None:
    """No value and no name breaks the line format, in either form."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    log.configure(Settings(), "n", stream=stream)
    log.get_logger().info(event.replace("%", ""), value=value)
    log.reconfigure(Settings(json_lines=False))
    log.get_logger().info("pretty", value=value)
    assert log.flush(10)
    data = stream.buffer.getvalue()
    json_line, pretty, rest = data.split(b"\n")
    assert set(json.loads(json_line)) == {
        "ts",
        "level",
        "node_id",
        "job_id",
        "event",
        "attrs",
    }  # fmt: skip - the six fields on one line
    assert pretty.decode().isprintable()
    assert rest == b""


def test_a_line_of_many_large_values_is_cut(out: io.StringIO) -> None:
    """A hundred values of allowed size do not make a line of a megabyte."""
    log.configure(Settings(), "n", stream=out)
    log.get_logger().info("big", value=["y" * 8000] * 100)
    (record,) = lines(out.getvalue())
    assert list(record["attrs"]) == ["truncated"]
    assert len(out.getvalue()) < 20_000


def test_stdlib_logging_is_bridged_from_warning_up(out: io.StringIO) -> None:
    """What libraries warn of stands in the same log, what they chatter does not."""
    logging.getLogger().handlers = []  # the test runner's own, which formats eagerly
    log.configure(Settings(level="debug"), "n", stream=out)
    log.configure(Settings(level="debug"), "n", stream=out)  # and only once
    library = logging.getLogger("apscheduler.test")
    library.info("chatter")
    library.warning("Run of %s missed", "job")
    library.critical("bad format %d", "x")
    library.log(35, "own level")
    seen = [(r["level"], r["event"], r["attrs"]) for r in lines(out.getvalue())]
    name = "apscheduler.test"
    assert seen == [
        (
            "warning",
            "library.message",
            {"logger": name, "message": "Run of job missed"},
        ),
        ("error", "library.message", {"logger": name, "message": "bad format %d"}),
        ("warning", "library.message", {"logger": name, "message": "own level"}),
    ]


def test_context_variables_are_fields(out: io.StringIO) -> None:
    """What is bound to the context stands in every line."""
    log.configure(Settings(), "n", stream=out)
    with structlog.contextvars.bound_contextvars(job_id="j", tick="pull"):
        log.get_logger().info("x")
    (record,) = lines(out.getvalue())
    assert (record["job_id"], record["attrs"]) == ("j", {"tick": "pull"})


def test_the_file_is_opened_again_after_rotation(tmp_path: Path) -> None:
    """Renamed away, deleted with its directory, or truncated in place: all go on."""
    path = tmp_path / "sub" / "miner.log"
    log.configure(Settings(path=path), "n", stream=io.StringIO())
    logger = log.get_logger()
    logger.info("one")
    log.flush(10)
    path.rename(path.with_suffix(".1"))
    logger.info("two")
    log.flush(10)
    os.truncate(path, 0)
    logger.info("three")
    assert [r["event"] for r in lines(read(path))] == ["three"]
    assert [r["event"] for r in lines(path.with_suffix(".1").read_text())] == ["one"]
    for name in path.parent.iterdir():
        name.unlink()
    path.parent.rmdir()
    logger.info("four")
    assert [r["event"] for r in lines(read(path))] == ["four"]


def test_a_file_that_cannot_be_written_is_said_once(
    out: io.StringIO, tmp_path: Path
) -> None:
    """Lines go on to standard output, with one warning per time of failing."""
    path = tmp_path / "log"
    path.mkdir()
    log.configure(Settings(path=path), "n", stream=out)
    logger = log.get_logger()
    logger.info("one")
    log.flush(10)
    logger.info("two")
    log.flush(10)
    path.rmdir()
    logger.info("three")
    log.flush(10)
    path.unlink()
    os.mkfifo(path)
    logger.info("four")
    events = [r["event"] for r in lines(out.getvalue())]
    assert events == [
        "one",
        "log.file_failed",
        "two",
        "three",
        "four",
        "log.file_failed",
    ]
    assert lines(out.getvalue())[1]["attrs"] == {
        "path": str(path),
        "problem": "Is a directory",
    }


def test_a_full_disk_is_reported_and_the_torn_line_ended(tmp_path: Path) -> None:
    """After a half-written line the next one starts on a line of its own."""
    assert put(FileSink(Path("/dev/full"))) == "No space left on device"
    program = f"""
import pathlib, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from aitbc_aps_miner.util.log_sink import FileSink
sink = FileSink(pathlib.Path({str(tmp_path / "log")!r}))
record = {record("x")!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
print(sink.put(sink.render(record)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(sink.put(sink.render(record)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no space left for a whole line\nNone\n"
    torn, whole = (tmp_path / "log").read_text().splitlines()
    assert torn == whole[:20]
    assert json.loads(whole) == record("x")


def test_a_reader_that_went_away_is_tolerated() -> None:
    """A closed pipe, a full device or a closed stream never raises."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        assert put(StreamSink(stream, json_lines=True)) is None
    with Path("/dev/full").open("w") as stream:
        assert put(StreamSink(stream, json_lines=True)) is None
    closed = io.StringIO()
    sink = StreamSink(closed, json_lines=True)
    closed.close()
    assert put(sink) is None


def test_a_child_hands_its_events_to_the_daemon(out: io.StringIO) -> None:
    """A tick's event comes out of the daemon in the daemon's name."""
    sent: list[dict[str, Any]] = []
    log.configure_child(sent.append, node_id="child", secrets=["child-secret"])
    log.get_logger(job_id="j").info("pull.done", jobs=2, token="child-secret")
    log.get_logger().debug("fine")
    (event, _) = sent
    log.configure(Settings(), "daemon", stream=out, secrets=["2023"])
    for each in sent:
        log.emit(json.loads(json.dumps(each)))
    assert json.loads(out.getvalue()) == {
        "ts": event["ts"],
        "level": "info",
        "node_id": "daemon",
        "job_id": "j",
        "event": "pull.done",
        "attrs": {"jobs": 2, "token": "***"},
    }


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({}, ("info", None, "child.event_malformed", {})),
        (
            {
                "level": "fatal",
                "ts": "yesterday",
                "event": 5,
                "attrs": [1],
                "job_id": 7,
            },
            ("info", None, "child.event_malformed", {}),
        ),
        (
            {"level": "critical", "event": "e" * 300, "attrs": {"node_id": "forged"}},
            ("error", None, "e" * 200 + "… (+100)", {"node_id": "forged"}),
        ),
        (
            {"level": "warning", "event": "x", "attrs": {}, "job_id": "j" * 300},
            ("warning", "j" * 200 + "… (+100)", "x", {}),
        ),
    ],
)
def test_a_childs_event_is_checked(
    out: io.StringIO, event: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """Whatever a child sends, the daemon writes a line of the right shape."""
    log.configure(Settings(), "n", stream=out)
    log.emit(event)
    (line,) = lines(out.getvalue())
    assert line.pop("node_id") == "n"
    assert tuple(line[key] for key in ("level", "job_id", "event", "attrs")) == expected


def test_a_lost_channel_does_not_harm_the_child() -> None:
    """A log call survives a daemon that is gone."""

    def send(_record: dict[str, Any]) -> None:
        raise ConnectionError("daemon is gone")

    log.configure_child(send)
    log.get_logger().info("x")


def test_a_job_process_logs_into_its_workspace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines of a job process go to its file only, with its job in each."""
    path = tmp_path / "logs" / "miner.log"
    log.configure(Settings(path=tmp_path / "daemon.log"), "n")
    log.configure_file(path, node_id="n", job_id="j-9", secrets=["hidden"])
    log.get_logger().info("job.started", token="hidden")
    log.get_logger().debug("fine")
    assert lines(read(path)) == [
        {
            "level": "info",
            "node_id": "n",
            "job_id": "j-9",
            "event": "job.started",
            "attrs": {"token": "***"},
        }
    ]
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "daemon.log").exists()


def test_a_failing_job_log_is_silent(tmp_path: Path) -> None:
    """Where there is no standard output there is nobody to tell."""
    log.configure_file(tmp_path, node_id="n")
    log.get_logger().info("x")


def put(sink: Sink) -> str | None:
    """Write one line."""
    return sink.put(sink.render(record("x")))


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
