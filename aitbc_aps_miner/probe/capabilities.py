"""How what was probed is said to a coordinator: descriptor and heartbeat of node-v1."""

from collections.abc import Mapping, Sequence
from typing import Any

from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.host import HostFacts
from aitbc_aps_miner.util.words import utc_text

PROTOCOL = (
    "node-v1",
    "long-poll",
    "leases",
    "cancel",
    "query",
    "uploads",
    "idempotency",
)
"""The dialect and the extensions of it that this miner speaks."""


def capabilities(
    config: Config,
    host: HostFacts,
    gpus: Sequence[Gpu],
    *,
    version: str,
    runners: Sequence[str],
    public_key: str | None,
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """Give the capability descriptor that registers this node."""
    return {
        "node_id": config.node_id,
        "version": version,
        "cpu": {"cores": host.cores, "arch": host.arch},
        "memory_mb": host.memory_mb,
        "disk_free_mb": host.disk_free_mb,
        "gpu": [_gpu(gpu) for gpu in gpus],
        "runners": list(runners),
        "tags": _tags(config, host, gpus),
        "public_key": public_key,
        "models": list(models),
        "slots": {
            "cpu": config.resources.max_concurrent_cpu,
            "gpu": config.resources.max_concurrent_gpu if gpus else 0,
        },
        "protocol": list(PROTOCOL),
    }


def heartbeat_body(
    config: Config,
    host: HostFacts,
    gpus: Sequence[Gpu],
    *,
    running: Sequence[str],
    slots_free: Mapping[str, int],
    draining: bool,
    config_hash: str,
    realtime: float,
) -> dict[str, Any]:
    """Give the heartbeat's body; `slots_free` has `cpu` and `gpu`.

    `load` is the load average of one minute, `free_mb` free memory in MiB, `gpu_free`
    how many more GPU jobs would be taken, `realtime` seconds since the epoch.
    """
    cpu_free, gpu_free = slots_free.get("cpu", 0), slots_free.get("gpu", 0)
    return {
        "node_id": config.node_id,
        "load": host.load1,
        "free_mb": host.memory_free_mb,
        "gpu_free": gpu_free,
        "running": list(running),
        "slots": {"cpu_free": cpu_free, "gpu_free": gpu_free},
        "draining": draining,
        "gpu": [
            {
                "index": gpu.index,
                "util_pct": gpu.util_pct,
                "mem_used_mb": gpu.mem_used_mb,
                "temp_c": gpu.temp_c,
                "power_w": gpu.power_w,
            }
            for gpu in gpus
        ],
        "disk_free_mb": host.disk_free_mb,
        "config_hash": config_hash,
        "clock": utc_text(realtime),
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    descriptor: dict[str, Any] = {
        "vendor": gpu.vendor,
        "name": gpu.name,
        "vram_mb": gpu.vram_mb,
        "cuda": {"version": gpu.cuda_version, "driver": gpu.driver},
        "uuid": gpu.uuid,
    }
    # NVML gives the instances of a partitioned GPU ids of this form.
    return {**descriptor, "mig": True} if gpu.uuid.startswith("MIG-") else descriptor


def _tags(config: Config, host: HostFacts, gpus: Sequence[Gpu]) -> list[str]:
    found = [host.os_id, host.arch, "cpu"]
    if any(gpu.vendor == "nvidia" for gpu in gpus):
        found.append("cuda")
    return list(dict.fromkeys([*found, *config.tags]))
