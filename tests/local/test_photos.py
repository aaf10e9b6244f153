"""Learning on real photographs: a small backbone learns, on its own, to tell pictures apart by their grey texture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinoctl.data.batch import normalise
from dinoctl.evaluation.knn import knn_accuracy
from dinoctl.model import VisionTransformer, load_export
from support import photos
from support.runs import Runs

SIZE = 32
DOCUMENT = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: pack}}
spec: {{pack: {{source: {source}, shardSize: 1MiB}}}}
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: train}}
spec:
  seed: 0
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  pretrain:
    data: {{source: {{job: pack}}}}
    model:
      {{arch: custom, embedDim: 96, depth: 4, numHeads: 3, patchSize: 8, registers: 1, layerScale: 0.1, dropPath: 0}}
    steps: 400
    globalBatch: 64
    crops:
      global: {{size: 32, scale: [0.4, 1.0]}}
      local: {{count: 4, size: 16, scale: [0.2, 0.6]}}
      augmentation:          # texture is what tells the patches apart: a blur at 32 pixels would take it away
        grayscale: 0
        solarize: 0
        blur: {{firstGlobal: 0, secondGlobal: 0, local: 0}}
        colorJitter: {{saturation: 0, hue: 0}}
    heads:
      dino: {{prototypes: 256, hidden: 256, bottleneck: 64}}
      ibot: {{prototypes: 256, hidden: 256, bottleneck: 64}}
    losses: {{studentTemperature: 0.05}}
    optimizer: {{patchEmbedMultiplier: 1.0}}
    schedules:
      learningRate: {{base: 2.0e-3, scaling: none}}
      weightDecay: {{start: 0.04, end: 0.04}}
      momentum: {{start: 0.95, end: 1.0}}
      teacherTemperature: {{start: 0.02, end: 0.02}}
      freezeLastLayerSteps: 400
  policy: {{checkpoint: {{everySteps: 200}}}}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    train, _ = photos.patches()
    made = Runs(tmp_path / "runs", DOCUMENT.format(source=photos.write(tmp_path / "train", train)), limit_s=800)
    yield made
    made.close()


def labelled(cuts: photos.Patches) -> tuple[Tensor, Tensor]:
    """Images (n, 3, SIZE, SIZE) as the backbone takes them, and their photographs."""
    small = [
        np.asarray(Image.fromarray(cut).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for c in cuts.values()
        for cut in c
    ]
    labels = torch.repeat_interleave(torch.arange(len(cuts)), torch.tensor([len(c) for c in cuts.values()]))
    crops = torch.from_numpy(np.stack(small))[:, None].repeat(1, 3, 1, 1)
    return normalise(crops, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), labels


def top1(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], backbone: VisionTransformer | None) -> float:
    """k-NN of frozen features, or of raw pixels."""

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        if backbone is None:
            return (images - images.mean()).flatten(1)
        return torch.cat([backbone(part) for part in images.split(256)])

    return knn_accuracy(features(train[0]), train[1], features(held[0]), held[1], ks=[10])["top1@10"]


def test_held_out_patches_are_never_trained_on() -> None:
    train, held = photos.patches()
    assert len(train) == len(held) == 12
    assert all(len(train[name]) >= 100 and len(held[name]) >= 15 for name in train)
    seen = {cut.tobytes() for cuts in train.values() for cut in cuts}
    assert not any(cut.tobytes() in seen for cuts in held.values() for cut in cuts)
    for cut in (cut for cuts in (*train.values(), *held.values()) for cut in cuts):
        assert abs(float(cut.mean()) - photos.MEAN) < 12, "no patch is known by its light"


@pytest.mark.timeout(900)
def test_photographs(runs: Runs) -> None:
    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    exported = load_export(next((runs.state / "jobs" / "train").glob("run-*/export")))
    train, held = (labelled(part) for part in photos.patches())
    blank = VisionTransformer(exported.config, generator=torch.Generator().manual_seed(0)).eval()
    learnt, untrained, raw = (top1(train, held, net) for net in (exported.backbone.eval(), blank, None))
    chance = float(held[1].bincount().max() / len(held[1]))
    shown = f"learnt {learnt:.3f}, untrained {untrained:.3f}, pixels {raw:.3f}, chance {chance:.3f}"
    assert learnt >= 0.36, shown
    assert learnt >= untrained + 0.08, shown
    assert learnt >= raw + 0.08, shown
    assert learnt >= 3 * chance, shown
