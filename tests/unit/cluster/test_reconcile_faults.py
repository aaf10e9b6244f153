"""What breaks around a job, and what the operator says and does then: storage, tracking server, maps, webhooks."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from operators import GATED, TRAIN, Operator, attempts, begun, condition, reasons, rounds, settle

from dinoctl.cli.remote.rows import settled
from dinoctl.cluster.errors import Forbidden
from dinoctl.cluster.resources import CONFIGMAPS, EVENTS, RAYJOBS
from dinoctl.cluster.tracking_child import Busy
from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.outcome import Outcome
from dinoctl.spec import names
from support.kube.memory import Call
from support.kube.world import SPACE, Lagging, World

NO_ANSWER = StorageError("s3://x: no answer")


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_arguments: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize("where", ["round.find_life", "act.mark_life"])
def test_a_job_that_cannot_begin_because_of_its_storage_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(f"dinoctl.cluster.{where}", raising(NO_ANSWER))
    operator = begun(world, 3)
    told = condition(world, "a", "Admitted")
    assert (told["status"], told["reason"], told["message"]) == ("False", "StorageUnreadable", "s3://x: no answer")
    assert reasons(world).count("StorageUnreadable") == 1
    assert not world.rayjobs()
    assert (world.state("a"), settled(world.job("a"))) == ("Blocked", False), "who waits for it, waits on"
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
    operator = begun(world, 4)
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
    operator = begun(world, 8)
    before = world.job("a")["status"]["step"]
    world.api.delete(CONFIGMAPS, SPACE, names.progress_name("a"))
    rounds(world, operator, 10)
    assert world.job("a")["status"]["step"] > before, "progress is heard of again"
    assert reasons(world).count("ConfigMapRestored") == 1
    assert [one["number"] for one in attempts(world, "a")] == [1]


def test_a_document_deleted_before_its_pods_have_read_it_is_made_again(world: World) -> None:
    operator = begun(world, 2)
    (rayjob,) = world.rayjobs()
    world.api.delete(CONFIGMAPS, SPACE, rayjob["metadata"]["name"])
    rounds(world, operator, 5, 10.0)
    assert "ConfigMapRestored" not in reasons(world), "it may not have been needed"
    settle(world, operator, "a")
    assert reasons(world).count("ConfigMapRestored") == 1
    assert [one["number"] for one in attempts(world, "a")] == [1]


def test_overtaken_by_a_better_model_it_is_not_promoted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged good while the tracking server was down; when it is back, another one is champion."""
    why = "not registered, the gate refused: knn_top1 0.6 < 0.9 of champion version 2 less the margin 0.01"
    monkeypatch.setattr(
        world.registry, "promote", lambda *_: {"promotion": None, "refused": why, "runId": "run-1"}, raising=False
    )
    operator = begun(world, spec=GATED)
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
    operator = begun(world, spec=GATED)
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
    operator = begun(world)
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


@pytest.mark.parametrize("head", ["only", "cpu"])
def test_the_only_node_for_ranks_is_never_excluded(world: World, head: str) -> None:
    """A head's node may have no GPUs."""
    world.fail = {n: Outcome(n, "failed", "Infrastructure", "lost", node="only") for n in (1, 2)}
    world.on_node = lambda role, attempt: head if role == "head" else "only"
    world.submit("a", TRAIN)
    settle(world, Operator(world), "a")
    assert world.job("a")["status"]["strikes"] == {"only": 2}
    assert "excludedNodes" not in world.job("a")["status"]


def test_a_deleted_rayjob_is_an_infrastructure_failure(world: World) -> None:
    world.steps, world.saves = 30, 0
    operator = begun(world, 5)
    world.api.delete(RAYJOBS, SPACE, world.rayjobs()[0]["metadata"]["name"])
    world.server.objects = {k: v for k, v in world.server.objects.items() if k[0].kind != "Pod"}
    operator.look()
    assert world.job("a")["status"]["failures"]["infrastructure"] == 1
    assert "vanished" in attempts(world, "a")[0]["message"]
    world.steps = 3
    settle(world, operator, "a")


def test_deleted_maps_are_made_again(world: World) -> None:
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "node lost")}
    operator = begun(world, 4)
    world.api.delete(CONFIGMAPS, SPACE, names.resolved_name("a"))
    world.api.delete(CONFIGMAPS, SPACE, names.progress_name("a"))
    operator.reconciler.lead()
    settle(world, operator, "a")
    assert world.api.get(CONFIGMAPS, SPACE, names.resolved_name("a"))["data"]["life"] == "run-0001"


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_clock_jumps(world: World, jump: float) -> None:
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "lost")}
    operator = begun(world, 4)
    world.now += jump
    settle(world, operator, "a", rounds=200)


def test_a_rayjob_that_the_cache_lacks_has_not_vanished(world: World) -> None:
    world.steps = 8
    operator = begun(world, 5)
    operator.view.rayjobs.held = {}
    rounds(world, operator, 2)
    assert attempts(world, "a")[-1]["state"] == "Running"
    operator.view.rayjobs.held = None
    settle(world, operator, "a")
    assert world.job("a")["status"]["failures"]["infrastructure"] == 0
