"""Distillation from a backbone alone, as a whole stage in one process: both ways, stops in both phases, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoctl.data import pack as packing
from dinoctl.data.local import LocalStorage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import HEADS_CHECKPOINTS, Ledger
from dinoctl.handover.output import read_output
from dinoctl.handover.progress import Progress
from dinoctl.model import VisionTransformer, ViTConfig, load_export
from dinoctl.spec.errors import UserError
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve
from dinoctl.stages import distill
from dinoctl.training.context import ProcessContext
from dinoctl.training.ledger import Checkpoint
from dinoctl.training.loop import LoopResult

DOCUMENT = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: small}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  distill:
    teacher: {{uri: {teacher}}}
    data: {{source: {data}}}
    model: {{arch: custom, embedDim: 16, depth: 1, numHeads: 2, patchSize: 4}}
    steps: 12
    globalBatch: 4
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    logEvery: 1
    {more}
  policy: {{checkpoint: {{everySteps: 4}}}}
"""
HEADS = "heads: {dino: {prototypes: 12, hidden: 16, bottleneck: 8}, ibot: {prototypes: 10, hidden: 16, bottleneck: 8}}"
WARMUP, FEATURES = f"headless: {{warmup: {{steps: 6}}}}\n    {HEADS}", "headless: {features: {}}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    packing.pack("builtin://digits", str(folder), verify=False)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released backbone: a file with official names, a multiple of 64 wide, without heads."""
    config = ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=4, img_size=32)
    weights = VisionTransformer(config, generator=torch.Generator().manual_seed(7)).state_dict()
    path = tmp_path_factory.mktemp("teacher") / "dinov2_tiny.pth"
    torch.save(weights, path)
    return path


class Job:
    """One job and its attempts."""

    def __init__(self, root: Path, data: Path, teacher: object, more: str) -> None:
        self.root, self.number, self.reports = root, 0, list[Progress]()
        root.mkdir(parents=True, exist_ok=True)
        (root / "job.yaml").write_text(DOCUMENT.format(data=data, teacher=teacher, more=more))
        (self.job,) = resolve(load([str(root / "job.yaml")]))

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.root / "out")

    def attempt(self) -> Attempt:
        self.number += 1
        scratch = self.root / f"attempt-{self.number}"
        scratch.mkdir(parents=True)
        out, spool = str(self.root / "out"), self.root / "spool"
        return Attempt("small", self.job.spec, self.job.spec_hash, self.number, out, scratch, spool)

    def run(self, stop_after: tuple[str, int] = ("", 0)) -> LoopResult:
        """``stop_after``: the phase and step from which it is asked to stop."""
        attempt = self.attempt()

        def sink(progress: Progress) -> None:
            self.reports.append(progress)
            if (progress.phase, progress.step) >= stop_after and progress.phase == stop_after[0]:
                attempt.stop_file.touch()

        return distill.run(attempt, ProcessContext(torch.device("cpu"), attempt.stop_file, sink=sink))

    def state(self, folder: str) -> dict[tuple[str, str], Tensor]:
        ledger = Ledger(self.storage.child(folder))
        head = ledger.head()
        assert head is not None
        checkpoint = Checkpoint(ledger.storage, head)
        kinds = ("param", "adam_m", "adam_v", "teacher", "buffer")
        return {(kind, name): checkpoint.tensor(kind, name) for kind in kinds for name in checkpoint.names(kind)}

    def steps(self, folder: str) -> list[int]:
        return Ledger(self.storage.child(folder)).steps()

    def metrics(self) -> list[dict[str, Any]]:
        lines = [
            line for file in sorted((self.root / "spool").glob("*.jsonl")) for line in file.read_text().split("\n")
        ]
        return [json.loads(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: Path) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), data, teacher, WARMUP)
    assert job.run() == LoopResult(12, False, pytest.approx(0, abs=1e9))
    return job


def test_heads_are_warmed_up_first_and_then_teach(undisturbed: Job) -> None:
    assert undisturbed.steps(HEADS_CHECKPOINTS) == [4, 6]
    assert undisturbed.steps("checkpoints") == [4, 8, 12]
    phases = [report.phase for report in undisturbed.reports]
    assert phases == ["heads"] * 7 + ["train"] * 13 + ["export", "gate"]
    exported = load_export(undisturbed.root / "out" / "export")
    assert set(exported.heads) == {"dino_head", "ibot_head"}
    assert exported.config.embed_dim == 16
    names = {name for _, name in undisturbed.state(HEADS_CHECKPOINTS)}
    assert not any("backbone" in name for name in names), "what is frozen is not stored again"


