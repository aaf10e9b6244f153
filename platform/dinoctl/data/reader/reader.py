"""The samples of steps to come, fetched before they are asked for, from sources that lie on a bucket.

A few dozen threads share one client and take pieces (see `plan`) in the order of need, as long as the bytes on the way
stay inside the window and all bytes not yet taken inside the memory bound. A piece that somebody waits for passes both,
so a small bound makes reading slow, never stuck. A failed request goes back to the queue with a jittered delay, and
its thread takes another piece meanwhile; a late one is asked for a second time, and the first answer counts.

Nothing of this shows in what is read: a sample is its verified bytes or an error, whoever delivered it. What keeps the
reader itself from going on is raised where somebody waits: a thread that ended silently would stop training for good.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import ChangedError, DataError, StorageError
from dinoctl.data.feistel import Ids
from dinoctl.data.order import Order
from dinoctl.data.reader.backlog import Backlog
from dinoctl.data.reader.blocks import Part
from dinoctl.data.reader.cache import DiskCache
from dinoctl.data.reader.counts import ReadCounts
from dinoctl.data.reader.fetch import Fetch, Result, Wire
from dinoctl.data.reader.plan import Piece, most_bytes_of, pieces
from dinoctl.data.reader.window import Lateness, TokenBucket, Window
from dinoctl.data.s3_client import PATIENCE_S
from dinoctl.spec.sources import Reading

THREADS = 64
"""Requests on the way at once, at most: the client keeps as many connections."""

_WINDOW, _LEAST = 64, 16  # mean samples in the window: to begin with, at least
_READY = 1.5  # bytes not taken yet beside runs that were begun, in windows: what is on the way, and half of it ready
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 8.0
_HEDGES = 0.05  # share of requests that may be asked a second time: a server in trouble is not to get twice the load


class Reader:
    """Reads ahead for some lanes of a loader. One thread consumes; close it.

    Args:
        datasets: the sources; those on local disks are left alone.
        order: which samples come.
        lanes: lanes of the batch that this reader is for.
        reading: memory and request rate of the whole rank.
        share: part of the memory, and of the job's request rate, that this reader may use: (memory, rate).
        patience_s: seconds over all tries of one piece.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        lanes: Ids,
        reading: Reading,
        share: tuple[float, float] = (1.0, 1.0),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._order, self._lanes, self._patience_s = order, lanes, patience_s
        self._datasets = list(datasets)
        found = ((source, dataset.ranges()) for source, dataset in enumerate(datasets))
        self._ranges = {source: ranges for source, ranges in found if ranges is not None}
        self._ahead = [dataset if i in self._ranges else None for i, dataset in enumerate(datasets)]
        remote = {source: self._datasets[source] for source in self._ranges}
        self._cache = DiskCache(reading.cache.path, reading.cache.bytes, remote) if reading.cache else None
        self._memory = int(reading.memory * share[0])
        self._piece_bytes = most_bytes_of(self._memory, len(lanes))
        self._bucket = TokenBucket(reading.requests_per_second * share[1])
        mean = int(max((self._datasets[i].info.mean_bytes for i in self._ranges), default=0)) + 1
        self._window = Window(_WINDOW * mean, min(_LEAST * mean, self._piece_bytes), self._memory // 2)
        self._lateness = Lateness()
        self._lock = threading.Lock()
        self._work, self._arrived = threading.Condition(self._lock), threading.Condition(self._lock)
        self._threads = self._idle = 0
        self._closed, self._watched = False, False
        self._counts = ReadCounts()
        self._hedges = 0
        self._broken: Exception | None = None
        self._plan: Iterator[Piece] | None = None
        self._step = -2  # so that no step is the next one
        self._clear(self._step)

    def counts(self) -> ReadCounts:
        """Counts since the start."""
        with self._lock:
            return self._counts

    def at(self, step: int) -> None:
        """The consumer begins to take the samples of a step. Going anywhere but to the next step starts anew.

        Raises:
            ChangedError: the index is not the one that was packed.
            StorageError: no thread can be started.
        """
        with self._lock:
            self._check()
            if step != self._step + 1 or self._plan is None:
                self._reset(step)
            self._step = step
            self._pump()
            self._check()

    def take(self, source: int, sample: int) -> bytes | None:
        """A sample of the step, waiting for it; None when it was not planned (a replacement, a local source).

        Raises:
            DataError: its bytes are not those that were packed.
            ChangedError: the dataset is not the one that was opened.
            StorageError: it can't be read.
        """
        with self._lock:
            self._check()
            planned = self._planned.get((source, sample))
            if not planned:
                return None
            fetch = planned.popleft()
            if not planned:
                del self._planned[source, sample]
            results = self._results(fetch)
            place = sample - fetch.piece.first
            self._taken(fetch, fetch.piece.extent.lengths[place])
            self._pump()
            result, results[place] = results[place], b""
            if isinstance(result, Part):
                return result.take()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Lets the threads go; those that wait for an answer end when it has come."""
        with self._lock:
            self._closed = True
            self._clear(-2)
            self._work.notify_all()

    # All below: with the lock held, but for _run and _try.

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _break(self, error: Exception) -> None:
        """Ends reading ahead: a loader that skips broken samples is not to take it for a sample's fault."""
        broken = ChangedError(str(error)) if isinstance(error, DataError) else error
        broken.__cause__ = error if broken is not error else error.__cause__
        self._broken, self._plan = broken, None
        self._arrived.notify_all()

    def _reset(self, step: int) -> None:
        self._clear(step)
        if not self._closed:
            self._plan = pieces(self._order, self._ahead, self._lanes, step, self._piece_bytes)

    def _clear(self, step: int) -> None:
        self._step = step
        self._plan = None
        self._next: Piece | None = None
        self._planned: dict[tuple[int, int], deque[Fetch]] = {}
        self._backlog = Backlog()
        self._flying = self._owed = self._open = 0
        self._starving = self._full = False
        self._wanted: Fetch | None = None

    def _results(self, fetch: Fetch) -> list[Result]:
        """Those of a piece, waiting for it."""
        while fetch.results is None:
            self._check()
            self._starving, self._wanted = True, fetch
            self._arrived.wait()
        self._wanted = None
        return fetch.results

    def _taken(self, fetch: Fetch, count: int) -> None:
        if not fetch.opened:
            fetch.opened = True
            self._open += fetch.left
        fetch.left -= count
        self._open -= count
        self._owed -= count

    def _pump(self) -> None:
        """Queues the pieces that may be asked for now."""
        while self._plan is not None and not self._closed:
            try:
                piece = self._next or next(self._plan)
            except Exception as error:
                self._break(error)
                return
            self._next = piece
            if piece.step > self._step and not self._room(piece.bytes):
                return
            self._next = None
            fetch = Fetch(piece)
            for i in range(len(piece.extent.lengths)):
                self._planned.setdefault((piece.source, piece.first + i), deque()).append(fetch)
            self._owed += piece.bytes
            self._enqueue(fetch)

    def _room(self, count: int) -> bool:
        window = self._window.size
        if len(self._backlog) >= THREADS:
            return False
        if self._flying + count > window:
            self._full = True
            return False
        return self._owed + count <= min(self._memory, self._open + _READY * window)

    def _enqueue(self, fetch: Fetch) -> None:
        self._flying += fetch.piece.bytes
        self._backlog.add(fetch)
        if self._backlog.queued <= self._idle:
            self._work.notify()
        elif self._threads < THREADS:
            self._start_thread()

    def _start_thread(self) -> None:
        self._threads += 1
        try:
            threading.Thread(target=self._run, name="reader", daemon=True).start()
        except RuntimeError as error:  # the system has no more of them: those that live do the work
            self._threads -= 1
            if not self._threads:
                said = StorageError(
                    f"cannot read ahead: {error}; raise the limit of processes and threads (ulimit -u, or the "
                    "container's pids), then run the same command again"
                )
                said.__cause__ = error
                self._break(said)

    def _run(self) -> None:
        """A thread: tries until the reader is closed."""
        wire = Wire(self._datasets, self._ranges, self._cache)
        try:
            while self._try_next(wire):
                pass
        except Exception as error:
            with self._lock:
                self._break(error)

    def _try_next(self, wire: Wire) -> bool:
        """False when the reader is closed."""
        with self._lock:
            fetch = self._get_work()
            if fetch is None:
                return False
            pause = self._bucket.reserve(time.monotonic())
        if pause:
            time.sleep(pause)
        with self._lock:
            fetch.asks(time.monotonic(), pause)
            self._backlog.asked(fetch)
        self._try(fetch, wire)
        return True

    def _get_work(self) -> Fetch | None:
        while not self._closed:
            now = time.monotonic()
            while (due := self._backlog.due(now)) is not None:
                self._enqueue(due)
            fetch = self._backlog.next() or self._late(now)
            if fetch is not None:
                fetch.active += 1
                return fetch
            self._idle += 1
            if self._watched:
                self._work.wait()
            else:  # one of the idle threads looks at the clock for all
                self._watched = True
                self._work.wait(self._backlog.until_due(now, self._lateness.limit))
                self._watched = False
            self._idle -= 1
        return None

    def _late(self, now: float) -> Fetch | None:
        """The piece that was asked for longest ago, when it is late and may be asked for again."""
        limit = self._lateness.limit
        if limit is None or self._hedges > _HEDGES * self._counts.requests:
            return None
        fetch = self._backlog.late(now, limit)
        if fetch is not None:
            fetch.hedged = True
            self._hedges += 1
        return fetch

    def _try(self, fetch: Fetch, wire: Wire) -> None:
        began = time.monotonic()
        wire.bytes = wire.requests = wire.again = wire.hits = 0
        try:
            results, error = wire.samples(fetch.piece), None
        except Exception as failure:
            results, error = None, failure
        now = time.monotonic()
        with self._lock:
            fetch.active -= 1
            counts = ReadCounts(wire.bytes, wire.requests, wire.again, 0, wire.hits)
            failures = self._cache.failures if self._cache else 0
            self._counts = self._counts.plus(counts)._replace(hedges=self._hedges, cache_failures=failures)
            if fetch.results is not None:
                return  # the other try was faster
            if results is not None:
                seconds = now - began
                if wire.requests == 1:
                    self._window.delivered(wire.bytes, seconds, now, starving=self._starving and self._full)
                    self._lateness.add(seconds)
                self._starving, self._full = self._wanted is not None and self._wanted is not fetch, False
                self._done(fetch, list(results))
            elif error is not None:
                self._failed(fetch, error, now)

    def _done(self, fetch: Fetch, results: list[Result]) -> None:
        fetch.results = results
        if self._wanted is fetch:
            self._arrived.notify_all()
        if self._backlog.end(fetch):
            self._flying -= fetch.piece.bytes
            self._pump()

    def _failed(self, fetch: Fetch, error: Exception, now: float) -> None:
        ranges = self._ranges[fetch.piece.source]
        if ranges.slow_down(error):
            self._window.refused(now)
        if fetch.active:
            return  # the other try may still do it
        passes = ranges.may_pass(error, first=not fetch.failures)
        wait = random.uniform(0, min(_FIRST_WAIT_S * 2**fetch.failures, _LONGEST_WAIT_S))  # noqa: S311 - jitter
        fetch.failures += 1
        if isinstance(error, DataError | StorageError) or not passes or fetch.seconds(now + wait) > self._patience_s:
            said = error
            if not isinstance(error, DataError | StorageError):
                said = ranges.explain(error, fetch.piece.extent.path)
            self._done(fetch, [said] * len(fetch.piece.extent.lengths))
        elif self._backlog.end(fetch):
            self._flying -= fetch.piece.bytes
            self._counts = self._counts._replace(retries=self._counts.retries + 1)
            self._backlog.delay(fetch, now + wait)
            self._work.notify()
