"""GPUs through NVML, in a program of its own because the driver may hang for ever.

`python -m aitbc_aps_miner.probe.nvml_source` prints `{"gpus": [...], "notes": [...]}`;
run_nvml starts that under a deadline. NVML is never initialised in another process of
the daemon.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.command import run_command
from aitbc_aps_miner.probe.values import name, number, percent, whole

DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""One of them is there where NVML can work (the last one under WSL 2)."""

_DEVICES_MAX = 64  # more than any board; a broken driver may claim 2^32
_MIB = 1024 * 1024


def nvml_command() -> tuple[str, ...]:
    """Give the command line of this module as a program."""
    return (sys.executable, "-m", "aitbc_aps_miner.probe.nvml_source")


def run_nvml(
    timeout_s: float,
    argv: Sequence[str] | None = None,
    driver_files: Sequence[str] = DRIVER_FILES,
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Give the GPUs that NVML lists, and notes on what it would not tell."""
    if not any(Path(path).exists() for path in driver_files):
        return (), ("nvml: no NVIDIA driver is loaded",)
    # The package's own directory, so that the program is found without installation.
    search = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "PYTHONSAFEPATH": "1",
    }
    result = run_command(argv or nvml_command(), timeout_s=timeout_s, env=env)
    gpus, notes = parse(result.output)
    if result.problem is not None:
        notes = (*notes, result.problem)
    return gpus, tuple(f"nvml: {note}" for note in notes)


def parse(output: str) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Read the program's output; what is not of the expected form is left out."""
    try:
        answer = json.loads(output) if output else {}
    except (ValueError, RecursionError):
        return (), ("printed no JSON",)
    if not isinstance(answer, dict):
        return (), ("printed no JSON object",)
    gpus = tuple(
        _gpu(entry, position)
        for position, entry in enumerate(_list(answer.get("gpus")))
        if isinstance(entry, dict)
    )
    notes = tuple(note for each in _list(answer.get("notes")) if (note := name(each)))
    return gpus, notes


def read(nvml: Any) -> dict[str, Any]:
    """Ask `nvml` (the module pynvml) for everything; a query that fails gives None."""
    ask = _asker(nvml)
    system = {
        "driver": _text(ask(nvml.nvmlSystemGetDriverVersion)),
        "cuda": _cuda(ask(nvml.nvmlSystemGetCudaDriverVersion_v2)),
    }
    notes: list[str] = []
    gpus: list[dict[str, Any]] = []
    for index in range(min(ask(nvml.nvmlDeviceGetCount) or 0, _DEVICES_MAX)):
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as exc:
            notes.append(f"GPU {index}: {exc}")
            continue
        parts = list(_mig_devices(nvml, device))
        if _mig_enabled(nvml, device) and not parts:
            notes.append(f"GPU {index}: MIG is on but has no instance")
            continue
        # With MIG on, CUDA takes the instances only, never the whole device.
        gpus += [
            {"index": index, **system, **_device(nvml, part)}
            for part in parts or [device]
        ]
    return {"gpus": gpus, "notes": notes}


def main() -> int:
    """Print what NVML tells."""
    import pynvml  # noqa: PLC0415 - only this program may load the driver's library

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        answer: dict[str, Any] = {"gpus": [], "notes": [str(exc)]}
    else:
        answer = read(pynvml)
    print(json.dumps(answer))  # noqa: T201 - the program's answer
    return 0


def _asker(nvml: Any) -> Callable[..., Any]:
    def ask(query: Callable[..., Any], *args: Any) -> Any:
        try:
            return query(*args)
        except nvml.NVMLError:
            return None

    return ask


def _device(nvml: Any, device: Any) -> dict[str, Any]:
    ask = _asker(nvml)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, device)
    use = ask(nvml.nvmlDeviceGetUtilizationRates, device)
    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, device)
    return {
        "uuid": _text(ask(nvml.nvmlDeviceGetUUID, device)),
        "name": _text(ask(nvml.nvmlDeviceGetName, device)),
        "vram_mb": None if memory is None else memory.total // _MIB,
        "mem_used_mb": None if memory is None else memory.used // _MIB,
        "util_pct": None if use is None else use.gpu,
        "temp_c": ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if milliwatts is None else milliwatts / 1000,
    }


def _mig_enabled(nvml: Any, device: Any) -> bool:
    mode = _asker(nvml)(nvml.nvmlDeviceGetMigMode, device)
    return mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _mig_devices(nvml: Any, device: Any) -> Iterator[Any]:
    if not _mig_enabled(nvml, device):
        return
    ask = _asker(nvml)
    most = ask(nvml.nvmlDeviceGetMaxMigDeviceCount, device) or 0
    for position in range(min(most, _DEVICES_MAX)):
        part = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, device, position)
        if part is not None:
            yield part


def _cuda(version: int | None) -> str | None:
    """Turn 12040 into "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # pynvml before 11.5
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any]:
    return value[:_DEVICES_MAX] if isinstance(value, list) else []


def _gpu(entry: dict[str, Any], position: int) -> Gpu:
    index = whole(entry.get("index"), _DEVICES_MAX)
    index = position if index is None else index
    return Gpu(
        index=index,
        uuid=name(entry.get("uuid")) or f"GPU-{index}",
        name=name(entry.get("name")),
        vram_mb=whole(entry.get("vram_mb")),
        cuda_version=name(entry.get("cuda")),
        driver=name(entry.get("driver")),
        util_pct=percent(entry.get("util_pct")),
        mem_used_mb=whole(entry.get("mem_used_mb")),
        temp_c=number(entry.get("temp_c")),
        power_w=number(entry.get("power_w")),
    )


if __name__ == "__main__":
    sys.exit(main())
