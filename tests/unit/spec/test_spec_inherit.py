"""What a document leaves open is the stage's, the teacher's or the parent's, field by field."""

from typing import Any

import pytest
from spec_documents import Workshop, document

PACK = document("data", "pack: {source: builtin://digits}")
TEACHER = document("teacher", "pretrain: {data: {source: {job: data}}}")
STUDENT = document(
    "student", "distill: {teacher: {job: teacher}, data: {source: {job: data}}, model: {arch: vit_small}}"
)


# A part of a section that is written leaves the rest of it as the stage has it


def test_part_of_the_heads_leaves_the_rest_the_papers(workshop: Workshop) -> None:
    heads = workshop.spec("pretrain: {data: {source: x}, heads: {dino: {prototypes: 8}}}")["pretrain"]["heads"]
    assert heads["dino"] == {"prototypes": 8, "hidden": 2048, "bottleneck": 384, "layers": 3}
    assert heads["ibot"]["bottleneck"] == 256


def test_part_of_a_distillations_schedules_leaves_the_rest_the_papers(workshop: Workshop) -> None:
    part = "schedules: {learningRate: {warmupSteps: 5}}"
    spec = f"distill: {{teacher: {{uri: t}}, data: {{source: x}}, model: {{arch: vit_small}}, {part}}}"
    rate = workshop.spec(spec)["distill"]["schedules"]["learningRate"]
    assert rate == {"base": 1e-3, "scaling": "none", "warmupSteps": 5, "min": 1e-6}


def test_a_distillation_takes_the_teachers_heads(workshop: Workshop) -> None:
    teacher = TEACHER.replace("{job: data}}", "{job: data}}, heads: {dino: {prototypes: 64}, ibot: null}")
    job = workshop.resolve(PACK, teacher, STUDENT)["student"]
    assert job.to_dict()["spec"]["distill"]["heads"]["dino"]["prototypes"] == 64
    assert job.to_dict()["spec"]["distill"]["heads"]["ibot"] is None
    assert job.origins["spec.distill.heads.dino.prototypes"] == "derived: that of teacher"


# High resolution

PARENT = """
pretrain:
  data: {source: x, split: all}
  globalBatch: 128
  model: {arch: vit_small, registers: 4, dropPath: 0.1}
  masks: {probability: 0.7}
  losses: {koleo: 0.05, sinkhornIterations: 5}
  optimizer: {layerDecay: 0.8}
  crops: {local: {count: 4}, augmentation: {solarize: 0, blur: {local: 0.3}}}
  heads: {dino: {prototypes: 512}}
"""


def highres(workshop: Workshop, text: str) -> dict[str, Any]:
    jobs = workshop.resolve(document("p", PARENT), document("h", f"highres: {{from: {{job: p}}, {text}}}"))
    return dict(jobs["h"].to_dict()["spec"]["highres"])


def test_high_resolution_inherits_all_and_compresses_the_schedules(workshop: Workshop) -> None:
    parent = workshop.resolve(document("p", PARENT))["p"].to_dict()["spec"]["pretrain"]
    stage = highres(workshop, "size: 448")
    for name in ("data", "globalBatch", "model", "masks", "heads", "losses", "optimizer"):
        assert stage[name] == parent[name], name
    assert stage["crops"]["global"]["size"] == 448
    assert (stage["crops"]["local"]["size"], stage["localSize"]) == (98, 98)
    assert stage["crops"]["augmentation"] == parent["crops"]["augmentation"]
    rate, heat = stage["schedules"]["learningRate"], stage["schedules"]["teacherTemperature"]
    # 625,000 steps in 10,000: 62.5 times shorter
    assert (rate["warmupSteps"], heat["warmupSteps"], stage["schedules"]["freezeLastLayerSteps"]) == (1600, 600, 20)
    assert rate["base"] == pytest.approx(0.2 * 2e-4)
    assert stage["schedules"]["weightDecay"] == parent["schedules"]["weightDecay"]
    assert stage["schedules"]["momentum"] == parent["schedules"]["momentum"]


