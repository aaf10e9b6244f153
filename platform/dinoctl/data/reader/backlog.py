"""What is to be asked for, what was asked for and is not here yet, and what waits to be asked for again.

Plain state, guarded by the reader's lock.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque

from dinoctl.data.reader.fetch import Fetch

_SOONEST_S, _IDLE_S = 0.001, 1.0


class Backlog:
    """Pieces of one plan that have not arrived; another plan has another one."""

    def __init__(self) -> None:
        self._queue: deque[Fetch] = deque()
        self._delayed: list[tuple[float, int, Fetch]] = []
        self._running: dict[Fetch, None] = {}  # those asked for in that order, those that wait for a token anywhere
        self._number = itertools.count()

    def __len__(self) -> int:
        """Pieces that take part in the race for threads: queued or running."""
        return len(self._queue) + len(self._running)

    @property
    def queued(self) -> int:
        """Pieces that no thread has taken."""
        return len(self._queue)

    def add(self, fetch: Fetch) -> None:
        """To be asked for when a thread is free."""
        self._queue.append(fetch)

    def next(self) -> Fetch | None:
        """The first one, which runs from now on."""
        if not self._queue:
            return None
        fetch = self._queue.popleft()
        self._running[fetch] = None
        return fetch

    def asked(self, fetch: Fetch) -> None:
        """A running one is asked for just now, so it is the last that can be late."""
        if fetch in self._running:  # else it was done meanwhile, or given up
            self._running[fetch] = self._running.pop(fetch)

    def end(self, fetch: Fetch) -> bool:
        """It runs no more; False when it belongs to a plan that was given up."""
        return self._running.pop(fetch, fetch) is None

    def delay(self, fetch: Fetch, until: float) -> None:
        """To be asked for again later."""
        fetch.hedged, fetch.asked = False, None
        heapq.heappush(self._delayed, (until, next(self._number), fetch))

    def due(self, now: float) -> Fetch | None:
        """One that has waited long enough, taken from those that wait."""
        if self._delayed and self._delayed[0][0] <= now:
            return heapq.heappop(self._delayed)[2]
        return None

    def late(self, now: float, limit: float) -> Fetch | None:
        """The one asked for longest ago, when that is more than ``limit`` seconds and it was not hedged before."""
        for fetch in self._running:
            if fetch.asked is None:
                continue
            if now - fetch.asked < limit:
                return None
            if not fetch.hedged:
                return fetch
        return None

    def until_due(self, now: float, limit: float | None) -> float:
        """Seconds until one is due or late."""
        due = [self._delayed[0][0]] if self._delayed else []
        if limit is not None:
            asked = (fetch.asked for fetch in self._running if fetch.asked is not None and not fetch.hedged)
            due += [at + limit for at in itertools.islice(asked, 1)]
        return max(min(due) - now, _SOONEST_S) if due else _IDLE_S
