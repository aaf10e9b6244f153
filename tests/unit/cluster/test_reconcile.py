"""What users and administrators do to jobs, and what the operator makes of it."""

from pathlib import Path

import pytest
from operators import GATED, HIGH, TRAIN, Operator, attempts, begun, condition, reasons, rounds, settle

from dinoctl.cli.remote.rows import settled
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, EVENTS, RAYJOBS
from dinoctl.handover.outcome import Outcome
from dinoctl.spec import names
from dinoctl.spec.yamldoc import read_yaml
from support.kube.memory import Call
from support.kube.world import SPACE, World

JOBS = Path(__file__).parents[3] / "jobs"


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
    operator = begun(world)
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
    operator = begun(world, 8)
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
    operator = begun(world, 6)
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
    operator = begun(world)
    settle(world, operator, "a")
    world.edit("a", restart="again")
    operator.look()
    assert world.state("a") != "Complete"
    settle(world, operator, "a")
    assert [one["number"] for one in attempts(world, "a")] == [2]
    assert len(world.registry.runs) == 2


def test_cancelled(world: World) -> None:
    world.steps = 30
    operator = begun(world, 6)
    world.edit("a", cancel="true")
    settle(world, operator, "a", ends=("Cancelled",))
    told = {body["reason"]: body for key, body in world.server.objects.items() if key[0] == EVENTS}
    assert told["Cancelled"]["type"] == "Normal"
    assert told["ParentsReady"]["message"] == "waits for no other job"
    assert list(world.registry.runs.values()) == ["FAILED"]
    assert not world.job("a")["metadata"]["finalizers"]


def test_promotion_waits_for_the_tracking_server(world: World) -> None:
    world.registry.down = True
    operator = begun(world, 12, GATED)
    assert world.state("a") == "Promoting"
    told = condition(world, "a", "Promoted")
    assert told["reason"] == "TrackingUnavailable"
    assert "connection refused" in told["message"]
    world.registry.down = False
    settle(world, operator, "a")


def test_an_edited_rayjob_is_told_and_left_alone(world: World) -> None:
    world.steps = 8
    operator = begun(world, 5)
    world.api.patch(RAYJOBS, SPACE, world.rayjobs()[0]["metadata"]["name"], {"spec": {"entrypoint": "sleep 1"}})
    rounds(world, operator, 2)
    assert reasons(world).count("RayJobEdited") == 1
    assert "somebody changed its RayJob" in world.job("a")["status"]["message"]
    settle(world, operator, "a")
    assert world.job("a")["status"]["failures"]["infrastructure"] == 0


def test_a_node_is_avoided_after_its_second_strike(world: World) -> None:
    world.fail = {n: Outcome(n, "failed", "Infrastructure", "NCCL error", node="bad") for n in (1, 3)}
    world.fail[2] = Outcome(2, "failed", "Infrastructure", "no word of a node")
    world.on_node = lambda role, attempt: "bad" if role == "worker" and attempt in (1, 3) else "good"
    operator = begun(world)
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
