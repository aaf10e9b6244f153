"""What a person sees who got a document wrong: `dinoctl validate`, all mistakes at once, each with place and fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from spec_documents import document

DINOCTL = [sys.executable, "-c", "from dinoctl.cli.main import main; main()"]
PRETRAIN = "pretrain:\n  data: {source: x}\n  model: {arch: vit_small}\n"
TEACHER = PRETRAIN + "  heads: {dino: {prototypes: 512}, ibot: {prototypes: 256}}"
DISTILL = "distill:\n  teacher: {job: teacher}\n  data: {source: x}\n"
HIGHRES = "highres:\n  from: {job: teacher}\n"
CUSTOM = "pretrain:\n  data: {source: x}\n  model: {arch: custom, embedDim: 64, depth: 2, numHeads: 2, patchSize: 8}\n"
BATCH = "\ncompute: {workers: 4}"

# What shows in the values themselves: (spec, field path, message with the fix).
VALUES = [
    ("pretrain:\n  data: {source: x}\n  model: {arch: vit_large2}", "pretrain.model.arch", "must be one of vit_small"),
    (PRETRAIN.replace("}\n  model", "}\n  modle"), "pretrain.modle", "unknown field; did you mean 'model'?"),
    (PRETRAIN + "  steps: 1.5", "pretrain.steps", "must be a whole number, not 1.5"),
    (PRETRAIN + "  steps: '100'", "pretrain.steps", "must be a whole number, not '100'; remove the quotes"),
    (PRETRAIN + "  steps: 0", "pretrain.steps", "must be at least 1, not 0"),
    (
        PRETRAIN.replace("vit_small", "vit_small, registers: -1"),
        "pretrain.model.registers",
        "must be at least 0, not -1",
    ),
    (PRETRAIN.replace("vit_small", "vit_small, patchSize: 0"), "pretrain.model.patchSize", "must be at least 1, not 0"),
    (PRETRAIN.replace("vit_small", "vit_small, dropPath: 1"), "pretrain.model.dropPath", "must be below 1, not 1"),
    (
        PRETRAIN.replace("vit_small", "vit_small, ffn: glu"),
        "pretrain.model.ffn",
        "must be one of mlp, swiglu, not 'glu'",
    ),
    (PRETRAIN.replace("vit_small", "vit_small, depth: 3"), "pretrain.model", "depth 3 needs arch: custom"),
    (
        CUSTOM.replace("numHeads: 2", "numHeads: 3"),
        "pretrain.model",
        "embedDim 64 is not a multiple of numHeads 3; 63 or 66 would be",
    ),
    (PRETRAIN + "  crops: {global: {scale: [0.9, 0.3]}}", "pretrain.crops.global.scale", "swap them"),
    (PRETRAIN + "  crops: {local: {count: -1}}", "pretrain.crops.local.count", "must be at least 0, not -1"),
    (
        PRETRAIN + "  crops: {augmentation: {order: [blur]}}",
        "pretrain.crops.augmentation.order",
        "name each of horizontalFlip, colorJitter, grayscale, blur, solarize exactly once",
    ),
    (
        PRETRAIN + "  crops: {augmentation: {blur: {behaviour: fixed}}}",
        "pretrain.crops.augmentation.blur.behaviour",
        "must be one of released, intended, not 'fixed'",
    ),
    (
        PRETRAIN + "  crops: {augmentation: {blur: {kernel: 8}}}",
        "pretrain.crops.augmentation.blur",
        "kernel must be odd, got 8; use 7 or 9",
    ),
    (PRETRAIN + "  masks: {probability: 1.5}", "pretrain.masks.probability", "must be at most 1, not 1.5"),
    (PRETRAIN + "  heads: {dino: {prototypes: 1}}", "pretrain.heads.dino.prototypes", "must be at least 2, not 1"),
    (PRETRAIN + "  losses: {koleo: -0.1}", "pretrain.losses.koleo", "must be at least 0, not -0.1"),
    (PRETRAIN + "  optimizer: {layerDecay: 0}", "pretrain.optimizer.layerDecay", "must be above 0, not 0"),
    (PRETRAIN + "  optimizer: {layerDecay: 1.2}", "pretrain.optimizer.layerDecay", "must be at most 1, not 1.2"),
    (
        PRETRAIN + "  schedules: {momentum: {start: 0.9, end: 1.1}}",
        "pretrain.schedules",
        "momentum is a share of 1: start and end are at most 1",
    ),
    (
        PRETRAIN + "  schedules: {teacherTemperature: {start: 0}}",
        "pretrain.schedules.teacherTemperature.start",
        "must be above 0, not 0",
    ),
    (PRETRAIN + "compute: {engine: {name: ddp, zeroStage: 3}}", "compute", "engine ddp has no zeroStage; leave it out"),
    (HIGHRES + "  sizes: []", "highres.sizes", "must be a list of at least 1, not []"),
]

# What shows once every value is known.
CONTRADICTIONS = [
    (
        PRETRAIN + "  globalBatch: 10" + BATCH,
        "pretrain.globalBatch",
        "10 images do not divide among 4 workers; 8 would",
    ),
    (
        PRETRAIN + "  globalBatch: 4" + BATCH,
        "pretrain.globalBatch",
        "1 image a worker, but KoLeo compares at least 2; use 8, or losses.koleo: 0",
    ),
    (
        HIGHRES + "  globalBatch: 4" + BATCH,
        "highres.globalBatch",
        "1 image a worker, but KoLeo compares at least 2; use 8, or losses.koleo: 0",
    ),
    (
        DISTILL + "  model: {arch: vit_small}\n  globalBatch: 4" + BATCH,
        "distill.globalBatch",
        "1 image a worker, but KoLeo compares at least 2; use 8, or losses.koleo: 0",
    ),
    (
        PRETRAIN + "  crops: {global: {size: 225}}",
        "pretrain.crops.global.size",
        "225 is not a multiple of patchSize 14; 224 would be",
    ),
    (
        PRETRAIN + "  crops: {local: {size: 96}}",
        "pretrain.crops.local.size",
        "96 is not a multiple of patchSize 14; 98 would be",
    ),
    (
        PRETRAIN + "  crops: {sizes: [{global: 224, local: 96}]}",
        "pretrain.crops.sizes[0].local",
        "96 is not a multiple of patchSize 14; 98 would be",
    ),
    (HIGHRES + "  size: 512", "highres.size", "512 is not a multiple of patchSize 14; 518 would be"),
    (
        HIGHRES + "  sizes: [{global: 512}]\n  size: 518",
        "highres.sizes[0].global",
        "512 is not a multiple of patchSize 14",
    ),
    (
        CUSTOM + "  crops: {global: {size: 16}, local: {size: 8}}",
        "pretrain.crops.global.size",
        "16 pixels are 2 x 2 patches, too few for a mask block of minPatches 4; use at least 24, or losses.ibot: 0",
    ),
    (
        CUSTOM + "  crops: {global: {size: 24}, local: {size: 8}}\n  masks: {ratio: [0.01, 0.1]}",
        "pretrain.masks.ratio",
        "no patch is ever masked; raise the second number to at least 0.1112, or set losses.ibot: 0",
    ),
    (
        PRETRAIN + "  globalBatch: 16\n  masks: {probability: 0.02}",
        "pretrain.masks.probability",
        "0.02 of the 32 global crops of a step is no crop, so iBOT has no patch to learn from; use at least 0.0313",
    ),
    (
        PRETRAIN + "  losses: {dino: 0, ibot: 0}",
        "pretrain.losses.dino",
        "is 0, and so is ibot: nothing would be learnt; give one of them a weight",
    ),
    (
        PRETRAIN + "  steps: 10\n  schedules: {learningRate: {warmupSteps: 11}}",
        "pretrain.schedules.learningRate.warmupSteps",
        "11 steps are more than the job's 10; lower it, or leave it out",
    ),
    (
        PRETRAIN + "  steps: 10\n  schedules: {freezeLastLayerSteps: 20}",
        "pretrain.schedules.freezeLastLayerSteps",
        "20 steps are more than the job's 10; lower it, or leave it out",
    ),
    (
        HIGHRES + "  model: {registers: 4}",
        "highres.model",
        "is the parent's; only dropPath can be changed, leave out the rest",
    ),
    (
        HIGHRES + "  heads: {dino: {prototypes: 9}}",
        "highres.heads",
        "are the parent's and cannot be changed; leave them out",
    ),
    (
        DISTILL + "  model: {arch: vit_small, patchSize: 16}",
        "distill.model.patchSize",
        "16, but the teacher's is 14; patch tokens must pair up",
    ),
    (
        DISTILL + "  model: {arch: vit_small}\n  heads: {dino: {prototypes: 9}, ibot: {prototypes: 256}}",
        "distill.heads.dino.prototypes",
        "9, but the teacher has 512; leave it out",
    ),
    (
        DISTILL + "  model: {arch: vit_small}\n  heads: {ibot: null}",
        "distill.heads.ibot",
        "must be like the teacher's (the teacher has two heads); leave heads out to take the teacher's",
    ),
    (
        "evaluate: {model: {job: teacher}, protocols: {knn: {dataset: x, imageSize: 225}}}",
        "evaluate.protocols.knn.imageSize",
        "225 is not a multiple of patchSize 14; 224 would be",
    ),
]
Bad = list[tuple[str, str, str]]


@pytest.mark.parametrize("bad", [VALUES, CONTRADICTIONS], ids=["values", "contradictions"])
def test_every_mistake_has_its_line_all_at_once(bad: Bad, tmp_path: Path) -> None:
    documents = [document("teacher", TEACHER), *(document(f"job{i}", spec) for i, (spec, _, _) in enumerate(bad))]
    file = tmp_path / "jobs.yaml"
    file.write_text("---\n".join(documents))
    done = subprocess.run([*DINOCTL, "validate", str(file)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert "Traceback" not in output
    told = [line for line in output.splitlines() if line.startswith(f"{file}:")]
    assert len(told) == len(bad), "one line a mistake\n" + output
    first = documents[0].count("\n") + 2
    for text, (_, field, said) in zip(documents[1:], bad, strict=True):
        lines = range(first, first + text.count("\n"))
        first = lines.stop + 1
        fitting = [line for line in told if f": spec.{field}: " in line and said in line]
        places = [tuple(map(int, line.removeprefix(f"{file}:").split(":")[:2])) for line in fitting]
        assert [column for row, column in places if row in lines and column > 1], (
            f"{field} in {lines}: {said}\n{output}"
        )
