"""The work queue: dedupe, exclusivity, timers, backoff; with a clock of the test's own where time matters."""

import random
import threading
import time

from dinoctl.cluster.queue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_many_events_are_one_look() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(1000):
        queue.add("a")
    queue.add("b")
    assert queue.depth == 2
    assert [item.key for item in (queue.get(0), queue.get(0)) if item] == ["a", "b"]
    assert queue.get(0) is None


def test_an_event_during_a_look_makes_one_more_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.get(0)
    queue.add("a")
    queue.add("a")
    assert queue.get(0) is None
    queue.done("a")
    assert queue.get(0)
    queue.done("a")
    assert queue.get(0) is None


def test_a_key_is_never_looked_at_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    inside, most, looks, lock = [0] * 5, [0] * 5, [0] * 5, threading.Lock()

    def work() -> None:
        while (item := queue.get(0.5)) is not None:
            with lock:
                inside[item.key] += 1
                most[item.key] = max(most[item.key], inside[item.key])
                looks[item.key] += 1
            time.sleep(random.random() * 0.002)
            with lock:
                inside[item.key] -= 1
            queue.done(item.key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        queue.add(number % 5)
        if number % 50 == 0:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert most == [1] * 5
    assert all(looks)
    assert queue.depth == 0


def test_timers_ring_when_due_and_the_earliest_counts() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 60)
    assert queue.delayed == 1
    clock.now += 4.9
    assert queue.get(0) is None
    clock.now += 0.2
    item = queue.get(0)
    assert item is not None
    assert (item.key, item.since) == ("a", None)
    queue.done("a")
    clock.now += 3600
    assert queue.get(0) is None, "the later timers were overtaken"


def test_a_look_takes_the_timer_with_it() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add_after("a", 5)
    queue.add("a")
    item = queue.get(0)
    assert item is not None
    assert item.since == clock.now
    queue.add_after("a", 30)
    queue.done("a")
    clock.now += 6
    assert queue.get(0) is None
    clock.now += 25
    assert queue.get(0) is not None


def test_a_timer_that_rings_during_a_look_waits_for_its_end() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add("a")
    queue.get(0)
    queue.add_after("a", 1)
    clock.now += 2
    assert queue.get(0) is None
    queue.done("a")
    assert queue.get(0) is not None


def test_failures_back_off_and_a_success_forgets_them() -> None:
    queue: WorkQueue[str] = WorkQueue(first=1.0, longest=60.0, clock=Clock())
    delays = [queue.retry("a") for _ in range(12)]
    for number, delay in enumerate(delays):
        assert 0.75 <= delay / min(60.0, 2.0**number) <= 1.25
    assert queue.retry("a", at_least=500.0) == 500.0
    assert queue.retry("b") < 2
    queue.forget("a")
    assert queue.retry("a") < 2


def test_jitter_spreads_keys_that_fail_together() -> None:
    queue: WorkQueue[int] = WorkQueue(first=10.0, clock=Clock())
    assert len({round(queue.retry(key), 2) for key in range(50)}) > 25


def test_a_real_timer_wakes_a_waiting_thread() -> None:
    queue: WorkQueue[str] = WorkQueue()
    threading.Timer(0.05, queue.add_after, ("a", 0.1)).start()
    begin = time.monotonic()
    assert queue.get(5.0) is not None
    assert 0.1 <= time.monotonic() - begin < 2.0


def test_closing_lets_all_threads_go() -> None:
    queue: WorkQueue[str] = WorkQueue()
    threads = [threading.Thread(target=queue.get) for _ in range(4)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    queue.add("a")
    assert queue.get(0) is None


def test_what_can_wait_gets_one_turn_in_four() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for number in range(4):
        queue.add_patient(f"sweep-{number}")
    for number in range(8):
        queue.add(f"event-{number}")
    assert queue.depth == 12
    order = [item.key.partition("-")[0] for _ in range(12) if (item := queue.get(0))]
    assert order == ["event"] * 3 + ["sweep"] + ["event"] * 3 + ["sweep"] + ["event"] * 2 + ["sweep"] * 2
    assert queue.get(0) is None


def test_an_event_makes_what_can_wait_urgent_and_it_is_looked_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_patient("a")
    queue.add_patient("b")
    queue.add("b")
    first, second = queue.get(0), queue.get(0)
    assert first is not None
    assert second is not None
    assert (first.key, second.key) == ("b", "a")
    assert first.since is not None
    assert second.since is None
    queue.done("b")
    assert queue.get(0) is None
    assert queue.depth == 0


def test_patient_timers_wait_when_they_ring() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add_after("a", 5, patient=True)
    clock.now += 6
    queue.add("b")
    keys = [item.key for item in (queue.get(0), queue.get(0)) if item]
    assert keys == ["b", "a"]
