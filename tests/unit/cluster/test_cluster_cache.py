"""Caches: they follow through drops, expired versions and missing kinds, and an own write is read back at once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dinoctl.cluster import projections
from dinoctl.cluster.cache import Cache
from dinoctl.cluster.errors import ApiError, Unavailable, error_of
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import CONFIGMAPS
from dinoctl.spec import names
from support.kube.contract import SPACE, config_map
from support.kube.memory import Call, MemoryApi, MemoryServer


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.01)


class Setup:
    def __init__(self) -> None:
        self.server = MemoryServer()
        self.api = MemoryApi(self.server)
        self.calls: Counter[str] = Counter()
        self.fail: set[str] = set()
        self.error: ApiError = Unavailable("", "on purpose")
        self.seen: list[tuple[str, str]] = []
        self.reasons: Counter[str] = Counter()
        client = MemoryApi(self.server, self._hook)
        self.cache = Cache(
            client,
            CONFIGMAPS,
            [SPACE, "other"],
            self._changed,
            labels=names.JOB,
            trim=projections.progress,
            restarted=lambda reason: self.reasons.update([reason]),
            patience=0.2,
        )

    def _hook(self, call: Call) -> None:
        if call.when == "before":
            self.calls[call.verb] += 1
            if call.verb in self.fail:
                raise self.error

    def _changed(self, body: Object) -> None:
        self.seen.append((body["metadata"]["name"], (body.get("data") or {}).get("n", "")))

    def make(self, name: str, job: str = "a", n: str = "1", namespace: str = SPACE) -> Object:
        return self.api.create(CONFIGMAPS, namespace, config_map(name, {"n": n}, labels={names.JOB: job}))

    def change(self, name: str, n: str) -> Object:
        return self.api.patch(CONFIGMAPS, SPACE, name, {"data": {"n": n}})

    def holds(self, name: str, n: str | None) -> Callable[[], bool]:
        def check() -> bool:
            body = self.cache.get(SPACE, name)
            return body is None if n is None else body is not None and body["data"]["n"] == n

        return check


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.cache.stop()


def test_it_lists_then_follows(setup) -> None:
    setup.make("one")
    setup.make("far", namespace="other")
    setup.api.create(CONFIGMAPS, SPACE, config_map("unlabelled"))
    assert not setup.cache.synced
    setup.cache.start()
    eventually(lambda: setup.cache.synced)
    assert sorted(setup.cache.names()) == [(SPACE, "one"), ("other", "far")]
    setup.make("two")
    setup.change("one", "2")
    eventually(setup.holds("one", "2"))
    eventually(setup.holds("two", "1"))
    setup.api.delete(CONFIGMAPS, SPACE, "two")
    eventually(setup.holds("two", None))
    assert ("two", "1") in setup.seen
    assert setup.calls["list"] == 2


def test_objects_of_a_job(setup) -> None:
    for name, job in (("x", "a"), ("y", "a"), ("z", "b")):
        setup.make(name, job)
    setup.cache.start()
    eventually(lambda: setup.cache.synced)
    assert [body["metadata"]["name"] for body in setup.cache.of(SPACE, "a")] == ["x", "y"]
    setup.api.patch(CONFIGMAPS, SPACE, "y", {"metadata": {"labels": {names.JOB: "b"}}})
    eventually(lambda: len(setup.cache.of(SPACE, "b")) == 2)
    assert [body["metadata"]["name"] for body in setup.cache.of(SPACE, "a")] == ["x"]
    setup.api.delete(CONFIGMAPS, SPACE, "x")
    eventually(lambda: setup.cache.of(SPACE, "a") == [])


def test_what_it_hands_out_is_a_copy(setup) -> None:
    setup.make("one")
    setup.cache.start()
    eventually(setup.holds("one", "1"))
    setup.cache.get(SPACE, "one")["data"]["n"] = "spoilt"
    assert setup.holds("one", "1")()


def test_a_dropped_watch_goes_on_where_it_was_without_a_list(setup) -> None:
    setup.make("one")
    setup.cache.start()
    eventually(setup.holds("one", "1"))
    setup.fail.add("watch")
    setup.server.drop_watches()
    setup.change("one", "2")
    setup.api.delete(CONFIGMAPS, SPACE, "one")
    setup.make("one", n="3")
    eventually(lambda: setup.cache.trouble != "")
    setup.fail.clear()
    eventually(setup.holds("one", "3"))
    assert setup.calls["list"] == 2
    assert ("one", "2") in setup.seen
    eventually(lambda: setup.cache.trouble == "")


def test_bookmarks_keep_a_quiet_watch_young(setup) -> None:
    setup.cache.start()
    eventually(lambda: setup.calls["watch"] == 2)
    for number in range(5):
        setup.api.create(CONFIGMAPS, SPACE, config_map(f"foreign-{number}"))
    setup.server.bookmark()
    eventually(lambda: all(follower._since == "5" for follower in setup.cache._followers))
    setup.server.compact()
    setup.server.drop_watches()
    setup.make("one")
    eventually(setup.holds("one", "1"))
    assert setup.calls["list"] == 2, "without the bookmarks it would have had to list again"


def test_an_expired_version_lists_again_and_finds_what_is_gone(setup) -> None:
    setup.make("stays")
    setup.make("goes")
    setup.cache.start()
    eventually(lambda: setup.cache.synced)
    setup.fail.add("watch")
    setup.server.drop_watches()
    setup.api.delete(CONFIGMAPS, SPACE, "goes")
    setup.make("new")
    setup.server.compact()
    setup.seen.clear()
    setup.fail.clear()
    eventually(setup.holds("goes", None))
    eventually(setup.holds("new", "1"))
    eventually(lambda: setup.reasons["expired"] == 2)
    assert sorted(setup.seen) == [("goes", "1"), ("new", "1")], "what did not change is no event"


def test_a_kind_that_is_installed_later(setup) -> None:
    setup.server.missing.add(CONFIGMAPS)
    setup.cache.start()
    eventually(lambda: setup.cache.missing and setup.cache.synced)
    assert setup.cache.alive
    setup.server.missing.clear()
    setup.make("one")
    eventually(setup.holds("one", "1"))
    eventually(lambda: not setup.cache.missing)


def test_a_server_that_is_down_at_the_start(setup) -> None:
    setup.fail.add("list")
    setup.make("one")
    setup.cache.start()
    eventually(lambda: setup.calls["list"] > 3)
    assert not setup.cache.synced
    assert "on purpose" in setup.cache.trouble
    setup.fail.clear()
    eventually(setup.holds("one", "1"))


@pytest.mark.parametrize(("status", "refused"), [(403, True), (401, False), (500, False)])
def test_only_who_is_known_is_refused(setup, status: int, refused: bool) -> None:
    """The credentials of one who is not may have expired."""
    setup.error = error_of("list ConfigMaps", status, {"message": "no"})
    setup.fail.add("list")
    setup.cache.start()
    eventually(lambda: setup.calls["list"] > 3)
    assert setup.cache.unlisted == {SPACE: refused, "other": refused}


def test_an_own_write_is_read_back_at_once_and_its_echo_is_no_event(setup) -> None:
    setup.make("one")
    setup.cache.start()
    eventually(setup.holds("one", "1"))
    setup.seen.clear()
    with setup.server.changed:  # its event can't arrive yet
        setup.cache.observe(setup.change("one", "2"))
        assert setup.holds("one", "2")()
    setup.make("mark")
    eventually(lambda: ("mark", "1") in setup.seen)
    assert setup.seen == [("mark", "1")]


def test_a_foreign_change_before_an_own_write_is_still_an_event(setup) -> None:
    setup.make("one")
    setup.cache.start()
    eventually(setup.holds("one", "1"))
    setup.seen.clear()
    with setup.server.changed:
        setup.change("one", "theirs")
        setup.cache.observe(setup.change("one", "mine"))
    eventually(lambda: setup.seen == [("one", "theirs")])
    assert setup.holds("one", "mine")()


def test_an_answer_that_comes_after_the_deletion_brings_nothing_back(setup) -> None:
    setup.make("one")
    setup.cache.start()
    eventually(setup.holds("one", "1"))
    late = setup.change("one", "2")
    setup.api.delete(CONFIGMAPS, SPACE, "one")
    eventually(setup.holds("one", None))
    setup.cache.observe(late)
    assert setup.holds("one", None)()


def test_a_bug_in_the_handler_does_not_end_the_watch(setup, caplog) -> None:
    setup.cache.start()
    eventually(lambda: setup.cache.synced)
    good, setup.cache._changed = setup.cache._changed, lambda body: 1 / 0
    setup.make("one")
    eventually(lambda: setup.reasons["bug"] > 0)
    setup.cache._changed = good
    setup.make("two")
    eventually(setup.holds("two", "1"))
    assert "could not be handled" in caplog.text


def test_stopping_ends_its_threads(setup) -> None:
    setup.cache.start()
    eventually(lambda: setup.cache.synced)
    setup.cache.stop()
    assert not any(thread.name.startswith("watch-configmaps") and thread.is_alive() for thread in threading.enumerate())
    assert not setup.cache.alive
