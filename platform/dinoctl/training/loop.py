"""The training loop. It knows neither Ray nor any engine nor any stage (design §5).

    schedules -> forward (teacher targets, student, losses) -> backward -> clip -> guard -> optimizer -> average

A step whose loss or gradients are not finite is skipped on the device; the host learns of it at the end of an interval.
A step's randomness is keyed by (seed, step), so a run that resumes from a checkpoint of step t does what the
uninterrupted one would have done from t on.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist
from torch import Tensor

from dinoctl.data.batch import Batch
from dinoctl.handover.progress import Head, Progress
from dinoctl.spec.errors import UserError
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine
from dinoctl.training.groups import apply
from dinoctl.training.guard import Skips, StepGuard
from dinoctl.training.ledger import LedgerWriter
from dinoctl.training.meter import Meter, Pace
from dinoctl.training.schedules import RecipeSchedules, StepValues
from dinoctl.training.seeds import step_seed as step_seed  # others key by it too
from dinoctl.training.stopping import StopRequest, grace_s
from dinoctl.training.upload import Upload
from dinoctl.training.vitals import Vitals

_EVERY = "policy.checkpoint.everySteps"
_WAIT_TOLD_S = 1.0  # training may stand still for storage without a warning


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of a job."""

    steps: int
    global_batch: int
    checkpoint_every: int
    log_every: int
    clip_norm: float
    seed: int
    max_skipped_streak: int = 2


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
    """Loss or gradients were not finite for too many steps in a row."""


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
        vitals: Vitals | None = None,
        explain: Callable[[int], str] = lambda _: "",
        skipped: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """``explain`` says why a step (counted from 0) was skipped; it is called on all ranks together.
        ``skipped``: how many steps the job had skipped before. ``group``: the ranks whose metrics belong together
        (None: all).
        """
        self._context, self._engine, self._schedules = context, engine, schedules
        self._writer, self._settings = writer, settings
        self._inputs, self._record, self._explain = inputs, record, explain
        self._guard, self._skipped, self._vitals = StepGuard(engine.device, skipped), skipped, vitals
        self._warnings = {"skipped": "", "collapse": "", "storage": "", "grace": ""}
        self._meter, self._pace = Meter(group), Pace(settings.global_batch)
        self._committed = self._looked = 0
        self._loss: float | None = None
        self._wait_s = 0.0

    def run(self, batches: Iterator[Batch], start: int) -> LoopResult:
        """Steps from ``start`` (the number of steps already done) to the end or to a stop.

        Raises:
            DivergedError: too many steps in a row were skipped. What is committed is finite all the same.
        """
        self._committed = self._looked = start
        settings, step, stopped = self._settings, start, False
        if start < settings.steps:
            self._writer.prepare(self._engine.slices())
        while step < settings.steps and not stopped:
            began = time.monotonic()
            batch = next(batches)
            self._wait_s += time.monotonic() - began
            self._step(batch, step)
            step += 1
            last = step == settings.steps
            stopped = not last and self._context.should_stop()
            save = last or stopped or step % settings.checkpoint_every == 0
            if save or step % settings.log_every == 0 or step == start + 1:
                self._log(step)
            if save:
                self._save(step)
        self._writer.wait(partial(self._behind, step))
        self._told_stop(step)
        self._report(step)
        return LoopResult(step, stopped, self._pace.average)

    def _step(self, batch: Batch, step: int) -> None:
        engine, values = self._engine, self._schedules.at(step)
        apply(engine.groups, values)
        if values.refresh_gram:
            engine.copy("teacher.backbone.", "gram.")
        seed = step_seed(self._settings.seed, step, engine.rank)
        loss, metrics = engine.forward(*self._inputs(batch), values.teacher_temperature, seed, values.gram_weight)
        engine.backward(loss)
        norms = engine.clip(self._settings.clip_norm)
        skip = self._guard.check(loss, norms, step)
        engine.step(skip)
        engine.average(values.momentum, skip)
        self._meter.add({**metrics, **{f"grad_norm/{name}": norm for name, norm in norms.items()}}, skip)

    def _save(self, step: int) -> None:
        """Commits what is before, and begins to store ``step``; says when storage does not keep up."""
        writer, request = self._writer, self._context.stop_request()
        before = writer.upload
        if request is not None:
            self._warn("grace", _hardly(request, writer))
        writer.save(step, self._engine.slices(), skipped=self._skipped, behind=partial(self._behind, step))
        self._committed = step
        late = before is not None and writer.wait_s > _WAIT_TOLD_S
        self._warn("storage", f"step {step} waited {writer.wait_s:.0f} s for the {_slow(before)}" if late else "")
        if request is None:
            self._warn("grace", self._too_long())

    def _behind(self, step: int, upload: Upload) -> None:
        """While training waits for the storage."""
        self._warn("storage", f"step {step} waits for the {_slow(upload)}")
        self._report(step)

    def _too_long(self) -> str:
        """What a preemption would cost, where it is known how long it leaves."""
        last, grace, pace = self._writer.last, grace_s(), self._pace.images_per_s
        if last is None or grace is None or not pace:
            return ""
        step_s = self._settings.global_batch / pace
        if last.age_s + step_s < grace:
            return ""
        return (
            f"a preempted worker has {grace:.0f} s, but a step takes {step_s:.1f} s and a checkpoint {last}: the steps "
            f"since the last checkpoint would be lost; lengthen the drain time, or lower {_EVERY}"
        )

    def _told_stop(self, step: int) -> None:
        request = self._context.stop_request()
        if request is not None and self._context.rank == 0:
            sys.stderr.write(f"stopped as asked: step {step} is committed, {used(request)}\n")

    def _log(self, step: int) -> None:
        metrics, skips = self._meter.take(), self._guard.take()
        self._pace.mark(step)
        self._loss = metrics.get("loss", self._loss)
        self._skipped = skips.total
        if skips.longest:
            self._tell(skips)
        if self._vitals is not None:
            metrics |= self._vitals.measure(self._looked, step)
            self._warn("collapse", self._vitals.judge(metrics, step))
        self._looked = step
        if self._context.rank == 0:
            metrics |= {"health/skipped_steps": skips.total}
            metrics |= _rates(self._schedules.at(step - 1))
            metrics |= {"images_per_s": self._pace.images_per_s, "data_wait_s": self._wait_s}
            metrics |= _storing(self._writer)
            self._record(step, metrics)
            self._report(step)
        self._wait_s = 0.0

    def _tell(self, skips: Skips) -> None:
        """What is known of the steps skipped in this interval. Collective: explaining repeats a step.

        Raises:
            DivergedError: there were too many of them in a row.
        """
        reason = self._explain(skips.first)
        reason = f" ({reason})" if reason else ""
        if skips.longest > self._settings.max_skipped_streak:
            raise DivergedError(
                f"{skips.longest} steps in a row had a loss or gradients that are not finite, the first of them step "
                f"{skips.first}{reason}; they were skipped, and the last checkpoint, of step {self._committed}, is "
                "finite; lower schedules.learningRate.base, lengthen warmupSteps, or raise "
                f"policy.health.maxSkippedStreak ({self._settings.max_skipped_streak})"
            )
        what = f"step {skips.first} was skipped, loss or gradients were not finite{reason}"
        self._warn("skipped", f"{what}; {skips.total} in all")

    def _warn(self, kind: str, text: str) -> None:
        """Keeps a warning for the reports to come; a new one goes to the log."""
        new, self._warnings[kind] = bool(text) and not self._warnings[kind], text
        if self._context.rank == 0 and (new or (text and kind in ("skipped", "storage"))):
            sys.stderr.write(f"warning: {text}\n")

    def _report(self, step: int) -> None:
        if self._context.rank == 0:
            eta = self._pace.eta_s(self._settings.steps - step)
            pace, steps = self._pace.images_per_s, self._settings.steps
            warning = "; ".join(filter(None, self._warnings.values()))
            found = self._writer.head
            head = None if found is None else Head(found.step, found.written_at, found.attempt)
            progress = Progress(step, steps, pace, eta, self._committed, self._loss, warning=warning, head=head)
            self._context.report(progress)


