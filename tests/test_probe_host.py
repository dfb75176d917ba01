"""What the machine is: the host, the container around it, and how it is said."""

import os
import shutil
from pathlib import Path

import psutil
import pytest

from aitbc_aps_miner.config.model import Config, Coordinator, Resources
from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.capabilities import PROTOCOL, capabilities, heartbeat_body
from aitbc_aps_miner.probe.container import Limits, read_limits
from aitbc_aps_miner.probe.host import HostFacts, probe_host

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU = "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
FACTS = HostFacts(
    cores=8,
    arch="x86_64",
    os_id="debian",
    memory_mb=32000,
    memory_free_mb=20000,
    swap_mb=0,
    swap_free_mb=0,
    disk_total_mb=100_000,
    disk_free_mb=50_000,
    disk_used_pct=50.0,
    load1=0.21,
)
GPU = Gpu(
    index=0,
    uuid="GPU-1",
    name="NVIDIA H200",
    vram_mb=143_771,
    cuda_version="12.8",
    driver="570.1",
    util_pct=3,
    mem_used_mb=4,
    temp_c=30,
    power_w=77.5,
)


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write a file system for read_limits below `root`."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, Limits(), id="no /proc at all"),
        pytest.param(
            {"proc/self/mountinfo": "garbage\n", "proc/self/cgroup": "0\n::\n"},
            Limits(),
            id="garbage",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V2_MOUNT,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/memory.current": "900\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 300\n",
                "sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/b/memory.max": "2000\n",
                "sys/fs/cgroup/a/b/memory.current": "1900\n",
                "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            },
            Limits(memory_bytes=1000, memory_free_bytes=100, cpus=1.5),
            id="v2: the tightest of our group and those above",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": f"{V1_MEMORY}\n{V1_CPU}\n",
                "proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/c\n0::/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "4096",
                "sys/fs/cgroup/memory/m/memory.usage_in_bytes": "5000",
                "sys/fs/cgroup/memory/m/memory.stat": "total_inactive_file x\n",
                "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            Limits(memory_bytes=4096, memory_free_bytes=0, cpus=2.0),
            id="v1: unlimited by 2^63, over its limit",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": (
                    "30 23 0:26 /docker/abc /sys/fs/c\\040g rw - cgroup2 none rw"
                ),
                "proc/self/cgroup": "0::/docker/abc/inner\n",
                "sys/fs/c g/memory.max": "700\n",
                "sys/fs/c g/inner/memory.max": "800\n",
                "sys/fs/c g/inner/cpu.max": "50000 0\n",
            },
            Limits(memory_bytes=700, memory_free_bytes=700),
            id="a bind mount of our group, a blank in its name, a period of 0",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V2_MOUNT,
                "proc/self/cgroup": "0::/../../outside\n",
                "sys/fs/cgroup/memory.max": "600\n",
            },
            Limits(memory_bytes=600, memory_free_bytes=600),
            id="a group outside our cgroup namespace",
        ),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path, files: dict[str, str], expected: Limits
) -> None:
    """Version, place of the mount and namespaces differ; the tightest limit counts."""
    assert read_limits(tree(tmp_path, files)) == expected


def test_this_machine(tmp_path: Path) -> None:
    """The facts are this machine's, and the disk is the one that will hold the root."""
    facts = probe_host(tmp_path / "not" / "yet", limits=Limits)
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(tmp_path)
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.memory_mb == memory.total // 2**20
    assert 0 < facts.memory_free_mb <= facts.memory_mb
    assert 0 <= facts.swap_free_mb <= facts.swap_mb
    assert facts.disk_total_mb == disk.total // 2**20
    assert 0 <= facts.disk_free_mb <= facts.disk_total_mb
    assert 0 <= facts.disk_used_pct <= 100
    assert facts.arch == os.uname().machine
    assert facts.os_id
    assert facts.load1 >= 0


