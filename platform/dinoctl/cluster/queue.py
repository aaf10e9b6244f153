"""The work queue: which keys want a look, each at most once, each by one thread at a time.

It is level-triggered: it remembers *that* a key wants a look, never why, so a thousand events are one look, and an
event that comes during a look makes another one after it. Time is monotonic: setting the clock moves no timer.

Some looks can wait: those for which nothing happened (after a start, every job once; progress). They take one turn in
four while others are ready, so a long sweep delays no event, and a storm of events starves no sweep.
"""

import heapq
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Item(Generic[K]):
    """A key to look at. ``since``: when the event came that it is looked at for; None: a timer did it."""

    key: K
    since: float | None


class WorkQueue(Generic[K]):
    """Thread-safe. ``first`` and ``longest`` bound the delay of failing keys."""

    def __init__(self, first: float = 1.0, longest: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._longest, self._clock = first, longest, clock
        self._ready: deque[K] = deque()
        self._patient: deque[K] = deque()
        self._waits: set[K] = set()  # those of _patient that nothing has happened to since
        self._turn = 0
        self._wanted: dict[K, float | None] = {}  # waiting for a thread, or coming again when its look has ended
        self._busy: set[K] = set()
        self._due: dict[K, tuple[float, bool]] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def add(self, key: K) -> None:
        """Something happened: a look as soon as a thread is free."""
        with self._changed:
            self._want(key, self._clock(), patient=False)

    def add_patient(self, key: K) -> None:
        """Nothing happened, but a look is due: when threads have time."""
        with self._changed:
            self._want(key, None, patient=True)

    def add_after(self, key: K, seconds: float, *, patient: bool = False) -> None:
        """A look in ``seconds`` at the latest; one that is due earlier stands."""
        with self._changed:
            due = self._clock() + max(0.0, seconds)
            if self._closed or (key in self._due and self._due[key][0] <= due):
                return
            self._due[key] = (due, patient)
            self._sequence += 1
            heapq.heappush(self._timers, (due, self._sequence, key))
            self._changed.notify()

    def retry(self, key: K, at_least: float = 0.0) -> float:
        """A look after a delay that doubles with each failure in a row. Says how long that is."""
        with self._changed:
            count = self._failures[key] = self._failures.get(key, 0) + 1
        grown = min(self._longest, self._first * 2.0 ** min(count - 1, 30))
        delay = max(at_least, grown * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key is well: its next failure is its first."""
        with self._changed:
            self._failures.pop(key, None)

    def get(self, timeout: float | None = None) -> Item[K] | None:
        """The next key, which is this thread's until ``done``. None: nothing within ``timeout``, or closed."""
        end = None if timeout is None else self._clock() + timeout
        with self._changed:
            while not self._closed:
                self._ring()
                if self._ready or self._waits:
                    return self._take()
                moments = [
                    moment for moment in (end, self._timers[0][0] if self._timers else None) if moment is not None
                ]
                left = min(moments) - self._clock() if moments else None
                if end is not None and self._clock() >= end:
                    return None
                self._changed.wait(left)
        return None

    def done(self, key: K) -> None:
        """The look has ended; if something happened meanwhile, the key is ready again."""
        with self._changed:
            self._busy.discard(key)
            if key in self._wanted:
                self._ready.append(key)
                self._changed.notify()

    def close(self) -> None:
        """Lets all threads go; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def depth(self) -> int:
        """Keys that wait for a thread."""
        return len(self._ready) + len(self._waits)

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    def _want(self, key: K, since: float | None, *, patient: bool) -> None:
        if self._closed:
            return
        if key in self._wanted:
            if self._wanted[key] is None:
                self._wanted[key] = since
            if key in self._waits and not patient:
                self._waits.discard(key)
                self._ready.append(key)
            return
        self._wanted[key] = since
        if key in self._busy:
            return
        if patient:
            self._patient.append(key)
            self._waits.add(key)
        else:
            self._ready.append(key)
        self._changed.notify()

    def _take(self) -> Item[K]:
        self._turn = (self._turn + 1) % 4
        key = self._next_patient() if self._waits and (self._turn == 0 or not self._ready) else self._ready.popleft()
        since = self._wanted.pop(key)
        self._busy.add(key)
        self._due.pop(key, None)  # this look is the one that the timer was set for
        return Item(key, since)

    def _next_patient(self) -> K:
        while True:  # keys that an event has made urgent are still in the line
            key = self._patient.popleft()
            if key in self._waits:
                self._waits.discard(key)
                return key

    def _ring(self) -> None:
        """Keys whose time has come become ready. Timers that were overtaken are no longer in ``_due``."""
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, key = heapq.heappop(self._timers)
            if key in self._due and self._due[key][0] == due:
                self._want(key, None, patient=self._due.pop(key)[1])
