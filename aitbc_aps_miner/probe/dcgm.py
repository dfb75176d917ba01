"""GPUs through the text that a DCGM exporter serves (Prometheus format 0.0.4).

The last resort: in a container without the driver's files the exporter of the node may
still be in reach.
"""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe.values import name, number, percent, whole

_PREFIX = "DCGM_FI_DEV_"
_METRICS = (
    "GPU_UTIL",
    "FB_USED",
    "FB_FREE",
    "FB_TOTAL",
    "GPU_TEMP",
    "POWER_USAGE",
)
_NAMES = tuple(_PREFIX + metric for metric in _METRICS)
_INDEX_LABELS = ("gpu", "index", "minor_number", "device")
_INDEX_MAX = 1023
_MAX_BYTES = 4 * 1024 * 1024  # 64 GPUs with every counter print less than 1 MiB

_Readings = dict[str, dict[str, float]]
"""Metric → MIG instance ("" for the whole GPU) → value."""


def run_dcgm(url: str, timeout_s: float) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Give the GPUs that the exporter at `url` lists, or a note why not."""
    try:
        text = _fetch_within(url, timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as exc:
        return (), (f"dcgm: {str(exc) or type(exc).__name__}",)
    gpus = parse(text)
    return gpus, () if gpus else ("dcgm: the exporter lists no GPU",)


def parse(text: str) -> tuple[Gpu, ...]:
    """Read the exporter's text; lines that cannot be read are left out."""
    readings: dict[int, _Readings] = {}
    labels: dict[int, dict[str, str]] = {}
    for sample in _samples(text):
        index = _index(sample.labels)
        if index is None:
            continue
        metric = sample.name.removeprefix(_PREFIX)
        instance = sample.labels.get("GPU_I_ID", "")
        labels.setdefault(index, sample.labels)
        by_instance = readings.setdefault(index, {}).setdefault(metric, {})
        value = percent(sample.value) if metric == "GPU_UTIL" else number(sample.value)
        if value is not None:
            # Not added up: pods that share a GPU repeat its row under other labels.
            by_instance[instance] = value
    return tuple(
        _gpu(index, labels[index], readings[index]) for index in sorted(labels)
    )


def _fetch_within(url: str, timeout_s: float) -> str:
    """Fetch under one limit for all of it.

    httpx limits single reads only, and nothing limits a name lookup: a thread is left
    behind when time is up, which ends with the probe's process.
    """
    outcome: list[str | Exception] = []

    def fetch() -> None:
        try:
            outcome.append(_fetch(url, timeout_s))
        except Exception as exc:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append(exc)

    thread = threading.Thread(target=fetch, name="dcgm-fetch", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise TimeoutError(f"did not end within {timeout_s:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _fetch(url: str, timeout_s: float) -> str:
    # Loading the trust store costs 20 ms and more: only where TLS is spoken.
    verify = httpx.create_ssl_context() if url.startswith("https:") else False
    with (
        httpx.Client(verify=verify, timeout=timeout_s, trust_env=False) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"answers {response.status_code}")
        body = bytearray()
        for piece in response.iter_bytes(65_536):
            body += piece
            if len(body) > _MAX_BYTES:
                raise ValueError(f"sends over {_MAX_BYTES} bytes")
    return body.decode("utf-8", "replace")


def _samples(text: str) -> Iterator[Sample]:
    # Filtered by name first: parsing all 500 lines costs eight times as much. Parsed
    # line by line: one "ERROR - FAILED…" line must not cost the others.
    for line in text.split("\n"):
        if not line.startswith(_NAMES):
            continue
        try:
            for family in text_string_to_metric_families(line):
                yield from (each for each in family.samples if each.name in _NAMES)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            continue  # what the parser is known to raise for text that is no sample


def _index(labels: dict[str, str]) -> int | None:
    values = (labels.get(label, "") for label in _INDEX_LABELS)
    numbers = (whole(value, _INDEX_MAX) for value in values if value.isdecimal())
    return next((index for index in numbers if index is not None), None)


def _gpu(index: int, labels: dict[str, str], readings: _Readings) -> Gpu:
    used, free = _sum(readings, "FB_USED"), _sum(readings, "FB_FREE")
    total = _sum(readings, "FB_TOTAL")
    if total is None and used is not None and free is not None:
        total = used + free  # FB_TOTAL is not among the exporter's default counters
    return Gpu(
        index=index,
        uuid=name(labels.get("UUID")) or f"GPU-{index}",
        name=name(labels.get("modelName")),
        vram_mb=whole(total),
        driver=name(labels.get("DCGM_FI_DRIVER_VERSION")),
        util_pct=_most(readings, "GPU_UTIL"),
        mem_used_mb=whole(used),
        temp_c=_most(readings, "GPU_TEMP"),
        power_w=_most(readings, "POWER_USAGE"),
    )


def _sum(readings: _Readings, metric: str) -> float | None:
    """Give the whole GPU's value, or that of its MIG instances together."""
    values: dict[str, Any] = readings.get(metric, {})
    return values[""] if "" in values else (sum(values.values()) if values else None)


def _most(readings: _Readings, metric: str) -> float | None:
    values = readings.get(metric, {})
    return values[""] if "" in values else max(values.values(), default=None)
