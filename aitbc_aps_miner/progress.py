"""Tells the coordinator how far a job is, and so renews its lease; nothing else.

A thread of the job process with a mailbox of one: only the newest report counts. A
failure here never hurts the job; a lease that can't be renewed ends it through the
watch.
"""

import threading
from types import TracebackType
from typing import Self

from aitbc_aps_miner.errors import CoordinatorError, JobGoneError
from aitbc_aps_miner.models import Manifest, Progress
from aitbc_aps_miner.ports import Coordinator
from aitbc_aps_miner.watch import JobWatch

MIN_PAUSE_S = 1.0
# Three tries fit into one lease before the guard has to stop the job.
RENEWALS_PER_LEASE = 3


class ProgressSender:
    """Sends the newest progress at most once a second; a context manager.

    A job that takes less than a second sends none: nobody would see it.
    """

    def __init__(
        self, coordinator: Coordinator, manifest: Manifest, watch: JobWatch
    ) -> None:
        self._coordinator = coordinator
        self._manifest = manifest
        self._watch = watch
        self._wake = threading.Condition()
        self._newest = Progress(pct=0)
        self._fresh = False
        self._ended = False
        self._thread = threading.Thread(
            target=self._send_all, name="progress", daemon=True
        )

    def __enter__(self) -> Self:
        if self._coordinator.capabilities.progress:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not joined: a call in flight may hang for its whole timeout, and this
        # process ends by itself soon after.
        with self._wake:
            self._ended = True
            self._wake.notify()

    def put(self, progress: Progress) -> None:
        """Leave a report to be sent when it is time."""
        with self._wake:
            self._newest, self._fresh = progress, True
            self._wake.notify()

    def _send_all(self) -> None:
        while not self._wait_for_end(MIN_PAUSE_S):
            ttl_s = self._watch.lease_ttl_s
            renew_s = ttl_s / RENEWALS_PER_LEASE if ttl_s else None
            with self._wake:
                self._wake.wait_for(lambda: self._fresh or self._ended, renew_s)
                if self._ended:
                    return
                progress, self._fresh = self._newest, False
            self._send(progress)

    def _wait_for_end(self, timeout_s: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: self._ended, timeout_s)

    def _send(self, progress: Progress) -> None:
        try:
            reply = self._coordinator.progress(self._manifest, progress)
        except JobGoneError:
            self._watch.cancel()  # another node's by now: two must never run one job
            return
        except CoordinatorError:
            return
        if reply.cancel:
            self._watch.cancel()
        self._watch.lease(reply.lease)