def used(request: StopRequest) -> str:
    """How long ago a stop was asked for, and what is left."""
    left = request.left_s()
    return f"{request.used_s():.1f} s after the request" + ("" if left is None else f" and {left:.1f} s before the end")


def _hardly(request: StopRequest, writer: LedgerWriter) -> str:
    left, last = request.left_s(), writer.last
    if left is None or last is None or last.age_s < left:
        return ""
    return f"the last checkpoint will hardly be stored in the {left:.0f} s that are left: the one before took {last}"


def _slow(upload: Upload | None) -> str:
    return f"checkpoint before it ({upload}): checkpoints come faster than they are stored; raise {_EVERY}"


def _storing(writer: LedgerWriter) -> dict[str, float]:
    """Of the upload on its way: age, MB so far and a second; of the last one that was committed: how long it took."""
    upload, last = writer.upload, writer.last
    return {
        "checkpoint/copy_s": writer.copy_s,
        "checkpoint/wait_s": writer.wait_s,
        "checkpoint/store_s": 0.0 if last is None else last.age_s,
        "checkpoint/bytes_per_s": 0.0 if upload is None else upload.bytes_per_s,
        "checkpoint/pending_s": upload.age_s if upload is not None and upload.running else 0.0,
    }


def _rates(values: StepValues) -> dict[str, float]:
    anchored = {} if values.gram_weight is None else {"schedule/gram_weight": values.gram_weight}
    return anchored | {
        "schedule/learning_rate": values.lr,
        "schedule/weight_decay": values.weight_decay,
        "schedule/momentum": values.momentum,
        "schedule/teacher_temperature": values.teacher_temperature,
    }
