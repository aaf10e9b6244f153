"""Everything that changes with the step, as closed forms of the step.

The official code builds one array a value. Here a value is computed when it is asked for, in float64 and with the same
operations, so that a run of any length costs nothing and starts anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinoctl.spec.recipe import Gram, Schedules


@dataclass(frozen=True, slots=True)
class StepValues:
    """The values in force at one step. Learning rates and weight decay are before a group's multipliers."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    gram_weight: float | None = None
    """Weight of Gram anchoring; None where it is not part of the step, and its teacher does not run."""
    refresh_gram: bool = False
    """Whether the average is copied to the Gram teacher before the step."""


def linear(step: int, start: float, end: float, steps: int) -> float:
    """Entry `step` of `steps` evenly spaced values, both ends among them (numpy.linspace)."""
    return start + step * ((end - start) / max(1, steps - 1))


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which step `steps` and all later ones have."""
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / steps))


class RecipeSchedules:
    """The schedules of a resolved recipe for a run of `steps` steps with `global_batch` images a step.

    Raises ValueError where a derived number of steps is missing, or warm-up is longer than the run.
    """

    def __init__(self, schedules: Schedules, *, steps: int, global_batch: int, gram: Gram | None = None) -> None:
        rate, temperature = schedules.learning_rate, schedules.teacher_temperature
        self.steps = steps
        self.schedules = schedules
        self.peak_lr = rate.base * (math.sqrt(global_batch / 1024) if rate.scaling == "sqrt_1024" else 1.0)
        self._warmup = _resolved(rate.warmup_steps, "learningRate.warmupSteps")
        self._temperature_warmup = _resolved(temperature.warmup_steps, "teacherTemperature.warmupSteps")
        self._frozen = _resolved(schedules.freeze_last_layer_steps, "freezeLastLayerSteps")
        self._gram = None if gram is None else _GramSchedule(gram)
        if self._warmup > steps:
            raise ValueError(
                f"learningRate.warmupSteps is {self._warmup}, but the run has {steps} steps: "
                "lower it, or leave it out to have it derived"
            )

    def at(self, step: int) -> StepValues:
        """The values of step `step`, counted from 0; from `steps` on, the final ones. Raises ValueError below 0."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        decay, momentum = self.schedules.weight_decay, self.schedules.momentum
        lr = self._lr(step)
        return StepValues(
            lr=lr,
            last_layer_lr=0.0 if step < self._frozen else lr,
            weight_decay=cosine(step, decay.start, decay.end, self.steps),
            momentum=cosine(step, momentum.start, momentum.end, self.steps),
            teacher_temperature=self._teacher_temperature(step),
            gram_weight=self._gram.weight(step) if self._gram else None,
            refresh_gram=self._gram is not None and self._gram.refreshes(step),
        )

    def _lr(self, step: int) -> float:
        if step < self._warmup:
            return linear(step, 0.0, self.peak_lr, self._warmup)
        minimum = self.schedules.learning_rate.min
        return cosine(step - self._warmup, self.peak_lr, minimum, self.steps - self._warmup)

    def _teacher_temperature(self, step: int) -> float:
        temperature = self.schedules.teacher_temperature
        if step < self._temperature_warmup:
            return linear(step, temperature.start, temperature.end, self._temperature_warmup)
        return temperature.end


class _GramSchedule:
    """When Gram anchoring is part of a step, and when its teacher is renewed."""

    def __init__(self, gram: Gram) -> None:
        self._peak = gram.weight
        self._renewals = _resolved(gram.max_refreshes, "gram.maxRefreshes", "losses")
        self._start = _resolved(gram.start_step, "gram.startStep", "losses")
        self._warmup = _resolved(gram.warmup_steps, "gram.warmupSteps", "losses")
        self._every = _resolved(gram.refresh_every, "gram.refreshEvery", "losses")

    def weight(self, step: int) -> float | None:
        since = step - self._start
        if since < 0:
            return None
        return linear(since, 0.0, self._peak, self._warmup) if since < self._warmup else self._peak

    def refreshes(self, step: int) -> bool:
        number, rest = divmod(step - self._start, self._every)
        return rest == 0 and 0 <= number <= self._renewals


def _resolved(value: int | None, field: str, section: str = "schedules") -> int:
    if value is None:
        raise ValueError(
            f"{section}.{field} is derived from the number of steps: resolve the document first, or set it"
        )
    return value
