"""Jobs in a queue: what Kueue and KubeRay do, or fail to do, and what the operator makes of it."""

from pathlib import Path
from typing import Any

import pytest
from operators import attempts, begun, condition, reasons, rounds, settle

from dinoctl.cli.remote.rows import live, settled
from dinoctl.cluster.errors import Unavailable
from dinoctl.cluster.resources import LOCAL_QUEUES, PODS, RAYJOBS, WORKLOADS
from support.kube.memory import Call
from support.kube.world import SPACE, Live, World


@pytest.mark.parametrize("missing", ["KubeRay", "Kueue", "queue"])
def test_what_is_not_installed(tmp_path: Path, missing: str) -> None:
    world = World(tmp_path, queue="gpus")
    if missing == "queue":
        world.api.delete(LOCAL_QUEUES, SPACE, "gpus")
    else:
        world.server.missing.add(RAYJOBS if missing == "KubeRay" else LOCAL_QUEUES)
    operator = begun(world, 3)
    told = condition(world, "a", "Admitted")
    assert told["status"] == "False"
    assert told["reason"] == {"KubeRay": "KubeRayMissing", "Kueue": "KueueMissing", "queue": "QueueMissing"}[missing]
    assert told["message"] == world.job("a")["status"]["message"]
    assert (world.state("a"), settled(world.job("a")), live(world.job("a"))) == ("Blocked", False, 1)
    assert reasons(world).count(told["reason"]) == 1
    version = world.job("a")["metadata"]["resourceVersion"]
    rounds(world, operator, 3)
    assert world.job("a")["metadata"]["resourceVersion"] == version
    assert not operator.errors
    world.server.missing.clear()
    if missing == "queue":
        world.api.create(LOCAL_QUEUES, SPACE, {"metadata": {"name": "gpus"}, "spec": {}})
    settle(world, operator, "a")


def test_what_kueue_changes_is_no_edit(tmp_path: Path) -> None:
    world = World(tmp_path, queue="gpus", steps=8)
    begun(world, 6)
    assert "RayJobEdited" not in reasons(world)


def test_a_webhook_that_nobody_serves_is_told(world: World) -> None:
    """Kueue is gone, its webhook configuration isn't."""
    down = [True]

    def hook(call: Call) -> None:
        if down[0] and (call.resource, call.verb, call.when) == (RAYJOBS, "create", "before"):
            text = 'failed calling webhook "mrayjob.kb.io": connection refused'
            raise Unavailable("create RayJob", text, 500, "InternalError")

    operator = begun(world, 3, hook=hook)
    told = condition(world, "a", "Admitted")
    assert (told["status"], told["reason"]) == ("False", "RayJobRefused")
    assert "do Kueue and KubeRay run?" in told["message"]
    assert not operator.errors
    down[0] = False
    settle(world, operator, "a")


def test_without_kueue_nothing_runs_beside_the_quota(tmp_path: Path) -> None:
    """Its definitions are installed, and neither webhook nor controller runs."""
    world = World(tmp_path, queue="gpus", kueue=False)
    operator = begun(world, 6)
    assert world.job("a")["status"]["message"] == "attempt 1 is queued: Kueue has not looked at it yet"
    rounds(world, operator, 10)
    told = "attempt 1 is queued: Kueue has not looked at it yet; does its controller run?"
    assert (world.state("a"), world.job("a")["status"]["message"]) == ("Queued", told)
    assert not world.objects(PODS)
    world.kueue = True
    settle(world, operator, "a")


