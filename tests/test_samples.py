"""The shipped samples: allowed by the shipped allowlists, and right."""

import csv
import importlib
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.manifest_model import Wire
from aitbc_aps_miner.reference_coordinator.samples import DATA, Sample, samples
from aitbc_aps_miner.runners.allowlist_files import AllowlistReader

ALL = samples("x", lambda job, path: f"http://c/{job}/{path}", video=True)


def _id(sample: Sample) -> str:
    return sample.job_id


@pytest.mark.parametrize("sample", ALL, ids=_id)
def test_every_sample_is_a_valid_manifest(sample: Sample) -> None:
    """The miner's own reader takes it."""
    assert Wire.model_validate(sample.manifest).job_id == sample.job_id


def test_the_allowlists_take_every_sample(tmp_path: Path) -> None:
    """Each command of a sample is allowed with its arguments, all files are right."""
    for source in (DATA / "allowlist.d").iterdir():
        target = tmp_path / source.name
        target.write_bytes(source.read_bytes())
        target.chmod(0o644)
    allowlist = AllowlistReader(settle_s=0).read([], tmp_path)

    assert allowlist.problems == ()
    for sample in ALL:
        if sample.manifest["runner"] == "cli":
            allowlist.command(sample.manifest["command"]).check(sample.manifest["args"])


def test_without_ffmpeg_the_video_jobs_are_left_out() -> None:
    """They come together: one makes the other's input."""
    few = samples("x", lambda job, path: f"{job}{path}", video=False)

    assert [each.job_id for each in ALL] == [
        *(each.job_id for each in few),
        "testvideo-x",
        "transcode-x",
    ]
    assert ALL[-1].manifest["input"]["urls"][0]["url"] == (
        "http://c/testvideo-x/test.mp4"
    )


@pytest.mark.parametrize("sample", ALL, ids=_id)
def test_rubbish_is_not_taken_for_a_result(sample: Sample) -> None:
    """No check of an artifact's content passes for any bytes."""
    assert sample.expect
    for is_right in sample.expect.values():
        assert not is_right(b"")
        assert not is_right(b"rubbish, but of some length")


@pytest.fixture(scope="module")
def primes() -> Iterator[Any]:
    """Give the task's module, its reports of progress in `reports`."""
    reports: list[tuple[float, str]] = []
    provided = types.ModuleType("aitbc_task")
    provided.__dict__["progress"] = lambda pct, note="": reports.append((pct, note))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "aitbc_task", provided)
        task: Any = importlib.import_module(f"{samples.__module__}.tasks.primes")
        task.reports = reports
        yield task


@pytest.fixture
def _in_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stand in a job's `work/` beside its `output/`."""
    for name in ("work", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.usefixtures("_in_work")
def test_the_task_counts_primes(primes: Any) -> None:
    """Its result, its table and its progress say the same."""
    assert primes.run(limit=10_000) == {"limit": 10_000, "primes": 1229}

    with Path("../output/primes.csv").open() as file:
        rows = list(csv.reader(file))
    assert (rows[0], rows[50], rows[-1]) == (
        ["up_to", "primes"],
        ["5000", "669"],
        ["10000", "1229"],
    )
    assert primes.reports[-1] == (100, "1229 primes up to 10000")


def test_the_task_refuses_a_limit_that_makes_no_table(primes: Any) -> None:
    """The error names the parameter and what was given."""
    with pytest.raises(ValueError, match="limit: expected at least 100, given 99"):
        primes.run(limit=99)


@given(low=st.integers(2, 3000), size=st.integers(0, 500))
def test_counting_in_pieces_equals_counting_one_by_one(
    primes: Any, low: int, size: int
) -> None:
    """The segmented sieve agrees with the definition."""
    small = primes.primes_up_to(math.isqrt(low + size))

    count = primes.count_between(low, low + size, small)

    expected = sum(
        all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
        for number in range(low, low + size + 1)
    )
    assert count == expected