def test_the_limits_around_are_the_machine() -> None:
    """In a container its limits are what the coordinator hears of."""
    mib = 2**20
    around = Limits(memory_bytes=64 * mib, memory_free_bytes=5 * mib, cpus=0.5)
    facts = probe_host(Path("/"), limits=lambda: around)
    assert (facts.memory_mb, facts.memory_free_mb, facts.cores) == (64, 5, 1)


def test_a_disk_that_cannot_be_seen_is_none() -> None:
    """A root that leads nowhere gives a disk without space, not an error."""
    facts = probe_host(Path("relative/root"), limits=Limits)
    assert facts.disk_total_mb > 0  # relative: the current directory's disk
    facts = probe_host(Path("/proc/self/nothing"), limits=Limits)
    assert (facts.disk_total_mb, facts.disk_used_pct) == (0, 0.0)


def config(**changes: object) -> Config:
    """Give a configuration."""
    values = {"node_id": "node-1", "coordinator": Coordinator(base_url="http://h")}
    return Config.model_validate({**values, **changes})


def test_the_capability_descriptor() -> None:
    """The descriptor has the contract's fields, tags of ours before the owner's."""
    descriptor = capabilities(
        config(tags=("cpu", "fast-disk")),
        FACTS,
        (GPU, Gpu(index=1, uuid="MIG-2")),
        version="1.2",
        runners=("cli", "python"),
        public_key="k",
    )
    assert descriptor == {
        "node_id": "node-1",
        "version": "1.2",
        "cpu": {"cores": 8, "arch": "x86_64"},
        "memory_mb": 32000,
        "disk_free_mb": 50_000,
        "gpu": [
            {
                "vendor": "nvidia",
                "name": "NVIDIA H200",
                "vram_mb": 143_771,
                "cuda": {"version": "12.8", "driver": "570.1"},
                "uuid": "GPU-1",
            },
            {
                "vendor": "nvidia",
                "name": None,
                "vram_mb": None,
                "cuda": {"version": None, "driver": None},
                "uuid": "MIG-2",
                "mig": True,
            },
        ],
        "runners": ["cli", "python"],
        "tags": ["debian", "x86_64", "cpu", "cuda", "fast-disk"],
        "public_key": "k",
        "models": [],
        "slots": {"cpu": 2, "gpu": 1},
        "protocol": list(PROTOCOL),
    }


def test_a_machine_without_a_gpu_offers_no_gpu_slot() -> None:
    """GPU slots that the owner allows are none where there is no GPU."""
    resources = Resources(max_concurrent_cpu=4, max_concurrent_gpu=3)
    descriptor = capabilities(
        config(resources=resources),
        FACTS,
        (),
        version="1",
        runners=(),
        public_key=None,
        models=("m",),
    )
    seen = {key: descriptor[key] for key in ("gpu", "slots", "tags", "models")}
    assert seen == {
        "gpu": [],
        "slots": {"cpu": 4, "gpu": 0},
        "tags": ["debian", "x86_64", "cpu"],
        "models": ["m"],
    }


def test_the_heartbeat() -> None:
    """The heartbeat has the contract's fields and the node's own clock."""
    body = heartbeat_body(
        config(),
        FACTS,
        (GPU,),
        running=["j-1"],
        slots_free={"cpu": 1, "gpu": 0},
        draining=True,
        config_hash="abc",
        realtime=1_700_000_000.5,
    )
    assert body == {
        "node_id": "node-1",
        "load": 0.21,
        "free_mb": 20000,
        "gpu_free": 0,
        "running": ["j-1"],
        "slots": {"cpu_free": 1, "gpu_free": 0},
        "draining": True,
        "gpu": [
            {"index": 0, "util_pct": 3, "mem_used_mb": 4, "temp_c": 30, "power_w": 77.5}
        ],
        "disk_free_mb": 50_000,
        "config_hash": "abc",
        "clock": "2023-11-14T22:13:20.500Z",
    }
