"""allowlist.py, allowlist_files.py: what is allowed, which files are believed."""

import os
import re
import stat
import threading
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.runners import allowlist_files
from aitbc_aps_miner.runners.allowlist import Allowlist, ArgEntry, Command
from aitbc_aps_miner.runners.allowlist_files import AllowlistReader
from aitbc_aps_miner.runners.cpu_guard import cpu_guard

SAMPLES = Path(__file__).parent / "data" / "allowlists"
HEAD = "command: {path: /bin/echo}\n"


def _reader() -> AllowlistReader:
    return AllowlistReader(settle_s=0)


def _sample(name: str, tmp_path: Path) -> Command:
    """Read a copy of a sample that only its owner can write, whatever the umask."""
    source = SAMPLES / name
    return _write(tmp_path, source.read_text(), name).command(source.stem)


def _write(tmp_path: Path, text: str, name: str = "tool.yaml") -> Allowlist:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o600)
    return _reader().read([path])


def _denied(command: Command, args: Sequence[str]) -> str:
    with pytest.raises(JobError) as caught:
        command.check(args)
    assert caught.value.code is ErrorCode.E_DENY
    return caught.value.message


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-y", "-i", "in.mp4", "-c:v", "libx264", "output.mp4"],
        ["-i", "a b.wav", "-i", "c.mkv", "-b:v", "2500k", "-c:a", "copy", "output.mkv"],
        ["output.mp4", "-y"],
    ],
)
def test_the_specifications_example_allows_a_transcode(
    tmp_path: Path, args: list[str]
) -> None:
    """Flags come with their values, in any order and number."""
    command = _sample("ffmpeg.yaml", tmp_path)
    command.check(args)
    assert (command.name, command.path) == ("ffmpeg", Path("/usr/bin/ffmpeg"))
    assert (command.max_runtime_s, command.max_output_mb) == (7200, 5000)


CONTROL = "control characters are never allowed"
INPUT = r"/.+\.(mp4|wav|mkv)$/"
OUTSIDE = "a path or address outside the job's directory is not allowed"
ANYTHING = (
    r"allowed here: -y, -i /.+\.(mp4|wav|mkv)$/, -c:v /(libx264|copy)/, "
    r"-c:a /(aac|copy)/, -b:v /[1-9][0-9]{2,5}k/, /output\.(mp4|mkv)/"
)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help;rm"], f"argument 0 ('--help;rm') is not allowed: {ANYTHING}"),
        (["-y", "x.sh"], f"argument 1 ('x.sh') is not allowed: {ANYTHING}"),
        (["-y\n"], f"argument 0 ('-y\\n') is not allowed: {CONTROL}"),
        (["-i", "a\0.mp4"], f"argument 1 ('a\\x00.mp4') is not allowed: {CONTROL}"),
        (
            ["-i", "a\ud800.mp4"],
            f"argument 1 ('a\\ud800.mp4') is not allowed: {CONTROL}",
        ),
        (["-i"], f"argument 0 ('-i') is not allowed: it must be followed by {INPUT}"),
        (
            ["-c:v", "aac"],
            "argument 1 ('aac') is not allowed: after -c:v /(libx264|copy)/",
        ),
        (["-i", "-y"], f"argument 1 ('-y') is not allowed: after -i {INPUT}"),
        (
            ["-i", "/etc/a.mp4"],
            f"argument 1 ('/etc/a.mp4') is not allowed: after -i {OUTSIDE}",
        ),
        (
            ["x" * 100],
            f"argument 0 ('{'x' * 80}'… (100 characters)) is not allowed: {ANYTHING}",
        ),
        (["-y"] * 10_000, "10000 arguments; ffmpeg may have 256"),
        (
            ["-i", "x" * 4095 + ".mp4"],
            "arguments of 4101 characters together; ffmpeg may have 4096",
        ),
    ],
)
def test_what_is_not_allowed_is_named_with_what_would_be(
    tmp_path: Path, args: list[str], words: str
) -> None:
    """Which argument, and what may stand there."""
    assert _denied(_sample("ffmpeg.yaml", tmp_path), args) == words


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd.mp4",
        "../other-job/x.mp4",
        "a/../../x.mp4",
        "http://host/x.mp4",
        "concat:a.mp4|b.mp4",
        "file:x.mp4",
        "a.mp4|/etc/b.mp4",
        "subfile,,start,0,end,9,,:/etc/x.mp4",
        "~/x.mp4",
        "x,movie=../y.mp4",
        "\\\\host\\x.mp4",
    ],
)
def test_a_value_cannot_lead_out_of_the_jobs_directory(
    tmp_path: Path, value: str
) -> None:
    """Not by a path, a parent, a protocol or a list of them; but the owner may."""
    command = _sample("ffmpeg.yaml", tmp_path)
    assert _denied(command, ["-i", value]).endswith(OUTSIDE)
    text = HEAD + 'args: [{flag: "-i", pattern: ".+", allow_paths: true}]'
    _write(tmp_path, text).command("tool").check(["-i", value])


