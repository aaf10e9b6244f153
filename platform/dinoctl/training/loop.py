"""The training loop. It knows neither Ray nor any engine nor any stage (design §5).

    schedules -> forward (teacher targets, student, losses) -> backward -> clip -> optimizer -> average

A step's randomness is keyed by (seed, step), so a run that resumes from a checkpoint of step t does what the
uninterrupted one would have done from t on.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from dinoctl.data.batch import Batch
from dinoctl.handover.progress import Progress
from dinoctl.spec.errors import UserError
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine
from dinoctl.training.groups import apply
from dinoctl.training.ledger import LedgerWriter
from dinoctl.training.meter import Meter, Pace
from dinoctl.training.schedules import RecipeSchedules, StepValues

_STOP_EVERY = 5  # steps between questions whether to stop; each one costs a host collective


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of a job."""

    steps: int
    global_batch: int
    checkpoint_every: int
    log_every: int
    clip_norm: float
    seed: int


@dataclass(frozen=True)
class LoopResult:
    """``stopped``: asked to stop before the end; a checkpoint of ``step`` is committed either way.
    ``images_per_s`` is the mean of this attempt, without its start.
    """

    step: int
    stopped: bool
    images_per_s: float


MetricSink = Callable[[int, dict[str, float]], None]
Inputs = Callable[[Batch], tuple[Tensor | None, ...]]


class DivergedError(UserError):
    """The loss or a gradient is no longer finite."""


class Loop:
    """Drives one engine from ``start`` to the last step."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        schedules: RecipeSchedules,
        writer: LedgerWriter,
        settings: LoopSettings,
        *,
        inputs: Inputs,
        record: MetricSink,
    ) -> None:
        self._context, self._engine, self._schedules = context, engine, schedules
        self._writer, self._settings = writer, settings
        self._inputs, self._record = inputs, record
        self._meter, self._pace = Meter(), Pace(settings.global_batch)
        self._committed = 0
        self._loss: float | None = None
        self._wait_s = 0.0

    def run(self, batches: Iterator[Batch], start: int) -> LoopResult:
        """Steps from ``start`` (the number of steps already done) to the end or to a stop.

        Raises:
            DivergedError: loss or gradients were not finite at the end of an interval; nothing of it is committed.
        """
        self._committed = start
        settings, step, stopped = self._settings, start, False
        while step < settings.steps and not stopped:
            began = time.monotonic()
            batch = next(batches)
            self._wait_s += time.monotonic() - began
            self._step(batch, step)
            step += 1
            last = step == settings.steps
            stopped = not last and step % _STOP_EVERY == 0 and self._context.should_stop()
            save = last or stopped or step % settings.checkpoint_every == 0
            if save or step % settings.log_every == 0 or step == start + 1:
                self._log(step)
            if save:
                self._writer.save(step, self._engine.slices())
                self._committed = step
        self._writer.wait()
        self._report(step)
        return LoopResult(step, stopped, self._pace.average)

    def _step(self, batch: Batch, step: int) -> None:
        engine, values = self._engine, self._schedules.at(step)
        apply(engine.groups, values)
        if values.refresh_gram:
            engine.copy("teacher.backbone.", "gram.")
        seed = (self._settings.seed * 1_000_003 + step) * 65_537 + engine.rank
        loss, metrics = engine.forward(*self._inputs(batch), values.teacher_temperature, seed, values.gram_weight)
        engine.backward(loss)
        norms = engine.clip(self._settings.clip_norm)
        engine.step()
        engine.average(values.momentum)
        self._meter.add({**metrics, **{f"grad_norm/{name}": norm for name, norm in norms.items()}})

    def _log(self, step: int) -> None:
        metrics = self._meter.take()
        self._pace.mark(step)
        self._loss = metrics["loss"]
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        # A gradient that is not finite has spoilt the weights already, although the loss is the one before.
        if any(name == "loss" or name.startswith("grad_norm/") for name in broken):
            raise DivergedError(
                f"the loss is {self._loss} at step {step} (not finite: {', '.join(broken)}); the last checkpoint is of "
                f"step {self._committed}; lower schedules.learningRate.base or lengthen warmupSteps"
            )
        if self._context.rank == 0:
            metrics |= _rates(self._schedules.at(step - 1))
            metrics |= {"images_per_s": self._pace.images_per_s, "data_wait_s": self._wait_s}
            metrics |= {"checkpoint/copy_s": self._writer.copy_s, "checkpoint/wait_s": self._writer.wait_s}
            self._record(step, metrics)
            self._report(step)
        self._wait_s = 0.0

    def _report(self, step: int) -> None:
        if self._context.rank == 0:
            eta = self._pace.eta_s(self._settings.steps - step)
            progress = Progress(step, self._settings.steps, self._pace.images_per_s, eta, self._committed, self._loss)
            self._context.report(progress)


def _rates(values: StepValues) -> dict[str, float]:
    anchored = {} if values.gram_weight is None else {"schedule/gram_weight": values.gram_weight}
    return anchored | {
        "schedule/learning_rate": values.lr,
        "schedule/weight_decay": values.weight_decay,
        "schedule/momentum": values.momentum,
        "schedule/teacher_temperature": values.teacher_temperature,
    }
