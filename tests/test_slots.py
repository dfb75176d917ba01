"""Reservations: never over-committed, always returned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import Gpu, Requirements, Reservation
from aitbc_aps_miner.slots import Capacity

BIG = Gpu(index=0, uuid="GPU-a", vram_mb=24000, mem_used_mb=100)
SMALL = Gpu(index=1, uuid="GPU-b", vram_mb=8000, mem_used_mb=0)
NODE = Capacity(cpu_slots=2, gpu_slots=2, cpu_threads=8, gpus=(BIG, SMALL))


def test_a_cpu_job_takes_a_cpu_slot() -> None:
    """Threads are noted, GPUs untouched."""
    assert NODE.reserve(Requirements(cpu_threads=4)) == Reservation(
        kind="cpu", cpu_threads=4
    )


def test_the_least_used_gpu_comes_first() -> None:
    """Of two idle GPUs the one with less memory in use is chosen."""
    assert NODE.reserve(Requirements(gpu=True, vram_mb=4000)).gpu_uuids == ("GPU-b",)


def test_jobs_share_a_gpu_while_their_vram_fits() -> None:
    """Two small jobs lie on one large GPU when the small one is too small."""
    wanted = Requirements(gpu=True, vram_mb=10000)
    first = NODE.reserve(wanted)
    second = NODE.taking("1", first).reserve(wanted)
    assert (first.gpu_uuids, second.gpu_uuids) == (("GPU-a",), ("GPU-a",))


def test_a_job_that_names_no_vram_gets_a_gpu_alone() -> None:
    """The whole GPU is its own, so the next job gets the other one."""
    whole = NODE.reserve(Requirements(gpu=True))
    left = NODE.taking("1", whole)
    assert left.reserve(Requirements(gpu=True)).gpu_uuids == ("GPU-a",)
    assert left.vram_free_mb == 24000


def test_several_gpus_for_one_job() -> None:
    """`gpu_count` GPUs, all different."""
    got = NODE.reserve(Requirements(gpu=True, gpu_count=2))
    assert sorted(got.gpu_uuids) == ["GPU-a", "GPU-b"]


def test_a_named_gpu_is_the_one() -> None:
    """`gpu_uuid` picks that GPU or none."""
    wanted = Requirements(gpu=True, vram_mb=1, gpu_uuid="GPU-a")
    assert NODE.reserve(wanted).gpu_uuids == ("GPU-a",)


@pytest.mark.parametrize(
    ("capacity", "wanted", "code"),
    [
        (Capacity(cpu_slots=0, gpu_slots=0, cpu_threads=1), {}, ErrorCode.E_NORES),
        (NODE, {"cpu_threads": 9}, ErrorCode.E_NORES),
        (NODE, {"gpu": True, "vram_mb": 30000}, ErrorCode.E_NOGPU),
        (NODE, {"gpu": True, "gpu_count": 3}, ErrorCode.E_NOGPU),
        (NODE, {"gpu": True, "gpu_uuid": "GPU-x"}, ErrorCode.E_NOGPU),
        (
            Capacity(cpu_slots=1, gpu_slots=1, cpu_threads=1),
            {"gpu": True},
            ErrorCode.E_NOGPU,
        ),
        (
            Capacity(cpu_slots=1, gpu_slots=1, cpu_threads=1, memory_mb=100),
            {"memory_mb": 101},
            ErrorCode.E_NORES,
        ),
        (
            Capacity(cpu_slots=1, gpu_slots=1, cpu_threads=1, disk_free_mb=100),
            {"disk_mb": 101},
            ErrorCode.E_NORES,
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    capacity: Capacity, wanted: dict[str, object], code: ErrorCode
) -> None:
    """Each missing thing has its code."""
    with pytest.raises(JobError) as raised:
        capacity.reserve(Requirements(**wanted))  # type: ignore[arg-type]  # a table
    assert raised.value.code is code


def test_lowered_slots_never_count_below_zero() -> None:
    """An owner who lowers the slots under running jobs sees zero free, not less."""
    held = Capacity(
        cpu_slots=0,
        gpu_slots=0,
        cpu_threads=1,
        held={"1": Reservation(kind="cpu")},
    )
    assert (held.cpu_free, held.gpu_free, held.free, held.vram_free_mb) == (0, 0, 0, 0)


REQUIREMENTS = st.builds(
    Requirements,
    gpu=st.booleans(),
    vram_mb=st.integers(0, 25000),
    gpu_count=st.integers(0, 2),
)


@given(st.lists(st.tuples(st.sampled_from("tr"), REQUIREMENTS), max_size=30))
def test_never_over_committed_always_returned(
    steps: list[tuple[str, Requirements]],
) -> None:
    """Whatever is taken and returned: no slot and no MiB is held twice."""
    capacity, taken = NODE, 0
    for number, (step, wanted) in enumerate(steps):
        if step == "r" and capacity.held:
            capacity = capacity.returning(next(iter(capacity.held)))
            continue
        try:
            got = capacity.reserve(wanted)
        except JobError:
            continue
        taken += 1
        capacity = capacity.taking(str(number), got)
        kinds = [kept.kind for kept in capacity.held.values()]
        assert kinds.count("cpu") <= NODE.cpu_slots
        assert kinds.count("gpu") <= NODE.gpu_slots
        for gpu in NODE.gpus:
            users = [k for k in capacity.held.values() if gpu.uuid in k.gpu_uuids]
            assert sum(k.vram_mb for k in users) <= (gpu.vram_mb or 0)
            assert len(users) <= 1 or all(k.vram_mb for k in users)
    for job_id in list(capacity.held):
        capacity = capacity.returning(job_id)
    assert capacity == NODE
