"""Several students of one teacher through `dinoctl run`: Ray, two workers, MLflow, one gated model a student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dinoctl.model import ViTConfig, load_export, save_export
from dinoctl.spec.recipe import Head, Heads
from dinoctl.training.networks import build_network
from support.runs import PACK, Runs

HEADS = Heads(dino=Head(prototypes=24, hidden=16, bottleneck=8), ibot=Head(prototypes=20, hidden=16, bottleneck=8))
STEPS = 10
JOB = """
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: train}}
spec:
  compute: {{workers: 2, gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: fsdp}}}}
  distill:
    teacher: {{uri: {teacher}}}
    teacherPlacement: sharded
    data: {{source: {{job: pack}}}}
    students:
      small: {{model: {{arch: custom, embedDim: 16, depth: 1, numHeads: 2, patchSize: 4}}, ranks: 1}}
      large: {{model: {{arch: custom, embedDim: 24, depth: 2, numHeads: 2, patchSize: 4}}, ranks: 1}}
    steps: {steps}
    globalBatch: 12
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    logEvery: 2
  gate: {{dataset: {{job: pack}}, min: 0, knn: {{k: [10], imageSize: 16}}, promote: {{model: digits}}}}
  policy: {{checkpoint: {{everySteps: 5}}}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("students")
    config = ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=4, img_size=16)
    network = build_network(config, HEADS, generator=torch.Generator().manual_seed(9))
    assert network.ibot_head is not None
    heads = {"dino_head": network.dino_head.state_dict(), "ibot_head": network.ibot_head.state_dict()}
    save_export(root / "teacher", network.backbone, config, heads, {})
    runs = Runs(root, PACK + JOB.format(teacher=root / "teacher", steps=STEPS))
    code, output = runs.run()
    assert code == 0, output + runs.log("train")
    runs.output = output
    return runs


def exports(runs: Runs) -> dict[str, Path]:
    (output,) = (runs.state / "jobs" / "train").glob("run-*")
    return {name: output / "export" / name for name in ("small", "large")}


def files(runs: Runs) -> dict[str, tuple[bytes, float]]:
    paths = [path for folder in exports(runs).values() for path in sorted(folder.iterdir())]
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in paths}


def test_every_student_is_registered_with_its_evidence_and_alias(done: Runs) -> None:
    from dinoctl.tracking.registry import champion, resolve_model

    uri = f"sqlite:///{done.state}/mlflow.db"
    for student, width in (("small", 16), ("large", 24)):
        reference = resolve_model(uri, f"models:/digits-{student}@champion")
        assert reference.version == "1"
        assert Path(reference.source.removeprefix("file://")) == exports(done)[student]
        exported = load_export(exports(done)[student])
        assert exported.config.embed_dim == width
        assert exported.metadata["student"] == student
        assert set(exported.heads) == {"dino_head", "ibot_head"}
        holder = champion(uri, f"digits-{student}")
        assert holder is not None
        assert 0 < holder.metrics["knn_top1"] <= 1


def test_metrics_of_every_student_arrived_once(done: Runs) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done.state}/mlflow.db")
    experiment = client.get_experiment_by_name("jobs")
    assert experiment is not None
    (run,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "train"]
    assert run.info.status == "FINISHED"
    for student in ("small", "large"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, f"{student}/loss")]
        assert steps == [1, 2, 4, 5, 6, 8, 10], "the first, every second, and those of checkpoints"


def test_the_same_command_repeats_nothing(done: Runs) -> None:
    before, attempts = files(done), {job: done.attempts(job) for job in ("pack", "train")}
    code, output = done.run()
    assert code == 0, output
    assert {job: done.attempts(job) for job in ("pack", "train")} == attempts
    assert all(len(own) == 1 for own in attempts.values())
    assert files(done) == before
    from dinoctl.tracking.registry import resolve_model

    for student in ("small", "large"):
        assert resolve_model(f"sqlite:///{done.state}/mlflow.db", f"models:/digits-{student}@champion").version == "1"
