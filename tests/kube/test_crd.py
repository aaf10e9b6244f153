"""What the real API server makes of the CustomResourceDefinition: it agrees with the models wherever it can speak."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import Invalid
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.spec.crd import crd
from dinoctl.spec.yamldoc import read_yaml
from support.documents import BROKEN, CONTRADICTORY, DATA, GOOD, job, models_take
from support.kube.apiserver import ApiServer

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "jobs").glob("*.yaml"))
DOCUMENTS = [doc.data for path in FILES for doc in read_yaml(path.read_text(), str(path))]


@pytest.fixture(scope="module")
def client(api: ApiServer) -> HttpApi:
    api.apply_crds(ROOT / "manifests" / "crd.yaml")
    return connect(None, api.kubeconfig, manager="dinoctl")


@pytest.fixture(scope="module")
def place(api: ApiServer) -> str:
    return api.namespace()


def answer(client: HttpApi, place: str, document: dict[str, Any]) -> str:
    """The server's refusal; empty when it takes the document."""
    try:
        client.apply(DINOJOBS, place, document, dry_run=True)
    except Invalid as error:
        return error.message
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_every_shipped_document_is_taken_as_it_is(client: HttpApi, place: str, document: dict[str, Any]) -> None:
    assert client.apply(DINOJOBS, place, document)["spec"] == document["spec"]
    client.delete(DINOJOBS, place, document["metadata"]["name"])
    assert client.create(DINOJOBS, place, document)["spec"] == document["spec"]


@pytest.mark.parametrize("document", GOOD, ids=json.dumps)
def test_what_the_models_take_the_server_takes_and_keeps(client: HttpApi, place: str, document: dict[str, Any]) -> None:
    assert models_take(document)
    assert client.apply(DINOJOBS, place, document, dry_run=True)["spec"] == document["spec"]