@pytest.mark.parametrize("stop", [("heads", 3), ("train", 7)], ids=["heads", "distillation"])
def test_a_stop_in_either_phase_changes_nothing(
    undisturbed: Job, tmp_path: Path, data: Path, teacher: Path, stop: tuple[str, int]
) -> None:
    job = Job(tmp_path, data, teacher, WARMUP)
    stopped = job.run(stop)
    assert stopped.stopped
    assert stopped.step == (0 if stop[0] == "heads" else 10)
    assert read_output(job.storage) is None
    told = len(job.reports)
    assert not job.run().stopped
    again = [report.phase for report in job.reports[told:]]
    assert ("heads" in again) == (stop[0] == "heads")
    for folder in (HEADS_CHECKPOINTS, "checkpoints"):
        wanted, found = undisturbed.state(folder), job.state(folder)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), folder


def test_finished_heads_are_not_used_with_other_data(tmp_path: Path, data: Path, teacher: Path) -> None:
    """Killed after the warm-up and before the first checkpoint of the distillation; then the data is replaced."""
    own = tmp_path / "data"
    shutil.copytree(data, own)
    job = Job(tmp_path / "job", own, teacher, WARMUP)
    assert job.run(("train", 0)).stopped
    assert job.steps(HEADS_CHECKPOINTS)[-1] == 6
    job.storage.delete_prefix("checkpoints/")
    shutil.rmtree(own)
    packing.pack("builtin://digits", str(own), splits={"val": 40}, verify=False)
    with pytest.raises(UserError, match=r"the 6 steps of small so far were done on training data that has since been"):
        job.run()
    assert job.steps("checkpoints") == []
    shutil.rmtree(own)
    shutil.copytree(data, own)
    assert job.run().step == 12


def test_metrics_of_the_warmup_have_names_of_their_own(undisturbed: Job) -> None:
    names = {name for row in undisturbed.metrics() for name in row.get("metrics", row)}
    assert {"heads/loss", "heads/ibot", "loss", "ibot"} <= names


def test_features_are_matched_without_heads(tmp_path: Path, data: Path, teacher: Path) -> None:
    job = Job(tmp_path / "whole", data, teacher, FEATURES)
    assert job.run().step == 12
    exported = load_export(job.root / "out" / "export")
    assert exported.heads == {}
    assert exported.config.embed_dim == 16
    assert any("patch_projection" in name for _, name in job.state("checkpoints"))

    resumed = Job(tmp_path / "resumed", data, teacher, FEATURES)
    assert resumed.run(("train", 3)).stopped
    assert resumed.run().step == 12
    wanted, found = job.state("checkpoints"), resumed.state("checkpoints")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_teacher_without_heads_needs_a_word(tmp_path: Path, data: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"dinov2_tiny\.pth has no heads; add headless: \{warmup: \{\}\}.*features"):
        Job(tmp_path, data, teacher, "").run()
    with pytest.raises(UserError, match=r"has no heads; add headless"):
        Job(tmp_path / "given", data, teacher, HEADS).run()


@pytest.mark.parametrize("more", [WARMUP, FEATURES], ids=["warmup", "features"])
def test_another_patch_size_is_told_before_anything_is_trained(
    tmp_path: Path, data: Path, teacher: Path, more: str
) -> None:
    job = Job(tmp_path, data, teacher, more)
    model = job.job.spec.distill.model.model_copy(update={"patch_size": 8})  # type: ignore[union-attr]
    stage = job.job.spec.distill.model_copy(update={"model": model})  # type: ignore[union-attr]
    attempt = job.attempt()
    other = Attempt(**{**vars(attempt), "spec": job.job.spec.model_copy(update={"distill": stage})})
    with pytest.raises(UserError, match=r"dinov2_tiny\.pth: the student's patches have 8 pixels, the teacher's 4"):
        distill.run(other, ProcessContext(torch.device("cpu")))
    assert not (tmp_path / "out").exists()


def test_files_that_hold_no_backbone(tmp_path: Path, data: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not a flat DINOv2 backbone state"):
        Job(tmp_path / "a", data, tmp_path / "other.pth", FEATURES).run()
    with pytest.raises(UserError, match=r"absent\.pth"):
        Job(tmp_path / "b", data, tmp_path / "absent.pth", FEATURES).run()
