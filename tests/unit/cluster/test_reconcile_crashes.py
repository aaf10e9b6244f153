"""The operator dies, or a request fails, at every moment of a job's life.

By default every sixth of the moments at which requests fail is tried, others for each kind of failure;
``DINOCTL_EXHAUSTIVE=1`` tries all. Deaths are always tried after every single write.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from operators import GATED, TRAIN, Operator

from dinoctl.cluster.errors import ApiError, Conflict, Throttled, Unavailable
from dinoctl.cluster.resources import EVENTS
from dinoctl.handover.outcome import Outcome
from support.kube.memory import Call
from support.kube.world import Killed, Lagging, World

STRIDE = 1 if os.environ.get("DINOCTL_EXHAUSTIVE") else 6
END = 65
Hook = Callable[[Call], None]


class Troubles:
    """A failure; a preemption of the second attempt; and, in the third, somebody who suspends and resumes."""

    def __init__(self, world: World) -> None:
        self._world, self._preempted, self._suspended = world, False, 0
        world.fail[1] = Outcome(1, "failed", "Infrastructure", "node lost")

    def __call__(self, round_: int) -> None:
        world = self._world
        at_work = [name for name, done in world.trained.items() if done >= 2 and name[-1] != "1"]
        running = [
            body["metadata"]["name"]
            for body in world.rayjobs()
            if (body.get("status") or {}).get("jobDeploymentStatus") == "Running"
        ]
        if not self._preempted and set(at_work) & set(running):
            self._preempted = True
            world.preempt(running[-1])
        elif len(at_work) > 1 and not self._suspended:
            self._suspended = round_
            world.edit("a", {"suspend": True})
        elif self._suspended and round_ == self._suspended + 4:
            world.edit("a", {"suspend": False})


class At:
    """Does something at the ``n``-th of the moments that count."""

    def __init__(self, n: int, what: Callable[[], None], counts: Callable[[Call], bool]) -> None:
        self.n, self.seen, self._what, self._counts = n, 0, what, counts

    def __call__(self, call: Call) -> None:
        if self._counts(call):
            self.seen += 1
            if self.seen == self.n:
                self._what()


def after_a_write(call: Call) -> bool:
    """Of an Event nothing depends."""
    return call.writes and call.when == "after" and call.resource != EVENTS


def any_moment(call: Call) -> bool:
    return True


def live(folder: Path, hook: Hook) -> World:
    """A job's whole life; after a death another process goes on."""
    world = World(folder, queue="gpus", steps=7)
    world.submit("a", GATED)
    operator, troubles = Operator(world, hook), Troubles(world)
    for round_ in range(END):
        troubles(round_)
        try:
            operator.look()
        except Killed:
            operator.close()
            operator = Operator(world, hook)
        world.tick()
    operator.close()
    return world


def check(world: World) -> None:
    """The job is done, once, and nothing is left behind."""
    world.check()
    status = world.job("a")["status"]
    assert status["state"] == "Complete", status
    assert world.registry.alias_moves == 1
    assert list(world.registry.runs.values()) == ["FINISHED"]
    assert not world.job("a")["metadata"].get("finalizers")
    assert status["failures"]["application"] == 0
    assert status["failures"]["infrastructure"] == 1
    assert status["failures"]["preemptions"] <= 2
    numbers = [attempt["number"] for attempt in status["lifecycle"]["attempts"]]
    assert numbers == sorted(set(numbers))


def moments(folder: Path, counts: Callable[[Call], bool]) -> int:
    at = At(0, lambda: None, counts)
    check(live(folder, at))
    assert at.seen > 40
    return at.seen


def test_killed_after_every_write(tmp_path: Path) -> None:
    def die() -> None:
        raise Killed

    for n in range(1, moments(tmp_path / "whole", after_a_write) + 1):
        check(live(tmp_path / str(n), At(n, die, after_a_write)))


@pytest.mark.parametrize(("offset", "error"), [(0, Conflict), (2, Throttled), (5, Unavailable)])
def test_any_request_fails(offset: int, error: type[ApiError], tmp_path: Path) -> None:
    """Before it is done, or when it is done and only the answer is lost."""

    def fail() -> None:
        raise error("request", "no", 503, "", 0.1)

    for n in range(1 + offset, moments(tmp_path / "whole", any_moment) + 1, STRIDE):
        check(live(tmp_path / str(n), At(n, fail, any_moment)))


def test_two_that_both_lead(tmp_path: Path) -> None:
    """At a moment of one, the other does a whole round, each on a view of its own that lags behind."""
    for n in range(1, moments(tmp_path / "whole", any_moment) + 1, STRIDE):
        world = World(tmp_path / str(n), queue="gpus", steps=7)
        world.submit("a", GATED)
        views = Lagging(world.server), Lagging(world.server)
        other = Operator(world, view=views[1])
        one = Operator(world, At(n, other.look, any_moment), view=views[0])
        for view in views:
            view.catch_up()
        troubles = Troubles(world)
        for round_ in range(END + 15):
            troubles(round_)
            views[round_ % 2].catch_up()
            one.look()
            if round_ % 3 == 0:
                other.look()
            world.tick()
        check(world)
        one.close()
        other.close()


def failing(folder: Path, hook: Hook) -> World:
    world = World(folder)
    world.fail = {1: Outcome(1, "failed", "Application", "ValueError: bad")}
    world.submit("a", TRAIN)
    operator = Operator(world, hook)
    for _ in range(16):
        try:
            operator.look()
        except Killed:
            operator.close()
            operator = Operator(world, hook)
        world.tick()
    operator.close()
    return world


def deaths(folder: Path) -> Iterator[World]:
    """The same failure, with a death after each write in turn."""

    def die() -> None:
        raise Killed

    at, n = At(0, die, after_a_write), 0
    while n <= at.seen:
        n += 1
        at = At(n, die, after_a_write)
        yield failing(folder / str(n), at)


def test_a_failure_is_charged_once(tmp_path: Path) -> None:
    """Wherever the operator dies, one failure never costs two of the budget."""
    count = 0
    for world in deaths(tmp_path):
        count += 1
        status = world.job("a")["status"]
        assert status["state"] == "Complete"
        assert status["failures"] == {"infrastructure": 0, "application": 1, "preemptions": 0}
    assert count > 15
