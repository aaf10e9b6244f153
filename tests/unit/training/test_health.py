"""Health in one process: what a skipped step is blamed on, the effective rank at intervals, warnings of collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_loop import BATCH, SCHEDULES, STEPS, batches, engine, inputs
from torch import Tensor

from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from dinoctl.handover.progress import Progress
from dinoctl.objective import effective_rank
from dinoctl.spec.recipe import Losses, Optimizer
from dinoctl.training.context import ProcessContext
from dinoctl.training.culprit import Culprit, Trace
from dinoctl.training.engines.build import construct
from dinoctl.training.engines.ddp import DdpEngine
from dinoctl.training.learner import Learner, pretraining_learner
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
from dinoctl.training.loop import DivergedError, Loop, LoopSettings
from dinoctl.training.schedules import RecipeSchedules
from dinoctl.training.signals import Study
from dinoctl.training.vitals import Vitals

SCHEDULED = RecipeSchedules(SCHEDULES, steps=STEPS, global_batch=BATCH)


def culprit(owner: DdpEngine, broken: set[int]) -> Culprit:
    return Culprit(
        owner._module,  # type: ignore[arg-type]
        owner,
        SCHEDULED,
        inputs=inputs,
        again=lambda step: next(batches(step, broken)),
        clip_norm=3.0,
        seed=1,
    )


def state(owner: DdpEngine) -> dict[tuple[str, str], Tensor]:
    return {(piece.kind, piece.name): piece.data.clone() for piece in owner.slices()}


def test_a_batch_is_blamed_for_its_own_pixels() -> None:
    owner = engine()
    text = culprit(owner, {4}).explain(4)
    assert text == (
        "the first that is not finite: module teacher.backbone.patch_embed.proj (forward; the crops themselves are "
        "not finite); samples 0"
    )


def poison(learner: Learner, name: str, value: float = math.inf) -> None:
    with torch.no_grad():
        learner.get_parameter(name).view(-1)[0] = value


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("student.backbone.blocks.1.mlp.fc1.bias", "student.backbone.blocks.1.mlp.fc1"),
        ("student.dino_head.mlp.2.weight", "student.dino_head.mlp.2"),
        ("teacher.backbone.norm.bias", "teacher.backbone.norm"),
    ],
)
def test_the_first_module_that_is_not_finite_is_named(parameter: str, module: str) -> None:
    owner = engine()
    poison(owner._module, parameter)  # type: ignore[arg-type]
    assert f"the first that is not finite: module {module} (forward)" in culprit(owner, set()).explain(2)


class Exploding(torch.autograd.Function):
    """The identity, whose gradient overflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def test_a_gradient_that_is_not_finite_is_found_where_it_comes_from() -> None:
    owner = engine()
    block = owner._module.get_submodule("student.backbone.blocks.1")
    block.register_forward_pre_hook(lambda _, args: (Exploding.apply(args[0]), *args[1:]))
    text = culprit(owner, set()).explain(2)
    assert text.startswith("the first that is not finite: gradient at the output of module student.backbone.blocks.0")


def test_what_does_not_happen_again_is_said() -> None:
    owner = engine()
    assert culprit(owner, set()).explain(3) == "all is finite when step 3 is done again with the present weights"


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_looking_for_the_culprit_changes_nothing(centering: Any) -> None:
    learner = pretraining_learner(engine()._module.student, Losses(centering=centering))
    groups = [{"params": [p for p in learner.parameters() if p.requires_grad]}]
    owner = construct(DdpEngine, learner, groups, Optimizer(), precision="fp32", device=torch.device("cpu"))
    owner.groups[0]["lr"] = 0.1
    before = state(owner)
    culprit(owner, {5}).explain(5)
    culprit(owner, set()).explain(5)
    after = state(owner)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in learner.parameters())
    assert learner.dino_targets.training
    assert learner.observer is None


def test_activation_checkpointing_is_traced_once() -> None:
    owner = engine()
    learner = owner._module
    learner.student.backbone.activation_checkpointing = True
    values = next(batches(0))
    with Trace(learner) as trace:
        loss, _ = owner.forward(*inputs(values), 0.05, 0)
        trace.backward_begins()
        owner.backward(loss)
    assert [name for name, _ in trace.outputs].count("student.backbone.blocks.1.mlp") == 1
    assert "student.backbone.blocks.1" in [name for name, _ in trace.gradients]


