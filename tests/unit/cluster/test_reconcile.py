"""What users and administrators do to jobs, and what the operator makes of it."""

from pathlib import Path
from typing import Any

import pytest
from operators import GATED, TRAIN, Operator, settle

from dinoctl.cli.remote.rows import live, settled
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, EVENTS, LOCAL_QUEUES, RAYJOBS
from dinoctl.handover.outcome import Outcome
from dinoctl.spec import names
from dinoctl.spec.yamldoc import read_yaml
from support.kube.memory import Call
from support.kube.world import SPACE, World

JOBS = Path(__file__).parents[3] / "jobs"
HIGH: dict[str, Any] = {
    "highres": {"from": {"job": "a"}, "steps": 10, "data": {"source": "s3://bucket/digits"}},
    "compute": TRAIN["compute"],
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rounds(world: World, operator: Operator, count: int, seconds: float = 5.0) -> None:
    for _ in range(count):
        operator.look()
        world.tick(seconds)


def condition(world: World, name: str, kind: str) -> dict[str, Any]:
    return next(one for one in world.job(name)["status"]["conditions"] if one["type"] == kind)


def reasons(world: World) -> list[str]:
    return [body["reason"] for key, body in world.server.objects.items() if key[0] == EVENTS]


def attempts(world: World, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.job(name)["status"]["lifecycle"]["attempts"]
    return found


def test_a_chain_runs_by_itself(world: World) -> None:
    operator = Operator(world)
    world.submit("b", HIGH)
    operator.look()
    assert condition(world, "b", "ParentsReady")["reason"] == "ParentMissing"
    assert "a (there is no such job)" in world.job("b")["status"]["message"]
    world.submit("a", GATED)
    operator.look()
    operator.look()
    assert world.job("b")["status"]["parents"][0]["state"] == "Running"
    assert list(operator.reconciler.children(SPACE, "a")) == ["b"]
    settle(world, operator, "a", "b")
    spec = world.mounted[world.job("b")["status"]["rayJob"]]
    assert spec.spec.highres is not None
    assert spec.spec.highres.parent.uri == world.job("a")["status"]["storage"]  # type: ignore[union-attr]


def test_the_digits_run_from_pack_to_evaluation(world: World) -> None:
    documents = read_yaml((JOBS / "digits.yaml").read_text(), "digits.yaml")
    for document in reversed(documents):
        world.submit(document.data["metadata"]["name"], document.data["spec"])
    operator = Operator(world)
    names_ = [document.data["metadata"]["name"] for document in documents]
    settle(world, operator, *names_, rounds=150)
    assert {name for name, _ in world.registry.versions} == {"digits-teacher", "digits-highres", "digits-student"}
    assert world.registry.alias_moves == 3
    assert list(world.registry.runs.values()) == ["FINISHED"] * 5
    storage = {name: world.job(name)["status"]["storage"] for name in names_}
    distilled = world.mounted[world.job("digits-distill")["status"]["rayJob"]].spec
    assert distilled.distill is not None
    assert distilled.distill.teacher.uri == storage["digits-pretrain"]  # type: ignore[union-attr]
    assert distilled.distill.data.source == f"{storage['digits-pack']}/dataset"
    assert not operator.errors


def test_the_last_event_of_a_life_is_its_end(world: World) -> None:
    world.submit("a", TRAIN)
    operator = Operator(world)
    settle(world, operator, "a")
    told = [body for key, body in world.server.objects.items() if key[0] == EVENTS]
    told.sort(key=lambda body: int(body["metadata"]["resourceVersion"]))
    assert [(one["reason"], one["message"]) for one in told[-2:]] == [
        ("Evaluated", "it has no gate"),
        ("Complete", "all work is done"),
    ]


def test_a_failed_gate_blocks_the_children(world: World) -> None:
    world.accuracy = 0.2
    world.submit("a", GATED)
    world.submit("b", HIGH)
    operator = Operator(world)
    settle(world, operator, "a", ends=("Failed",))
    assert condition(world, "a", "Failed")["reason"] == "GateFailed"
    assert condition(world, "b", "ParentsReady")["reason"] == "ParentFailed"
    assert world.registry.alias_moves == 0
    assert list(world.registry.runs.values()) == ["FAILED"]


def test_a_bad_document_is_told_and_mended(world: World) -> None:
    world.submit("a", {"pretrain": {"data": {"source": "s3://b/d"}, "steps": "many"}})
    world.submit("b", HIGH)
    operator = Operator(world)
    rounds(world, operator, 3)
    told = condition(world, "a", "Validated")
    assert (told["status"], told["reason"]) == ("False", "SpecError")
    assert "spec.pretrain.steps" in told["message"]
    assert (world.state("a"), settled(world.job("a"))) == ("Blocked", True)
    assert "is not valid" in world.job("b")["status"]["message"]
    version = world.job("a")["metadata"]["resourceVersion"]
    rounds(world, operator, 3)
    assert world.job("a")["metadata"]["resourceVersion"] == version  # nothing new, nothing written
    world.edit("a", TRAIN)
    settle(world, operator, "a", "b")


@pytest.mark.parametrize("fault", ["document", "profile"])
def test_a_job_that_can_not_begin_can_be_cancelled_and_done_again(world: World, fault: str) -> None:
    bad = {"pretrain": {"steps": "many"}} if fault == "document" else {"profile": "nobody"}
    world.submit("a", {**TRAIN, **bad})
    operator = Operator(world)
    rounds(world, operator, 2)
    assert world.state("a") == "Blocked"
    world.edit("a", cancel="true")
    rounds(world, operator, 3)
    assert world.state("a") == "Cancelled"
    version = world.job("a")["metadata"]["resourceVersion"]
    rounds(world, operator, 3)
    assert world.job("a")["metadata"]["resourceVersion"] == version
    world.edit("a", {**TRAIN, "profile": None}, cancel=None, restart="again")
    settle(world, operator, "a")
    assert not operator.errors


def test_profiles(world: World) -> None:
    world.submit("a", {**TRAIN, "profile": "nobody"})
    operator = Operator(world)
    operator.look()
    status = world.job("a")["status"]
    assert "no profile named 'nobody'; profiles here: test" in status["message"]
    assert status["stage"] == "pretrain"
    bare = Operator(world, config=world.config(defaultProfile=None))
    world.submit("b", TRAIN)
    bare.look()
    assert "spec.profile: required field is missing" in world.job("b")["status"]["message"]


def test_suspended_resized_resumed(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
    assert world.state("a") == "Running"
    world.edit("a", {"suspend": True})
    rounds(world, operator, 5)
    assert world.state("a") == "Suspended"
    assert not [one for one in world.rayjobs() if "deletionTimestamp" not in one["metadata"]]
    committed = world.job("a")["status"]["checkpointStep"]
    world.edit("a", {"suspend": False, "compute": {"workers": 4}})
    operator.look()
    operator.look()
    newest = world.rayjobs()[-1]
    (group,) = newest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["rayStartParams"]["resources"]) == (1, "'{\"rank\": 4}'")
    assert world.attempt(newest["metadata"]["name"]).spec.compute.workers == 4
    assert world.job("a")["status"]["workers"] == 4
    assert attempts(world, "a")[-1]["startStep"] == committed
    world.steps = 12
    settle(world, operator, "a")
    status = world.job("a")["status"]
    assert status["failures"] == {"infrastructure": 0, "application": 0, "preemptions": 0}


def test_a_changed_document_needs_a_restart(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
    world.edit("a", {"pretrain": {"steps": 200}})
    rounds(world, operator, 2)
    assert condition(world, "a", "Validated")["reason"] == "SpecChanged"
    assert attempts(world, "a")[-1]["state"] == "Running"
    world.edit("a", restart="1")
    rounds(world, operator, 6)
    status = world.job("a")["status"]
    assert status["restart"] == "1"
    assert status["storage"].endswith("run-0002")
    world.steps = 3
    settle(world, operator, "a")
    assert sorted(world.registry.runs.values()) == ["FAILED", "FINISHED"]


def test_restart_of_a_complete_job(world: World) -> None:
    world.submit("a", TRAIN)
    operator = Operator(world)
    settle(world, operator, "a")
    world.edit("a", restart="again")
    operator.look()
    assert world.state("a") != "Complete"
    settle(world, operator, "a")
    assert [one["number"] for one in attempts(world, "a")] == [2]
    assert len(world.registry.runs) == 2


def test_cancelled(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
    world.edit("a", cancel="true")
    settle(world, operator, "a", ends=("Cancelled",))
    told = {body["reason"]: body for key, body in world.server.objects.items() if key[0] == EVENTS}
    assert told["Cancelled"]["type"] == "Normal"
    assert told["ParentsReady"]["message"] == "waits for no other job"
    assert list(world.registry.runs.values()) == ["FAILED"]
    assert not world.job("a")["metadata"]["finalizers"]


def gone(world: World, name: str = "a") -> bool:
    return (DINOJOBS, SPACE, name) not in world.server.objects


def test_deleted_while_running(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
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
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
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


def test_promotion_waits_for_the_tracking_server(world: World) -> None:
    world.registry.down = True
    world.submit("a", GATED)
    operator = Operator(world)
    rounds(world, operator, 12)
    assert world.state("a") == "Promoting"
    told = condition(world, "a", "Promoted")
    assert told["reason"] == "TrackingUnavailable"
    assert "connection refused" in told["message"]
    world.registry.down = False
    settle(world, operator, "a")


@pytest.mark.parametrize("missing", ["KubeRay", "Kueue", "queue"])
def test_what_is_not_installed(tmp_path: Path, missing: str) -> None:
    world = World(tmp_path, queue="gpus")
    if missing == "queue":
        world.api.delete(LOCAL_QUEUES, SPACE, "gpus")
    else:
        world.server.missing.add(RAYJOBS if missing == "KubeRay" else LOCAL_QUEUES)
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 3)
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


def test_namespace_goes_away_in_mid_run(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
    world.server.end_namespace(SPACE)
    rounds(world, operator, 6)
    assert gone(world)


def test_a_deleted_rayjob_is_an_infrastructure_failure(world: World) -> None:
    world.steps, world.saves = 30, 0
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 5)
    world.api.delete(RAYJOBS, SPACE, world.rayjobs()[0]["metadata"]["name"])
    world.server.objects = {k: v for k, v in world.server.objects.items() if k[0].kind != "Pod"}
    operator.look()
    assert world.job("a")["status"]["failures"]["infrastructure"] == 1
    assert "vanished" in attempts(world, "a")[0]["message"]
    world.steps = 3
    settle(world, operator, "a")


def test_an_edited_rayjob_is_told_and_left_alone(world: World) -> None:
    world.steps = 8
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 5)
    world.api.patch(RAYJOBS, SPACE, world.rayjobs()[0]["metadata"]["name"], {"spec": {"entrypoint": "sleep 1"}})
    rounds(world, operator, 2)
    assert reasons(world).count("RayJobEdited") == 1
    assert "somebody changed its RayJob" in world.job("a")["status"]["message"]
    settle(world, operator, "a")
    assert world.job("a")["status"]["failures"]["infrastructure"] == 0


def test_what_kueue_changes_is_no_edit(tmp_path: Path) -> None:
    world = World(tmp_path, queue="gpus", steps=8)
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 6)
    assert "RayJobEdited" not in reasons(world)


def test_deleted_maps_are_made_again(world: World) -> None:
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "node lost")}
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 4)
    world.api.delete(CONFIGMAPS, SPACE, names.resolved_name("a"))
    world.api.delete(CONFIGMAPS, SPACE, names.progress_name("a"))
    operator.reconciler.lead()
    settle(world, operator, "a")
    assert world.api.get(CONFIGMAPS, SPACE, names.resolved_name("a"))["data"]["life"] == "run-0001"


