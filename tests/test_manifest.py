"""What of a pulled value may become a job."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aitbc_aps_miner import manifest as manifests
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import ArtifactSpec, InputUrl, Manifest, Requirements

LEAST: dict[str, Any] = {
    "job_id": "job-1",
    "runner": "cli",
    "timeout_s": 5,
    "command": "echo",
}

FULL: dict[str, Any] = {
    "job_id": "job-1",
    "attempt": 3,
    "runner": "cli",
    "requirements": {
        "gpu": True,
        "vram_mb": 4096,
        "cpu_threads": 2,
        "memory_mb": 1,
        "disk_mb": 2,
        "gpu_uuid": "GPU-1",
    },
    "timeout_s": 900.5,
    "input": {
        "urls": [
            "https://host.example/a/in%20put.mp4?token=1#x",
            {
                "url": "https://host.example/",
                "name": "b.bin",
                "sha256": "AB" * 32,
                "bytes": 7,
            },
        ],
        "inline": {"notes.txt": "anything\0 at all"},
    },
    "command": "ffmpeg",
    "args": ["-i", "in put.mp4", ""],
    "params": {"deep": [{"x": None}]},
    "artifacts": [
        {"path": "out/video.mp4", "type": "video/mp4", "max_mb": 0.5},
        {"path": "log.txt"},
    ],
    "env": {"LANG": "C"},
    "secrets": {"KEY": "hunter2"},
    "idempotent": True,
    "deadline": "2026-01-31T12:00:00.123456789Z",
    "network": {"allow": ["api.example:443"]},
    "manifest_sig": {"alg": "Ed25519"},
    "surprise": ["of", {"the": "future"}],
}


def parse(raw: object) -> Manifest:
    """Parse with an hour as the longest job."""
    return manifests.parse(raw, max_timeout_s=3600)


def problem(raw: object) -> str:
    """Give the words of the refusal."""
    with pytest.raises(JobError) as caught:
        parse(raw)
    assert caught.value.code is ErrorCode.E_MANIFEST
    return caught.value.message


def test_a_full_manifest_becomes_the_noun() -> None:
    """Every field of the contract has its place; unknown ones are ignored."""
    assert parse(FULL) == Manifest(
        job_id="job-1",
        attempt=3,
        runner="cli",
        requirements=Requirements(
            gpu=True,
            vram_mb=4096,
            cpu_threads=2,
            gpu_count=1,
            memory_mb=1,
            disk_mb=2,
            gpu_uuid="GPU-1",
        ),
        timeout_s=900.5,
        inputs=(
            InputUrl(url=FULL["input"]["urls"][0], name="in put.mp4"),
            InputUrl(
                url="https://host.example/",
                name="b.bin",
                sha256="ab" * 32,
                size_bytes=7,
            ),
        ),
        inline={"notes.txt": "anything\0 at all"},
        command="ffmpeg",
        args=("-i", "in put.mp4", ""),
        params={"deep": [{"x": None}]},
        artifacts=(
            ArtifactSpec(path="out/video.mp4", type="video/mp4", max_mb=0.5),
            ArtifactSpec(path="log.txt"),
        ),
        env={"LANG": "C"},
        secrets={"KEY": "hunter2"},
        idempotent=True,
        network_allow=("api.example:443",),
    )


def test_null_means_absent() -> None:
    """Coordinators that write every field write null for most."""
    nulls = dict.fromkeys(set(FULL) - set(LEAST))
    assert parse({**nulls, **LEAST}) == parse(LEAST)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, Requirements()),
        ({"gpu": True}, Requirements(gpu=True, gpu_count=1)),
        ({"gpu_count": 2}, Requirements(gpu=True, gpu_count=2)),
        ({"gpu": True, "gpu_count": 0}, Requirements(gpu=True, gpu_count=1)),
        ({"cpu_threads": 0}, Requirements(cpu_threads=1)),
    ],
)
def test_requirements_are_completed(
    wish: dict[str, Any], expected: Requirements
) -> None:
    """A GPU job uses one GPU at least, every job one thread."""
    assert parse(LEAST | {"requirements": wish}).requirements == expected


@pytest.mark.parametrize("good", ["a", "0", "A.b_c-d.", "x" * 128, "a.b.c"])
def test_job_ids_that_pass(good: str) -> None:
    """Letters, digits and ._- in any order after the first."""
    assert parse(LEAST | {"job_id": good}).job_id == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "../x",
        "a/b",
        "a\0",
        "a\n",
        "a..b",
        "..",
        ".a",
        "-a",
        "x" * 129,
        "x" * 200,
        "jöb",
        "задача",
        "a\u0661",
        "\ud800",
        7,
        None,
        True,
        ["a"],
    ],
)
def test_job_ids_that_do_not(bad: object) -> None:
    """No path is ever made of them; the words never repeat raw control characters."""
    assert problem(LEAST | {"job_id": bad}).isprintable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timeout_s": 0}, "timeout_s: Input should be greater than 0, given 0"),
        ({"timeout_s": True}, "timeout_s: Input should be a valid number, given True"),
        ({"timeout_s": "5"}, "timeout_s: Input should be a valid number, given '5'"),
        ({"timeout_s": float("inf")}, "expected plain JSON, given inf"),
        ({"timeout_s": 10**12}, "timeout_s: Input should be less than or equal to"),
        ({"timeout_s": 3601}, "more than this node's longest job (3600 s), given 3601"),
        ({"attempt": 0}, "attempt: Input should be greater than or equal to 1"),
        ({"attempt": True}, "attempt: Input should be a valid integer, given True"),
        ({"attempt": 1.5}, "attempt: Input should be a valid integer, given 1.5"),
        ({"runner": "CLI"}, "runner: String should match pattern"),
        ({"runner": "cli\n"}, "runner: String should match pattern"),
        ({"command": None}, "runner 'cli' needs `command`"),
        ({"runner": "python"}, "runner 'python' needs `task`"),
        ({"requirements": {"vram_mb": -1}}, "requirements.vram_mb: "),
        ({"requirements": {"gpu": 1}}, "requirements.gpu: "),
        ({"requirements": []}, "requirements: "),
        ({"args": "rm"}, "args: Input should be a valid list"),
        ({"args": ["a\0b"]}, "args.0: must not contain NUL"),
        ({"args": ["é" * 50_001]}, "args.0: must not be longer than 100000 bytes"),
        ({"args": [1] * 100_000}, "args.0: Input should be a valid string, given 1"),
        ({"args": ["a"] * 100_001}, "args: List should have at most 100000 items"),
        ({"env": {"A=B": "1"}}, "env.A=B.[key]: String should match pattern"),
        ({"env": {"A\n": "1"}}, "env.A\\n.[key]: String should match pattern"),
        ({"env": {"A": 1}}, "env.A: Input should be a valid string, given 1"),
        ({"input": {"inline": {"../x": ""}}}, "must be a plain file name"),
        ({"input": {"inline": {".hidden": ""}}}, "must be a plain file name"),
        ({"input": {"inline": {"ä" * 128: ""}}}, "a file name of 1 to 255 bytes"),
        ({"input": {"inline": {"a": 1}}}, "input.inline.a: "),
        ({"input": {"urls": [7]}}, "input.urls.0: "),
        ({"input": {"urls": ["https://h/"]}}, "input.urls.0: needs a `name`"),
        ({"input": {"urls": ["https://h/a%2Fb"]}}, "input.urls.0: needs a `name`"),
        ({"input": {"urls": ["https://h/%ff"]}}, "input.urls.0: needs a `name`"),
        ({"input": {"urls": ["https://[x/a"]}}, "input.urls.0: needs a `name`"),
        ({"input": {"urls": [{"url": "u", "bytes": -1}]}}, "input.urls.0.bytes: "),
        ({"input": {"urls": [{"url": "u", "sha256": "x"}]}}, "input.urls.0.sha256: "),
        ({"input": {"urls": ["h/a", "g/a"]}}, "two inputs are named 'a'"),
        (
            {"input": {"urls": ["h/a"], "inline": {"a": ""}}},
            "two inputs are named 'a'",
        ),
        ({"artifacts": [{"path": "/etc/passwd"}]}, "artifacts.0.path: "),
        ({"artifacts": [{"path": "a/../b"}]}, "artifacts.0.path: "),
        ({"artifacts": [{"path": "a//b"}]}, "artifacts.0.path: "),
        ({"artifacts": [{"path": "a/"}]}, "artifacts.0.path: "),
        ({"artifacts": [{"path": ""}]}, "artifacts.0.path: "),
        ({"artifacts": [{"path": "a", "max_mb": 0}]}, "artifacts.0.max_mb: "),
        ({"artifacts": [{"path": "a", "type": "a\r\nX: y"}]}, "artifacts.0.type: "),
        ({"artifacts": [{"path": "a"}] * 2}, "two artifacts have the path 'a'"),
        (
            {"artifacts": [{"path": "a"}], "input": {"inline": {"a": ""}}},
            "artifact 'a' has an input's name",
        ),
        ({"deadline": "tomorrow"}, "deadline: must be an RFC 3339 time"),
        ({"deadline": "2026-02-30T00:00:00Z"}, "deadline: "),
        ({"idempotent": "yes"}, "idempotent: "),
        ({"network": {"allow": ["a\0"]}}, "network.allow.0: must not contain NUL"),
        ({"params": []}, "params: "),
        ({"params": {"a": "\udc00"}}, "expected plain JSON"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    """Field, what was expected, what was given."""
    assert words in problem(LEAST | change)


def test_all_problems_come_at_once() -> None:
    """The coordinator's side mends a manifest in one go."""
    raw = LEAST | {"attempt": 0, "timeout_s": -1, "runner": 5}
    assert problem(raw) == (
        "attempt: Input should be greater than or equal to 1, given 0; "
        "runner: Input should be a valid string, given 5; "
        "timeout_s: Input should be greater than 0, given -1"
    )