def test_a_plain_argument_cannot_lead_out_either(tmp_path: Path) -> None:
    """Its pattern fits, but where it leads is told to be the reason."""
    command = _write(tmp_path, HEAD + 'args: [["[a-z/]+"], ["x"]]').command("tool")
    assert (
        _denied(command, ["/etc"]) == f"argument 0 ('/etc') is not allowed: {OUTSIDE}"
    )


@pytest.mark.parametrize("value", ["a..b.mp4", "sub/x.mp4", "x-1.2/y_z.mp4", "1:2.mp4"])
def test_ordinary_names_are_no_paths_out(tmp_path: Path, value: str) -> None:
    """Dots, directories below and ratios are fine."""
    _sample("ffmpeg.yaml", tmp_path).check(["-i", value])


def test_the_longest_entry_that_fits_is_taken(tmp_path: Path) -> None:
    """A flag with and without values; sub-commands with patterns of their own."""
    text = (
        HEAD
        + """
args:
  - ["-v"]
  - ["-v", "[0-9]"]
  - ["-v", "[0-9]", "[a-z]"]
  - ["sub", "[a-z]+"]
  - {pattern: "-[0-9]+", allow_dash: true}
  - ["[a-z]+"]
"""
    )
    command = _write(tmp_path, text).command("tool")
    command.check(["-v", "-v", "3", "-v", "3", "a", "sub", "x", "-12", "word"])
    assert _denied(command, ["-v", "3", "7"]).startswith("argument 2 ('7')")
    assert _denied(command, ["-x"]).startswith("argument 0 ('-x')")


def test_a_command_without_entries_takes_no_arguments(tmp_path: Path) -> None:
    """Nothing is allowed by being silent about it."""
    command = _write(tmp_path, HEAD).command("tool")
    command.check([])
    assert _denied(command, ["a"]).endswith("tool takes no arguments")


def test_a_pattern_gone_wild_ends_as_a_refusal(tmp_path: Path) -> None:
    """Catastrophic backtracking costs a second of processor time, not the node."""
    command = _write(tmp_path, HEAD + 'args: [["(a+)+b"]]').command("tool")
    assert "took more than 1 s" in _denied(command, ["a" * 60])


def test_outside_the_main_thread_nothing_is_guarded() -> None:
    """Signals belong to the main thread; elsewhere the block just runs."""
    ran = []

    def run() -> None:
        with cpu_guard(1):
            ran.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ran == [True]


ARGUMENT = st.sampled_from(["-n", "-w", "7", "42", "word"]) | st.text(max_size=6)


@given(st.lists(ARGUMENT, max_size=6))
def test_an_allowed_list_is_built_of_entries_only(args: list[str]) -> None:
    """Whatever is let through can be read back as a sequence of the entries."""
    entries = {"-n": re.compile("[0-9]+"), "-w": re.compile("[a-z]+")}
    command = Command(
        name="x",
        path=SAMPLES,
        source=SAMPLES,
        entries=tuple(
            ArgEntry(flag=flag, patterns=(pattern,))
            for flag, pattern in entries.items()
        ),
    )
    pairs = list(zip_longest(args[::2], args[1::2], fillvalue=""))
    good = all(
        flag in entries and entries[flag].fullmatch(value) for flag, value in pairs
    )
    if good:
        command.check(args)
    else:
        _denied(command, args)


