"""The reader's parts without a network: what is planned, how much may be on the way, what is late."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile

import numpy as np
import pytest

from dinoctl.data.dataset import Dataset, Extent
from dinoctl.data.errors import ChangedError, DataError, StorageError
from dinoctl.data.feistel import Ids
from dinoctl.data.mixture import MixtureOrder
from dinoctl.data.order import Order, SampleOrder, lanes_of
from dinoctl.data.reader import reader as reader_module
from dinoctl.data.reader.blocks import Blocks, Body
from dinoctl.data.reader.plan import Piece, pieces
from dinoctl.data.reader.reader import Reader
from dinoctl.data.reader.window import Lateness, TokenBucket, Window
from dinoctl.spec.sources import Reading

B = 4
READING = Reading()


def planned(order: Order, datasets: list[Dataset | None], steps: int, most_bytes: int, start: int = 0) -> list[Piece]:
    found = pieces(order, datasets, lanes_of(B, 0, 1), start, most_bytes)
    return list(takewhile(lambda piece: piece.step < start + steps, found))


def covered(pieces: list[Piece]) -> Counter[tuple[int, int]]:
    return Counter((piece.source, piece.first + i) for piece in pieces for i in range(len(piece.extent.lengths)))


@pytest.mark.parametrize("start", [0, 301, 1000])
def test_every_sample_of_the_steps_is_planned_once_and_in_time(digits: Dataset, start: int) -> None:
    order, steps = SampleOrder(len(digits), B, seed=3), 400
    found = planned(order, [digits], steps, 2**20, start)
    wanted = Counter((0, int(i)) for step in range(start, start + steps) for i in order.batch(step))
    assert covered(found) >= wanted
    assert [piece.step for piece in found] == sorted(piece.step for piece in found)
    beyond = covered(found) - wanted
    later = {int(i) for step in range(start + steps, start + steps + order.run_length) for i in order.batch(step)}
    assert {sample for _, sample in beyond} <= later, "a run that goes on"
    first = {key: piece.step for piece in reversed(found) for key in covered([piece])}
    assert all(first[0, int(i)] <= step for step in range(start, start + steps) for i in order.batch(step))


def test_runs_are_one_piece(digits: Dataset) -> None:
    order = SampleOrder(len(digits), B, seed=3)
    assert order.run_length == 16
    found = planned(order, [digits], 200, 2**20)
    lengths = Counter(len(piece.extent.lengths) for piece in found)
    assert lengths[16] > 0.5 * len(found), lengths
    for piece in found:
        assert piece.extent == digits.extent(piece.first, len(piece.extent.lengths), 2**20)
        ends = np.add(piece.extent.offsets, piece.extent.lengths)
        assert (np.array(piece.extent.offsets[1:]) >= ends[:-1]).all()


def test_a_piece_is_no_larger_than_it_may_be(digits: Dataset) -> None:
    order = SampleOrder(len(digits), B, seed=3)
    assert max(piece.bytes for piece in planned(order, [digits], 100, 1000)) <= 1000
    assert {len(piece.extent.lengths) for piece in planned(order, [digits], 100, 1)} == {1}


def test_runs_are_cut_in_even_shares(digits: Dataset) -> None:
    """Bytes for 15 of 16 samples: 8 and 8, for a request of one sample costs as much as one of many."""
    order = SampleOrder(len(digits), B, seed=3)
    run = next(piece for piece in planned(order, [digits], 200, 2**20) if len(piece.extent.lengths) == 16)
    same = [
        piece for piece in planned(order, [digits], 200, run.bytes - 1) if run.first <= piece.first < run.first + 16
    ]
    assert [len(piece.extent.lengths) for piece in same] == [8, 8]


def test_local_parts_of_a_mixture_are_left_out(digits: Dataset) -> None:
    order = MixtureOrder([(len(digits), 1.0), (len(digits), 1.0)], B, 0)
    found = planned(order, [None, digits], 100, 2**20)
    assert {piece.source for piece in found} == {1}
    wanted = [order.picks(step, lanes_of(B, 0, 1)) for step in range(100)]
    ours = Counter((1, int(i)) for picks in wanted for i in picks.sample[picks.source == 1])
    assert covered(found) >= ours


def test_the_window_follows_bandwidth_times_latency() -> None:
    """A network of 100 MB/s and 0.1 s: more than 10 MB on the way only queue."""
    window = Window(2**18, 2**16, 2**30)
    now, sizes = 0.0, []
    for _ in range(600):
        seconds = max(0.1, window.size / 100e6)
        now += seconds * 2**18 / window.size
        window.delivered(2**18, seconds, now, starving=True)
        sizes.append(window.size)
    assert sizes[40] > 2**22, "doubling at first"
    assert 0.7 * 10e6 < np.mean(sizes[-200:]) < 3.5 * 10e6


def test_the_window_recovers_on_a_network_that_became_slower() -> None:
    """Ten times as slow, whatever is on the way: fewer requests make nothing better, so they must not stay few."""
    window, now = Window(2**22, 2**18, 2**25), 0.0
    for _ in range(50):
        now += 0.05
        window.delivered(2**18, 0.05, now, starving=True)
    while now < 30.0:
        now += 0.5 * 2**18 / window.size
        window.delivered(2**18, 0.5, now, starving=True)
    assert window.size > 2**22


def test_the_window_rests_and_gives_way() -> None:
    window = Window(2**20, 2**16, 2**22)
    for _ in range(100):
        window.delivered(2**16, 0.1, 0.0, starving=False)
    assert window.size == 2**20, "nobody waits"
    for _ in range(100):
        window.delivered(2**16, 0.1, 0.0, starving=True)
    assert window.size == 2**22
    window.refused(1.0)
    assert window.size == 2**21
    window.refused(1.5)
    assert window.size == 2**21, "not yet to be seen what the first one did"
    for now in range(2, 20):
        window.refused(float(now))
    assert window.size == 2**16


def test_late_is_what_takes_twice_as_long_as_nearly_all() -> None:
    late = Lateness()
    for i in range(19):
        late.add(0.1)
        assert late.limit is None, i
    for i in range(300):
        late.add(5.0 if i % 50 == 0 else 0.1)
    assert late.limit == pytest.approx(0.2)


def test_the_token_bucket_keeps_the_rate() -> None:
    bucket = TokenBucket(10.0)
    waits = [bucket.reserve(100.0) for _ in range(30)]
    assert waits[:10] == [0.0] * 10
    assert waits[-1] == pytest.approx(2.0)
    assert bucket.reserve(105.0) == 0.0


class Scripted:
    """Ranges of a local dataset, with what happens before each answer."""

    def __init__(self, dataset: Dataset, happens: object = None) -> None:
        self._storage, self._happens = dataset._storage, happens
        self.lock, self.blocks = threading.Lock(), Blocks()
        self.asked: list[tuple[str, int]] = []
        self.flying = self.most = 0

    def get(self, path: str, start: int, end: int) -> Body:
        with self.lock:
            self.asked.append((path, start))
            self.flying += end - start
            self.most = max(self.most, self.flying)
        try:
            if self._happens is not None:
                self._happens(path, start)  # type: ignore[operator]
            body = Body(self.blocks)
            body.fill(io.BytesIO(self._storage.read(path, start, end)).readinto)
            return body
        finally:
            with self.lock:
                self.flying -= end - start

    def may_pass(self, error: BaseException, *, first: bool) -> bool:
        return isinstance(error, TimeoutError)

    def slow_down(self, error: BaseException) -> bool:
        return isinstance(error, TimeoutError)

    def explain(self, error: Exception, path: str) -> Exception:
        return StorageError(f"{path}: {error}")


def reader_of(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, ranges: Scripted, reading: Reading = READING, **more: float
) -> tuple[Reader, SampleOrder]:
    monkeypatch.setattr(digits, "ranges", lambda: ranges)
    order = SampleOrder(len(digits), B, seed=3)
    return Reader([digits], order, lanes_of(B, 0, 1), reading, **more), order  # type: ignore[arg-type]


def through(reader: Reader, order: SampleOrder, digits: Dataset, steps: range) -> None:
    for step in steps:
        reader.at(step)
        for sample in order.batch(step).tolist():
            assert reader.take(0, sample) == digits.read(sample)
            assert 0 <= reader._open <= reader._owed
            assert reader._flying >= 0


def test_everything_arrives_within_the_memory_bound(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in (1, 5_000, 40_000, 2**28):
        ranges = Scripted(digits)
        reader, order = reader_of(digits, monkeypatch, ranges, Reading(memory=memory))
        try:
            through(reader, order, digits, range(50, 350))
        finally:
            reader.close()
        # Tar headers between the images come on top, and pieces that are waited for.
        assert ranges.most <= 12 * memory + 64 * 2000
        if memory == 2**28:
            assert len(ranges.asked) < 350 * B / 4
            assert reader.counts().requests == len(ranges.asked)


def test_going_elsewhere_starts_anew(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, order = reader_of(digits, monkeypatch, Scripted(digits))
    through(reader, order, digits, range(9))
    through(reader, order, digits, range(200, 220))
    through(reader, order, digits, range(3, 20))
    assert reader.take(0, 10**9) is None, "not planned"
    reader.close()


def test_a_piece_that_has_to_wait_holds_up_no_other(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece that is needed first is refused until others have been served."""
    order = SampleOrder(len(digits), B, seed=3)
    first = next(pieces(order, [digits], lanes_of(B, 0, 1), 0, 2**26))
    place = (first.extent.path, first.extent.offsets[0])
    others: set[tuple[str, int]] = set()
    refused: list[int] = []

    def refuse(path: str, start: int) -> None:
        if (path, start) != place:
            others.add((path, start))
        elif not refused or len(others) < B + 1:  # more than the other lanes of the same step
            refused.append(len(others))
            raise TimeoutError("503")

    ranges = Scripted(digits, refuse)
    monkeypatch.setattr(Window, "_shrink", lambda *_: None)  # refused early, it might leave no room for others
    reader, order = reader_of(digits, monkeypatch, ranges)
    through(reader, order, digits, range(20))
    assert reader.counts().retries == len(refused) >= 1
    reader.close()


