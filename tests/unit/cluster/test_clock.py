"""The operator's clock is set ahead: for a while nothing is decided by it that can't be taken back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from operators import TRAIN, Operator, attempts, rounds, settle

from dinoctl.cluster.clock import DOUBT_S, Clock
from dinoctl.cluster.resources import PODS
from support.kube.memory import Call
from support.kube.world import World

DAY = 86_400.0


class Hands:
    """Of two clocks: what the wall shows can be set."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic, self.ahead = monotonic, 0.0

    def wall(self) -> float:
        return self.monotonic() + self.ahead


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, queue="gpus", steps=1000)


@pytest.fixture
def hands(world: World) -> Hands:
    return Hands(lambda: world.now)


@pytest.fixture
def killed() -> list[str]:
    return []


@pytest.fixture
def operator(world: World, hands: Hands, killed: list[str]) -> Operator:
    def hook(call: Call) -> None:
        if (call.resource, call.verb, call.when) == (PODS, "delete", "before"):
            killed.append(call.name)

    return Operator(world, hook, clock=Clock(hands.wall, hands.monotonic))


def test_a_deadline_does_not_pass_at_once(world: World, hands: Hands, operator: Operator) -> None:
    world.submit("a", {**TRAIN, "policy": {"deadline": "2h"}})
    rounds(world, operator, 8)
    hands.ahead = DAY
    rounds(world, operator, 8)
    assert world.state("a") == "Running"
    hands.ahead, world.steps = 0.0, 3
    settle(world, operator, "a")
    assert [one["cause"] for one in attempts(world, "a")] == ["Succeeded"]


def test_a_stop_is_not_forced_at_once(world: World, hands: Hands, operator: Operator, killed: list[str]) -> None:
    world.saves = 8
    world.submit("a", TRAIN)
    rounds(world, operator, 8)
    world.edit("a", {"suspend": True})
    rounds(world, operator, 2)
    hands.ahead = DAY
    rounds(world, operator, 4)
    assert world.state("a") == "Stopping"
    rounds(world, operator, 8)
    assert (world.state("a"), killed) == ("Suspended", [])
    assert attempts(world, "a")[0]["endStep"] is not None


def test_pods_that_save_are_not_taken_for_dead(world: World, hands: Hands, operator: Operator) -> None:
    world.saves = 5
    world.submit("a", TRAIN)
    rounds(world, operator, 8)
    world.preempt(world.rayjobs()[0]["metadata"]["name"])
    rounds(world, operator, 1)
    hands.ahead = DAY
    rounds(world, operator, 3)
    assert [one["state"] for one in attempts(world, "a")] == ["Running"]
    rounds(world, operator, 10)
    first, second = attempts(world, "a")
    assert first["cause"] == "Preempted"
    assert second["startStep"] == first["endStep"]


def test_small_steps_and_steps_back_are_taken_as_they_come() -> None:
    at = [0.0]
    hands = Hands(lambda: at[0])
    clock = Clock(hands.wall, hands.monotonic)
    for ahead in (20.0, 45.0, -DAY):
        hands.ahead = ahead
        assert clock() == at[0] + ahead
        at[0] += 1.0


def test_a_step_ahead_that_lasts_is_right_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    at = [0.0]
    hands = Hands(lambda: at[0])
    clock = Clock(hands.wall, hands.monotonic)
    hands.ahead = DAY
    for _ in range(3):
        assert clock() == at[0]
        at[0] += DOUBT_S / 3
    assert clock() == at[0] + DAY
    assert caplog.text.count("the clock was set ahead by 86400 s") == 1
