"""What distillation hands to the engines: shapes, and a stream of the values that they would have been built with.

The student's values are compared with networks that are built with theirs, the teacher's with its export.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_stages_models import CONFIG, HEADS, MODEL, export, network, opened
from torch import Tensor, nn

from dinoctl.handover.attempt import Attempt
from dinoctl.model import VisionTransformer, read_state_dict
from dinoctl.spec.job import JobSpec
from dinoctl.spec.recipe import Losses
from dinoctl.spec.stages import Distill
from dinoctl.stages import distill
from dinoctl.stages.models import student_config
from dinoctl.stages.together import learner_of
from dinoctl.training.engines.frozen import place_frozen
from dinoctl.training.learner import TaughtLearner, distillation_learner
from dinoctl.training.matching import Bare, FeatureLearner, Matched
from dinoctl.training.networks import HeadPair, build_network

SEED = 5
SMALL = {**MODEL, "embedDim": 8, "depth": 1, "ffn": "mlp"}


def attempt(teacher: Path, **more: Any) -> Attempt:
    stage = {
        "teacher": {"uri": str(teacher)},
        "data": {"source": "/data"},
        "steps": 4,
        "globalBatch": 4,
        "crops": {"global": {"size": 16}, "local": {"size": 8}},
        **({} if "students" in more else {"model": SMALL}),
        **more,
    }
    spec = JobSpec.model_validate({"distill": stage, "seed": SEED}, by_alias=True, by_name=False)
    return Attempt("d", spec, "hash", 1, str(teacher / "out"), teacher, teacher / "spool")


def section(of: Attempt) -> Distill:
    stage = of.spec.stage
    assert isinstance(stage, Distill)
    return stage


def handed(of: Attempt) -> tuple[Any, Any]:
    """The learner and the tensors that a stage gives to its work."""
    seen: list[Any] = []
    distill.run(of, None, lambda *arguments: seen.extend(arguments))  # type: ignore[arg-type]
    return seen[3], seen[5]


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(of: Attempt) -> nn.Module:
    student = build_network(student_config(section(of)), HEADS, generator=seeded())
    return distillation_learner(student, network(), Losses())


def features(of: Attempt) -> nn.Module:
    backbone = VisionTransformer(student_config(section(of)), generator=seeded())
    student, headless = Matched(backbone, CONFIG.embed_dim, seeded(SEED + 1)), section(of).headless
    assert headless is not None
    assert headless.features is not None
    return FeatureLearner(student, Bare(network().backbone), Losses(), headless.features)


def assert_fills(learner: nn.Module, tensors: Any, wanted: nn.Module) -> None:
    assert all(p.is_meta for p in learner.parameters())
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        assert name not in found
        found[name] = tensor.clone()
    values = dict(wanted.named_parameters())
    assert {name: p.requires_grad for name, p in learner.named_parameters()} == {
        name: p.requires_grad for name, p in values.items()
    }
    assert found.keys() == values.keys()
    assert [name for name in values if not torch.equal(found[name], values[name])] == []


@pytest.mark.parametrize(
    ("more", "build"), [({}, plain), ({"headless": {"features": {}}}, features)], ids=["heads", "features"]
)
def test_one_student(tmp_path: Path, more: dict[str, Any], build: Callable[[Attempt], nn.Module]) -> None:
    made = attempt(export(tmp_path / "teacher", network()), **more)
    assert_fills(*handed(made), build(made))


def test_one_of_several_students(tmp_path: Path) -> None:
    path = export(tmp_path / "teacher", network())
    made = attempt(path, students={"a": {"model": SMALL}, "b": {"model": {**SMALL, "depth": 2}}})
    teacher = opened(path)
    shapes = teacher.blank()
    own = section(made).of("b")
    learner, tensors = learner_of(made, own, teacher, HeadPair(shapes.dino_head, shapes.ibot_head))
    frozen = network()
    student = build_network(student_config(own), HEADS, generator=seeded())
    assert_fills(learner, tensors, TaughtLearner(student, HeadPair(frozen.dino_head, frozen.ibot_head), Losses()))


def test_the_shared_backbone_is_that_of_the_export(tmp_path: Path) -> None:
    teacher = opened(export(tmp_path / "teacher", network()))
    bare, wanted = teacher.bare(), network().backbone.state_dict()
    values = ((name.removeprefix("backbone."), value) for name, value in teacher.tensors(bare))
    place_frozen(bare.backbone, values, whole=True, dtype=torch.bfloat16, device=torch.device("cpu"))
    found = bare.backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value.to(torch.bfloat16)) for name, value in wanted.items())
    assert not any(p.requires_grad for p in bare.backbone.parameters())


def mapped() -> int:
    """MiB of files that are in this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.parametrize(("name", "save"), [("released.pth", torch.save), ("export.safetensors", save_file)])
def test_opening_weights_reads_none_of_them(tmp_path: Path, name: str, save: Callable[[Any, Path], None]) -> None:
    """The file is mapped: a tensor is in memory once somebody asks for its values."""
    save({f"layer.{i}": torch.zeros(1 << 20) for i in range(24)}, tmp_path / name)  # 96 MiB
    before = mapped()
    state = read_state_dict(tmp_path / name)
    assert mapped() - before < 8
    assert float(state["layer.3"].sum()) == 0
    assert 4 <= mapped() - before < 24
