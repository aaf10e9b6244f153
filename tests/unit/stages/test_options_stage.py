"""DINOv3's options through whole stages in this process: pretraining, then high resolution, which inherits them."""

from __future__ import annotations

from pathlib import Path

import torch

from dinoctl.data.pack import pack
from dinoctl.handover.attempt import Attempt
from dinoctl.model import load_export
from dinoctl.spec.load import load
from dinoctl.spec.pin import pin
from dinoctl.spec.resolve import resolve
from dinoctl.stages import highres, pretrain
from dinoctl.tracking.spool import history
from dinoctl.training.context import ProcessContext

DOCUMENTS = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: base}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  pretrain:
    data: {{source: {data}}}
    model: {{arch: custom, embedDim: 16, depth: 2, numHeads: 2, patchSize: 4, rope: {{}}, untieNorms: both}}
    steps: 8
    globalBatch: 4
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    heads: {{dino: {{prototypes: 12, hidden: 16, bottleneck: 8}}, ibot: {{prototypes: 10, hidden: 16, bottleneck: 8}}}}
    losses: {{koleoGroup: 2, gram: {{startStep: 4, warmupSteps: 2, refreshEvery: 2}}}}
    logEvery: 1
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: large}}
spec:
  compute: {{gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {{name: ddp}}}}
  highres: {{from: {{job: base}}, size: 24, localSize: 8, steps: 3, logEvery: 1}}
"""


def test_pretraining_and_high_resolution(tmp_path: Path) -> None:
    pack("builtin://digits", tmp_path / "data", splits={"val": 1700}, shard_bytes=40_000)
    (tmp_path / "jobs.yaml").write_text(DOCUMENTS.format(data=tmp_path / "data"))
    jobs = {job.name: job for job in resolve(load([str(tmp_path / "jobs.yaml")]))}
    points = {}
    for name, stage in (("base", pretrain), ("large", highres)):
        scratch, out = tmp_path / f"attempt-{name}", tmp_path / name
        scratch.mkdir()
        spec = pin(jobs[name].spec, {"base": str(tmp_path / "base")})
        made = Attempt(name, spec, jobs[name].spec_hash, 1, str(out), scratch, tmp_path / f"spool-{name}")
        result = stage.run(made, ProcessContext(torch.device("cpu"), made.stop_file))
        assert not result.stopped
        points[name] = history(made.spool)
    weights = dict(points["base"]["schedule/gram_weight"])
    assert weights == {5: 0.0, 6: 2.0, 7: 2.0, 8: 2.0}, "steps are recorded once done"
    gram = dict(points["base"]["gram"])
    assert gram[4] == 0 < gram[7]
    assert dict(points["large"]["schedule/gram_weight"]) == {1: 2.0, 2: 2.0, 3: 2.0}, "from the first step on"
    small, large = (load_export(tmp_path / name / "export") for name in ("base", "large"))
    assert large.config.rope_base == 100.0
    assert large.config.img_size == 24
    state = large.backbone.state_dict()
    assert state.keys() == small.backbone.state_dict().keys()
    assert "pos_embed" not in state
    for name in ("local_cls_norm.weight", "cls_norm.weight"):
        assert not torch.equal(state[name], torch.ones(16)), name
    image = torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    assert large.backbone(image).isfinite().all()