def test_what_high_resolution_changes_leaves_the_rest_the_parents(workshop: Workshop) -> None:
    stage = highres(
        workshop,
        "localSize: 126, globalBatch: 64, model: {dropPath: 0.3}, losses: {koleo: 0}, masks: {ratio: [0.2, 0.4]}, "
        "crops: {augmentation: {blur: {local: 0}}}, schedules: {learningRate: {base: 1.0e-5}}",
    )
    assert stage["model"] | {"dropPath": 0.1} == workshop.spec(PARENT)["pretrain"]["model"]
    assert stage["losses"]["koleo"] == 0
    assert stage["losses"]["sinkhornIterations"] == 5
    assert stage["masks"]["probability"] == 0.7
    assert stage["crops"]["augmentation"]["solarize"] == 0
    assert stage["crops"]["augmentation"]["blur"]["local"] == 0
    assert stage["crops"]["local"] == {"count": 4, "size": 126, "scale": [0.05, 0.32]}
    assert stage["schedules"]["learningRate"]["base"] == 1e-5
    assert stage["schedules"]["learningRate"]["warmupSteps"] == 1600


def test_high_resolution_of_a_high_resolution(workshop: Workshop) -> None:
    jobs = workshop.resolve(
        document("p", PARENT),
        document("h", "highres: {from: {job: p}, size: 336, learningRateFactor: 0.5}"),
        document("i", "highres: {from: {job: h}, size: 518, steps: 5000, learningRateFactor: 0.5}"),
    )
    rate = jobs["i"].to_dict()["spec"]["highres"]["schedules"]["learningRate"]
    assert rate["base"] == pytest.approx(5e-5)
    assert rate["warmupSteps"] == 800


def test_gram_anchoring_is_a_share_of_the_steps_and_at_high_resolution_starts_at_once(workshop: Workshop) -> None:
    parent = PARENT.replace("koleo: 0.05", "gram: {weight: 3.0}") + "  steps: 1200000\n"
    jobs = workshop.resolve(
        document("p", parent),
        document("h", "highres: {from: {job: p}}"),
        document("i", "highres: {from: {job: p}, losses: {gram: {weight: 1.5, maxRefreshes: 1}}}"),
        document("j", "highres: {from: {job: p}, losses: {gram: null}}"),
    )
    found = {name: job.to_dict()["spec"][job.kind]["losses"].get("gram") for name, job in jobs.items()}
    rest = {"startStep": 0, "warmupSteps": 0, "refreshEvery": 83}
    assert found == {
        "p": {"weight": 3.0, "startStep": 1_000_000, "warmupSteps": 1000, "refreshEvery": 10_000, "maxRefreshes": 3},
        "h": {"weight": 3.0, **rest, "maxRefreshes": 0},
        "i": {"weight": 1.5, **rest, "maxRefreshes": 1},
        "j": None,
    }


def test_the_scale_of_the_gram_teacher_is_inherited(workshop: Workshop) -> None:
    parent = PARENT.replace("koleo: 0.05", "gram: {teacherScale: 2.0}") + "  steps: 1200000\n"
    own = "highres: {from: {job: p}, losses: {gram: {teacherScale: 1.5}}, size: 448}"
    jobs = workshop.resolve(document("p", parent), document("h", "highres: {from: {job: p}}"), document("i", own))
    scales = {n: job.to_dict()["spec"][job.kind]["losses"]["gram"]["teacherScale"] for n, job in jobs.items()}
    assert scales == {"p": 2.0, "h": 2.0, "i": 1.5}


def test_high_resolution_of_a_registered_model_is_the_papers(workshop: Workshop) -> None:
    model = "model: {arch: vit_large, patchSize: 16}"
    text = f"highres: {{from: {{model: models:/m@champion}}, data: {{source: x}}, {model}, size: 512}}"
    stage = workshop.spec(text)["highres"]
    assert (stage["localSize"], stage["globalBatch"], stage["model"]["dropPath"]) == (96, 3072, 0.4)
    assert stage["schedules"]["learningRate"]["warmupSteps"] == 1600
    assert "heads" not in stage
