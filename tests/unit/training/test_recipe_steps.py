"""What an optimizer's groups hold at the moment of a step, in the real loop, is the official arrays' entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import batch, network
from test_schedules import array, schedules_of
from torch import Tensor

from dinoctl.data.batch import Batch
from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from dinoctl.spec.compute import Compute
from dinoctl.spec.recipe import Cosine, LearningRate, Losses, Optimizer, Schedules, TeacherTemperature
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import pretraining_learner
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
from dinoctl.training.loop import Loop, LoopSettings
from dinoctl.training.schedules import RecipeSchedules
from support import golden

OPTIMIZER = Optimizer(layer_decay=0.9, patch_embed_multiplier=0.2)
DEPTH = 2


@dataclass
class Watched:
    """An engine whose steps change nothing; it keeps what was in force at each of them."""

    engine: Engine
    rates: list[list[tuple[float, float]]] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        self.temperatures.append(inputs[5])
        return torch.zeros(()), {"loss": torch.zeros(())}

    def backward(self, loss: Tensor) -> None:
        pass

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        assert max_norm == OPTIMIZER.clip_norm
        return {}

    def step(self, *_: Any, **__: Any) -> None:
        self.rates.append([(group["lr"], group["weight_decay"]) for group in self.engine.groups])

    def average(self, momentum: float, *_: Any) -> None:
        self.momenta.append(momentum)


def watched() -> Watched:
    learner = pretraining_learner(network(), Losses())
    groups = parameter_groups(learner.named_parameters(), depth=DEPTH, optimizer=OPTIMIZER)
    compute = Compute.model_validate({"engine": {"name": "ddp"}, "precision": "fp32"})
    return Watched(build_engine(compute, learner, groups, OPTIMIZER, ProcessContext(torch.device("cpu"))))


def drive(spy: Watched, schedules: RecipeSchedules, start: int, end: int, folder: Path) -> None:
    made = batch(2, seed=0)
    names = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
    one = Batch(0, torch.arange(2), **{name: made[name] for name in names})

    def batches() -> Iterator[Batch]:
        while True:
            yield one

    writer = LedgerWriter(Ledger(LocalStorage(folder)), WriterIdentity(1, 0, 1, "s", "r", 0, {}), keep=1)
    settings = LoopSettings(end, 2, 10**9, 10**9, clip_norm=OPTIMIZER.clip_norm, seed=1)
    loop = Loop(
        ProcessContext(torch.device("cpu")),
        spy,  # type: ignore[arg-type]
        schedules,
        writer,
        settings,
        inputs=lambda b: (b.global_crops, b.local_crops, b.masks, b.mask_indices, b.mask_weights),
        record=lambda *_: None,
    )
    try:
        loop.run(batches(), start)
    finally:
        writer.close()


def check(spy: Watched, at: int, wanted: dict[str, float]) -> None:
    """Every group of the real learner at one step: its own multipliers on the official value."""
    for group, (lr, decay) in zip(spy.engine.groups, spy.rates[at], strict=True):
        rate = wanted["last_layer_lr"] if group["is_last_layer"] else wanted["lr"]
        np.testing.assert_allclose(lr, rate * group["lr_multiplier"], rtol=1e-12, atol=0)
        np.testing.assert_allclose(decay, wanted["wd"] * group["wd_multiplier"], rtol=1e-12, atol=0)
    np.testing.assert_allclose(spy.momenta[at], wanted["momentum"], rtol=1e-12)
    np.testing.assert_allclose(spy.temperatures[at], wanted["teacher_temp"], rtol=1e-12)


@pytest.mark.parametrize("case", golden.cases("schedule"), ids=golden.name_of)
def test_golden_steps(case: golden.Case, tmp_path: Path) -> None:
    schedules, _ = schedules_of(case)
    spy, wanted = watched(), golden.expected("schedule", case["name"])
    kinds = {(group["module"], group["is_last_layer"], group["wd_multiplier"]) for group in spy.engine.groups}
    assert {("student.dino_head", True, 1.0), ("student.backbone", False, 0.0)} <= kinds
    assert len({group["lr_multiplier"] for group in spy.engine.groups}) > DEPTH + 2
    for at, step in enumerate(case["steps"]):
        drive(spy, schedules, step, step + 1, tmp_path / str(at))
        check(spy, at, {name: values[at] for name, values in wanted.items()})


def test_every_step_of_a_short_run(tmp_path: Path) -> None:
    """From the first to the last, where warm-up, freeze and temperature turn at different steps."""
    steps, warmup, heat, frozen = 40, 7, 11, 3
    recipe = Schedules(
        learning_rate=LearningRate(base=4e-3, warmup_steps=warmup),
        weight_decay=Cosine(start=0.04, end=0.4),
        momentum=Cosine(start=0.992, end=1.0),
        teacher_temperature=TeacherTemperature(warmup_steps=heat),
        freeze_last_layer_steps=frozen,
    )
    schedules = RecipeSchedules(recipe, steps=steps, global_batch=2048)
    spy = watched()
    drive(spy, schedules, 0, steps, tmp_path)
    lr = array(4e-3 * np.sqrt(2), 1e-6, steps, warmup)
    official = {
        "lr": lr,
        "last_layer_lr": np.where(np.arange(steps) < frozen, 0.0, lr),
        "wd": array(0.04, 0.4, steps),
        "momentum": array(0.992, 1.0, steps),
        "teacher_temp": np.concatenate([np.linspace(0.04, 0.07, heat), np.full(steps - heat, 0.07)]),
    }
    assert len(spy.rates) == steps
    for step in range(steps):
        check(spy, step, {name: values[step] for name, values in official.items()})
