"""The page that says at a glance whether the node takes work, and if not, why.

Pure: HealthView → HTML. Everything is escaped, nothing is loaded from elsewhere and no
script runs, so the page needs no trust in what the view says.
"""

from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.status.view import (
    Gate,
    HealthView,
    NodeState,
    RunningJob,
    TickView,
    is_healthy,
    not_ready_because,
)
from aitbc_aps_miner.util.words import duration, size_mb, utc_text

_NONE = "\N{EN DASH}"


def render(view: HealthView) -> str:
    """Give the whole page."""
    mood, headline = _headline(view)
    config = f"config <code>{escape(view.config_hash[:12] or _NONE)}</code>"
    if view.config_path:
        config += f" from {escape(view.config_path)}"
    return _template().substitute(
        node_id=escape(view.node_id),
        version=escape(view.version),
        uptime=duration(view.uptime_s),
        mood=mood,
        headline=headline,
        notices="".join(_notices(view)),
        cards="".join(_cards(view)),
        jobs=_jobs(view.jobs),
        gpus=_gpus(view),
        ticks=_ticks(view.ticks),
        config=config,
    )


@cache
def _template() -> Template:
    return Template(Path(__file__).with_name("page.html").read_text("utf-8"))


def _headline(view: HealthView) -> tuple[str, str]:
    if not is_healthy(view):
        return "bad", "out of contact"
    if view.state is not NodeState.RUNNING:
        return "warn", str(view.state)
    if not_ready_because(view):
        return "warn", "taking no jobs"
    return "good", "taking jobs"


def _notices(view: HealthView) -> Iterable[str]:
    if not is_healthy(view):
        age_s = view.last_heartbeat_age_s
        said = "No heartbeat was answered" + (
            " yet." if age_s is None else f" for {duration(age_s)}."
        )
        url = view.coordinator_url or "the coordinator"
        yield _notice("bad", "coordinator", said, f"Check that {url} is in reach.")
    if view.coordinator_error:
        yield _notice("bad", "last error", view.coordinator_error)
    for gate in view.gates:
        yield _gate(gate)
    if view.config_problems:
        words = ("The edited file is not in force:", *view.config_problems)
        yield _notice("bad", "configuration", *words)


def _gate(gate: Gate) -> str:
    try:
        since = utc_text(gate.since, "seconds")
    except (ValueError, OverflowError, OSError):  # a clock that never was set
        since = "?"
    return _notice("", f"gate: {gate.gate}", f"No jobs since {since}.", gate.remedy)


def _notice(mood: str, title: str, *lines: str) -> str:
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    title = escape(title)
    return f'<div class="card notice {mood}"><b>{title}</b>{paragraphs}</div>'


def _cards(view: HealthView) -> Iterable[str]:
    for kind, slots in view.slots.items():
        held = slots.total - slots.free
        label = f"{kind.upper()} slots in use"
        yield _card(label, f"{held} of {slots.total}", f"{slots.free} free")
    yield _card("Running jobs", str(len(view.jobs)), f"{view.queued} queued")
    yield _card("Undelivered results", str(view.undelivered), "kept and sent again")
    age_s = view.last_heartbeat_age_s
    heard = "none yet" if age_s is None else f"{duration(age_s)} ago"
    if not view.heartbeats_offered:
        heard = "not offered"
    registered = "registered" if view.registered else "not registered"
    yield _card("Last heartbeat", heard, f"{registered} at {view.coordinator_url}")
    yield _card("Load", f"{view.cpu_load:.2f}", f"on {view.cores} CPUs")
    yield _card(
        "Memory free",
        size_mb(view.memory_free_mb),
        f"of {size_mb(view.memory_mb)}",
    )
    yield _card(
        "Disk free", size_mb(view.disk_free_mb), f"{view.disk_used_pct:.0f} % used"
    )


def _card(label: str, value: str, hint: str) -> str:
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div>'
        f'<div class="hint">{escape(hint)}</div></div>'
    )


def _jobs(jobs: tuple[RunningJob, ...]) -> str:
    if not jobs:
        return '<tr><td class="none">No job is running.</td></tr>'
    head = _head("Job", "Runner", "State", "Slot", "Progress", "Running for", "Note")
    rows = (
        _row(
            f"<code>{escape(job.job_id)}</code>",
            escape(job.runner),
            escape(job.state),
            escape(job.slot),
            _NONE if job.pct is None else _bar(job.pct),
            _age(job),
            escape(job.note) or _NONE,
        )
        for job in jobs
    )
    return head + "".join(rows)


def _age(job: RunningJob) -> str:
    limit = "" if job.timeout_s is None else f" of {duration(job.timeout_s)}"
    return f'{duration(job.age_s)}<span class="soft">{limit}</span>'


def _gpus(view: HealthView) -> str:
    if not view.gpus:
        return ""
    head = _head("GPU", "Name", "Memory used", "Use", "Temperature", "Power")
    rows = "".join(_gpu(gpu) for gpu in view.gpus)
    source = escape(view.gpu_source)
    return (
        f'<h2>GPUs · {source}</h2><div class="card scroll"><table>'
        f"{head}{rows}</table></div>"
    )


def _gpu(gpu: Gpu) -> str:
    used = _NONE if gpu.mem_used_mb is None else size_mb(gpu.mem_used_mb)
    total = "" if gpu.vram_mb is None else f" of {size_mb(gpu.vram_mb)}"
    return _row(
        str(gpu.index),
        escape(gpu.name or gpu.uuid),
        used + total,
        _NONE if gpu.util_pct is None else _bar(gpu.util_pct),
        _NONE if gpu.temp_c is None else f"{gpu.temp_c:.0f} °C",
        _NONE if gpu.power_w is None else f"{gpu.power_w:.0f} W",
    )


def _ticks(ticks: tuple[TickView, ...]) -> str:
    if not ticks:
        return ""
    rows = (
        _row(
            escape(tick.tick),
            f'<span class="{"good" if tick.outcome == "ok" else "bad"}">'
            f"{escape(tick.outcome)}</span>",
            f"{duration(tick.age_s)} ago",
            _took(tick.took_s),
            escape(tick.error) or _NONE,
        )
        for tick in ticks
    )
    head = _head("Tick", "Outcome", "Ended", "Took", "Error")
    return (
        f'<h2>Ticks</h2><div class="card scroll"><table>{head}{"".join(rows)}'
        "</table></div>"
    )


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)


def _head(*titles: str) -> str:
    return "<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>"


def _row(*cells: str) -> str:
    *first, last = cells
    narrow = "".join(f"<td>{cell}</td>" for cell in first)
    return f'<tr>{narrow}<td class="wide">{last}</td></tr>'


def _bar(pct: float) -> str:
    shown = min(100.0, max(0.0, pct))
    return f'<span class="bar"><i style="width:{shown:.0f}%"></i></span>{shown:.0f} %'
