"""Schedules against the official numbers, and against arrays built the official way."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinoctl.spec.recipe import Cosine, LearningRate, Schedules, TeacherTemperature
from dinoctl.training.schedules import RecipeSchedules, StepValues
from support import golden

OURS = {"wd": "weight_decay", "teacher_temp": "teacher_temperature"}
Array = NDArray[np.float64]


def schedules_of(case: golden.Case) -> tuple[RecipeSchedules, int]:
    s = case["settings"]
    epoch, steps = s["epoch_length"], s["epochs"] * s["epoch_length"]
    recipe = Schedules(
        learning_rate=LearningRate(base=s["base_lr"], min=s["min_lr"], warmup_steps=s["warmup_epochs"] * epoch),
        weight_decay=Cosine(start=s["weight_decay"], end=s["weight_decay_end"]),
        momentum=Cosine(start=s["momentum_teacher"], end=float(s["final_momentum_teacher"])),
        teacher_temperature=TeacherTemperature(
            start=s["warmup_teacher_temp"],
            end=s["teacher_temp"],
            warmup_steps=s["warmup_teacher_temp_epochs"] * epoch,
        ),
        freeze_last_layer_steps=s["freeze_last_layer_epochs"] * epoch,
    )
    return RecipeSchedules(recipe, steps=steps, global_batch=case["batch_per_gpu"] * case["world"]), steps


def short(**changes: object) -> Schedules:
    values = {
        "learning_rate": LearningRate(warmup_steps=5),
        "teacher_temperature": TeacherTemperature(warmup_steps=3),
        "freeze_last_layer_steps": 2,
    }
    return Schedules.model_validate({**values, **changes})


def array(start: float, end: float, steps: int, warmup: int = 0) -> Array:
    cosine = np.arange(steps - warmup)
    falling = end + 0.5 * (start - end) * (1 + np.cos(np.pi * cosine / len(cosine)))
    return np.concatenate([np.linspace(0.0, start, warmup), falling])


@pytest.mark.parametrize("case", golden.cases("schedule"), ids=golden.name_of)
def test_golden(case: golden.Case) -> None:
    schedules, _ = schedules_of(case)
    values = [schedules.at(step) for step in case["steps"]]
    for key, wanted in golden.expected("schedule", case["name"]).items():
        ours = [getattr(value, OURS.get(key, key)) for value in values]
        np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=0.0, err_msg=key)


@pytest.mark.parametrize("case", golden.cases("schedule"), ids=golden.name_of)
def test_the_steps_of_the_arrays(case: golden.Case) -> None:
    schedules, steps = schedules_of(case)
    s, r = case["settings"], schedules.schedules
    warmup, temperature = r.learning_rate.warmup_steps or 0, r.teacher_temperature.warmup_steps or 0
    lr = array(s["peak_lr"], s["min_lr"], steps, warmup)
    rising = np.linspace(s["warmup_teacher_temp"], s["teacher_temp"], temperature)
    wanted = {
        "lr": lr,
        "last_layer_lr": np.where(np.arange(steps) < (r.freeze_last_layer_steps or 0), 0.0, lr),
        "weight_decay": array(s["weight_decay"], s["weight_decay_end"], steps),
        "momentum": array(s["momentum_teacher"], s["final_momentum_teacher"], steps),
        "teacher_temperature": np.concatenate([rising, np.full(steps - temperature, s["teacher_temp"])]),
    }
    # The long run in strides, for time; both ends of every warm-up belong to it.
    turns = [turn + near for turn in (warmup, temperature, r.freeze_last_layer_steps or 0) for near in (-2, -1, 0, 1)]
    checked = np.union1d(np.arange(0, steps, -(-steps // 150_000)), [*turns, steps - 1])
    values = [schedules.at(step) for step in checked.tolist()]
    for name, official in wanted.items():
        ours = np.fromiter((getattr(value, name) for value in values), dtype=np.float64)
        np.testing.assert_allclose(ours, official[checked], rtol=1e-14, atol=1e-18, err_msg=name)


def test_golden_numbers_of_the_long_recipe() -> None:
    schedules, _ = schedules_of(next(case for case in golden.cases("schedule") if case["name"] == "vitg14"))
    at = schedules.at(37_499)
    found = [at.lr, at.weight_decay, at.momentum, at.teacher_temperature]
    np.testing.assert_allclose(found, [1.299016e-4, 0.041417, 0.99405314, 0.07], rtol=1e-5)
    assert schedules.at(1_249).last_layer_lr == 0.0
    assert schedules.at(1_250).last_layer_lr == schedules.at(1_250).lr == pytest.approx(4.330170e-6)


def test_the_end_and_after() -> None:
    schedules = RecipeSchedules(short(), steps=10, global_batch=1024)
    last = StepValues(lr=1e-6, last_layer_lr=1e-6, weight_decay=0.2, momentum=1.0, teacher_temperature=0.07)
    assert schedules.at(10) == schedules.at(10_000) == last
    with pytest.raises(ValueError, match="counted from 0"):
        schedules.at(-1)


@pytest.mark.parametrize(("warmup", "rates"), [(0, 2e-4), (1, 0.0), (10, 0.0)])
def test_shortest_and_longest_warmup(warmup: int, rates: float) -> None:
    recipe = short(learning_rate=LearningRate(warmup_steps=warmup))
    schedules = RecipeSchedules(recipe, steps=10, global_batch=1024)
    assert schedules.at(0).lr == rates
    assert schedules.at(9 if warmup == 10 else warmup).lr == pytest.approx(schedules.peak_lr, rel=1e-15)
    assert schedules.peak_lr == 2e-4


def test_scaling() -> None:
    assert RecipeSchedules(short(), steps=10, global_batch=4096).peak_lr == 4e-4
    unscaled = short(learning_rate=LearningRate(warmup_steps=5, scaling="none"))
    assert RecipeSchedules(unscaled, steps=10, global_batch=4096).peak_lr == 2e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": LearningRate()}, "learningRate.warmupSteps is derived"),
        ({"teacher_temperature": TeacherTemperature()}, "teacherTemperature.warmupSteps is derived"),
        ({"freeze_last_layer_steps": None}, "freezeLastLayerSteps is derived"),
        ({"learning_rate": LearningRate(warmup_steps=11)}, "the run has 10 steps"),
    ],
)
def test_unusable_recipes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecipeSchedules(short(**changes), steps=10, global_batch=1024)