def test_many_problems_are_counted() -> None:
    """A message stays a message."""
    raw = LEAST | {"artifacts": [{}] * 100}
    assert problem(raw).endswith("; and 80 more")


def test_a_secret_is_never_in_the_words() -> None:
    """Its name may be, its value may not."""
    words = problem(LEAST | {"secrets": {"KEY": "hunter2\0", "a b": "hunter2"}})
    assert "secrets.KEY" in words
    assert "hunter2" not in words


def test_ten_thousand_arguments_pass() -> None:
    """They are the allowlist's to refuse, which says which one."""
    assert len(parse(LEAST | {"args": ["--x"] * 10_000}).args) == 10_000


@pytest.mark.parametrize(
    "raw", [None, 5, "text", [], [LEAST], b"{}", {1: 2}, {"a": {}}]
)
def test_what_is_no_manifest(raw: object) -> None:
    """Anything may be pulled."""
    assert problem(raw)


def test_depth_is_bounded() -> None:
    """Neither here nor in anything that writes the manifest later is recursion deep."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert problem(LEAST | {"surprise": deep}) == (
        "manifest: nested deeper than 64 levels"
    )
    while deep:  # a deep list frees itself by recursion, too
        deep = deep.pop()


@pytest.mark.parametrize(
    ("raw", "job_id"),
    [({"job_id": "../bad"}, "../bad"), ({"job_id": 5}, None), ({}, None), ([], None)],
)
def test_the_id_of_an_unusable_manifest(raw: object, job_id: str | None) -> None:
    """It is what the failure is reported under."""
    assert manifests.job_id_of(raw) == job_id


def test_a_manifest_too_large_to_hand_on_is_refused() -> None:
    """What fits into no frame between two processes never becomes a job."""
    raw = {**FULL, "input": {"inline": {"big": "x" * manifests.MAX_BYTES}}}
    with pytest.raises(JobError, match="expected at most 1048576 bytes of JSON"):
        manifests.parse(raw, max_timeout_s=60)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {}, optional={key: st.just(value) | JSON for key, value in FULL.items()}
)


@given(raw=JSON | NEARLY)
@settings(max_examples=300, deadline=None)
def test_anything_is_a_manifest_or_a_refusal(raw: object) -> None:
    """No value gets anything else out of the parser, and no unprintable words."""
    outcome: Manifest | JobError
    try:
        outcome = parse(raw)
    except JobError as error:
        outcome = error
    if isinstance(outcome, JobError):
        assert outcome.code is ErrorCode.E_MANIFEST
        assert outcome.message.isprintable()
        assert len(outcome.message) < 20_000
    else:
        assert json.dumps(raw, allow_nan=False)
        assert ".." not in outcome.job_id
