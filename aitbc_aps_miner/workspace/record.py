"""What a workspace's files say, as frozen records to and from JSON; no I/O.

`state.json` is a Record, `job.json` a Claim, `outcome.json` an Outcome. Reading is
strict about what decides something and raises ValueError; unknown keys are ignored, so
that a newer version's files can still be read after a downgrade.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aitbc_aps_miner.errors import ErrorCode
from aitbc_aps_miner.models import (
    ArtifactFile,
    JobState,
    Origin,
    Outcome,
    Reservation,
)
from aitbc_aps_miner.util.words import utc_text

VERSION = 1
_KEPT_HISTORY = 64
"""A delivery may be retried for weeks; the first half and the latest are kept."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One instant on the clocks that a record needs."""

    realtime: float
    boottime: float
    boot_id: str

    @property
    def text(self) -> str:
        """RFC 3339 in UTC."""
        return utc_text(self.realtime)

    def seconds_since(self, earlier: "Moment") -> float:
        """Seconds from `earlier`; across a reboot by the wall clock, never negative."""
        if earlier.boot_id == self.boot_id:
            return max(0.0, self.boottime - earlier.boottime)
        return max(0.0, self.realtime - earlier.realtime)


@dataclass(frozen=True, kw_only=True)
class Entered:
    """One line of a job's history."""

    state: JobState
    moment: Moment


@dataclass(frozen=True, kw_only=True)
class Record:
    """`state.json`: how far a job is, and what adopting it needs."""

    job_id: str
    attempt: int
    origin: Origin
    reservation: Reservation
    history: tuple[Entered, ...]
    """Never empty; the last one is the state."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent in each state, but for the present stay."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """pid, start_time, boot_id, cgroup, slot, deadline_boottime, next_try_at, …"""
    spawned: bool = False
    delivered_at: float | None = None
    """CLOCK_REALTIME seconds."""
    dropped: str | None = None
    """Why nobody will ever take the outcome."""
    outcome_sha256: str | None = None
    buried: bool = False

    @property
    def state(self) -> JobState:
        """The state entered last."""
        return self.history[-1].state

    @property
    def settled(self) -> bool:
        """Whether the coordinator has the outcome, or nobody will ever take it."""
        return self.delivered_at is not None or self.dropped is not None

    def entered(
        self, state: JobState, moment: Moment, facts: Mapping[str, Any]
    ) -> "Record":
        """Give the record after moving to `state`."""
        line = Entered(state=state, moment=moment)
        half = _KEPT_HISTORY // 2
        kept = self.history
        if len(kept) >= _KEPT_HISTORY:
            kept = kept[:half] + kept[1 - half :]
        return replace(
            self,
            history=(*kept, line),
            seconds=self.timings(moment),
            facts={**self.facts, **facts},
        )

    def timings(self, moment: Moment) -> dict[str, float]:
        """Seconds spent in each state up to `moment`."""
        last = self.history[-1]
        spent = dict(self.seconds)
        stay = moment.seconds_since(last.moment)
        spent[last.state.value] = round(spent.get(last.state.value, 0.0) + stay, 6)
        return spent

    def to_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        return {
            "version": VERSION,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "state": self.state.value,
            "delivered_at": self.delivered_at,
            "dropped": self.dropped,
            "spawned": self.spawned,
            "outcome_sha256": self.outcome_sha256,
            "buried": self.buried,
            "facts": dict(self.facts),
            "origin": asdict(self.origin),
            "reservation": asdict(self.reservation),
            "seconds": dict(self.seconds),
            "history": [_line_to_json(line) for line in self.history],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Record":
        """Read the JSON form; ValueError when it is not one."""
        try:
            return cls(
                job_id=_typed(data["job_id"], str),
                attempt=_typed(data["attempt"], int),
                origin=origin_from_json(data["origin"]),
                reservation=reservation_from_json(data["reservation"]),
                history=_history(data["history"]),
                seconds=_typed(data["seconds"], dict),
                facts=_typed(data["facts"], dict),
                spawned=_typed(data["spawned"], bool),
                delivered_at=_optional(data["delivered_at"], float),
                dropped=_optional(data["dropped"], str),
                outcome_sha256=_optional(data["outcome_sha256"], str),
                buried=_typed(data["buried"], bool),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"no state record: {exc!r}") from exc


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`job.json`: what was promised by the ack, durable before it."""

    job_id: str
    attempt: int
    raw: Any
    """The manifest as it came, without the values of its secrets."""
    secret_names: tuple[str, ...]
    """Secrets that a rerun has to fetch again from the coordinator."""
    origin: Origin
    reservation: Reservation
    claimed_at: str

    def to_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> "Claim":
        """Read the JSON form; ValueError when it is not one."""
        try:
            return cls(
                job_id=_typed(data["job_id"], str),
                attempt=_typed(data["attempt"], int),
                raw=data["raw"],
                secret_names=tuple(data["secret_names"]),
                origin=origin_from_json(data["origin"]),
                reservation=reservation_from_json(data["reservation"]),
                claimed_at=_typed(data["claimed_at"], str),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"no claim: {exc!r}") from exc