def test_a_late_piece_is_asked_for_a_second_time(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the second answer counts: the first one comes when all is over."""
    over, stuck = threading.Event(), threading.Lock()
    seen: Counter[tuple[str, int]] = Counter()

    def hang(path: str, start: int) -> None:
        with stuck:
            seen[path, start] += 1
            hangs = sum(seen.values()) == 60 and seen[path, start] == 1
        if hangs:
            over.wait(60)

    reader, order = reader_of(digits, monkeypatch, Scripted(digits, hang))
    try:
        through(reader, order, digits, range(400))
        assert not over.is_set()
        assert reader.counts().hedges >= 1
    finally:
        over.set()
        reader.close()


@pytest.mark.parametrize("error", [StorageError("gone"), ChangedError("other"), PermissionError("no")])
def test_what_does_not_pass_is_raised_where_it_is_needed(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: str, start: int) -> None:
        raise error

    reader, order = reader_of(digits, monkeypatch, Scripted(digits, fail))
    reader.at(0)
    kind = type(error) if isinstance(error, DataError | StorageError) else StorageError
    with pytest.raises(kind, match=str(error)):
        reader.take(0, int(order.batch(0)[0]))
    reader.close()


def test_patience_ends(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, start: int) -> None:
        raise TimeoutError("slow down")

    ranges = Scripted(digits, refuse)
    reader, order = reader_of(digits, monkeypatch, ranges, patience_s=0.5)
    reader.at(0)
    with pytest.raises(StorageError, match="slow down"):
        reader.take(0, int(order.batch(0)[0]))
    assert len(ranges.asked) > 1
    reader.close()


def refuse_threads(monkeypatch: pytest.MonkeyPatch, living: int) -> None:
    """Lets so many threads start."""
    start, started = threading.Thread.start, itertools.count()

    def limited(thread: threading.Thread) -> None:
        if thread.name == "reader" and next(started) >= living:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_the_threads_there_are_do_all_the_work(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_threads(monkeypatch, 1)
    reader, order = reader_of(digits, monkeypatch, Scripted(digits))
    through(reader, order, digits, range(100))
    assert reader._threads == 1
    reader.close()


def test_without_any_thread_the_reason_is_raised(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_threads(monkeypatch, 0)
    reader, _ = reader_of(digits, monkeypatch, Scripted(digits))
    with pytest.raises(StorageError, match=r"cannot read ahead: can't start new thread; raise the limit"):
        reader.at(0)
    reader.close()


def test_an_index_that_is_damaged_further_on_ends_the_reading(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a thread, while the consumer waits for a piece that will not come."""
    damaged, over = threading.Event(), threading.Event()
    extent = digits.extent

    def look(first: int, count: int, most_bytes: int) -> Extent:
        if damaged.is_set():
            raise DataError("index: differs from what was packed")
        return extent(first, count, most_bytes)

    order = SampleOrder(len(digits), B, seed=3)
    wanted = int(order.batch(0)[0])
    place = next(pieces(order, [digits], lanes_of(B, 0, 1), 0, 2**26)).extent

    def hang(path: str, start: int) -> None:
        if (path, start) == (place.path, place.offsets[0]):
            over.wait(60)
        else:
            damaged.wait(60)

    monkeypatch.setattr(digits, "extent", look)
    monkeypatch.setattr(Window, "_shrink", lambda *_: None)  # a small one might plan no further
    reader, _ = reader_of(digits, monkeypatch, Scripted(digits, hang))
    reader.at(0)
    damaged.set()
    try:
        for _ in range(2):  # ChangedError: the loader is not to take it for this sample's fault
            with pytest.raises(ChangedError, match="index: differs from what was packed"):
                reader.take(0, wanted)
        with pytest.raises(ChangedError, match="index: differs"):
            reader.at(1)
    finally:
        over.set()
        reader.close()


def one_at_a_time(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, ranges: Scripted, rate: float = 1e6, **more: float
) -> tuple[Reader, SampleOrder]:
    """One lane, pieces of one sample, none ahead of the step."""
    monkeypatch.setattr(digits, "ranges", lambda: ranges)
    order, reading = SampleOrder(len(digits), 1, seed=3), Reading(memory=1, requests_per_second=rate)
    return Reader([digits], order, lanes_of(1, 0, 1), reading, **more), order  # type: ignore[arg-type]


class Clock:
    """Time in which sleeping takes none, but has passed."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def test_waiting_for_the_request_rate_takes_no_patience(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request waits 1,000 s for its turn; each piece is refused twice."""
    seen: Counter[tuple[str, int]] = Counter()

    def refuse(path: str, start: int) -> None:
        seen[path, start] += 1
        if seen[path, start] <= 2:
            raise TimeoutError("503")

    monkeypatch.setattr(reader_module, "time", Clock())
    reader, order = one_at_a_time(digits, monkeypatch, Scripted(digits, refuse), rate=1e-3, patience_s=500.0)
    for step in range(3):
        reader.at(step)
        (sample,) = order.batch(step).tolist()
        assert reader.take(0, sample) == digits.read(sample)
    assert reader.counts().retries == 6
    reader.close()


def test_what_waits_for_the_request_rate_is_not_late(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, turn, asked, over = (threading.Event() for _ in range(4))

    def sleep(seconds: float) -> None:
        waits.set()
        turn.wait(60)

    def answer(path: str, start: int) -> None:
        asked.set()
        over.wait(60)

    clock = Clock()
    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(reader_module, "time", clock)
    reader, order = one_at_a_time(digits, monkeypatch, Scripted(digits, answer), rate=0.1)
    reader._bucket.reserve(clock.monotonic())
    for _ in range(20):
        reader._lateness.add(0.01)
    reader.at(0)
    try:
        assert waits.wait(60)
        with reader._lock:
            assert reader._late(clock.monotonic() + 10**4) is None
        turn.set()
        assert asked.wait(60)
        with reader._lock:
            assert reader._late(clock.monotonic() + 10**4) is not None, "now it is"
    finally:
        turn.set()
        over.set()
    (sample,) = order.batch(0).tolist()
    assert reader.take(0, sample) == digits.read(sample)
    reader.close()


@pytest.mark.parametrize("start", [0, 1, 7])
def test_the_plan_begins_where_the_consumer_does(digits: Dataset, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    starts: list[int] = []

    def spied(order: Order, datasets: list[Dataset | None], lanes: Ids, step: int, most: int) -> Iterator[Piece]:
        starts.append(step)
        return pieces(order, datasets, lanes, step, most)

    monkeypatch.setattr(reader_module, "pieces", spied)
    reader, order = reader_of(digits, monkeypatch, Scripted(digits))
    through(reader, order, digits, range(start, start + 5))
    assert starts == [start]
    reader.close()
