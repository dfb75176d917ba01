"""Some jobs from submission to verified results, one poll at a time.

Waits for nothing and prints nothing: whoever polls decides how often and for how long.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aitbc_aps_miner.reference_coordinator.client import Client
from aitbc_aps_miner.reference_coordinator.records import JobState
from aitbc_aps_miner.reference_coordinator.samples import Sample

_ACTIVE = frozenset(state for state in JobState if not state.is_final)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where one job stands; what a line about it shows."""

    title: str
    job_id: str
    state: str = "waiting"
    """`waiting` for another job, one of the coordinator's states, or `wrong`."""
    pct: float = 0
    note: str = ""
    node_id: str = ""
    duration_s: float | None = None
    problem: str = ""
    """Why it did not succeed, or what is wrong with its results."""
    files: tuple[Path, ...] = ()
    """The downloaded and verified artifacts."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state != "waiting" and self.state not in _ACTIVE

    @property
    def succeeded(self) -> bool:
        """Whether the job succeeded and its results are right."""
        return self.state == JobState.SUCCEEDED


class Batch:
    """Jobs that are submitted, followed and verified together."""

    def __init__(self, client: Client, samples: Iterable[Sample], save: Path) -> None:
        """Artifacts are stored as `save/<job id>/<path>`."""
        self._client = client
        self._samples = {sample.job_id: sample for sample in samples}
        self._save = save
        self.rows = {
            job_id: Row(title=sample.title, job_id=job_id)
            for job_id, sample in self._samples.items()
        }

    @property
    def is_over(self) -> bool:
        """Whether every job has ended."""
        return all(row.is_over for row in self.rows.values())

    @property
    def succeeded(self) -> bool:
        """Whether every job succeeded and its results are right."""
        return all(row.succeeded for row in self.rows.values())

    def poll(self) -> None:
        """Submit what can be submitted, look at what is under way; ClientError."""
        for job_id, row in self.rows.items():
            if row.state == "waiting":
                self.rows[job_id] = self._submit(row)
            elif not row.is_over:
                self.rows[job_id] = self._look(row)

    def _submit(self, row: Row) -> Row:
        sample = self._samples[row.job_id]
        if sample.after is not None:
            before = self.rows[sample.after]
            if not before.is_over:
                return row
            if not before.succeeded:
                return replace(row, state="wrong", problem="its input was not made")
        return replace(row, state=self._client.submit(sample.manifest)["state"])

    def _look(self, row: Row) -> Row:
        job = self._client.job(row.job_id)
        progress = job.get("progress") or {}
        row = replace(
            row,
            state=job["state"],
            pct=float(progress.get("pct") or 0),
            note=str(progress.get("note") or ""),
            node_id=job.get("node_id") or "",
            duration_s=job.get("duration_s"),
        )
        if row.succeeded:
            return self._verify(replace(row, pct=100, note=""), job)
        return replace(row, problem=_problem(job)) if row.is_over else row

    def _verify(self, row: Row, job: Mapping[str, Any]) -> Row:
        """Download every artifact and compare it with what it must be."""
        expect = dict(self._samples[row.job_id].expect)
        wrong, files = [], []
        for artifact in job["artifacts"]:
            path = str(artifact["path"])
            target = self._target(row.job_id, path)
            if target is None:
                wrong.append(f"{path!r}: no path to store an artifact at")
                continue
            digest = self._client.download(row.job_id, path, target)
            files.append(target)
            if digest != artifact["sha256"]:
                wrong.append(f"{path}: received {digest}, not {artifact['sha256']}")
            is_right = expect.pop(path, None)
            if is_right is not None and not is_right(target.read_bytes()):
                wrong.append(f"{path}: its content is not what it must be")
        wrong += [f"{path}: missing" for path in expect]
        if wrong:
            return replace(row, state="wrong", problem="; ".join(wrong))
        return replace(row, files=tuple(files))

    def _target(self, job_id: str, path: str) -> Path | None:
        """Make room for an artifact; None for a path that would lead elsewhere."""
        base = (self._save / job_id).resolve()
        target = (base / path).resolve()
        if target == base or not target.is_relative_to(base):
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _problem(job: Mapping[str, Any]) -> str:
    outcome = job.get("outcome") or {}
    words = (outcome.get("error_code"), outcome.get("error_msg"))
    return ": ".join(str(word) for word in words if word)
