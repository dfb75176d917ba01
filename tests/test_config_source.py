"""Live reload: what changes is seen, what is half-written never is."""

import itertools
import os
import threading
import time
import timeit
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.source import DOUBT_S, SETTLE_S, ConfigSource, Snapshot
from aitbc_aps_miner.errors import ConfigError

GOOD = 'node_id = "{}"\n[coordinator]\nbase_url = "http://localhost/v1"\n'


class FakeClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Give the time."""
        return self.now


class RealClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        """Give the time."""
        return time.monotonic()


class Bench:
    """A config file, its source and a clock."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "config.toml"
        self.path.write_text(GOOD.format("first"))
        self.clock = FakeClock()
        self.source = ConfigSource(self.path, {}, self.clock)

    def after(self, seconds: float) -> Snapshot:
        """Check once after `seconds`."""
        self.clock.now += seconds
        return self.source.check()

    def settled(self) -> Snapshot:
        """Check as often as the source asks for, until it is still."""
        self.source.check()
        while self.source.next_check_s() < 1:
            self.after(self.source.next_check_s())
        return self.source.current

    def doubtless(self) -> None:
        """Let the span pass in which bytes are compared."""
        self.after(DOUBT_S)
        self.after(DOUBT_S)

    def rename_over(self, text: str) -> None:
        """Write beside the file and rename."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Give a source over a good file."""
    return Bench(tmp_path)


def test_the_first_snapshot(bench: Bench) -> None:
    """Config, JSON, hash and time come with it, and no problems."""
    snapshot = bench.source.current
    assert snapshot.config.node_id == "first"
    assert Config.model_validate_json(snapshot.json) == snapshot.config
    assert len(snapshot.digest) == 12
    assert snapshot.problems == ()
    assert (snapshot.loaded_at_monotonic, snapshot.generation) == (100.0, 1)


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    """There is no last good config to keep."""
    with pytest.raises(ConfigError, match="no such file"):
        ConfigSource(tmp_path / "none.toml", {}, FakeClock())
    with pytest.raises(ConfigError, match="NUL"):
        ConfigSource("a\0b", {}, FakeClock())


def test_an_unchanged_file_gives_the_same_snapshot(bench: Bench) -> None:
    """The very same object, however often one asks."""
    before = bench.source.current
    assert all(bench.after(gap) is before for gap in (0, 0.1, 1, 5, 60))
    assert bench.source.next_check_s() == 1


def test_a_rename_over_the_file_is_taken(bench: Bench) -> None:
    """The way of careful editors."""
    bench.doubtless()
    bench.rename_over(GOOD.format("second"))
    assert bench.after(1).config.node_id == "first"
    assert bench.after(SETTLE_S - 0.01).config.node_id == "first"
    taken = bench.after(0.02)
    assert (taken.config.node_id, taken.generation) == ("second", 2)


def test_a_truncate_and_write_is_taken(bench: Bench) -> None:
    """The way of careless editors."""
    bench.doubtless()
    bench.path.write_text(GOOD.format("second"))
    assert bench.settled().config.node_id == "second"


def test_a_symlink_swap_is_taken(tmp_path: Path) -> None:
    """The way of a ConfigMap: the file stays a link, a directory link changes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(GOOD.format(name))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "config.toml").symlink_to("..data/config.toml")
    clock = FakeClock()
    source = ConfigSource(tmp_path / "config.toml", {}, clock)
    (tmp_path / "..next").symlink_to("two")
    (tmp_path / "..next").rename(tmp_path / "..data")
    source.check()
    clock.now += SETTLE_S
    assert source.check().config.node_id == "two"


def test_an_edit_is_in_force_within_two_seconds(bench: Bench) -> None:
    """Whoever checks as often as asked for sees it in time, whenever it comes."""
    bench.doubtless()
    for delay in (0.0, 0.3, 0.99):
        name = f"n{delay}"
        bench.clock.now += bench.source.next_check_s() - delay
        bench.rename_over(GOOD.format(name))
        edited = bench.clock.now
        bench.clock.now += delay
        assert bench.settled().config.node_id == name
        assert bench.clock.now - edited < 2


@pytest.fixture
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a file system whose timestamps never differ: only the size is left."""
    monkeypatch.setattr(
        "aitbc_aps_miner.config.source._mark", lambda path: Path(path).stat().st_size
    )


