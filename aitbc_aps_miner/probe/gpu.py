"""Which GPUs are here: NVML, else nvidia-smi, else a DCGM exporter, else none.

Every source has a deadline of its own, and together they end before the probe does: a
driver that hangs costs its share of the time, never the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.dcgm import run_dcgm
from aitbc_aps_miner.probe.nvml_source import DRIVER_FILES, run_nvml
from aitbc_aps_miner.probe.smi import run_smi

Source = Literal["nvml", "nvidia-smi", "dcgm", "none"]
_Found = tuple[tuple[Gpu, ...], tuple[str, ...]]

# Shares of the probe's time limit; the rest is for the host and for reaping.
_NVML_SHARE = 0.35
_SMI_SHARE = 0.35
_DCGM_SHARE = 0.15


class ProbeSettings(Protocol):
    """What `[probe]` of the configuration says."""

    @property
    def timeout_s(self) -> float:
        """Limit of one whole probe."""
        ...

    @property
    def nvidia_smi(self) -> str:
        """Program to ask without NVML."""
        ...

    @property
    def dcgm_url(self) -> str | None:
        """DCGM exporter's /metrics."""
        ...


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """The GPUs, who told of them, and why others did not."""

    gpus: tuple[Gpu, ...]
    source: Source
    notes: tuple[str, ...] = ()


def probe_gpus(
    settings: ProbeSettings,
    *,
    nvml_argv: Sequence[str] | None = None,
    driver_files: Sequence[str] = DRIVER_FILES,
) -> GpuReport:
    """Ask the sources in order until one lists a GPU; takes 85 % of the limit at most.

    `nvml_argv` and `driver_files` replace the program that asks NVML and the files
    that hint at a driver. Never raises.
    """
    limit_s = settings.timeout_s
    sources: list[tuple[Source, Callable[[], _Found]]] = [
        ("nvml", lambda: run_nvml(limit_s * _NVML_SHARE, nvml_argv, driver_files)),
        ("nvidia-smi", lambda: run_smi(settings.nvidia_smi, limit_s * _SMI_SHARE)),
    ]
    if (url := settings.dcgm_url) is not None:
        sources.append(("dcgm", lambda: run_dcgm(url, limit_s * _DCGM_SHARE)))
    notes: list[str] = []
    for source, ask in sources:
        gpus, said = ask()
        notes += said
        if gpus:
            return GpuReport(gpus=gpus, source=source, notes=tuple(notes))
    return GpuReport(gpus=(), source="none", notes=tuple(notes))
