"""What the disk and the coordinator say of a job, in the words of reconcile.py."""

from aitbc_aps_miner.coordinator import JobView
from aitbc_aps_miner.errors import CoordinatorError
from aitbc_aps_miner.models import JobState, Origin
from aitbc_aps_miner.reconcile import OnDisk, View
from aitbc_aps_miner.util import log
from aitbc_aps_miner.workspace import StoredJob
from aitbc_aps_miner.workspace.record import Record
from aitbc_aps_miner.world import World

ACTIVE = frozenset({"leased", "acked", "running"})
_OURS = frozenset({"succeeded", "failed"})
_CANCELLED = "cancelled"

_log = log.get_logger()


class Views:
    """Each coordinator is asked for its list once a sweep, then by id."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lists: dict[Origin, dict[str, JobView] | CoordinatorError | None] = {}

    def of(self, record: Record) -> View:
        """Say what a job's coordinator says of it."""
        try:
            active = self.active(record.origin)
            if active is None:
                return View.UNSUPPORTED
            view = active.get(record.job_id) or self._ask(record)
        except CoordinatorError as error:
            _log.info("job.view_unknown", job_id=record.job_id, reason=str(error))
            return View.UNKNOWN
        return view_of(view, record)

    def active(self, origin: Origin) -> dict[str, JobView] | None:
        """Ask for the list once a sweep; a failure is remembered like an answer."""
        if origin not in self._lists:
            try:
                with self._world.coordinator(origin) as coordinator:
                    jobs = coordinator.active_jobs(origin.node_id)
                self._lists[origin] = (
                    None if jobs is None else {job.job_id: job for job in jobs}
                )
            except CoordinatorError as error:
                self._lists[origin] = error
        answer = self._lists[origin]
        if isinstance(answer, CoordinatorError):
            raise answer
        return answer

    def _ask(self, record: Record) -> JobView | None:
        with self._world.coordinator(record.origin) as coordinator:
            return coordinator.query(record.job_id)


def view_of(view: JobView | None, record: Record) -> View:
    """Say what the coordinator's answer means for our attempt."""
    if view is None:
        return View.ABSENT
    ours = view.node_id in (None, record.origin.node_id)
    if not ours or view.attempt != record.attempt:
        return View.OTHER
    if view.state in ACTIVE:
        return View.LEASED if view.state == "leased" else View.RUNNING
    # A job that was cancelled on demand ends with what we told of it, too.
    has_ours = view.state in _OURS or (
        view.state == _CANCELLED and view.outcome is not None
    )
    return View.FINAL_OURS if has_ours else View.OTHER


def on_disk_of(job: StoredJob, record: Record) -> OnDisk:
    """Say how far a job is by its workspace."""
    if job.outcome_recorded:
        return OnDisk.DELIVERING if job.lock_held else OnDisk.UNDELIVERED
    if job.lock_held:
        return OnDisk.RUNNING
    if record.spawned:
        return OnDisk.SPAWNED
    return OnDisk.CLAIMED if record.state is JobState.PULLING else OnDisk.ACKED
