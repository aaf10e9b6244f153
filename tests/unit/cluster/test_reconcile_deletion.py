"""Jobs that are deleted, alone or with their namespace, and perhaps made again."""

import pytest
from operators import GATED, HIGH, TRAIN, Operator, attempts, begun, gone, reasons, rounds, settle

from dinoctl.cluster.errors import Forbidden
from dinoctl.cluster.resources import DINOJOBS, EVENTS
from support.kube.memory import Call
from support.kube.world import SPACE, Lagging, World


def test_deleted_while_running(world: World) -> None:
    world.steps = 30
    operator = begun(world, 6)
    world.api.delete(DINOJOBS, SPACE, "a")
    rounds(world, operator, 5)
    assert gone(world)
    assert list(world.registry.runs.values()) == ["FAILED"]
    kinds = {key[0].kind for key in world.server.objects}
    assert kinds <= {"Event"}  # everything else went with it


def test_deleted_before_it_began_or_after_it_ended(world: World) -> None:
    operator = Operator(world)
    world.submit("b", HIGH)
    operator.look()
    world.api.delete(DINOJOBS, SPACE, "b")
    assert gone(world, "b")
    world.submit("a", TRAIN)
    settle(world, operator, "a")
    world.api.delete(DINOJOBS, SPACE, "a")
    assert gone(world)  # at once: no operator is needed


@pytest.mark.parametrize("abandon", [False, True])
def test_deleted_while_the_tracking_server_is_down(world: World, abandon: bool) -> None:
    world.steps, world.registry.down = 30, True
    operator = begun(world, 6)
    world.api.delete(DINOJOBS, SPACE, "a")
    rounds(world, operator, 6)
    assert not gone(world)
    if abandon:
        world.edit("a", abandon="true")
        operator.look()
    else:
        rounds(world, operator, 8, 60.0)
        assert "FinalizeTimeout" in reasons(world)
    assert gone(world)


def test_namespace_goes_away_in_mid_run(world: World) -> None:
    world.steps = 30
    operator = begun(world, 6)
    world.server.end_namespace(SPACE)
    rounds(world, operator, 6)
    assert gone(world)


def test_made_again_with_the_same_document_it_goes_on(world: World) -> None:
    world.steps = 30
    operator = begun(world, 8)
    world.api.delete(DINOJOBS, SPACE, "a")
    rounds(world, operator, 5)
    assert gone(world)
    world.submit("a", TRAIN)
    world.steps = 3
    settle(world, operator, "a")
    status = world.job("a")["status"]
    assert status["storage"].endswith("run-0001")
    assert attempts(world, "a")[0]["number"] == 2
    assert attempts(world, "a")[0]["startStep"] > 0
    assert len(world.registry.runs) == 2  # each object has a run of its own


def test_made_again_when_done_it_is_done(world: World) -> None:
    operator = begun(world, spec=GATED)
    settle(world, operator, "a")
    world.api.delete(DINOJOBS, SPACE, "a")
    world.submit("a", GATED)
    settle(world, operator, "a")
    assert "attempts" not in world.job("a")["status"]["lifecycle"]
    assert world.registry.alias_moves == 1


def test_made_again_with_another_document_it_begins_anew(world: World) -> None:
    operator = begun(world)
    settle(world, operator, "a")
    world.api.delete(DINOJOBS, SPACE, "a")
    world.submit("a", {**TRAIN, "seed": 7})
    settle(world, operator, "a")
    assert world.job("a")["status"]["storage"].endswith("run-0002")
    assert attempts(world, "a")[0]["number"] == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_a_namespace_takes_the_operators_rights_with_it(world: World, restarted: bool) -> None:
    """Only DinoJobs may be read and patched any more; all watches have ended before the pods did."""
    refused: list[str] = []

    def hook(call: Call) -> None:
        if world.server.terminating and call.resource != DINOJOBS:
            refused.append(f"{call.verb} {call.resource.kind}")
            raise Forbidden(refused[-1], "is forbidden", 403, "Forbidden")

    world.steps = 1000
    world.submit("a", TRAIN)
    view = Lagging(world.server)
    view.catch_up()
    view.jobs.held = None
    operator = Operator(world, hook, view)
    for _ in range(6):
        operator.look()
        world.tick()
        view.catch_up()
        view.jobs.held = None
    assert world.state("a") == "Running"
    world.server.end_namespace(SPACE)
    if restarted:
        operator = Operator(world, hook, view)
    rounds(world, operator, 4)
    assert gone(world)
    assert not operator.errors
    assert list(world.registry.runs.values()) == ["FAILED"]
    assert not [one for one in world.objects(EVENTS) if one["type"] == "Warning"]
    assert "get RayJob" in refused


def test_nothing_is_remembered_of_jobs_that_are_gone(world: World) -> None:
    world.submit("a", TRAIN)
    world.submit("b", {**TRAIN, "pretrain": {**TRAIN["pretrain"], "data": {"job": "a"}}})
    operator = Operator(world)
    settle(world, operator, "a")
    assert operator.reconciler._tools.eyes._known
    for name in ("a", "b"):
        world.api.delete(DINOJOBS, SPACE, name)
    rounds(world, operator, 5)
    for name in ("a", "b"):
        assert gone(world, name)
        operator.reconciler.reconcile((SPACE, name))
    assert not operator.reconciler._tools.eyes._known
    assert not operator.reconciler._kin._children


def test_a_job_with_an_unreadable_status_can_be_abandoned(world: World) -> None:
    world.steps = 30
    operator = begun(world, 5)
    world.api.patch(DINOJOBS, SPACE, "a", {"status": {"lifecycle": {"version": 99}}}, subresource="status")
    world.api.delete(DINOJOBS, SPACE, "a")
    rounds(world, operator, 2)
    assert not gone(world)
    assert any("dinoctl.io/abandon=true" in one["message"] for one in world.objects(EVENTS))
    world.edit("a", abandon="true")
    operator.look()
    assert gone(world)
