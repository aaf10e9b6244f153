"""Contradictions that show only once the values are known."""

import pytest
from spec_documents import PRETRAIN, Workshop, document

from dinoctl.spec.checks_crops import whole_patches

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
DISTILL = "distill: {teacher: {job: p}, data: {source: x}, model: {arch: vit_small"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "pretrain: {data: {source: x}, globalBatch: 10}\ncompute: {workers: 3}",
            "globalBatch: 10 images do not divide among 3 workers; 9 would",
        ),
        (
            "pretrain: {data: {source: x}, globalBatch: 3}\ncompute: {workers: 3}",
            "globalBatch: 1 image a worker, but KoLeo compares at least 2; use 6, or losses.koleo: 0",
        ),
        (
            "pretrain: {data: {source: x}, globalBatch: 96, losses: {koleoGroup: 36}}\ncompute: {workers: 3}",
            "losses.koleoGroup: 36 images a group do not divide globalBatch 96; take a divisor of it",
        ),
        (
            "pretrain: {data: {source: x}, masks: {ratio: [0, 0]}}",
            "masks.ratio: no patch is ever masked; raise the second number to at least 0.004, or set losses.ibot: 0",
        ),
        (
            "pretrain: {data: {source: x}, steps: 10, losses: {gram: {startStep: 10}}}",
            "losses.gram.startStep: 10, but steps are counted from 0 to 9",
        ),
        (
            "pretrain: {data: {source: x}, losses: {gram: {teacherScale: 1.3}}}",
            "losses.gram.teacherScale: 1.3 times the 16 patches of 224 pixels is no whole number of patches; 1.3125 is",
        ),
        (
            "pretrain: {data: {source: x}, losses: {gram: {startStep: 0}}}",
            "losses.gram.startStep: 0 would hold patches near those of the untrained network",
        ),
        (
            "pretrain: {data: {source: x}, crops: {local: {count: 0}}, model: {untieNorms: local_cls}}",
            "model.untieNorms: local_cls, but there are no local crops",
        ),
        (
            "pretrain: {data: {source: x}, model: {arch: custom, embedDim: 30, depth: 1, numHeads: 5, rope: {}}}",
            "model.rope: needs heads of a multiple of 4 channels, these have 6; change numHeads",
        ),
        ("highres: {from: {job: p}, model: {rope: {}}}", "highres.model: is the parent's; only dropPath"),
        (
            DISTILL + "}, teacherPlacement: sharded}\ncompute: {engine: {name: ddp}}",
            "teacherPlacement: sharded, but engine ddp keeps all parameters on every worker; use fsdp or deepspeed "
            "with zeroStage 3, which shard them, or leave teacherPlacement out",
        ),
        (
            DISTILL + "}, teacherPlacement: sharded}\ncompute: {engine: {zeroStage: 2}}",
            "teacherPlacement: sharded, but engine deepspeed with zeroStage 2 keeps all parameters on every worker",
        ),
        (DISTILL + "}, losses: {gram: {}}}", "losses.gram: needs a teacher that is the student's average"),
        (
            "pretrain: {data: {source: x}, crops: {global: {size: 225}}}",
            "crops.global.size: 225 is not a multiple of patchSize 14; 224 would be",
        ),
        (
            "pretrain: {data: {source: x}, crops: {local: {size: 96}}}",
            "crops.local.size: 96 is not a multiple of patchSize 14; 98 would be",
        ),
        (
            "pretrain: {data: {source: x}, steps: 10, schedules: {learningRate: {warmupSteps: 11}}}",
            "learningRate.warmupSteps: 11 steps are more than the job's 10",
        ),
        ("highres: {from: {uri: m}, model: {arch: vit_base}}", "highres.data: required here"),
        ("highres: {from: {uri: m}, data: {source: x}}", "highres.model: required here"),
        (
            "highres: {from: {job: p}, size: 500}",
            "spec.highres.size: 500 is not a multiple of patchSize 14; 504 would be",
        ),
        ("highres: {from: {job: p}, localSize: 100}", "spec.highres.localSize: 100 is not a multiple"),
        (
            "highres: {from: {job: p}, crops: {global: {size: 448}}}",
            "crops.global.size: 448, but size is 518; set size alone",
        ),
        (
            "highres: {from: {job: p}, localSize: 98, crops: {local: {size: 112}}}",
            "crops.local.size: 112, but localSize is 98",
        ),
        (
            "highres: {from: {job: p}, model: {registers: 0}}",
            "highres.model: is the parent's; only dropPath can be changed",
        ),
        ("highres: {from: {job: p}, heads: {dino: {prototypes: 9}}}", "highres.heads: are the parent's"),
        (DISTILL + ", patchSize: 16}}", "patchSize: 16, but the teacher's is 14"),
        (DISTILL + "}, heads: {dino: {prototypes: 9}}}", "dino.prototypes: 9, but the teacher has 512"),
        (DISTILL + "}, heads: {ibot: null}}", "heads.ibot: must be like the teacher's"),
        (f"{PRETRAIN}\ngate: {{dataset: y, knn: {{imageSize: 225}}}}", "gate.knn.imageSize: 225 is not a multiple"),
        (
            f"{PRETRAIN}\ngate: {{dataset: y, knn: {{imageSize: 224, resize: 200}}}}",
            "resize 200 is smaller than imageSize 224",
        ),
        (
            f"{PRETRAIN}\ngate: {{dataset: y, knn: {{resize: 200}}}}",
            "gate.knn.resize: 200 is smaller than imageSize 224",
        ),
        (
            "evaluate: {model: {job: p}, protocols: {knn: {dataset: y, imageSize: 225}}}",
            "knn.imageSize: 225 is not a multiple",
        ),
    ],
)
def test_contradictions_are_told_with_their_place(workshop: Workshop, spec: str, said: str) -> None:
    (line,) = workshop.problems(document("p", PARENT), document("a", spec))
    assert said in line
    assert int(line.split(":")[1]) >= 5


