"""GPUs through the program nvidia-smi, for machines where NVML cannot be asked.

The fields of a row are fixed in number, but a name may hold commas and is not quoted:
a row is split from both of its ends.
"""

import shutil

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.command import run_command
from aitbc_aps_miner.probe.values import name, number, percent, whole

_HEAD = ("index", "uuid")
_TAIL = (
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "driver_version",
)
_QUERY = ",".join((*_HEAD, "name", *_TAIL))
_INDEX_MAX = 1023


def run_smi(program: str, timeout_s: float) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Give the GPUs that nvidia-smi lists, and a note when it did not end well."""
    path = shutil.which(program)
    if path is None:
        return (), (f"nvidia-smi: no program {program!r}",)
    argv = (path, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    result = run_command(argv, timeout_s=timeout_s)
    gpus = parse(result.output)
    if result.problem is not None:
        said = name(result.output.partition("\n")[0]) if not gpus else None
        return gpus, (f"nvidia-smi: {result.problem}" + (f": {said}" if said else ""),)
    return gpus, () if gpus else ("nvidia-smi: lists no GPU",)


def parse(output: str) -> tuple[Gpu, ...]:
    """Read the CSV rows; a row that is none (an error message) is left out."""
    gpus = (_row(line) for line in output.split("\n"))
    unique = {gpu.index: gpu for gpu in gpus if gpu is not None}
    return tuple(unique.values())


def _row(line: str) -> Gpu | None:
    head = line.split(",", len(_HEAD))
    if len(head) <= len(_HEAD):
        return None
    tail = head[-1].rsplit(",", len(_TAIL))
    index = whole(head[0], _INDEX_MAX)
    if len(tail) <= len(_TAIL) or index is None:
        return None
    total, used, use, temperature, power, driver = (part.strip() for part in tail[1:])
    return Gpu(
        index=index,
        uuid=name(head[1]) or f"GPU-{index}",
        name=name(tail[0]),
        vram_mb=whole(total),
        driver=name(driver),
        util_pct=percent(use),
        mem_used_mb=whole(used),
        temp_c=number(temperature),
        power_w=number(power),
    )
