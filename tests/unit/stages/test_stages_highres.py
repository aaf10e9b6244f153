"""A short high-resolution run through the stage, in this process, at mixed resolutions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_stages_models import CONFIG, HEADS, MODEL, export, network

from dinoctl.data.pack import pack
from dinoctl.handover.attempt import Attempt
from dinoctl.model import load_export
from dinoctl.spec.errors import UserError
from dinoctl.spec.load import LoadedJob, load
from dinoctl.spec.resolve import resolve
from dinoctl.stages import highres
from dinoctl.tracking.spool import history
from dinoctl.training.context import ProcessContext
from dinoctl.training.learner import Learner
from dinoctl.training.loop import LoopResult

DOCUMENT = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: hr}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  highres:
    from: {{uri: {parent}}}
    data: {{source: {data}}}
    model: {{arch: custom, embedDim: 16, depth: 2, numHeads: 2, patchSize: 4, registers: 1, dropPath: 0.1}}
    sizes: [{{global: 24, weight: 3}}, {{global: 16, local: 12}}]
    localSize: 8
    steps: 12
    globalBatch: 4
    crops: {{local: {{count: 2}}}}
    logEvery: 1
  policy: {{checkpoint: {{everySteps: 50}}}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("highres")
    pack("builtin://digits", root / "data", splits={"val": 1700}, shard_bytes=40_000)
    assert (CONFIG.patch_size, MODEL["patchSize"], HEADS.dino.prototypes) == (4, 4, 12)
    return export(root / "parent", network()), root / "data"


def attempt(root: Path, inputs: tuple[Path, Path], number: int = 1) -> Attempt:
    scratch = root / f"attempt-{number}"
    scratch.mkdir(parents=True)
    document = root / "job.yaml"
    document.write_text(DOCUMENT.format(parent=inputs[0], data=inputs[1]))
    jobs: list[LoadedJob] = load([str(document)])
    spec = resolve(jobs)[0].spec
    return Attempt("hr", spec, "hash", number, str(root / "out"), scratch, root / "spool")


def run(made: Attempt) -> LoopResult:
    return highres.run(made, ProcessContext(torch.device("cpu"), made.stop_file))


def test_a_run_at_two_sizes_goes_on_as_if_never_stopped(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    forward = Learner.forward

    def watched(self: Learner, whole: torch.Tensor, part: torch.Tensor, *rest: Any) -> Any:
        seen.append((whole.shape[-1], part.shape[-1]))
        return forward(self, whole, part, *rest)

    monkeypatch.setattr(Learner, "forward", watched)
    first = attempt(tmp_path / "whole", inputs)
    assert (run(first).step, len(seen)) == (12, 12)
    assert set(seen) == {(24, 8), (16, 12)}
    points = history(first.spool)
    assert [step for step, _ in points["loss"]] == list(range(1, 13))
    at_full = {"schedule/learning_rate", "schedule/momentum", "images_per_s"}
    assert at_full <= points.keys()

    stopped = attempt(tmp_path / "halves", inputs)
    stopped.stop_file.touch()
    result = run(stopped)
    assert (result.step, result.stopped) == (5, True)
    run(attempt(tmp_path / "halves", inputs, 2))
    assert seen[12:] == seen[:12]

    exported = load_export(tmp_path / "whole" / "out" / "export")
    assert (exported.config.img_size, exported.metadata["image_size"]) == (24, 24)
    assert exported.backbone.pos_embed.shape[1] == 1 + 36
    again = load_export(tmp_path / "halves" / "out" / "export")
    for name, tensor in exported.backbone.state_dict().items():
        assert torch.equal(tensor, again.backbone.state_dict()[name]), name


def test_data_that_was_packed_again_between_two_attempts_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    pack("builtin://digits", data, splits={"val": 1700}, shard_bytes=40_000)
    stopped = attempt(tmp_path, (inputs[0], data))
    stopped.stop_file.touch()
    assert run(stopped).step == 5
    shutil.rmtree(data)
    pack("builtin://digits", data, splits={"val": 1699}, shard_bytes=40_000)
    with pytest.raises(UserError, match=r"5 steps of hr so far .* packed again .* --restart hr"):
        run(attempt(tmp_path, (inputs[0], data), 2))
