"""The shipped recipes against the published hyper-parameters, written out here and independent of the code.

Sources: DINOv2 paper (arXiv 2304.07193) Table 16 and appendix B, the official configurations vitl16_short.yaml,
vitg14.yaml and ssl_default_config.yaml, and what released code really does where it differs.
"""

from pathlib import Path
from typing import Any

import pytest

from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve

JOBS = Path(__file__).parents[3] / "jobs"
Table = dict[str, Any]

COMMON: Table = {
    "data.split": "train",
    "model.layerScale": 1e-5,
    "model.registers": 0,
    "crops.global.size": 224,
    "crops.global.scale": [0.32, 1.0],
    "crops.local.count": 8,
    "crops.local.scale": [0.05, 0.32],
    "crops.augmentation.horizontalFlip": 0.5,
    "crops.augmentation.colorJitter.probability": 0.8,
    "crops.augmentation.colorJitter.brightness": 0.4,
    "crops.augmentation.colorJitter.contrast": 0.4,
    "crops.augmentation.colorJitter.saturation": 0.2,
    "crops.augmentation.colorJitter.hue": 0.1,
    "crops.augmentation.grayscale": 0.2,
    "crops.augmentation.blur.firstGlobal": 0.0,  # meant: 1.0
    "crops.augmentation.blur.secondGlobal": 0.9,  # meant: 0.1
    "crops.augmentation.blur.local": 0.5,
    "crops.augmentation.blur.kernel": 9,
    "crops.augmentation.blur.sigma": [0.1, 2.0],
    "crops.augmentation.solarize": 0.2,
    "crops.augmentation.aspect": [3 / 4, 4 / 3],
    "crops.augmentation.mean": [0.485, 0.456, 0.406],
    "crops.augmentation.std": [0.229, 0.224, 0.225],
    "masks.probability": 0.5,
    "masks.ratio": [0.1, 0.5],
    "masks.minPatches": 4,
    "masks.aspect": [0.3, 1 / 0.3],
    "losses.dino": 1.0,
    "losses.ibot": 1.0,
    "losses.koleo": 0.1,
    "losses.koleoCrops": "both",  # the paper says first
    "losses.sinkhornIterations": 3,
    "losses.studentTemperature": 0.1,
    "losses.centerMomentum": 0.9,
    "optimizer.name": "adamw",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.patchEmbedMultiplier": 0.2,
    "optimizer.clipNorm": 3.0,
    "schedules.learningRate.min": 1e-6,
    "schedules.teacherTemperature.start": 0.04,
    "schedules.teacherTemperature.end": 0.07,
    "schedules.teacherTemperature.warmupSteps": 37_500,
    "schedules.freezeLastLayerSteps": 1_250,
    "schedules.weightDecay.start": 0.04,
    "schedules.momentum.end": 1.0,
}
LONG: Table = COMMON | {
    "steps": 625_000,
    "model.patchSize": 14,
    "model.positionInterpolation": "offset",
    "crops.local.size": 98,
    "heads.dino": {"prototypes": 131_072, "hidden": 2048, "bottleneck": 384, "layers": 3},
    "heads.ibot": {"prototypes": 131_072, "hidden": 2048, "bottleneck": 256, "layers": 3},
    "losses.centering": "sinkhorn_knopp",
    "optimizer.layerDecay": 1.0,
    "schedules.learningRate.warmupSteps": 100_000,
    "schedules.weightDecay.end": 0.2,
    "schedules.momentum.start": 0.994,
}
GIANT: Table = LONG | {
    "globalBatch": 3072,
    "model.embedDim": 1536,
    "model.depth": 40,
    "model.numHeads": 24,
    "model.ffn": "swiglu",
    "model.dropPath": 0.4,
    "schedules.learningRate.base": 2e-4,
}
SHORT: Table = COMMON | {
    "steps": 125_000,
    "globalBatch": 2048,
    "model.embedDim": 1024,
    "model.depth": 24,
    "model.numHeads": 16,
    "model.ffn": "mlp",
    "model.patchSize": 16,
    "model.dropPath": 0.3,
    "crops.local.size": 96,
    "heads.dino": {"prototypes": 65_536, "hidden": 2048, "bottleneck": 256, "layers": 3},
    "heads.ibot": None,
    "losses.centering": "softmax",
    "optimizer.layerDecay": 0.9,
    "schedules.learningRate.base": 4e-3,
    "schedules.learningRate.warmupSteps": 12_500,
    "schedules.weightDecay.end": 0.4,
    "schedules.momentum.start": 0.992,
}
WIDTHS = {"vits": (384, 12, 6), "vitb": (768, 12, 12), "vitl": (1024, 24, 16)}