EVALUATE = {"model": {"uri": "x"}, "protocols": {"knn": {"dataset": "x"}}}
DISTILL = {"teacher": {"uri": "x"}, **DATA}
# One for every rule, in the server's words
RULED: list[tuple[dict[str, Any], str]] = [
    (job({}), "give exactly one of pack, pretrain, highres, distill, evaluate"),
    (job({"pretrain": DATA, "pack": {"source": "x"}}), "give exactly one of pack, pretrain"),
    (job({"pack": {"source": "x"}, "gate": {"dataset": "x"}}), "a gate measures a trained model"),
    (job({"evaluate": EVALUATE, "gate": {"dataset": "x"}}), "a gate measures a trained model"),
    (job({"pretrain": DATA}, metadata={"name": "x" * 39}), "at most 38 characters"),
    (job({"pretrain": DATA}, metadata={"name": "a.b"}), "lower-case letters, digits and '-' in the name"),
    (
        job({"pretrain": DATA, "compute": {"compile": True, "activationCheckpointing": "selective"}}),
        "a compiled block keeps what its compiler decides",
    ),
    (job({"pretrain": DATA, "compute": {"engine": {"name": "ddp", "zeroStage": 1}}}), "only deepspeed has a zeroStage"),
    (job({"pretrain": {**DATA, "crops": {"augmentation": {"blur": {"kernel": 8}}}}}), "kernel must be odd"),
    (
        job({"pretrain": {**DATA, "crops": {"augmentation": {"order": ["blur"] * 5}}}}),
        "order: name each of horizontalFlip",
    ),
    (
        job({"pretrain": DATA, "policy": {"checkpoint": {"everySteps": 100, "keepEvery": 150}}}),
        "keepEvery must be a multiple of everySteps",
    ),
    (
        job({"pretrain": DATA, "policy": {"checkpoint": {"keepEvery": 3751}}}),
        "keepEvery must be a multiple of everySteps",
    ),
    (
        job({"evaluate": {"model": {"uri": "x"}, "protocols": {"knn": {"dataset": "x", "imageSize": 9, "resize": 8}}}}),
        "resize is smaller than imageSize",
    ),
    (job({"pretrain": DATA, "gate": {"dataset": "x", "knn": {"imageSize": 9, "resize": 8}}}), "resize is smaller"),
    (job({"pretrain": DATA, "gate": {"dataset": "x", "championMargin": 0.1}}), "championMargin compares"),
    (
        job({"pretrain": {**DATA, "schedules": {"momentum": {"start": 0.9, "end": 1.1}}}}),
        "momentum is a share of 1",
    ),
    (
        job({"distill": {**DISTILL, "model": {}, "headless": {"warmup": {}, "features": {}}}}),
        "give exactly one of warmup and features",
    ),
    (job({"distill": DISTILL}), "give exactly one of model and students"),
    (job({"distill": {**DISTILL, "students": {}}}), "give exactly one of model and students"),
    (job({"distill": {**DISTILL, "students": {"A": {"model": {}}}}}), "names of students: use lower-case letters"),
    (job({"pretrain": {"data": {}}}), "give exactly one of source and mixture"),
    (
        job({"pretrain": {"data": {"source": "x", "mixture": [{"source": "y"}]}}}),
        "give exactly one of source and mixture",
    ),
    (job({"pack": {"source": "x", "splits": {"train": 3}}}), "splits: held-out splits have names"),
    (job({"pack": {"source": "x", "splits": {"val": 0}}}), "splits: held-out splits have names"),
    (job({"evaluate": {"model": {"uri": "x"}, "protocols": {}}}), "name at least one protocol"),
    (job({"pretrain": {**DATA, "model": {"arch": "custom"}}}), "arch custom needs embedDim, depth, numHeads"),
    *(
        (job({"pretrain": {**DATA, "model": {"arch": arch, "depth": 5}}}), f"{arch} has embedDim")
        for arch in ("vit_small", "vit_base", "vit_large", "vit_giant2")
    ),
    (job({"pretrain": {**DATA, "model": {"depth": 5}}}), "vit_giant2 has embedDim"),
    (
        job({"pretrain": {**DATA, "model": {"arch": "custom", "embedDim": 10, "depth": 1, "numHeads": 3}}}),
        "embedDim must be a multiple of numHeads",
    ),
    *(
        (job({"pretrain": {**DATA, "crops": crops}}), f"{name}: the first number must not exceed the second")
        for name, crops in {
            "scale": {"local": {"scale": [0.5, 0.1]}},
            "aspect": {"augmentation": {"aspect": [2, 1]}},
            "sigma": {"augmentation": {"blur": {"sigma": [2, 1]}}},
        }.items()
    ),
    (job({"pretrain": {**DATA, "masks": {"ratio": [0.5, 0.1]}}}), "ratio: the first number must not exceed"),
    (job({"highres": {"from": {}}}), "give exactly one of job, model and uri"),
    (job({"highres": {"from": {"job": "a", "uri": "x"}}}), "give exactly one of job, model and uri"),
    (job({"highres": {"from": {"uri": "x", "student": "s"}}}), "student goes with job"),
]


@pytest.mark.parametrize(("document", "words"), RULED, ids=[json.dumps(document) for document, _ in RULED])
def test_a_rule_says_what_a_model_says(client: HttpApi, place: str, document: dict[str, Any], words: str) -> None:
    assert not models_take(document)
    assert words in answer(client, place, document)