def test_contradictions_of_all_jobs_are_told_at_once(workshop: Workshop) -> None:
    bad = "pretrain: {data: {source: x}, globalBatch: 10, crops: {global: {size: 225}}}\ncompute: {workers: 3}"
    assert len(workshop.problems(document("a", bad), document("b", bad))) == 4


def test_koleo_groups_of_the_global_batch_need_no_two_images_a_worker(workshop: Workshop) -> None:
    assert workshop.spec(
        "pretrain: {data: {source: x}, globalBatch: 4, losses: {koleoGroup: 4}}\ncompute: {workers: 4}"
    )


def test_no_local_crops_need_no_size(workshop: Workshop) -> None:
    assert workshop.spec("pretrain: {data: {source: x}, crops: {local: {count: 0, size: 96}}}")


BARE = document("p", f"distill: {{teacher: {{uri: x}}, {DISTILL.split(', ', 1)[1]}}}, headless: {{features: {{}}}}}}")


def test_a_teacher_distilled_by_features_has_no_heads(workshop: Workshop) -> None:
    (line,) = workshop.problems(BARE, document("s", f"{DISTILL}}}}}"))
    assert "distill.teacher: has no heads, it was distilled by features; add headless: {warmup: {}}" in line
    for way in ("warmup", "features"):
        workshop.resolve(BARE, document("s", f"{DISTILL}}}, headless: {{{way}: {{}}}}}}"))
    (line,) = workshop.problems(BARE, document("h", "highres: {from: {job: p}, size: 448}"))
    assert "highres.from: was distilled by features and has no heads" in line


def test_a_way_without_heads(workshop: Workshop) -> None:
    start = "distill: {teacher: {uri: t.pth}, data: {source: x}, model: {arch: vit_small}, "
    spec = workshop.spec(f"{start}steps: 50, headless: {{warmup: {{}}}}}}")["distill"]
    assert spec["headless"] == {"warmup": {"steps": 5}}
    assert spec["heads"]["dino"]["prototypes"] == 131072
    spec = workshop.spec(f"{start}headless: {{features: {{distance: smooth_l1}}}}}}")["distill"]
    assert "heads" not in spec
    assert "headless" not in workshop.spec(f"{start[:-2]}}}")["distill"], "documents without it keep their hash"
    (line,) = workshop.problems(document("s", f"{start}headless: {{features: {{}}}}, heads: {{}}}}"))
    assert "distill.heads: are not used where features are matched; leave them out" in line
    for both in ("", "warmup: {}, features: {}"):
        (line,) = workshop.problems(document("s", f"{start}headless: {{{both}}}}}"))
        assert "give exactly one of warmup and features" in line


STUDENTS = "distill: {teacher: {uri: t}, data: {source: x}, globalBatch: 12, students: {a: {model: {arch: vit_small}}, "
DDP = "compute: {workers: 3, engine: {name: ddp}}"


def test_several_students(workshop: Workshop) -> None:
    several = document("m", f"{STUDENTS}b: {{model: {{arch: vit_base}}, ranks: 2}}}}}}\n{DDP}")
    spec = workshop.resolve(several)["m"].to_dict()["spec"]["distill"]
    assert [spec["students"][name]["ranks"] for name in "ab"] == [1, 2]
    assert spec["crops"]["local"]["size"] == 98
    evaluate = "evaluate: {{model: {{job: m{}}}, protocols: {{knn: {{dataset: x}}}}}}"
    workshop.resolve(several, document("e", evaluate.format(", student: a")))
    for named, said in (
        (", student: c", "'m' has no student 'c'; its students: a, b"),
        ("", "say which one: student: a"),
    ):
        (line,) = workshop.problems(several, document("e", evaluate.format(named)))
        assert said in line
    for end, said in (
        (f"b: {{model: {{arch: vit_base}}, ranks: 5}}}}}}\n{DDP}", "3 workers do not divide among 2 students, 5 for b"),
        (f"b: {{model: {{arch: vit_base, patchSize: 16}}}}}}}}\n{DDP}", "patch sizes differ (a 14, b 16)"),
        ("b: {model: {arch: vit_base}}}}\ncompute: {workers: 3}", "use engine: {name: ddp}"),
        (f"b: {{model: {{arch: vit_base}}}}}}, headless: {{features: {{}}}}}}\n{DDP}", "one student at a time"),
        (
            f"b: {{model: {{arch: vit_base}}}}}}, losses: {{koleoGroup: 5}}}}\n{DDP}",
            "losses.koleoGroup: 5 images a group do not divide globalBatch 12",
        ),
        (
            "b: {model: {arch: vit_base}, heads: {dino: {prototypes: 9}}}}, headless: {warmup: {}}}\n" + DDP,
            "students.b.heads.dino.prototypes: 9, but the teacher has 131072; leave it out",
        ),
        (
            f"b: {{model: {{arch: vit_base}}}}}}, model: {{arch: vit_small}}}}\n{DDP}",
            "exactly one of model and students",
        ),
    ):
        assert any(said in line for line in workshop.problems(document("m", STUDENTS + end))), said


def test_the_advised_scale_is_taken() -> None:
    """37 patches have no exact decimal: the digits of the message have to do."""
    assert (whole_patches(37, 1.51351), whole_patches(16, 1.3125), whole_patches(16, 1.3)) == (56, 21, 0)
