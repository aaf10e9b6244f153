"""Every engine on 1, 2 and 3 ranks does the same steps on the same global batch, and reads every other's checkpoints.

One process a rank runs all engines one after the other (importing DeepSpeed takes its time) and writes checkpoints; the
tests compare those. Each world is as large as the batch allows without a remainder.

Two parts of a step look at the images of one rank and are left out where world sizes are compared: KoLeo (weight 0;
groups of a fixed size, `losses.koleoGroup`, do not depend on ranks) and stochastic depth (rate 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_engines import (
    CLIP,
    LOSS_RTOL,
    OPTIMIZER,
    SCHEDULES,
    State,
    Training,
    assert_agree,
    assert_equal,
    batch,
    distillation,
    mean_over_ranks,
    pretraining,
    state,
)
from torch import Tensor

from dinoctl.spec.compute import Compute
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.groups import apply, parameter_groups
from dinoctl.training.learner import Learner
from support.ranks import run_ranks

ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
WORLDS = (1, 2, 3)
# Losses of three steps in bf16 against fp32; the engines among themselves differ by the order of sums alone.
HALF_RTOL = 5e-3
ROUNDING = 2e-8  # absolute, of weights up to 1: 7.5e-9 was seen


def engine_of(name: str, learner: Learner, precision: str = "fp32", group: Any = None) -> Engine:
    kind = {"name": "deepspeed", "zeroStage": int(name[-1])} if name.startswith("zero") else {"name": name}
    compute = Compute.model_validate({"engine": kind, "precision": precision})
    groups = parameter_groups(learner.named_parameters(), depth=2, optimizer=OPTIMIZER)
    return build_engine(compute, learner, groups, OPTIMIZER, ProcessContext(torch.device("cpu")), group)


def unclipped(engine: Engine) -> dict[str, Tensor]:
    """Masters after three steps without clipping: the norms are sums in an order that depends on the sharding."""
    for step in range(3):
        values = SCHEDULES.at(step)
        apply(engine.groups, values)
        loss, _ = engine.forward(*batch(step, engine.rank, engine.world), values.teacher_temperature, step)
        engine.backward(loss)
        engine.clip(0.0)
        engine.step(torch.zeros(()))
        engine.average(values.momentum, torch.zeros(()))
    return dict(engine.full_teacher())


def skipped(engine: Engine) -> dict[str, Any]:
    """State around a step that is skipped."""
    loss, _ = engine.forward(*batch(0, engine.rank, engine.world), 0.05, 0)
    before = {(p.kind, p.name): p.data.clone() for p in engine.slices()}
    engine.backward(loss * torch.nan)
    engine.clip(CLIP)
    engine.step(torch.ones(()))
    engine.average(0.5, torch.ones(()))
    after = {(p.kind, p.name): p.data.clone() for p in engine.slices()}
    return {"same": all(torch.equal(before[key], after[key]) for key in before), "loss": loss.dtype}


def half(name: str) -> dict[str, Any]:
    engine = engine_of(name, pretraining(), "bf16")
    losses = []
    for step in range(3):
        values = SCHEDULES.at(step)
        apply(engine.groups, values)
        loss, metrics = engine.forward(*batch(step, engine.rank, engine.world), values.teacher_temperature, step)
        engine.backward(loss)
        engine.clip(CLIP)
        engine.step()
        engine.average(values.momentum)
        losses.append(mean_over_ranks(loss.detach()))
    kinds = {str(piece.data.dtype) for piece in engine.slices()}
    parts = {str(metrics[key].dtype) for key in ("loss", "dino_global", "dino_local", "ibot", "koleo")}
    return {"losses": losses, "state": kinds, "parts": parts}


def processes(rank: int, world: int, root: Path) -> None:
    results: dict[str, Any] = {}
    for name in ENGINES:
        training = Training(engine_of(name, pretraining()), root / f"{name}-{world}")
        results[name] = training.to(2).save().to(5).save().finish()
        results[f"{name}-free"] = unclipped(engine_of(name, pretraining()))
        results[f"{name}-skip"] = skipped(engine_of(name, pretraining()))
        results[f"{name}-half"] = half(name)
        if world == 2:
            Training(engine_of(name, distillation()), root / f"{name}-distill").to(3).save().finish()
            again = Training(engine_of(name, pretraining()), root / f"{name}-again").load(root / f"{name}-2", 2)
            results[f"{name}-again"] = again.to(5).save().finish()
    if world != 2:
        for name in ENGINES:
            for origin in ENGINES:
                reader = Training(engine_of(name, pretraining()), root / f"{name}-{world}-of-{origin}")
                reader.load(root / f"{origin}-2", 2).save().finish()
    if world == 3:
        parts(rank, results)
    if rank == 0:
        torch.save(results, root / f"results{world}.pt")


def parts(rank: int, results: dict[str, Any]) -> None:
    """Engines over a part of the ranks: a pair trains, the third rank does so alone."""
    pair, alone = dist.new_group([0, 1]), dist.new_group([2])
    for name in ("ddp", "fsdp"):
        engine = engine_of(name, pretraining(), group=pair if rank < 2 else alone)
        results[f"{name}-part"] = {"world": engine.world, "teacher": unclipped(engine)}


@dataclass(frozen=True)
class Found:
    root: Path
    results: dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("agree")
    results = {}
    for world in (2, 1, 3):
        run_ranks(processes, world, world, root)
        results[world] = torch.load(root / f"results{world}.pt", weights_only=False)
    return Found(root, results)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_weights_agree_after_five_steps(found: Found, engine: str, world: int) -> None:
    """With one process: losses to 2e-6 relative, weights to 2e-3 of the learning rate, averages to 1e-7."""
    wanted = found.results[1]["ddp"]
    assert found.results[world][engine]["losses"] == pytest.approx(wanted["losses"], rel=LOSS_RTOL)
    assert_agree(state(found.root / f"{engine}-{world}", 5), state(found.root / "ddp-1", 5))


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_two_ranks_without_clipping_differ_by_rounding_alone(found: Found, engine: str) -> None:
    """A sum of two has one order, so gradients are equal. AdamW's kernels round the elements that fill a vector
    register otherwise than those at a tensor's end, and shards end elsewhere: a unit in the last place.
    """
    assert_close(found.results[2][f"{engine}-free"], found.results[2]["ddp-free"])


def assert_close(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    errors = {name: float((ours[name] - wanted[name]).abs().max()) for name in wanted}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= ROUNDING, (worst, errors[worst])


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("origin", ENGINES)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_reads_every_others_checkpoint(found: Found, engine: str, origin: str, world: int) -> None:
    """Written by two ranks; what is read is written again at once, and must be the same."""
    again = state(found.root / f"{engine}-{world}-of-{origin}", 2)
    assert_equal(again, state(found.root / f"{origin}-2", 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_goes_on_bit_by_bit(found: Found, engine: str) -> None:
    results = found.results[2]
    assert results[f"{engine}-again"]["losses"] == results[engine]["losses"][2:]
    assert_equal(state(found.root / f"{engine}-again", 5), state(found.root / f"{engine}-2", 5))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_skipped_step_leaves_no_trace(found: Found, engine: str, world: int) -> None:
    assert found.results[world][f"{engine}-skip"] == {"same": True, "loss": torch.float32}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_agrees_and_keeps_its_state_and_losses_in_fp32(found: Found, engine: str, world: int) -> None:
    ours = found.results[world][f"{engine}-half"]
    assert ours["state"] == ours["parts"] == {"torch.float32"}
    assert ours["losses"] != found.results[1]["ddp"]["losses"][:3]
    assert ours["losses"] == pytest.approx(found.results[1]["ddp"]["losses"][:3], rel=HALF_RTOL)
    assert ours["losses"] == pytest.approx(found.results[world]["ddp-half"]["losses"], rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_distillation_agrees(found: Found, engine: str) -> None:
    ours: State = state(found.root / f"{engine}-distill", 3)
    assert ("teacher", "ema.backbone.mask_token") in ours
    assert ("param", "student.backbone.mask_token") not in ours
    assert_agree(ours, state(found.root / "ddp-distill", 3))


def test_a_part_of_the_ranks_trains_by_itself(found: Found) -> None:
    """Both engines on the same two of three ranks. (The targets of this learner are balanced over all three.)"""
    ddp, fsdp = found.results[3]["ddp-part"], found.results[3]["fsdp-part"]
    assert ddp["world"] == fsdp["world"] == 2
    assert_close(fsdp["teacher"], ddp["teacher"])