def test_made_again_with_the_same_document_it_goes_on(world: World) -> None:
    world.steps = 30
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 8)
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
    world.submit("a", GATED)
    operator = Operator(world)
    settle(world, operator, "a")
    world.api.delete(DINOJOBS, SPACE, "a")
    world.submit("a", GATED)
    settle(world, operator, "a")
    assert "attempts" not in world.job("a")["status"]["lifecycle"]
    assert world.registry.alias_moves == 1


def test_made_again_with_another_document_it_begins_anew(world: World) -> None:
    world.submit("a", TRAIN)
    operator = Operator(world)
    settle(world, operator, "a")
    world.api.delete(DINOJOBS, SPACE, "a")
    world.submit("a", {**TRAIN, "seed": 7})
    settle(world, operator, "a")
    assert world.job("a")["status"]["storage"].endswith("run-0002")
    assert attempts(world, "a")[0]["number"] == 2


def test_a_node_is_avoided_after_its_second_strike(world: World) -> None:
    world.fail = {n: Outcome(n, "failed", "Infrastructure", "NCCL error", node="bad") for n in (1, 3)}
    world.fail[2] = Outcome(2, "failed", "Infrastructure", "no word of a node")
    world.on_node = lambda role, attempt: "bad" if role == "worker" and attempt in (1, 3) else "good"
    world.submit("a", TRAIN)
    operator = Operator(world)
    for _ in range(80):
        operator.look()
        world.tick()
        if attempts(world, "a")[-1]["number"] == 4:
            break
    status = world.job("a")["status"]
    assert status["strikes"] == {"bad": 2}
    assert status["excludedNodes"] == ["bad"]
    assert status["lastFailure"]["node"] == "bad"
    settle(world, operator, "a")
    assert not {"strikes", "excludedNodes"} & set(world.job("a")["status"]), "it has trained elsewhere"
    last = world.rayjobs()[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert "bad" in str(last["affinity"])
    first = world.rayjobs()[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert "bad" not in str(first.get("affinity"))


def test_old_rayjobs_are_tidied(world: World) -> None:
    world.fail = {n: Outcome(n, "failed", "Infrastructure", "lost") for n in range(1, 6)}
    world.submit("a", TRAIN)
    operator = Operator(world, config=world.config(keepAttempts=2))
    settle(world, operator, "a", rounds=400)
    kept = [int(one["metadata"]["labels"][names.ATTEMPT]) for one in world.rayjobs()]
    assert kept == [5, 6] or kept == [4, 5, 6]
    maps = [key[2] for key in world.server.objects if key[0] == CONFIGMAPS]
    assert not [name for name in maps if name.endswith("-1")]


def test_steps_alone_are_written_now_and_then(world: World) -> None:
    world.steps = 40
    world.submit("a", TRAIN)
    writes: list[Call] = []
    operator = Operator(world, lambda call: writes.append(call) if call.writes and call.when == "before" else None)
    rounds(world, operator, 6)
    writes.clear()
    rounds(world, operator, 24)  # two minutes, a report every five seconds
    assert {call.subresource for call in writes} == {"status"}
    assert len(writes) <= 5
    status = world.job("a")["status"]
    assert status["step"] > 100
    assert status["eta"] == "1m00s"


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_clock_jumps(world: World, jump: float) -> None:
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "lost")}
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 4)
    world.now += jump
    settle(world, operator, "a", rounds=200)


