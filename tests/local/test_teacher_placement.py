"""A frozen teacher sharded over two ranks, or whole on both: equal results, other memory, and never whole on the way.

Everything that needs two processes happens in one pair of them; the tests compare what they found.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engines import CLIP, OPTIMIZER, SCHEDULES, batch, network
from torch import Tensor, nn

from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.compute import Compute
from dinoctl.spec.recipe import Head, Heads, Losses
from dinoctl.spec.stages import FeatureMatching
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.engines.fill import all_modules
from dinoctl.training.groups import apply, parameter_groups
from dinoctl.training.learner import distillation_learner
from dinoctl.training.matching import Bare, FeatureLearner, blank_matched, matched_tensors
from dinoctl.training.networks import blank_heads
from dinoctl.training.warmup import HeadsLearner
from dinoctl.training.weights import Tensors, learner_tensors
from support.ranks import run_ranks

ENGINES = {"ddp": {"name": "ddp"}, "fsdp": {"name": "fsdp"}, "zero3": {"name": "deepspeed", "zeroStage": 3}}
SMALL = ViTConfig(embed_dim=16, depth=2, num_heads=2, patch_size=4, img_size=16, registers=1, layerscale=0.5)
LARGE = ViTConfig(embed_dim=24, depth=3, num_heads=2, patch_size=4, img_size=16, registers=1, layerscale=0.5)
HEADS = Heads(dino=Head(prototypes=24, hidden=16, bottleneck=8), ibot=Head(prototypes=20, hidden=16, bottleneck=8))
Made = tuple[nn.Module, Tensors]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(module: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return module()


class Stream:
    """Teacher tensors, each made when it is asked for; ``most`` is how many of them were alive at once."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        self.network, self.seed, self.most = network, seed, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        alive: list[weakref.ref[Any]] = []
        for name, drawn in initial_tensors(self.network, seeded(self.seed)):
            tensor = drawn.clone()
            alive = [one for one in alive if one() is not None] + [weakref.ref(tensor.untyped_storage())]
            self.most = max(self.most, len(alive))
            yield name, tensor
            del drawn, tensor


def distillation(teacher: list[Stream]) -> Made:
    student, frozen = blank(lambda: network()), blank(lambda: network(embed_dim=24, depth=3))
    learner = distillation_learner(student, frozen, Losses(koleo=0.0))
    teacher.append(Stream(frozen, 1))
    return learner, learner_tensors(learner, initial_tensors(student, seeded(0)), teacher[-1])


def matching(teacher: list[Stream]) -> Made:
    student, frozen = blank_matched(SMALL, LARGE.embed_dim), blank(lambda: Bare(VisionTransformer(LARGE)))
    learner = FeatureLearner(student, frozen, Losses(koleo=0.0), FeatureMatching())
    teacher.append(Stream(frozen, 1))
    return learner, learner_tensors(learner, matched_tensors(student, seeded(0), seeded(2)), teacher[-1])


def warming(teacher: list[Stream]) -> Made:
    frozen, pair = blank(lambda: Bare(VisionTransformer(LARGE))), blank_heads(LARGE.embed_dim, HEADS)
    learner = HeadsLearner(frozen.backbone, pair, Losses(koleo=0.0))
    teacher.append(Stream(frozen, 1))
    return learner, chain(learner_tensors(learner, initial_tensors(pair, seeded(0))), teacher[-1])


LEARNERS = {"distillation": distillation, "matching": matching, "warming": warming}
KINDS = [("distillation", "fp32"), ("distillation", "bf16"), ("matching", "bf16"), ("warming", "fp32")]
CASES = [(engine, *kind) for engine in ENGINES for kind in KINDS]


def steps(engine: Engine) -> tuple[list[float], dict[tuple[str, str], Tensor]]:
    losses = []
    for step in range(2):
        values = SCHEDULES.at(step)
        apply(engine.groups, values)
        loss, _ = engine.forward(*batch(step, engine.rank, engine.world), values.teacher_temperature, step)
        engine.backward(loss)
        engine.clip(CLIP)
        engine.step(torch.zeros(()))
        engine.average(values.momentum, torch.zeros(()))
        losses.append(float(loss.detach()))
    return losses, {(piece.kind, piece.name): piece.data.clone() for piece in engine.slices()}