def student(name: str) -> Table:
    width, depth, heads = WIDTHS[name]
    shape = {"model.embedDim": width, "model.depth": depth, "model.numHeads": heads, "model.ffn": "mlp"}
    without_heads = {key: value for key, value in LONG.items() if not key.startswith("heads")}
    return without_heads | shape | {"globalBatch": 2048, "model.dropPath": 0.0, "schedules.learningRate.base": 1e-3}


def stage(file: str, name: str) -> dict[str, Any]:
    jobs = {job.name: job for job in resolve(load([str(JOBS / file)]))}
    return dict(jobs[name].to_dict()["spec"][jobs[name].kind])


def at(section: Any, path: str) -> Any:
    for key in path.split("."):
        section = section[key]
    return section


CASES = [
    ("vitg_pretrain.yaml", "vitg-pretrain", GIANT),
    ("dinov2_family.yaml", "family-vitg", GIANT),
    ("vitl16_in1k_short.yaml", "vitl16-in1k-short", SHORT),
    *((f"{name}_distill.yaml", f"{name}-distill", student(name)) for name in WIDTHS),
    *(("dinov2_family.yaml", f"family-{name}", student(name)) for name in WIDTHS),
]


@pytest.mark.parametrize(("file", "name", "table"), CASES, ids=[f"{file}:{name}" for file, name, _ in CASES])
def test_every_value_is_the_published_one(file: str, name: str, table: Table) -> None:
    found = stage(file, name)
    assert {path: at(found, path) for path in table} == table


@pytest.mark.parametrize(
    ("file", "name", "peak"),
    [
        ("vitg_pretrain.yaml", "vitg-pretrain", 3.4641e-4),
        ("vitl16_in1k_short.yaml", "vitl16-in1k-short", 5.6569e-3),
        *((f"{name}_distill.yaml", f"{name}-distill", 1e-3) for name in WIDTHS),
    ],
)
def test_the_peak_learning_rate_is_the_published_one(file: str, name: str, peak: float) -> None:
    found = stage(file, name)
    rate = found["schedules"]["learningRate"]
    factor = (found["globalBatch"] / 1024) ** 0.5 if rate["scaling"] == "sqrt_1024" else 1
    assert rate["base"] * factor == pytest.approx(peak, rel=1e-4)


@pytest.mark.parametrize(
    ("file", "name"), [("vitg_highres.yaml", "vitg-highres"), ("dinov2_family.yaml", "family-vitg-highres")]
)
def test_high_resolution_is_the_recipe_in_ten_thousand_steps(file: str, name: str) -> None:
    """Appendix B.2: 518 px, 10,000 steps, all schedules compressed: 62.5 times shorter."""
    changed: Table = {
        "steps": 10_000,
        "size": 518,
        "crops.global.size": 518,
        "schedules.learningRate.warmupSteps": 1_600,
        "schedules.teacherTemperature.warmupSteps": 600,
        "schedules.freezeLastLayerSteps": 20,
        "schedules.learningRate.base": pytest.approx(0.2 * 2e-4),
    }
    table = {key: value for key, value in GIANT.items() if not key.startswith("heads")} | changed
    found = stage(file, name)
    assert {path: at(found, path) for path in table} == table


def test_students_have_the_prototypes_of_their_teacher() -> None:
    assert stage("dinov2_family.yaml", "family-vits")["heads"] == stage("dinov2_family.yaml", "family-vitg")["heads"]


def test_images_a_gpu_are_the_published_ones() -> None:
    shares = {
        job.name: job.spec.stage.global_batch / job.spec.compute.workers  # type: ignore[union-attr, operator]
        for file in ("vitg_pretrain.yaml", "vitl16_in1k_short.yaml")
        for job in resolve(load([str(JOBS / file)]))
    }
    assert shares == {"vitg-pretrain": 12, "vitl16-in1k-short": 64}


def test_the_evaluation_is_the_published_protocol() -> None:
    knn = stage("imagenet_evaluate.yaml", "imagenet-evaluate")["protocols"]["knn"]
    wanted = {"k": [10, 20, 100, 200], "temperature": 0.07, "imageSize": 224, "resize": 256, "batchSize": 256}
    assert {name: knn[name] for name in wanted} == wanted


PUBLISHED = {"vitg": 0.835, "vitl16": 0.816, "vitl": 0.835, "vitb": 0.821, "vits": 0.790}
"""k-NN on ImageNet-1k of the released models (model card) and of the official short run."""


def test_gates_are_a_little_below_the_published_results() -> None:
    gates = {job.name: job.spec.gate for job in resolve(load([str(JOBS)])) if "digits" not in job.name}
    for name, gate in gates.items():
        if gate is not None:
            size = next(size for size in ("vitl16", *PUBLISHED) if size in name)
            assert gate.min is not None
            assert 0.01 <= PUBLISHED[size] - gate.min <= 0.025, name
            assert (gate.knn.image_size, gate.knn.resize) == (224, 256), name
            assert gate.promote is not None
    assert sum(gate is not None for gate in gates.values()) == 11
