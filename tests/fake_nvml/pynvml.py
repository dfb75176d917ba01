"""A fake of the module pynvml: one plain GPU, one split by MIG, one that fell off.

It fails as the real one does, by NVMLError, for whatever a device does not support.
"""

# ruff: noqa: N802 - the names are those of the real module

from dataclasses import dataclass, field
from typing import Any

NVML_TEMPERATURE_GPU = 0
NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    """What every failed query raises."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    total: int
    used: int


@dataclass(frozen=True, kw_only=True)
class Use:
    """Percent."""

    gpu: int


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU; None is a query that it does not support."""

    uuid: str | bytes | None
    name: str | bytes | None = None
    memory: Memory | None = None
    use: Use | None = None
    temperature: int | None = None
    milliwatts: int | None = None
    mig: bool | None = None
    parts: tuple["Device | None", ...] = ()


@dataclass(kw_only=True)
class World:
    """The machine that the fake driver sees."""

    driver: str | bytes | None = "550.54.15"
    cuda: int | None = 12040
    devices: list[Device | None] = field(default_factory=list)


WORLD = World(
    devices=[
        Device(
            uuid="GPU-aaaa",
            name="NVIDIA RTX 6000, Ada",
            memory=Memory(total=49140 * 1024**2, used=512 * 1024**2),
            use=Use(gpu=7),
            temperature=41,
            milliwatts=23_500,
        ),
        Device(
            uuid="GPU-bbbb",
            mig=True,
            parts=(
                Device(uuid="MIG-b1", name="NVIDIA H100 MIG 1g.10gb"),
                None,
                Device(uuid="MIG-b2", memory=Memory(total=2**34, used=0)),
            ),
        ),
        None,
    ],
)


def _told(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value


def nvmlInit() -> None:
    """Start."""


def nvmlSystemGetDriverVersion() -> Any:
    """Give the driver's version."""
    return _told(WORLD.driver)


def nvmlSystemGetCudaDriverVersion_v2() -> Any:
    """Give 12040 for 12.4."""
    return _told(WORLD.cuda)


def nvmlDeviceGetCount() -> int:
    """Count the devices."""
    return len(WORLD.devices)


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    """Give a device."""
    if WORLD.devices[index] is None:
        raise NVMLError("GPU is lost")
    return WORLD.devices[index]


def nvmlDeviceGetUUID(device: Device) -> Any:
    """Give its id."""
    return _told(device.uuid)


def nvmlDeviceGetName(device: Device) -> Any:
    """Give its name."""
    return _told(device.name)


def nvmlDeviceGetMemoryInfo(device: Device) -> Any:
    """Give its memory."""
    return _told(device.memory)


def nvmlDeviceGetUtilizationRates(device: Device) -> Any:
    """Give its use."""
    return _told(device.use)


def nvmlDeviceGetTemperature(device: Device, sensor: int) -> Any:
    """Give its temperature."""
    assert sensor == NVML_TEMPERATURE_GPU
    return _told(device.temperature)


def nvmlDeviceGetPowerUsage(device: Device) -> Any:
    """Give its power in mW."""
    return _told(device.milliwatts)


def nvmlDeviceGetMigMode(device: Device) -> Any:
    """Give current and pending mode."""
    mode = int(_told(device.mig))
    return [mode, mode]


def nvmlDeviceGetMaxMigDeviceCount(device: Device) -> int:
    """Count the places for instances."""
    return len(device.parts)


def nvmlDeviceGetMigDeviceHandleByIndex(device: Device, index: int) -> Any:
    """Give an instance."""
    return _told(device.parts[index])
