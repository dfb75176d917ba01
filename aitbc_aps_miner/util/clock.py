"""The machine's clocks, a timer as a file descriptor, and a watch on clock steps."""

import contextlib
import ctypes
import os
import time

from aitbc_aps_miner.ports import Clock

# <sys/timerfd.h>; Python has these names from 3.13 on.
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_FAR_FUTURE_S = 2**33  # the year 2242: the timer is there to be cancelled
_COUNTER_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)


class SystemClock:
    """The clocks of this machine (ports.Clock)."""

    def realtime(self) -> float:
        """Seconds since the epoch, UTC; may step in either direction."""
        return time.clock_gettime(time.CLOCK_REALTIME)

    def monotonic(self) -> float:
        """Seconds that never step and stand still while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    def boottime(self) -> float:
        """Seconds that never step and go on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class TimerFd:
    """A timer whose descriptor becomes readable when it is due (timerfd_create(2)).

    Any thread may arm it while another one waits in epoll: no wake-up is needed.
    """

    def __init__(self, clock_id: int = time.CLOCK_MONOTONIC) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd: int = _checked(_libc.timerfd_create(clock_id, flags))

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._fd

    def arm(self, at_s: float, *, cancel_on_set: bool = False) -> None:
        """Become due at `at_s` of the timer's clock; a time gone by is due at once."""
        seconds, fraction = divmod(max(at_s, 1e-9), 1)
        value = _Timespec(int(seconds), int(fraction * 1e9) or (seconds == 0))
        flags = _TFD_TIMER_ABSTIME | (_TFD_TIMER_CANCEL_ON_SET if cancel_on_set else 0)
        self._set(flags, value)

    def disarm(self) -> None:
        """Never become due."""
        self._set(0, _Timespec(0, 0))

    def drain(self) -> None:
        """Make the descriptor unreadable until the timer is due again."""
        # EAGAIN when it isn't due; ECANCELED, an OSError, when the clock was set.
        with contextlib.suppress(OSError):
            os.read(self._fd, _COUNTER_BYTES)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def _set(self, flags: int, value: _Timespec) -> None:
        spec = _Itimerspec(_Timespec(0, 0), value)
        _checked(_libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None))


class ClockStepWatch:
    """Tells when the wall clock is set, and by how much it stepped.

    `fileno()` becomes readable when it is set; then, or whenever one likes, ask
    `step()`. REALTIME less BOOTTIME changes with steps only (and, by parts per million,
    with the slewing of NTP): suspending the machine moves both clocks alike.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = self._offset()
        self._timer = TimerFd(time.CLOCK_REALTIME)
        self._timer.arm(_FAR_FUTURE_S, cancel_on_set=True)

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when the wall clock is set."""
        return self._timer.fileno()

    def step(self) -> float:
        """Seconds that the wall clock has stepped since this was asked last."""
        self._timer.drain()
        self._timer.arm(_FAR_FUTURE_S, cancel_on_set=True)
        before, self._offset_s = self._offset_s, self._offset()
        return self._offset_s - before

    def close(self) -> None:
        """Give the descriptor back."""
        self._timer.close()

    def _offset(self) -> float:
        return self._clock.realtime() - self._clock.boottime()


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
