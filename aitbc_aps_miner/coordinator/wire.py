"""The shapes of node-v1's answers; unknown fields are ignored, wrong types are not."""

import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aitbc_aps_miner.coordinator.answer import Reply
from aitbc_aps_miner.errors import UnavailableError
from aitbc_aps_miner.models import Lease

_DAY_S = 86400
_WORD = re.compile(rb"[A-Za-z][A-Za-z .!_-]{0,30}")
"""`OK`, `accepted`, `true`: no page of a proxy or portal looks like this."""
_MAX_LIST = 10_000
_DATE_STEP_S = 1.0
"""The Date header counts whole seconds: what it may lag behind the server's clock."""


class _Answer(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False
    )


AnswerT = TypeVar("AnswerT", bound=_Answer)


def read_answer(shape: type[AnswerT], reply: Reply) -> AnswerT:
    """Give an answer in its shape. Raises UnavailableError when it is another one.

    A coordinator of the specification alone may say no more than a word, or nothing.
    """
    value = {} if _WORD.fullmatch(reply.body.strip()) else reply.json()
    if value is None or isinstance(value, str):
        value = {}
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if each is not None}
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "answer"
        raise UnavailableError(
            f"answer not understood: {where!a}: {first['msg']}"
        ) from error


def _epoch_s(value: str) -> str:
    # RFC 3339 permits any number of digits, Python reads six.
    at = datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", value))
    if at.tzinfo is None:
        raise ValueError("has no time zone")
    return at.isoformat()


Time = Annotated[str, Field(max_length=64), AfterValidator(_epoch_s)]
Seconds = Annotated[float, Field(ge=0, le=365 * _DAY_S)]
JobId = Annotated[str, Field(max_length=4096)]


class Registered(_Answer):
    """POST /nodes/register."""

    node_token: Annotated[str, Field(min_length=1, max_length=8192)]
    expires_at: Time | None = None
    heartbeat_interval_s: Seconds | None = None
    extensions: Annotated[list[str], Field(max_length=1000)] | None = None


class Heard(_Answer):
    """POST /nodes/heartbeat."""

    cancel: Annotated[list[JobId], Field(max_length=_MAX_LIST)] = []
    drain: bool = False
    refresh: Annotated[list[str], Field(max_length=1000)] = []


class _WithLease(_Answer):
    lease_ttl_s: Seconds | None = None
    lease_expires_at: Time | None = None


class Leased(_WithLease):
    """POST /jobs/ack and /jobs/progress."""

    cancel: bool = False


class Taken(_Answer):
    """POST /jobs/result and /jobs/fail: nothing in it matters but that it is one."""


class Pulled(_Answer):
    """POST /jobs/pull; what the jobs are is manifest.py's business."""

    job: Any = None
    jobs: list[Any] = []


class Job(_WithLease):
    """One job as the recovery queries show it."""

    job_id: JobId
    state: Annotated[str, Field(max_length=64)]
    node_id: str | None = None
    attempt: Annotated[int, Field(ge=1)] = 1
    outcome: Any = None
    manifest: Any = None


class Jobs(_Answer):
    """GET /jobs; `next` names the following page."""

    jobs: Annotated[list[Job], Field(max_length=_MAX_LIST)]
    next: Annotated[str, Field(max_length=8192)] | None = None


def lease_of(answer: _WithLease, reply: Reply, now: float) -> Lease:
    """Give what is left of a lease now, counted from the sending of the call."""
    if answer.lease_ttl_s is not None:
        return Lease(ttl_s=max(0.0, answer.lease_ttl_s - reply.elapsed_s))
    return Lease(ttl_s=seconds_left(answer.lease_expires_at, reply, now))


def seconds_left(at: str | None, reply: Reply, now: float) -> float | None:
    """Turn a time of the server's into seconds from now, rather too few.

    Counts from the answer's own Date; `now` is our wall clock, for want of that.
    """
    if at is None:
        return None
    said_at = now if reply.date is None else reply.date + _DATE_STEP_S + reply.elapsed_s
    return max(0.0, datetime.fromisoformat(at).timestamp() - said_at)