@pytest.mark.usefixtures("_coarse")
def test_an_edit_that_leaves_the_stat_as_it_was_is_seen(tmp_path: Path) -> None:
    """Right after a read timestamps may be too coarse: the bytes are compared."""
    bench = Bench(tmp_path)
    bench.path.write_text(GOOD.format("FIRST"))
    assert bench.after(DOUBT_S + 1).config.node_id == "first"
    assert bench.after(SETTLE_S).config.node_id == "FIRST"


@pytest.mark.usefixtures("_coarse")
def test_an_edit_that_hides_while_settling_restarts_the_wait(tmp_path: Path) -> None:
    """Equal stats with other bytes: taken only when the bytes stood still too."""
    bench = Bench(tmp_path)
    bench.path.write_text(GOOD.format("FIRST"))
    bench.after(1)
    bench.path.write_text(GOOD.format("First"))
    assert bench.after(SETTLE_S).config.node_id == "first"
    assert bench.after(SETTLE_S).config.node_id == "First"


def test_a_restored_mtime_hides_nothing(bench: Bench) -> None:
    """Same size and mtime: the change time tells."""
    before = bench.path.stat()
    bench.doubtless()
    bench.path.write_text(GOOD.format("FIRST"))
    os.utime(bench.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bench.settled().config.node_id == "FIRST"


def test_a_file_that_keeps_changing_is_never_taken(bench: Bench) -> None:
    """Each change restarts the wait."""
    for turn in range(20):
        bench.rename_over(GOOD.format(f"turn{turn}"))
        assert bench.after(SETTLE_S - 0.1).config.node_id == "first"
    assert bench.source.next_check_s() <= 0.25
    assert bench.settled().config.node_id == "turn19"


def test_a_half_written_file_is_never_taken(bench: Bench) -> None:
    """Every prefix of it is valid TOML, and many are a valid config."""
    whole = GOOD.format("second") + "".join(
        f"[{name}]\ninterval_s = {number}\n"
        for number, name in enumerate(("sweep", "probe", "pull"), start=11)
    )
    bench.doubtless()
    seen = set()
    with bench.path.open("w") as file:
        for line in whole.splitlines(keepends=True):
            file.write(line)
            file.flush()
            seen.add(bench.after(0.3).config.node_id)
            seen.add(bench.after(0.15).config.node_id)
    assert seen == {"first"}
    taken = bench.settled()
    assert (taken.config.node_id, taken.config.pull.interval_s) == ("second", 13)
    assert taken.generation == 2


def test_a_slow_writer_of_flesh_and_blood(tmp_path: Path) -> None:
    """The same with a real clock and a real thread that writes in pieces."""
    path = tmp_path / "config.toml"
    path.write_text(GOOD.format("first"))
    source = ConfigSource(path, {}, RealClock())
    whole = GOOD.format("second") + "[pull]\ninterval_s = 13\n"

    def write() -> None:
        pause = threading.Event()
        with path.open("w") as file:
            for line in whole.splitlines(keepends=True):
                file.write(line)
                file.flush()
                pause.wait(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    snapshots = [source.current]
    deadline = time.monotonic() + 10
    tick = threading.Event()
    while snapshots[-1].generation == 1 and time.monotonic() < deadline:
        snapshots.append(source.check())
        tick.wait(0.01)
    writer.join()
    assert {one.config.node_id for one in snapshots[:-1]} == {"first"}
    assert all(one.problems == () for one in snapshots)
    assert snapshots[-1].config.pull.interval_s == 13


def test_a_bad_file_keeps_the_last_good_config(bench: Bench) -> None:
    """The problems are shown until the file is good again."""
    good = bench.source.current
    bench.path.write_text(GOOD.format("second") + "[sweep]\nintervall_s = 1\n")
    bad = bench.settled()
    assert (bad.config, bad.generation) == (good.config, 1)
    assert [one.key for one in bad.problems] == ["sweep.intervall_s"]
    bench.path.write_text(GOOD.format("first"))
    healed = bench.settled()
    assert (healed.config, healed.generation, healed.problems) == (good.config, 1, ())


def test_a_file_that_is_gone_keeps_the_last_good_config(bench: Bench) -> None:
    """Also when a directory takes its place; a good file ends it."""
    bench.path.unlink()
    assert "no such file" in bench.settled().problems[0].given
    bench.path.mkdir()
    assert "a directory" in bench.settled().problems[0].given
    bench.path.rmdir()
    bench.path.write_text(GOOD.format("back"))
    assert (bench.settled().config.node_id, bench.source.current.problems) == (
        "back",
        (),
    )


def test_a_moment_without_a_file_is_no_problem(bench: Bench) -> None:
    """Deleted and written anew within the settle time."""
    text = bench.path.read_text()
    bench.path.unlink()
    seen = [bench.after(0.1)]
    bench.path.write_text(text)
    seen += [bench.after(0.1), bench.settled()]
    assert [one.problems for one in seen] == [(), (), ()]


def test_a_comment_changes_nothing(bench: Bench) -> None:
    """Different bytes, equal config: no new generation, the same snapshot."""
    before = bench.source.current
    bench.path.write_text("# hello\n" + GOOD.format("first"))
    assert bench.settled() is before


def test_a_touch_changes_nothing(bench: Bench) -> None:
    """The bytes are the same."""
    before = bench.source.current
    bench.doubtless()
    os.utime(bench.path)
    assert bench.settled() is before


def test_environment_overrides_hold_at_every_load(tmp_path: Path) -> None:
    """The environment is the daemon's own and does not change."""
    path = tmp_path / "config.toml"
    path.write_text(GOOD.format("file"))
    environ = {"AITBC_MINER__NODE_ID": "env"}
    clock = FakeClock()
    source = ConfigSource(path, environ, clock)
    environ.clear()
    path.write_text(GOOD.format("other") + "[sweep]\ninterval_s = 7\n")
    source.check()
    clock.now += SETTLE_S
    config = source.check().config
    assert (config.node_id, config.sweep.interval_s) == ("env", 7)


def test_the_hash_never_depends_on_a_literal_secret(tmp_path: Path) -> None:
    """It goes to the coordinator: nobody may test guesses against it."""
    digests = []
    for token in ("s3cret-1", "s3cret-2", "env:ONE"):
        path = tmp_path / f"{token}.toml"
        path.write_text(GOOD.format("n") + f'auth_token = "{token}"\n')
        source = ConfigSource(path, {}, FakeClock())
        digests.append(source.current.digest)
        assert "s3cret" not in repr(source.current)
    assert digests[0] == digests[1] != digests[2]


def test_a_thread_that_checks_hinders_nobody(bench: Bench) -> None:
    """While one thread is checking, another gets the snapshot in force at once."""
    bench.path.write_text(GOOD.format("second"))
    with bench.source._checking:
        assert bench.after(SETTLE_S) is bench.source.current
    assert bench.source._pending is None


def test_an_unchanged_check_is_cheap(bench: Bench) -> None:
    """Far below a millisecond, on a loaded machine too: one stat, no read."""
    bench.doubtless()
    best = min(timeit.repeat(bench.source.check, number=1000, repeat=5)) / 1000
    assert best < 50e-6


_LINES = st.sampled_from(
    [
        b'node_id = "n"\n',
        b"[coordinator]\n",
        b'base_url = "http://localhost"\n',
        b"[heartbeat]\n",
        b"interval_s = -1\n",
        b'x = """\n',
        b"[[a.b]]\n",
        b'a."b c".d = [1.5, {x = 2}]\n',
        b"\r\n",
        b"\xff",
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), st.lists(_LINES).map(b"".join)))
def test_any_bytes_are_a_config_or_a_problem(bench: Bench, content: bytes) -> None:
    """The last good config stays, the problems are shown, nothing is raised."""
    bench.path.write_bytes(content)
    good = bench.source.current.config
    after = bench.settled()
    if after.problems:
        assert after.config == good
    else:
        assert after.config.node_id in {"n", "first"}


def test_prefixes_of_a_config_are_a_config_or_a_problem(bench: Bench) -> None:
    """Cut at each character: never an exception, never a config without its keys."""
    text = GOOD.format("second") + '[workspace]\nkeep_failed = "7d"\n'
    for end in itertools.chain(range(0, len(text), 3), [len(text)]):
        bench.path.write_text(text[:end])
        after = bench.settled()
        assert after.problems or after.config.node_id == "second"
