"""Who may run here."""

import pytest

from aitbc_aps_miner.admission import Rules, admit
from aitbc_aps_miner.errors import ErrorCode, JobError
from aitbc_aps_miner.models import Manifest, Reservation
from aitbc_aps_miner.slots import Capacity

NODE = Capacity(cpu_slots=1, gpu_slots=0, cpu_threads=4)
RULES = Rules(
    runners=frozenset({"cli"}),
    network_jobs=("api.example.org:443", "*.cdn.example.org:*", "*:53"),
)


def manifest(runner: str = "cli", allow: tuple[str, ...] = ()) -> Manifest:
    """Give a small valid manifest."""
    return Manifest(
        job_id="j", runner=runner, timeout_s=1, command="echo", network_allow=allow
    )


def yes(_: Manifest) -> None:
    """Let every command pass."""


def no(_: Manifest) -> None:
    """Refuse every command."""
    raise JobError(ErrorCode.E_DENY, "argument 2 is not allowed")


def test_an_allowed_job_gets_its_slot() -> None:
    """Policy passed, room there: a reservation."""
    assert admit(manifest(), NODE, RULES, yes) == Reservation(kind="cpu")


def test_a_runner_that_is_not_offered_is_denied() -> None:
    """The answer names what is offered."""
    with pytest.raises(JobError, match=r"'inference' is not offered .*offered: cli"):
        admit(manifest("inference"), NODE, RULES, yes)


def test_the_runners_own_check_is_asked() -> None:
    """Its refusal is the answer."""
    with pytest.raises(JobError, match="argument 2 is not allowed"):
        admit(manifest(), NODE, RULES, no)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("api.example.org:443", True),
        ("API.example.org:443", True),
        ("api.example.org:80", False),
        ("a.cdn.example.org:8080", True),
        ("cdn.example.org:443", False),
        ("evilcdn.example.org:443", False),
        ("anything.test:53", True),
        ("api.example.org", False),
        (":443", False),
    ],
)
def test_network_must_lie_within_the_owners(target: str, *, allowed: bool) -> None:
    """host:port is compared by label and by port."""
    if allowed:
        assert admit(manifest(allow=(target,)), NODE, RULES, yes).kind == "cpu"
    else:
        with pytest.raises(JobError) as raised:
            admit(manifest(allow=(target,)), NODE, RULES, yes)
        assert raised.value.code is ErrorCode.E_DENY