def test_an_unreadable_status_is_left_alone(world: World) -> None:
    world.submit("a", TRAIN)
    world.api.patch(DINOJOBS, SPACE, "a", {"status": {"lifecycle": {"version": 99}}}, subresource="status")
    operator = Operator(world)
    rounds(world, operator, 3)
    assert reasons(world) == ["StatusUnreadable"]
    assert not world.rayjobs()
    assert not operator.errors


def test_a_profile_that_goes_away_stops_nothing_that_runs(world: World) -> None:
    world.steps = 8
    world.submit("a", {**TRAIN, "profile": "test"})
    operator = Operator(world)
    rounds(world, operator, 6)
    other = {"other": world.config().profiles["test"].model_dump(mode="json", by_alias=True)}
    without = Operator(world, config=world.config(profiles=other, defaultProfile=None))
    rounds(world, without, 2)
    assert attempts(world, "a")[-1]["state"] == "Running"
    assert "no profile named 'test'" in condition(world, "a", "Validated")["message"]
    settle(world, operator, "a")


def test_a_rayjob_that_the_cache_lacks_has_not_vanished(world: World) -> None:
    world.steps = 8
    world.submit("a", TRAIN)
    operator = Operator(world)
    rounds(world, operator, 5)
    operator.view.rayjobs.held = {}
    rounds(world, operator, 2)
    assert attempts(world, "a")[-1]["state"] == "Running"
    operator.view.rayjobs.held = None
    settle(world, operator, "a")
    assert world.job("a")["status"]["failures"]["infrastructure"] == 0