def test_toml_has_the_same_form_and_aliases_are_names(tmp_path: Path) -> None:
    """One command under two names."""
    path = tmp_path / "echo.toml"
    path.write_bytes((SAMPLES / "echo.toml").read_bytes())
    path.chmod(0o600)
    allowlist = _reader().read([path])
    assert allowlist.problems == ()
    assert allowlist.command("say") is allowlist.command("echo")
    assert allowlist.command("say").env == (("GREETING", "hello"),)


@pytest.mark.parametrize("name", [None, "", "/bin/echo", "nope", "x" * 200])
def test_a_command_is_a_name_that_is_known(tmp_path: Path, name: str | None) -> None:
    """Never a path; the refusal says what is there."""
    with pytest.raises(JobError, match=r"is not allowed; allowed: tool$") as caught:
        _write(tmp_path, HEAD).command(name)
    assert caught.value.code is ErrorCode.E_DENY
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "(file): Input should be a valid dictionary"),
        ("{", "not YAML:"),
        ("a: b: c", "not YAML:"),
        ("args: []", "command: Field required"),
        ("command: {path: bin/x}", "command.path: Value error, must be an absolute"),
        (HEAD + "maxruntime: 3", "maxruntime: Extra inputs are not permitted"),
        (HEAD + 'args: [["("]]', "args.0: Value error, '(' is no regular expression"),
        (HEAD + 'args: [["-x", "a{99999999999}"]]', "is no regular expression"),
        (HEAD + "args: [[]]", "args.0: Value error, must be one or more texts"),
        (HEAD + "args: [[3]]", "args.0: Value error, must be one or more texts"),
        (HEAD + "args: [x]", "args.0: Value error, must be a list"),
        (HEAD + "args: [{allow_paths: true}]", "must have a flag, a pattern, or both"),
        (HEAD + "args: [{flag: -x, pattern: 3}]", "a pattern must be a text, given 3"),
        (HEAD + "args: [{flag: -x, other: 3}]", "args.0.other: Extra inputs"),
        (HEAD + "max_runtime_s: -1", "max_runtime_s: Input should be greater than 0"),
        (
            HEAD + "max_output_mb: a lot",
            "max_output_mb: Input should be a valid number",
        ),
        (HEAD + "max_args: 1\nmax_args: 9", "the key 'max_args' stands twice"),
        (HEAD + "name: ../x", "name: String should match pattern"),
        (HEAD + "env: {path: x}", "'path' is not a variable of the form"),
        (HEAD + 'progress: "([0-9]+)%"', 'must be "ffmpeg" or a pattern with a group'),
        (HEAD + "x: " + "y" * (1 << 20), "larger than 1048576 bytes"),
        ("[" * 5000, "not YAML:"),
    ],
)
def test_a_broken_file_switches_its_command_off(
    tmp_path: Path, text: str, words: str
) -> None:
    """The reason is kept, in words, and told to who asks for the command."""
    allowlist = _write(tmp_path, text)
    assert allowlist.commands == {}
    (problem,) = allowlist.problems
    assert problem.startswith(f"{tmp_path}/tool.yaml: ")
    assert words in problem
    with pytest.raises(JobError, match="switched off") as caught:
        allowlist.command("tool")
    assert caught.value.code is ErrorCode.E_DENY


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    """The owner edits once."""
    (problem,) = _write(tmp_path, "command: {}\nmax_args: -1\nextra: 1").problems
    assert [key in problem for key in ("command.path", "max_args", "extra")] == [
        True
    ] * 3