def memory(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.job("a")["status"]["lifecycle"]["executor"]
    return found


def of_kueue(world: World, word: dict[str, str]) -> None:
    """Its word on the only Workload."""
    (workload,) = world.objects(WORKLOADS)
    change = {"status": {"conditions": [word]}}
    world.api.patch(WORKLOADS, SPACE, workload["metadata"]["name"], change, subresource="status")


def deactivate(world: World) -> None:
    """Kueue's word of it, that of the RayJob's suspension not yet."""
    word = {"type": "Evicted", "status": "True", "reason": "Deactivated", "message": "The workload is deactivated"}
    of_kueue(world, word)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("admitted", [False, True])
def test_deactivated_in_kueue_it_queues_no_more_until_its_user_wants_it(
    tmp_path: Path, admitted: bool, restart: bool
) -> None:
    world = World(tmp_path, queue="gpus", steps=1000, admit=admitted)
    operator = begun(world, 8)
    deactivate(world)
    if admitted:
        world.preempt(world.rayjobs()[0]["metadata"]["name"])
    rounds(world, operator, 40, 30.0)
    assert [one["cause"] for one in attempts(world, "a")] == ["Preempted"]
    assert (world.state("a"), settled(world.job("a"))) == ("Blocked", True)
    told = "deactivated in Kueue (The workload is deactivated); it queues again after `dinoctl suspend` and"
    assert told in world.job("a")["status"]["message"]
    assert reasons(world).count("Deactivated") == 1
    world.admit, world.steps = True, 3
    if restart:
        world.edit("a", restart="1")
    else:
        world.edit("a", {"suspend": True})
        rounds(world, operator, 2)
        assert world.state("a") == "Suspended"
        world.edit("a", {"suspend": False})
    settle(world, operator, "a")
    assert condition(world, "a", "Admitted")["reason"] != "Deactivated"


@pytest.mark.parametrize("first", ["deactivated", "suspended"])
def test_one_of_two_watches_is_late_with_a_deactivation(tmp_path: Path, first: str) -> None:
    """Those of Workloads and of RayJobs; or it comes while the pods of a job save that was only preempted."""
    world = World(tmp_path, queue="gpus", steps=1000, saves=5)
    operator = begun(world, 8)
    view = operator.view
    late = view.workloads if first == "suspended" else view.rayjobs
    late.freeze()
    deactivate(world)
    world.preempt(world.rayjobs()[0]["metadata"]["name"])
    seen = Live(world.server)
    seen.workloads.freeze()
    operator.look()
    taken = {"attempt": 1, "message": "Kueue suspended it"}
    assert memory(world).get("preempted") == (taken if first == "suspended" else None)
    view.rayjobs.held, view.workloads.held = None, seen.workloads.held
    operator.look()
    told = "The workload is deactivated"
    assert (memory(world)["deactivated"], memory(world)["preempted"]["message"]) == (told, told)
    view.workloads.held = {}
    rounds(world, operator, 40, 30.0)
    assert [one["cause"] for one in attempts(world, "a")] == ["Preempted"]
    assert world.state("a") == "Blocked"


def test_resumed_while_the_pods_of_a_deactivated_attempt_save_it_queues(tmp_path: Path) -> None:
    world = World(tmp_path, queue="gpus", steps=1000, saves=5)
    operator = begun(world, 8)
    deactivate(world)
    world.preempt(world.rayjobs()[0]["metadata"]["name"])
    operator.view.workloads.freeze()  # Kueue's word is still there
    for suspend in (True, False):
        world.edit("a", {"suspend": suspend})
        rounds(world, operator, 1)
    assert [one["number"] for one in attempts(world, "a")] == [1]
    rounds(world, operator, 20, 30.0)
    assert attempts(world, "a")[-1]["number"] == 2
    assert world.state("a") == "Running"
    assert "deactivated" not in memory(world)


def test_kuberay_is_asked_after_a_minute_after_a_long_wait_for_quota(tmp_path: Path) -> None:
    world = World(tmp_path, queue="gpus", admit=False)
    operator = begun(world, 6)
    world.now += 600.0
    admitted = {"type": "Admitted", "status": "True", "lastTransitionTime": world.stamp()}
    of_kueue(world, admitted)
    (rayjob,) = world.rayjobs()
    name, unseen = rayjob["metadata"]["name"], {"status": {"jobDeploymentStatus": ""}}
    world.api.patch(RAYJOBS, SPACE, name, {"spec": {"suspend": False}})
    world.api.patch(RAYJOBS, SPACE, name, unseen, subresource="status")
    wait = operator.reconciler.reconcile((SPACE, "a"))
    assert world.job("a")["status"]["message"] == "attempt 1 is queued: KubeRay has not looked at it yet"
    assert wait is not None
    assert 60.0 < wait < 61.0
    world.now += wait
    operator.look()
    told = "attempt 1 is queued: KubeRay has not looked at it yet; does its controller run?"
    assert world.job("a")["status"]["message"] == told
