"""Evaluation as a whole stage in one process: that it says how far it is, also while a gate measures."""

from pathlib import Path

import pytest
import torch

from dinoctl.data import pack as packing
from dinoctl.data.local import LocalStorage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.output import read_output
from dinoctl.handover.progress import Progress
from dinoctl.model import VisionTransformer, ViTConfig, save_export
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve
from dinoctl.stages import evaluate, pretrain
from dinoctl.training.context import ProcessContext

CONFIG = ViTConfig(embed_dim=16, depth=1, num_heads=2, patch_size=4, img_size=16)
EVALUATE = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: measured}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32}}
  evaluate:
    model: {{uri: {model}}}
    randomBaseline: {baseline}
    protocols:
      knn: {{dataset: {data}, trainSplit: train, testSplit: val, imageSize: 16, resize: 16, k: [10], batchSize: 100}}
"""
PRETRAIN = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: measured}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  pretrain:
    data: {{source: {data}}}
    model: {{arch: custom, embedDim: 16, depth: 1, numHeads: 2, patchSize: 4}}
    steps: 2
    globalBatch: 4
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    heads: {{dino: {{prototypes: 12, hidden: 16, bottleneck: 8}}, ibot: {{prototypes: 10, hidden: 16, bottleneck: 8}}}}
  gate:
    dataset: {data}
    trainSplit: train
    testSplit: val
    knn: {{k: [10], batchSize: 100, imageSize: 16, resize: 16}}
    min: 0.0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    packing.pack("builtin://digits", str(folder), splits={"val": 500}, verify=False)
    return folder


def attempt_of(root: Path, text: str) -> Attempt:
    (root / "job.yaml").write_text(text)
    (job,) = resolve(load([str(root / "job.yaml")]))
    return Attempt("measured", job.spec, job.spec_hash, 1, str(root / "out"), root, root / "spool")


@pytest.mark.parametrize(("baseline", "passes"), [("false", 1), ("true", 2)])
def test_an_evaluation_counts_images(tmp_path: Path, data: Path, baseline: str, passes: int) -> None:
    weights = VisionTransformer(CONFIG, generator=torch.Generator().manual_seed(1)).state_dict()
    save_export(tmp_path / "model", weights, CONFIG, {}, {"job": "parent"})
    attempt = attempt_of(tmp_path, EVALUATE.format(model=tmp_path / "model", data=data, baseline=baseline))
    said = list[Progress]()
    evaluate.run(attempt, ProcessContext(torch.device("cpu"), attempt.stop_file, sink=said.append))
    assert [one.step for one in said] == sorted({one.step for one in said}), "it only grows"
    images = 1797 * passes
    assert (said[0].step, said[-1].step) == (0, images)
    assert {one.steps for one in said} == {images}
    assert len(said) == 1 + passes * (13 + 5), "a report a batch"
    assert said[1].eta_s is not None
    assert said[-1].eta_s == 0
    output = read_output(LocalStorage(tmp_path / "out"))
    assert output is not None
    assert "knn_top1" in output.summary


def test_a_gate_says_that_it_still_measures(tmp_path: Path, data: Path) -> None:
    attempt = attempt_of(tmp_path, PRETRAIN.format(data=data))
    said = list[Progress]()
    pretrain.run(attempt, ProcessContext(torch.device("cpu"), attempt.stop_file, sink=said.append))
    measuring = [one for one in said if one.phase == "gate"]
    assert len(measuring) == 1 + 2 * (13 + 5), "its beginning, and each batch of the trained and the untrained model"
    assert {one.step for one in measuring} == {2}