def test_a_broken_file_harms_no_other(tmp_path: Path) -> None:
    """One command is off, the rest goes on; other files of a directory are ignored."""
    for name, text in {
        "good.yml": HEAD,
        "bad.yaml": "{",
        "also.toml": '[command]\npath = "/bin/ls"',
        "wrong.toml": "x",
        "README.md": "not an allowlist",
        ".hidden.yaml": "{",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    allowlist = _reader().read([tmp_path / "gone.yaml"], tmp_path)
    assert sorted(allowlist.commands) == ["also", "good"]
    assert sorted(allowlist.broken) == ["bad", "gone", "wrong"]
    assert len(allowlist.problems) == 3
    missing = _reader().read([], tmp_path / "nowhere")
    assert missing.problems == (f"{tmp_path}/nowhere: No such file or directory",)


def test_a_name_given_twice_belongs_to_neither(tmp_path: Path) -> None:
    """Both files are named."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(HEAD + "name: same")
        (tmp_path / f"{name}.yaml").chmod(0o600)
    allowlist = _reader().read([], tmp_path)
    words = f"the name same is given by {tmp_path}/one.yaml and {tmp_path}/two.yaml"
    assert (allowlist.commands, allowlist.problems) == ({}, (words,))


@pytest.mark.parametrize(
    ("user", "owner", "mode", "words"),
    [
        (0, 0, 0o644, None),
        (0, 0, 0o664, "others than root can write it; chmod go-w"),
        (0, 0, 0o646, "others than root can write it; chmod go-w"),
        (0, 7, 0o600, "belongs to user 7; chown it to the miner's"),
        (7, 7, 0o664, None),
        (7, 0, 0o644, None),
        (7, 8, 0o644, "belongs to user 8; chown it to the miner's"),
    ],
)
def test_only_files_of_the_owner_are_believed(
    monkeypatch: pytest.MonkeyPatch, user: int, owner: int, mode: int, words: str | None
) -> None:
    """Whoever can write one decides what this node runs."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, owner, 0, 0, 0, 0))
    if words is None:
        allowlist_files._check_trust(status)
        return
    with pytest.raises(ValueError, match=r"user \d|root") as caught:
        allowlist_files._check_trust(status)
    assert str(caught.value) == words


def test_only_regular_files_are_believed(tmp_path: Path) -> None:
    """A directory or FIFO of that name is a problem, not a crash nor a hang."""
    os.mkfifo(tmp_path / "fifo.yaml", 0o600)
    (tmp_path / "tool.yaml").mkdir()
    assert _reader().read([], tmp_path).problems == (
        f"{tmp_path}/fifo.yaml: not a regular file",
        f"{tmp_path}/tool.yaml: cannot be read: Is a directory",
    )


def test_an_edit_is_taken_and_the_rest_is_kept(tmp_path: Path) -> None:
    """Unchanged files are not parsed again; an edit counts for the next job."""
    reader = _reader()
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path in paths:
        path.write_text(HEAD)
        path.chmod(0o600)
    before = reader.read(paths)
    paths[1].write_text(HEAD + "max_args: 7")
    after = reader.read(paths)
    assert after.command("a") is before.command("a")
    assert (before.command("b").max_args, after.command("b").max_args) == (256, 7)


def test_a_fresh_file_is_given_time_to_become_whole(tmp_path: Path) -> None:
    """A prefix of an allowlist can be valid and lack its limits."""
    path = tmp_path / "tool.yaml"
    path.write_text(HEAD)
    path.chmod(0o600)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        path.write_text(HEAD + "max_runtime_s: 5")

    modified = path.stat().st_mtime
    reader = AllowlistReader(realtime=lambda: modified + 0.1, sleep=sleep)
    assert reader.read([path]).command("tool").max_runtime_s == 5
    assert slept == [pytest.approx(0.4, abs=0.01)]


def test_reading_known_files_is_cheap(tmp_path: Path) -> None:
    """Nothing but a stat each."""
    reader = _reader()
    paths = [tmp_path / f"{number}.yaml" for number in range(20)]
    for path in paths:
        path.write_text(HEAD)
        path.chmod(0o600)
    reader.read(paths)
    began = time.process_time()
    reader.read(paths)
    assert time.process_time() - began < 0.02