def messages(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for rule in node.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for value in node.values():
            yield from messages(value)


def test_every_rule_is_shown_to_bite() -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    frozen = "cannot change once the job has started"
    rules = {message for message in messages(schema) if frozen not in message}
    assert {rule for rule in rules if not any(words in rule for _, words in RULED)} == set()


def whole(documents: list[Any]) -> list[dict[str, Any]]:
    return [one for one in documents if isinstance(one, dict) and one.get("metadata", {}).get("name")]


# A source is text or a mapping, which no structural schema can say, so nothing in it is judged; nor a duration's value.
# 5.0 is a whole number for JSON.
ONLY_MODELS = [
    job({"pretrain": {"data": {"source": {"job": "a", "x": 1}}}}),
    job({"pretrain": {"data": {"source": {"job": "A"}}}}),
    job({"pretrain": {"data": {"source": 5}}}),
    job({"pretrain": {"data": {"source": "s3:x"}}}),
    job({"pretrain": DATA, "policy": {"deadline": "0s"}}),
    job({"pretrain": {**DATA, "steps": 5.0}}),
    job({"pack": {"source": "x", "shardSize": 100}}),
    job({"pretrain": DATA}, metadata={"name": "a", "labels": {"dinoctl.io/x": "1"}}),
]
JUDGED = [one for one in whole([*BROKEN, *CONTRADICTORY]) if one not in ONLY_MODELS]


@pytest.mark.parametrize("document", JUDGED, ids=json.dumps)
def test_what_the_models_refuse_the_server_refuses(client: HttpApi, place: str, document: dict[str, Any]) -> None:
    assert not models_take(document)
    assert answer(client, place, document)


@pytest.mark.parametrize("document", ONLY_MODELS, ids=json.dumps)
def test_what_only_the_models_can_refuse(client: HttpApi, place: str, document: dict[str, Any]) -> None:
    assert not models_take(document)
    assert answer(client, place, document) == "", "it can be said after all: move it to JUDGED"


# The models know no such limits: the API server must be able to reckon what a rule costs.
ONLY_SERVER = [
    job({"pretrain": {"data": {"mixture": [{"source": "x"}] * 65}}}),
    job({"pretrain": DATA, "policy": {"deadline": 90.5}}),
    job({"pretrain": DATA, "profile": "x" * 2049}),
]


@pytest.mark.parametrize("document", ONLY_SERVER, ids=lambda document: json.dumps(document)[:60])
def test_what_only_the_server_refuses(client: HttpApi, place: str, document: dict[str, Any]) -> None:
    assert models_take(document)
    assert answer(client, place, document)


BASE = {
    "pretrain": {"data": {"source": {"job": "pack"}}, "steps": 100},
    "compute": {"workers": 4},
    "profile": "a",
    "storage": "s3://b/x",
    "seed": 1,
    "gate": {"dataset": "s3://b/d"},
}
STARTED = {"attempt": 1, "state": "Running"}
ALWAYS = [
    {"policy": {"deadline": "3h"}},
    {"suspend": True},
]
HELD = [
    {"compute": {"workers": 8}},
    {"compute": None},
    {"profile": "b"},
    {"profile": None},
]
NEVER = [
    {"pretrain": {"steps": 101}},
    {"pretrain": {"data": {"source": {"job": "other"}}}},
    {"pretrain": {"data": {"source": "s3://b/other"}}},
    {"pretrain": {"globalBatch": 64}},
    {"pretrain": None, "highres": {"from": {"job": "x"}}},
    {"gate": None},
    {"gate": {"min": 0.5}},
    {"seed": 2},
    {"seed": None},
    {"storage": "s3://b/y"},
    {"storage": None},
]


class Begun:
    """A job on the server, with a status."""

    def __init__(self, client: HttpApi, place: str, status: dict[str, Any], **spec: Any) -> None:
        self.client, self.place, self.name = client, place, f"j{secrets.token_hex(5)}"
        client.create(DINOJOBS, place, job({**BASE, **spec}, metadata={"name": self.name}))
        client.patch(DINOJOBS, place, self.name, {"status": status}, subresource="status")

    def refused(self, change: dict[str, Any]) -> str:
        try:
            self.client.patch(DINOJOBS, self.place, self.name, {"spec": change})
        except Invalid as error:
            return error.message
        return ""


FROZEN = "cannot change once the job has started"


@pytest.mark.parametrize("change", [*ALWAYS, *HELD, *NEVER], ids=json.dumps)
def test_before_the_start_everything_may_change(client: HttpApi, place: str, change: dict[str, Any]) -> None:
    begun = Begun(client, place, {"state": "Waiting"})
    assert begun.refused(change) == ""


@pytest.mark.parametrize("change", ALWAYS, ids=json.dumps)
def test_wishes_may_always_change(client: HttpApi, place: str, change: dict[str, Any]) -> None:
    begun = Begun(client, place, STARTED)
    assert begun.refused(change) == ""


@pytest.mark.parametrize("change", HELD, ids=json.dumps)
def test_its_size_may_change_while_it_is_suspended(client: HttpApi, place: str, change: dict[str, Any]) -> None:
    begun = Begun(client, place, STARTED)
    assert FROZEN in begun.refused(change)
    assert FROZEN in begun.refused({**change, "suspend": True}), "it has to be suspended before"
    assert begun.refused({"suspend": True}) == ""
    assert begun.refused(change) == ""


@pytest.mark.parametrize("change", NEVER, ids=json.dumps)
@pytest.mark.parametrize("suspend", [False, True], ids=["running", "suspended"])
def test_what_the_job_is_never_changes(client: HttpApi, place: str, suspend: bool, change: dict[str, Any]) -> None:
    begun = Begun(client, place, STARTED, suspend=suspend)
    assert FROZEN in begun.refused(change)


@pytest.mark.parametrize("state", ["Complete", "Failed", "Cancelled"])
def test_of_a_job_that_has_ended_everything_may_change_for_a_restart(client: HttpApi, place: str, state: str) -> None:
    begun = Begun(client, place, {"attempt": 3, "state": state})
    for change in ({"pretrain": {"steps": 101}}, {"compute": {"workers": 8}}, {"storage": "s3://b/y"}):
        assert begun.refused(change) == ""


def test_the_same_document_again_is_no_change(client: HttpApi, place: str) -> None:
    begun = Begun(client, place, STARTED)
    assert answer(client, place, job(BASE, metadata={"name": begun.name})) == ""


STATUS = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Running",
            "status": "True",
            "reason": "Running",
            "message": "x",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
    ],
    "state": "Running",
    "message": "attempt 3 is running",
    "stage": "pretrain",
    "profile": "a100",
    "queue": "vision",
    "workers": 256,
    "attempt": 3,
    "rayJob": "vitg-1a2b3-3",
    "step": 120,
    "steps": 1000,
    "imagesPerSecond": 4711.5,
    "etaSeconds": 11520,
    "eta": "3h12m",
    "checkpointStep": 100,
    "lastProgressTime": "2026-01-01T00:00:00Z",
    "waste": {"queueSeconds": 1.5, "startSeconds": 2, "replaySeconds": 3},
    "failures": {"infrastructure": 1, "application": 0, "preemptions": 2},
    "parents": [{"name": "pack", "state": "Complete", "message": ""}, {"name": "other", "state": "Running"}],
    "model": {"name": "dinov2-vitg", "version": "7", "alias": "champion"},
    "storage": "s3://b/team/a/run-0001",
    "runId": "0123",
    "lastFailure": {"attempt": 2, "class": "Nccl", "message": "x", "bundle": "s3://b/x", "node": "gpu-7"},
    "excludedNodes": ["gpu-7"],
    "strikes": {"gpu-7": 2},
    "restart": "token",
    "lifecycle": {"version": 1, "attempts": [{"number": 3, "nested": {"deep": [1, 2.5, None, "x"]}}]},
}


def test_every_field_of_the_status_survives_and_the_columns_show_it(
    api: ApiServer, client: HttpApi, namespace: str
) -> None:
    begun = Begun(client, namespace, STATUS)
    assert client.get(DINOJOBS, namespace, begun.name)["status"] == STATUS
    head, line = api.kubectl("get", "dj", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "STAGE", "STATE", "QUEUE", "WORKERS", "STEP", "ETA", "AGE"]
    assert line.split()[:-1] == [begun.name, "pretrain", "Running", "vision", "256", "120", "3h12m"]
    head, line = api.kubectl("get", "dinoctl", "-n", namespace, "-o", "wide").splitlines()
    assert head.split() == [
        *("NAME", "STAGE", "STATE", "QUEUE", "WORKERS", "STEP", "ETA", "AGE"),
        *("ATTEMPT", "PARENT", "MODEL", "VERSION", "REASON"),
    ]
    assert line.split()[8:] == ["3", "pack", "7", "attempt", "3", "is", "running"]