def held(parameter: Any) -> int:
    """Bytes of a parameter between steps."""
    if hasattr(parameter, "ds_tensor"):
        whole = parameter.numel() if parameter.ds_persist else 0
        return int((parameter.ds_tensor.numel() + whole) * parameter.element_size())
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel() * local.element_size())


def run(kind: str, name: str, precision: str, whole: bool) -> dict[str, Any]:
    streams: list[Stream] = []
    learner, tensors = LEARNERS[name](streams)
    compute = Compute.model_validate({"engine": ENGINES[kind], "precision": precision})
    groups = parameter_groups(learner.named_parameters(), depth=2, optimizer=OPTIMIZER)
    context = ProcessContext(torch.device("cpu"))
    engine = build_engine(compute, learner, groups, OPTIMIZER, context, None, tensors, whole)
    losses, state = steps(engine)
    frozen = learner.backbone if name == "warming" else learner.teacher
    large = [p for p in frozen.parameters() if getattr(p, "ds_numel", p.numel()) > 100]
    return {
        "losses": losses,
        "state": state,
        "alive": streams[0].most,
        "held": sum(map(held, large)),
        "all": sum(getattr(p, "ds_numel", p.numel()) for p in large),
        "modules": {module for module, _ in all_modules(learner)} - {"ema"},
    }


def processes(rank: int, root: Path) -> None:
    from dinoctl.training.engines import zero

    usual = zero.zero_config
    persistent = {"stage3_param_persistence_threshold": 100}  # or all of these small teachers stay gathered

    def small(stage: int, *arguments: Any) -> dict[str, Any]:
        config = usual(stage, *arguments)
        return {**config, "zero_optimization": {**config["zero_optimization"], **(persistent if stage == 3 else {})}}

    from dinoctl.training.engines import zero3

    zero3.zero_config = small
    results = {(*case, whole): run(*case, whole) for case in CASES for whole in (False, True)}
    torch.save(results, root / f"results{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Any]]]:
    root = tmp_path_factory.mktemp("placement")
    run_ranks(processes, 2, root)
    return [torch.load(root / f"results{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize(("engine", "learner", "precision"), CASES)
def test_results_are_equal(found: Any, engine: str, learner: str, precision: str) -> None:
    for rank in found:
        sharded, whole = (rank[engine, learner, precision, placement] for placement in (False, True))
        assert sharded["losses"] == whole["losses"]
        assert sharded["state"].keys() == whole["state"].keys()
        assert [k for k, v in whole["state"].items() if not torch.equal(sharded["state"][k], v)] == []
        ddp = rank["ddp", learner, precision, False]
        assert whole["losses"] == pytest.approx(ddp["losses"], rel=2e-6 if precision == "fp32" else 1e-4)


@pytest.mark.parametrize(("learner", "precision"), KINDS)
@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_a_rank_holds_half_of_a_sharded_teacher_and_all_of_a_whole_one(
    found: Any, engine: str, learner: str, precision: str
) -> None:
    width = 4 if precision == "fp32" else 2
    for rank in found:
        sharded, whole = (rank[engine, learner, precision, placement] for placement in (False, True))
        assert whole["held"] == width * whole["all"] > 30_000
        assert sharded["held"] == pytest.approx(width * whole["all"] / 2, rel=0.02)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("engine", "learner", "precision"), CASES)
def test_a_teacher_comes_tensor_by_tensor(found: Any, engine: str, learner: str, precision: str, whole: bool) -> None:
    """What an engine keeps are copies of its own; of the stream it holds no tensor but the one that it is placing."""
    for rank in found:
        assert rank[engine, learner, precision, whole]["alive"] <= 2


def test_a_teacher_stays_among_the_modules_that_are_looked_at(found: Any) -> None:
    for (engine, learner, precision, _), one in found[0].items():
        assert one["modules"] == found[0]["ddp", learner, precision, False]["modules"], (engine, learner)
