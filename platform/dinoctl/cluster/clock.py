"""The operator's clock: the time of the day, but not every step of it.

Deadlines and the times that a stop may take are kept as times of the day, since the process that measures them may not
be the one that noted their beginning. A clock that is set ahead would make all of them pass at once, which nobody can
take back: jobs fail, and pods that save are killed. So a step ahead isn't believed until it has lasted longer than any
stop takes; meanwhile time goes on as the monotonic clock says. Steps back only make waits longer, and are taken as
they come.
"""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("dinoctl.operator")
STEP_S = 30.0
"""What is more than this at once is a step."""
DOUBT_S = 1800.0
"""How long one must have lasted; a machine that was asleep is right about it in the end."""


class Clock:
    """Seconds since the epoch. Thread-safe."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic, self._lock = wall, monotonic, threading.Lock()
        self._now, self._at = wall(), monotonic()
        self._doubted: float | None = None

    def __call__(self) -> float:
        """Now."""
        with self._lock:
            wall, at = self._wall(), self._monotonic()
            expected = self._now + at - self._at
            self._now, self._at = expected if self._doubts(wall - expected, at) else wall, at
            return self._now

    def _doubts(self, ahead: float, at: float) -> bool:
        if ahead <= STEP_S:
            self._doubted = None
            return False
        if self._doubted is None:
            self._doubted = at
            text = "the clock was set ahead by %.0f s; that counts if it lasts for %.0f s"
            _log.warning(text, ahead, DOUBT_S, extra={"reason": "ClockStep"})
        if at - self._doubted < DOUBT_S:
            return True
        self._doubted = None
        return False
