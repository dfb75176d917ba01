"""The recovery table, every row and every column."""

import pytest

from aitbc_aps_miner.reconcile import Action, Found, OnDisk, View, decide

W, A = Action.WAIT, Action
COLUMNS = (
    View.LEASED,
    View.RUNNING,
    View.FINAL_OURS,
    View.OTHER,
    View.ABSENT,
    View.UNKNOWN,
    View.UNSUPPORTED,
)
TABLE: dict[OnDisk, tuple[Action, ...]] = {
    OnDisk.NOTHING: (A.RUN, A.FAIL_LOST, W, W, W, W, W),
    OnDisk.CLAIMED: (A.RUN, A.RUN, A.FORGET, A.FORGET, A.FORGET, W, A.RUN),
    OnDisk.ACKED: (A.RUN, A.RUN, A.FORGET, A.FORGET, A.FORGET, W, A.RUN),
    OnDisk.SPAWNED: (
        A.FAIL_LOST,
        A.FAIL_LOST,
        A.ABANDON,
        A.ABANDON,
        A.ABANDON,
        W,
        A.FAIL_LOST,
    ),
    OnDisk.RUNNING: (A.ADOPT, A.ADOPT, A.STOP, A.STOP, A.ADOPT, A.ADOPT, A.ADOPT),
    OnDisk.DELIVERING: (W, W, W, W, W, W, W),
    OnDisk.UNDELIVERED: (
        A.DELIVER,
        A.DELIVER,
        A.MARK_DELIVERED,
        A.DROP,
        A.DELIVER,
        W,
        A.DELIVER,
    ),
    OnDisk.DELIVERED: (A.DELIVER, A.DELIVER, W, W, W, W, W),
}


@pytest.mark.parametrize("on_disk", list(OnDisk))
@pytest.mark.parametrize("view", list(View))
def test_every_cell(on_disk: OnDisk, view: View) -> None:
    """Each disk state under each view has exactly the action of the table."""
    expected = TABLE[on_disk][COLUMNS.index(view)]
    assert decide(Found(job_id="j", on_disk=on_disk), view) is expected


@pytest.mark.parametrize(
    ("found", "view", "action"),
    [
        (
            Found(job_id="j", on_disk=OnDisk.SPAWNED, idempotent=True),
            View.RUNNING,
            A.RERUN,
        ),
        (
            Found(job_id="j", on_disk=OnDisk.SPAWNED, idempotent=True, time_left=False),
            View.RUNNING,
            A.FAIL_LOST,
        ),
        (
            Found(job_id="j", on_disk=OnDisk.NOTHING, idempotent=True),
            View.RUNNING,
            A.RUN,
        ),
        (
            Found(job_id="j", on_disk=OnDisk.NOTHING, has_ack=False),
            View.RUNNING,
            A.RUN,
        ),
        (Found(job_id="j", on_disk=OnDisk.RUNNING, adopted=True), View.RUNNING, W),
        (
            Found(job_id="j", on_disk=OnDisk.UNDELIVERED, has_idempotency=False),
            View.ABSENT,
            A.DROP,
        ),
    ],
)
def test_circumstances(found: Found, view: View, action: Action) -> None:
    """Idempotence, time left, adoption and the dialect's abilities decide the rest."""
    assert decide(found, view) is action