def without_secrets(raw: Any) -> tuple[Any, tuple[str, ...]]:
    """Give the manifest without `secrets`, and the names that were in there."""
    if not isinstance(raw, Mapping):
        return raw, ()
    secrets = raw.get("secrets")
    names = tuple(secrets) if isinstance(secrets, Mapping) else ()
    return {key: value for key, value in raw.items() if key != "secrets"}, names


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Give the JSON form of an outcome."""
    return {"version": VERSION, **asdict(outcome)}


def outcome_from_json(data: Any) -> Outcome:
    """Read an outcome's JSON form; ValueError when it is not one."""
    try:
        fields = {key: data[key] for key in Outcome.__dataclass_fields__}
        code = fields["code"]
        fields["code"] = None if code is None else ErrorCode(code)
        fields["artifacts"] = tuple(ArtifactFile(**one) for one in fields["artifacts"])
        _typed(fields["succeeded"], bool)
        return Outcome(**fields)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"no outcome: {exc!r}") from exc


def origin_from_json(data: Any) -> Origin:
    """Read an origin."""
    fields = {key: _typed(data[key], str) for key in _ORIGIN}
    return Origin(**fields, auth=_optional(data.get("auth"), str))


def reservation_from_json(data: Any) -> Reservation:
    """Read a reservation."""
    return Reservation(
        kind=_typed(data["kind"], str),
        cpu_threads=_typed(data["cpu_threads"], int),
        gpu_uuids=tuple(_typed(uuid, str) for uuid in data["gpu_uuids"]),
        vram_mb=_typed(data["vram_mb"], int),
    )


_ORIGIN = ("api", "base_url", "node_id")


def _line_to_json(line: Entered) -> dict[str, Any]:
    return {
        "state": line.state.value,
        "at": line.moment.text,
        "realtime": line.moment.realtime,
        "boottime": line.moment.boottime,
        "boot_id": line.moment.boot_id,
    }


def _line_from_json(data: Any) -> Entered:
    return Entered(
        state=JobState(data["state"]),
        moment=Moment(
            realtime=_typed(data["realtime"], float),
            boottime=_typed(data["boottime"], float),
            boot_id=_typed(data["boot_id"], str),
        ),
    )


def _history(data: Any) -> tuple[Entered, ...]:
    lines = tuple(_line_from_json(line) for line in data)
    if not lines:
        raise ValueError("no state record: the history is empty")
    return lines


def _typed(value: Any, kind: type) -> Any:
    """Give `value` when JSON's type of it is `kind`; an int is a float, too."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, given {value!r}")
    return value


def _optional(value: Any, kind: type) -> Any:
    return None if value is None else _typed(value, kind)