class Run:
    """A run of the loop with everything that a stage gives it."""

    def __init__(self, root: Path, *, broken: set[int] = frozenset(), every: int = 4, log_every: int = 2) -> None:  # type: ignore[assignment]
        self.engine, self.recorded, self.reports = engine(), dict[int, dict[str, float]](), list[Progress]()
        self.learner: Learner = self.engine._module  # type: ignore[assignment]
        self.writer = LedgerWriter(Ledger(LocalStorage(root)), WriterIdentity(1, 0, 1, "spec", "run", 1, {}), keep=9)
        self.broken = broken
        self.loop = Loop(
            ProcessContext(torch.device("cpu"), sink=self.reports.append),
            self.engine,
            SCHEDULED,
            self.writer,
            LoopSettings(STEPS, BATCH, 100, log_every, 3.0, 1),
            inputs=inputs,
            record=self.recorded.__setitem__,
            vitals=Vitals(self.learner, every=every, after=2, images=BATCH),
            explain=culprit(self.engine, broken).explain,
        )

    def go(self) -> None:
        try:
            self.loop.run(batches(0, self.broken), 0)
        finally:
            self.writer.close()


def test_a_streak_names_module_and_samples(tmp_path: Path) -> None:
    run = Run(tmp_path, broken={3, 4, 5})
    with pytest.raises(DivergedError, match=r"step 3 \(the first that is not finite: module teacher.*; samples 0\)"):
        run.go()


def test_the_effective_rank_is_measured_at_intervals(tmp_path: Path) -> None:
    run = Run(tmp_path, every=4)
    run.go()
    ranks = {step: {name for name in point if "effective_rank" in name} for step, point in run.recorded.items()}
    both = {"health/effective_rank_student", "health/effective_rank_teacher"}
    assert ranks == {1: set(), 2: set(), 4: both, 6: set(), 8: both, 10: set(), 12: both}
    assert all(1 <= run.recorded[12][name] <= 2 * BATCH for name in both)


def test_the_effective_rank_is_that_of_the_last_step(tmp_path: Path) -> None:
    run, seen = Run(tmp_path, every=1, log_every=1), list[float]()
    look: Callable[[Study], None] = run.learner.observer  # type: ignore[assignment]

    def both(study: Study) -> None:
        seen.append(effective_rank(study.student.detach()))
        look(study)

    run.learner.observer = both
    run.go()
    assert [point["health/effective_rank_student"] for point in run.recorded.values()] == pytest.approx(seen)


STRETCHES = [(0, 1), (1, 9), (9, 10), (10, 19), (19, 23), (0, 25)]


def test_a_measured_interval_does_not_depend_on_where_the_run_began() -> None:
    vitals = Vitals(engine()._module, every=10, after=0, images=BATCH)  # type: ignore[arg-type]
    vitals._tokens = {"student": torch.eye(4)}
    due = [bool(vitals.measure(before, step)) for before, step in STRETCHES]
    assert due == [False, False, True, False, True, True]


BAD = {"health/feature_std": 0.01, "health/prototype_usage": 3.0}


def judge(*points: dict[str, float], after: int = 0) -> list[str]:
    vitals = Vitals(engine()._module, every=10, after=after, images=BATCH)  # type: ignore[arg-type]
    return [vitals.judge(point, 10 * (i + 1)) for i, point in enumerate(points)]


def test_collapse_is_told_after_three_bad_points_and_no_longer_when_it_is_over() -> None:
    good = {**BAD, "health/feature_std": 0.9}
    texts = judge(BAD, BAD, good, BAD, BAD, BAD, {}, BAD, good)
    assert [bool(text) for text in texts] == [False] * 5 + [True] * 3 + [False]
    assert texts[5] == (
        "collapse: all images have the same class token (health/feature_std is 0.01, below 0.05); see docs/health.md"
    )


def test_an_untrained_network_is_no_collapse() -> None:
    assert judge(BAD, BAD, BAD, BAD, BAD, after=20) == ["", "", "", "", judge(BAD, BAD, BAD)[2]]


def test_no_masks_are_no_collapse() -> None:
    assert judge(*[{"health/patch_prototype_usage": 0.0}] * 5) == [""] * 5
    assert judge(*[{"health/patch_prototype_usage": 0.01}] * 3)[2]


def test_a_collapse_is_told_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    with torch.no_grad():  # whatever the image, the class token is the same
        for network in (run.learner.student, run.learner.teacher):
            network.backbone.norm.weight.zero_()
            network.backbone.norm.bias.fill_(1.0)
    run.learner.student.backbone.norm.weight.register_hook(torch.zeros_like)
    run.go()
    assert run.reports[-1].step == STEPS
    assert "collapse: " in run.reports[-1].warning
    assert "health/feature_std" in run.reports[-1].warning
    assert capsys.readouterr().err.count("warning: collapse") == 1
