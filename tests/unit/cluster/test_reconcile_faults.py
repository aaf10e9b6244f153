"""What breaks around a job, and what the operator says and does then: storage, tracking server, maps, webhooks."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from operators import GATED, TRAIN, Operator, settle
from test_reconcile import attempts, condition, gone, reasons, rounds

from dinoctl.cluster.errors import Forbidden, Unavailable
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, EVENTS, PODS, RAYJOBS, WORKLOADS
from dinoctl.cluster.tracking_child import Busy
from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.outcome import Outcome
from dinoctl.spec import names
from support.kube.memory import Call
from support.kube.world import SPACE, Lagging, Live, World

NO_ANSWER = StorageError("s3://x: no answer")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_arguments: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize("where", ["round.find_life", "act.mark_life"])
def test_a_job_that_cannot_begin_because_of_its_storage_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(f"dinoctl.cluster.{where}", raising(NO_ANSWER))
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 3)
    told = condition(world, "a", "Admitted")
    assert (told["status"], told["reason"], told["message"]) == ("False", "StorageUnreadable", "s3://x: no answer")
    assert reasons(world).count("StorageUnreadable") == 1
    assert not world.rayjobs()
    monkeypatch.undo()
    settle(world, operator, "a")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NO_ANSWER, "s3://x: no answer"),
        (TypeError("no field 'step'"), "TypeError: no field 'step'"),
        (KeyError("metrics"), "KeyError: 'metrics'"),
    ],
)
@pytest.mark.parametrize("where", ["outcome", "results"])
def test_results_that_cannot_be_read_decide_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, told: str
) -> None:
    """The storage is down, or somebody has damaged a file in it."""
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 4)
    if where == "outcome":
        monkeypatch.setattr(AttemptStore, "outcome", raising(error))
    else:
        monkeypatch.setattr("dinoctl.cluster.observe.read_results", raising(error))
    rounds(world, operator, 6)
    found = condition(world, "a", "Healthy")
    assert (found["status"], found["reason"], found["message"]) == ("Unknown", "ResultsUnreadable", told)
    assert attempts(world, "a")[-1]["state"] == "Running"
    assert world.job("a")["status"]["failures"]["infrastructure"] == 0
    monkeypatch.undo()
    settle(world, operator, "a")


def test_maps_deleted_under_a_running_attempt_are_made_again(world: World) -> None:
    world.steps = 60
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
    before = world.job("a")["status"]["step"]
    world.api.delete(CONFIGMAPS, SPACE, names.progress_name("a"))
    rounds(world, operator, 10)
    assert world.job("a")["status"]["step"] > before, "progress is heard of again"
    assert reasons(world).count("ConfigMapRestored") == 1
    assert [one["number"] for one in attempts(world, "a")] == [1]


def test_a_document_deleted_before_its_pods_have_read_it_is_made_again(world: World) -> None:
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 2)
    (rayjob,) = world.rayjobs()
    world.api.delete(CONFIGMAPS, SPACE, rayjob["metadata"]["name"])
    rounds(world, operator, 5, 10.0)
    assert "ConfigMapRestored" not in reasons(world), "it may not have been needed"
    settle(world, operator, "a")
    assert reasons(world).count("ConfigMapRestored") == 1
    assert [one["number"] for one in attempts(world, "a")] == [1]


def test_a_webhook_that_nobody_serves_is_told(world: World) -> None:
    """Kueue is gone, its webhook configuration isn't."""
    down = [True]

    def hook(call: Call) -> None:
        if down[0] and (call.resource, call.verb, call.when) == (RAYJOBS, "create", "before"):
            text = 'failed calling webhook "mrayjob.kb.io": connection refused'
            raise Unavailable("create RayJob", text, 500, "InternalError")

    world.submit("a", TRAIN)
    operator = Operator(world, hook)
    rounds(world, operator, 3)
    told = condition(world, "a", "Admitted")
    assert (told["status"], told["reason"]) == ("False", "RayJobRefused")
    assert "do Kueue and KubeRay run?" in told["message"]
    assert not operator.errors
    down[0] = False
    settle(world, operator, "a")


def test_without_kueue_nothing_runs_beside_the_quota(tmp_path: Path) -> None:
    """Its definitions are installed, and neither webhook nor controller runs."""
    world = World(tmp_path, queue="gpus", kueue=False)
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
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


def deactivate(world: World) -> None:
    """Kueue's word of it, that of the RayJob's suspension not yet."""
    word = {"type": "Evicted", "status": "True", "reason": "Deactivated", "message": "The workload is deactivated"}
    (workload,) = world.objects(WORKLOADS)
    change = {"status": {"conditions": [word]}}
    world.api.patch(WORKLOADS, SPACE, workload["metadata"]["name"], change, subresource="status")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("admitted", [False, True])
