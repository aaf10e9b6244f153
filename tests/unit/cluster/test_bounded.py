"""A storage that hangs holds up one thread, and only those who need it."""

import threading
from collections.abc import Iterator

import pytest

from dinoctl.cluster import bounded
from dinoctl.cluster.bounded import Bounded
from dinoctl.data.errors import StorageError


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bounded]:
    monkeypatch.setattr(bounded, "_LIMIT_S", 0.5)
    made = Bounded()
    yield made
    made.close()


def test_a_silent_place_is_left_alone_for_a_while(ask: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_SILENT_S", 0.3)
    speaks, asked = threading.Event(), list[int]()

    def hang() -> int:
        asked.append(1)
        speaks.wait(10.0)
        return len(asked)

    for path in ("a", "b", "c"):
        with pytest.raises(StorageError, match=r"^s3://down gave no answer within 0\.5 s$"):
            ask(f"s3://down/{path}", hang)
    assert len(asked) == 1, "the others didn't wait"
    assert ask("s3://other/a", lambda: 7) == 7
    speaks.set()
    while True:
        try:
            assert ask("s3://down/a", hang) == 2
            break
        except StorageError:
            threading.Event().wait(0.02)
    assert ask("s3://down/b", hang) == 3


def test_a_refusal_is_an_answer(ask: Bounded) -> None:
    def refuse() -> None:
        raise StorageError("no credentials")

    for _ in range(2):
        with pytest.raises(StorageError, match="no credentials"):
            ask("s3://bucket/a", refuse)


def test_questions_that_nobody_waits_for_are_not_asked(ask: Bounded) -> None:
    speaks, begun = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        begun.release()
        speaks.wait(10.0)

    for _ in range(32):  # as many as there are threads
        ask._pool.submit(hang)
        assert begun.acquire(timeout=10.0)
    with pytest.raises(StorageError):
        ask("s3://bucket/a", hang)
    speaks.set()
    ask._pool.shutdown(wait=True)
    assert not begun.acquire(blocking=False)
