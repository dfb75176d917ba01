"""What to do about each job after a restart or a lost contact. Pure.

disk + memory + the coordinator's view → one action per job. The table is DESIGN's
recovery table, row by row; unknown is never "none", so an unanswered question touches
nothing.
"""

from dataclasses import dataclass
from enum import StrEnum


class OnDisk(StrEnum):
    """What the workspace says of a job."""

    NOTHING = "nothing"
    """No workspace of this job is here."""
    CLAIMED = "claimed"
    """Manifest durable, ack not answered, lock free."""
    ACKED = "acked"
    """Acked, payload never spawned, lock free."""
    SPAWNED = "spawned"
    """The payload may have run, no outcome, lock free."""
    RUNNING = "running"
    """Its job process holds the lock and has no outcome yet."""
    DELIVERING = "delivering"
    """Its job process holds the lock and has recorded the outcome."""
    UNDELIVERED = "undelivered"
    """Outcome recorded, lock free, not delivered."""
    DELIVERED = "delivered"
    """Delivered, or dropped."""


class View(StrEnum):
    """What the coordinator says of a job."""

    LEASED = "leased"
    """Ours and active: handed out, not acked."""
    RUNNING = "running"
    """Ours and active: acked or running."""
    FINAL_OURS = "final-ours"
    """Final, with our outcome."""
    OTHER = "other"
    """Cancelled, expired, or another node's or attempt's."""
    ABSENT = "absent"
    """A complete list without it."""
    UNKNOWN = "unknown"
    """The question has no answer."""
    UNSUPPORTED = "unsupported"
    """This dialect has no such question."""

    @property
    def is_active(self) -> bool:
        """Whether the coordinator counts on us for this attempt."""
        return self in {View.LEASED, View.RUNNING}


class Action(StrEnum):
    """What the sweep does."""

    WAIT = "wait"
    """Nothing now."""
    ADOPT = "adopt"
    """Count its slot and watch its end."""
    STOP = "stop"
    """Stop it and send nothing."""
    DELIVER = "deliver"
    """Submit the recorded outcome (again), with its key."""
    MARK_DELIVERED = "mark-delivered"
    """The coordinator has it already."""
    DROP = "drop"
    """Keep the outcome for the owner; nobody will take it."""
    RERUN = "rerun"
    """End what is left of it and run it again."""
    FAIL_LOST = "fail-lost"
    """End what is left of it and report E_LOST."""
    ABANDON = "abandon"
    """End what is left of it and forget it."""
    RUN = "run"
    """Run it: it never ran. The claim is acked (again) first."""
    FORGET = "forget"
    """Remove the workspace: the job is not ours."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What matters of one job for the decision."""

    job_id: str
    on_disk: OnDisk
    adopted: bool = False
    """This daemon counts it already."""
    idempotent: bool = False
    time_left: bool = True
    has_idempotency: bool = True
    """Whether this dialect takes the same outcome twice without harm."""
    has_ack: bool = True


def decide(found: Found, view: View) -> Action:  # noqa: PLR0911  one row each
    """Give the action for one job."""
    if view is View.UNKNOWN and found.on_disk is not OnDisk.RUNNING:
        return Action.WAIT
    match found.on_disk:
        case OnDisk.RUNNING:
            return _running(found, view)
        case OnDisk.DELIVERING:
            return Action.WAIT
        case OnDisk.UNDELIVERED:
            return _undelivered(found, view)
        case OnDisk.SPAWNED:
            return _spawned(found, view)
        case OnDisk.ACKED | OnDisk.CLAIMED:
            return _never_ran(view)
        case OnDisk.NOTHING:
            return _nothing(found, view)
        case _:  # DELIVERED: the coordinator may not know it yet
            return Action.DELIVER if view.is_active else Action.WAIT


def _running(found: Found, view: View) -> Action:
    if view in {View.OTHER, View.FINAL_OURS}:
        return Action.STOP
    # A running job is counted also when nobody answers: it does hold its slot.
    return Action.WAIT if found.adopted else Action.ADOPT


def _undelivered(found: Found, view: View) -> Action:
    if view is View.FINAL_OURS:
        return Action.MARK_DELIVERED
    if view is View.OTHER:
        return Action.DROP
    if view is View.ABSENT and not found.has_idempotency:
        return Action.DROP
    return Action.DELIVER


def _spawned(found: Found, view: View) -> Action:
    if view.is_active or view is View.UNSUPPORTED:
        may_rerun = found.idempotent and found.time_left
        return Action.RERUN if may_rerun else Action.FAIL_LOST
    return Action.ABANDON


def _never_ran(view: View) -> Action:
    if view.is_active or view is View.UNSUPPORTED:
        return Action.RUN
    return Action.FORGET


def _nothing(found: Found, view: View) -> Action:
    if view is View.LEASED:
        return Action.RUN
    if view is View.RUNNING:
        # It may have run before its disk was lost, unless nothing runs before an ack
        # in a dialect that has none.
        may_run = found.idempotent or not found.has_ack
        return Action.RUN if may_run else Action.FAIL_LOST
    return Action.WAIT