def test_deactivated_in_kueue_it_queues_no_more_until_its_user_wants_it(
    tmp_path: Path, admitted: bool, restart: bool
) -> None:
    world = World(tmp_path, queue="gpus", steps=1000, admit=admitted)
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
    deactivate(world)
    if admitted:
        world.preempt(world.rayjobs()[0]["metadata"]["name"])
    rounds(world, operator, 40, 30.0)
    assert [one["cause"] for one in attempts(world, "a")] == ["Preempted"]
    assert world.state("a") == "Blocked"
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
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
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
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
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


def test_overtaken_by_a_better_model_it_is_not_promoted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged good while the tracking server was down; when it is back, another one is champion."""
    why = "not registered, the gate refused: knn_top1 0.6 < 0.9 of champion version 2 less the margin 0.01"
    monkeypatch.setattr(
        world.registry, "promote", lambda *_: {"promotion": None, "refused": why, "runId": "run-1"}, raising=False
    )
    world.submit("a", GATED)
    operator = Operator(world)
    settle(world, operator, "a", ends=("Failed",))
    told = condition(world, "a", "Failed")
    assert (told["reason"], told["message"]) == ("GateFailed", why)
    assert world.registry.alias_moves == 0
    assert list(world.registry.runs.values()) == ["FAILED"]


def test_many_that_want_the_tracking_server_take_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    promote, refusals = world.registry.promote, [Busy("b")] * 3

    def busy(*arguments: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return promote(*arguments)

    monkeypatch.setattr(world.registry, "promote", busy)
    world.submit("a", GATED)
    operator = Operator(world)
    settle(world, operator, "a")
    assert not refusals
    assert "TrackingUnavailable" not in reasons(world)


def test_a_bundle_is_tried_again_when_the_storage_is_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dinoctl.cluster import reports

    write, tries, now = reports.write_bundle, list[int](), [0.0]

    def down_at_first(case: Any) -> Any:
        tries.append(case.attempt)
        if len(tries) == 1:
            raise NO_ANSWER
        return write(case)

    monkeypatch.setattr(reports, "write_bundle", down_at_first)
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "node lost")}
    world.submit("a", TRAIN)
    operator = Operator(world)
    monkeypatch.setattr(operator.reconciler._tools.reports, "_clock", lambda: now[0])
    settle(world, operator, "a")
    until(lambda: bool(tries))
    rayjob = names.rayjob_name("a", attempts(world, "a")[0]["specHash"], 1)
    evicted = {"reason": "Evicted", "message": "by Kueue", "involvedObject": {"kind": "RayJob", "name": rayjob}}
    world.create(EVENTS, {"metadata": {"name": "kueues-own"}, **evicted})
    now[0] = 299.0
    operator.look()
    assert tries == [1]
    now[0] = 301.0
    operator.look()
    until(lambda: "bundle" in world.job("a")["status"]["lastFailure"])
    assert tries == [1, 1]
    stored = open_storage(world.job("a")["status"]["storage"]).read("attempts/0001/postmortem.json")
    assert ("Evicted", f"RayJob/{rayjob}") in {(one["reason"], one["object"]) for one in json.loads(stored)["events"]}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


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


def test_a_refusal_is_no_sign_that_a_jobs_work_is_gone(world: World) -> None:
    """While nobody deletes it."""
    down: list[bool] = []

    def hook(call: Call) -> None:
        if down and call.resource == RAYJOBS and call.verb == "get":
            raise Forbidden("get RayJob", "is forbidden", 403, "Forbidden")

    world.steps = 1000
    world.submit("a", TRAIN)
    view = Lagging(world.server)
    operator = Operator(world, hook, view)
    view.jobs.held = None
    rounds(world, operator, 5)
    view.rayjobs.held = {}
    down.append(True)
    rounds(world, operator, 5)
    assert [one["state"] for one in attempts(world, "a")] == ["Running"]
    assert world.state("a") == "Unknown"


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
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 5)
    world.api.patch(DINOJOBS, SPACE, "a", {"status": {"lifecycle": {"version": 99}}}, subresource="status")
    world.api.delete(DINOJOBS, SPACE, "a")
    rounds(world, operator, 2)
    assert not gone(world)
    assert any("dinoctl.io/abandon=true" in one["message"] for one in world.objects(EVENTS))
    world.edit("a", abandon="true")
    operator.look()
    assert gone(world)


@pytest.mark.parametrize("head", ["only", "cpu"])
def test_the_only_node_for_ranks_is_never_excluded(world: World, head: str) -> None:
    """A head's node may have no GPUs."""
    world.fail = {n: Outcome(n, "failed", "Infrastructure", "lost", node="only") for n in (1, 2)}
    world.on_node = lambda role, attempt: head if role == "head" else "only"
    world.submit("a", TRAIN)
    settle(world, Operator(world), "a")
    assert world.job("a")["status"]["strikes"] == {"only": 2}
    assert "excludedNodes" not in world.job("a")["status"]
