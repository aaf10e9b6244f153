"""Gram anchoring in the learner, its schedule, and the loop: copies at their steps, exact resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_learner import batch, network, order_of_modules
from test_training_loop import BATCH, SCHEDULES, Run
from torch import Tensor

from dinoctl.objective import gram_loss, resample_patches
from dinoctl.spec.recipe import Gram, Losses, Optimizer
from dinoctl.training.engines.build import construct
from dinoctl.training.engines.ddp import DdpEngine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import Learner, distillation_learner, pretraining_learner
from dinoctl.training.schedules import RecipeSchedules

GRAM = Gram(weight=2.0, start_step=3, warmup_steps=3, refresh_every=4, max_refreshes=1)


def learner() -> Learner:
    return pretraining_learner(network(drop_path=0.3), Losses(gram=GRAM))


def test_the_loss_is_that_of_the_students_global_patches() -> None:
    trained, inputs = learner(), batch()
    trained.student.load_state_dict(network(1).state_dict())
    trained.eval()
    assert trained.gram is not None
    anchors = trained.gram(inputs["global_crops"], is_training=True)["x_norm_patchtokens"]
    crops = [inputs["global_crops"], inputs["local_crops"]]
    student = trained.student.backbone(crops, masks=[inputs["masks"], None], is_training=True)
    wanted = 1.5 * gram_loss(student[0]["x_norm_patchtokens"], anchors)
    loss, metrics = trained(**inputs, gram_weight=1.5)
    before, without = trained(**inputs)
    assert metrics["gram"] > 0.01
    torch.testing.assert_close(metrics["gram"], wanted.detach())
    torch.testing.assert_close(loss - before, wanted)
    assert without["gram"] == 0


def scaled(scale: float | None) -> Learner:
    gram = GRAM if scale is None else GRAM.model_copy(update={"teacher_scale": scale})
    trained = pretraining_learner(network(), Losses(gram=gram))
    trained.student.load_state_dict(network(1).state_dict())
    return trained.eval()


def test_a_teacher_at_the_same_scale_is_the_plain_one() -> None:
    plain, same = (scaled(scale)(**batch(), gram_weight=1.5) for scale in (None, 1.0))
    assert torch.equal(plain[0], same[0])
    assert all(torch.equal(value, same[1][name]) for name, value in plain[1].items())


def test_a_teacher_at_another_scale_sees_larger_crops_and_fits_the_students_grid() -> None:
    trained, inputs = scaled(2.0), batch()
    assert trained.gram is not None
    crops = inputs["global_crops"]
    side, seen = crops.shape[-1] // 4, list[tuple[int, ...]]()
    trained.gram.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    loss, metrics = trained(**inputs, gram_weight=1.5)
    assert seen == [(len(crops), 3, 2 * crops.shape[-2], 2 * crops.shape[-1])]
    larger = torch.nn.functional.interpolate(crops, scale_factor=2, mode="bicubic")
    features = trained.gram(larger, is_training=True)["x_norm_patchtokens"]
    anchors = resample_patches(features, (2 * side, 2 * side), (side, side))
    student = trained.student.backbone([crops, inputs["local_crops"]], masks=[inputs["masks"], None], is_training=True)
    wanted = 1.5 * gram_loss(student[0]["x_norm_patchtokens"], anchors)
    torch.testing.assert_close(metrics["gram"], wanted.detach())
    others, _ = scaled(None)(**inputs, gram_weight=1.5)
    assert not torch.isclose(loss, others)
    loss.backward()
    assert all(p.grad is None for p in trained.gram.parameters())
    with pytest.raises(ValueError, match=r"1\.3 times \d x \d patches is no whole number"):
        scaled(1.3)(**inputs, gram_weight=1.0)


def test_the_gram_teacher_is_frozen_and_runs_only_when_it_is_weighted() -> None:
    trained = learner().train()
    assert trained.gram is not None
    assert not any(module.training for module in trained.gram.modules())
    ran = order_of_modules(trained, {**batch(), "gram_weight": 0.0})
    order = [name for name in ran if name in ("teacher.backbone", "gram", "student.backbone")]
    assert order == ["teacher.backbone", "gram", "student.backbone"]
    assert not any(name.startswith("gram") for name in order_of_modules(trained, batch()))
    loss, _ = trained(**batch(), gram_weight=2.0)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in trained.gram.parameters())
    groups = parameter_groups(trained.named_parameters(), depth=2, optimizer=Optimizer())
    assert not {id(p) for p in trained.gram.parameters()} & {id(p) for group in groups for p in group["params"]}


def test_it_needs_a_gram_teacher_that_follows_the_student() -> None:
    with pytest.raises(ValueError, match=r"losses\.gram is null"):
        pretraining_learner(network(), Losses())(**batch(), gram_weight=1.0)
    with pytest.raises(ValueError, match="student's average"):
        distillation_learner(network(0), network(1), Losses(gram=GRAM))


def test_schedule() -> None:
    values = [RecipeSchedules(SCHEDULES, steps=12, global_batch=2, gram=GRAM).at(step) for step in range(12)]
    assert [v.gram_weight for v in values] == [None, None, None, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert [step for step, v in enumerate(values) if v.refresh_gram] == [3, 7]
    plain = RecipeSchedules(SCHEDULES, steps=12, global_batch=2).at(5)
    assert (plain.gram_weight, plain.refresh_gram) == (None, False)
    with pytest.raises(ValueError, match=r"losses\.gram\.maxRefreshes is derived"):
        RecipeSchedules(SCHEDULES, steps=12, global_batch=2, gram=Gram())


class Watched(DdpEngine):
    """Remembers the average and the Gram teacher after each copy."""

    copies: list[tuple[dict[str, Tensor], dict[str, Tensor]]]

    def copy(self, source: str, target: str) -> None:
        super().copy(source, target)
        state = {name: p.detach().clone() for name, p in self._module.named_parameters()}
        parts = ({k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in (source, target))
        first, second = parts
        self.copies = [*getattr(self, "copies", []), (first, second)]


def engine() -> Watched:
    made = learner()
    groups = parameter_groups(made.named_parameters(), depth=2, optimizer=Optimizer())
    return construct(Watched, made, groups, Optimizer(), precision="fp32", device=torch.device("cpu"))


def anchored(root: Path, **changes: int) -> Run:
    schedules = RecipeSchedules(SCHEDULES, steps=12, global_batch=BATCH, gram=GRAM)
    return Run(root, engine=engine(), log_every=1, schedules=schedules, **changes)


def test_a_run_copies_the_average_and_goes_on_exactly(tmp_path: Path) -> None:
    whole = anchored(tmp_path / "whole")
    assert whole.go().step == 12
    assert isinstance(whole.engine, Watched)
    assert len(whole.engine.copies) == 2
    for average, copied in whole.engine.copies:
        assert average.keys() == copied.keys()
        assert all(torch.equal(average[name], copied[name]) for name in average)
    first, second = (copied for _, copied in whole.engine.copies)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    state = whole.state()
    assert all(torch.equal(state["frozen", f"gram.{name}"], value.flatten()) for name, value in second.items())
    weights = [metrics.get("schedule/gram_weight") for metrics in whole.recorded.values()]
    assert weights[2:6] == [None, 0.0, 1.0, 2.0]
    assert whole.recorded[3]["gram"] == 0 < whole.recorded[6]["gram"]

    for number, stop in ((1, 1), (2, 6), (3, -1)):
        run = anchored(tmp_path / "parts", number=number, stop_at=stop)
        run.go()
    assert list(run.recorded) == [11, 12]
    found = run.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert run.recorded[12]["loss"] == whole.recorded[12]["loss"]
