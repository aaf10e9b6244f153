"""The loop in one process: what it records, when it commits, stopping and going on, divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from test_learner import batch, network
from torch import Tensor

from dinoctl.data.batch import Batch
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.handover.progress import Head, Progress
from dinoctl.objective import SoftmaxCenter
from dinoctl.spec.recipe import LearningRate, Losses, Optimizer, Schedules, TeacherTemperature
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines.build import construct
from dinoctl.training.engines.ddp import DdpEngine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.guard import Skips, StepGuard
from dinoctl.training.learner import pretraining_learner
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity
from dinoctl.training.loop import DivergedError, Loop, LoopResult, LoopSettings
from dinoctl.training.schedules import RecipeSchedules

STEPS, BATCH = 12, 2
CLS = "student.backbone.cls_token"
SIGNALS = ("target_entropy", "prototype_usage", "patch_prototype_usage", "agreement", "patch_agreement", "feature_std")
PARTS = {"loss", "dino_global", "dino_local", "ibot", "koleo", *(f"health/{signal}" for signal in SIGNALS)}
NORMS = {f"grad_norm/student.{module}" for module in ("backbone", "dino_head", "ibot_head")}
RATES = {f"schedule/{name}" for name in ("learning_rate", "weight_decay", "momentum", "teacher_temperature")}
STORING = {f"checkpoint/{name}" for name in ("copy_s", "wait_s", "store_s", "pending_s", "bytes_per_s")}
CLOCKS = {"health/skipped_steps", "images_per_s", "data_wait_s"} | STORING
SCHEDULES = Schedules(
    learning_rate=LearningRate(base=1e-3, scaling="none", warmup_steps=2),
    teacher_temperature=TeacherTemperature(warmup_steps=2),
    freeze_last_layer_steps=1,
)


def engine(cls: type[DdpEngine] = DdpEngine) -> DdpEngine:
    learner = pretraining_learner(network(drop_path=0.3), Losses())
    groups = parameter_groups(learner.named_parameters(), depth=2, optimizer=Optimizer())
    return construct(cls, learner, groups, Optimizer(), precision="fp32", device=torch.device("cpu"))


def batches(start: int, broken: Container[int] = ()) -> Iterator[Batch]:
    """The same batch for a step wherever it starts; those of the steps ``broken`` have a pixel that is infinite."""
    for step in range(start, 10**9):
        made = batch(BATCH, seed=step)
        if step in broken:
            made["global_crops"][0, 0, 0, 0] = math.inf
        names = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
        yield Batch(step, torch.arange(BATCH), **{name: made[name] for name in names})


def inputs(batch: Batch) -> tuple[Tensor | None, ...]:
    return batch.global_crops, batch.local_crops, batch.masks, batch.mask_indices, batch.mask_weights


@dataclass
class Run:
    """One attempt of a job whose files are below ``root``."""

    root: Path
    engine: DdpEngine = field(default_factory=engine)
    number: int = 1
    every: int = 4
    log_every: int = 2
    stop_at: int = -1
    broken: Container[int] = ()
    tolerated: int = 2
    steps: int = STEPS
    schedules: RecipeSchedules = field(
        default_factory=lambda: RecipeSchedules(SCHEDULES, steps=STEPS, global_batch=BATCH)
    )
    recorded: dict[int, dict[str, float]] = field(default_factory=dict)
    reports: list[Progress] = field(default_factory=list)
    skipped: int = 0
    clock: Callable[[], float] = lambda: 0.0
    """Stands still, so that questions whether to stop come after every fifth step, however slow this machine is."""

    uri: str = ""

    @property
    def ledger(self) -> Ledger:
        return Ledger(open_storage(self.uri or self.root / "checkpoints"))

    def go(self) -> LoopResult:
        start = self._resume()
        stop = self.root / f"stop-{self.number}"
        context = ProcessContext(torch.device("cpu"), stop, sink=self.reports.append, clock=self.clock)
        settings = LoopSettings(self.steps, BATCH, self.every, self.log_every, 3.0, 1, self.tolerated)
        identity = WriterIdentity(self.number, 0, 1, "spec", "run", 1, {})
        writer = LedgerWriter(self.ledger, identity, keep=9)

        def record(step: int, metrics: dict[str, float]) -> None:
            self.recorded[step] = metrics
            if step >= self.stop_at >= 0:
                stop.touch()

        loop = Loop(
            context, self.engine, self.schedules, writer, settings, inputs=inputs, record=record, skipped=self.skipped
        )
        try:
            return loop.run(batches(start, self.broken), start)
        finally:
            writer.close()

    def _resume(self) -> int:
        self.ledger.begin(self.number)
        head = self.ledger.head("spec")
        if head is None:
            return 0
        self.skipped = head.skipped
        self.engine.load(Checkpoint(self.ledger.storage, head).read, head.step - head.skipped)
        return head.step

    def state(self) -> dict[tuple[str, str], Tensor]:
        return {(piece.kind, piece.name): piece.data.clone() for piece in self.engine.slices()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    result = run.go()
    assert (result.step, result.stopped) == (STEPS, False)
    assert (
        min(r.images_per_s for r in run.reports[1:]) <= result.images_per_s <= max(r.images_per_s for r in run.reports)
    )
    return run


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with every step recorded."""
    run = Run(tmp_path_factory.mktemp("fine"), log_every=1)
    run.go()
    return run


def test_metrics_are_recorded_at_log_steps_and_checkpoints(undisturbed: Run) -> None:
    assert list(undisturbed.recorded) == [1, 2, 4, 6, 8, 10, 12]
    for step, metrics in undisturbed.recorded.items():
        assert set(metrics) == PARTS | NORMS | RATES | CLOCKS, step
        assert all(math.isfinite(value) for value in metrics.values()), step
        parts = sum(metrics[name] for name in ("dino_global", "dino_local", "ibot", "koleo"))
        assert metrics["loss"] == pytest.approx(parts, rel=1e-5)
    assert undisturbed.ledger.steps() == [4, 8, 12]


def test_recorded_rates_are_those_of_the_last_step_of_the_interval(undisturbed: Run) -> None:
    schedules = RecipeSchedules(SCHEDULES, steps=STEPS, global_batch=BATCH)
    for step, metrics in undisturbed.recorded.items():
        assert metrics["schedule/learning_rate"] == schedules.at(step - 1).lr
        assert metrics["schedule/momentum"] == schedules.at(step - 1).momentum


def test_a_metric_is_the_mean_of_its_interval(undisturbed: Run, fine: Run) -> None:
    for name in PARTS | NORMS:
        mean = (fine.recorded[5][name] + fine.recorded[6][name]) / 2
        assert undisturbed.recorded[6][name] == pytest.approx(mean, rel=1e-6, abs=1e-9), name


def test_progress_is_reported(undisturbed: Run) -> None:
    reports = undisturbed.reports
    assert [report.step for report in reports] == [1, 2, 4, 6, 8, 10, 12, 12]
    assert {report.steps for report in reports} == {STEPS}
    assert reports[0].eta_s is None, "no rate after one step: start-up is not pace"
    assert reports[0].images_per_s == 0
    for report in reports[1:]:
        assert report.eta_s == pytest.approx((STEPS - report.step) * BATCH / report.images_per_s)
        assert report.loss == undisturbed.recorded[report.step]["loss"]
    assert [report.checkpoint_step for report in reports] == [0, 0, 0, 4, 4, 8, 8, 12]
    assert reports[0].head is None
    commit = undisturbed.ledger.commit(12)
    assert commit is not None
    assert reports[-1].head == Head(12, commit.written_at, 1), "what is committed, not what is on its way"


@pytest.mark.parametrize(("asked", "stops"), [(1, 5), (4, 5), (5, 10), (6, 10)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(fine: Run, tmp_path: Path, asked: int, stops: int) -> None:
    first = Run(tmp_path, stop_at=asked, log_every=1)
    result = first.go()
    assert (result.step, result.stopped) == (stops, True)
    assert first.ledger.steps()[-1] == stops
    assert first.reports[-1].checkpoint_step == stops

    second = Run(tmp_path, number=2, log_every=1)
    assert not second.go().stopped
    wanted = fine.state()
    found = second.state()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert list(second.recorded) == list(range(stops + 1, STEPS + 1))
    for step, metrics in second.recorded.items():
        same = PARTS | NORMS | RATES
        assert {name: metrics[name] for name in same} == {name: fine.recorded[step][name] for name in same}


def test_the_last_step_is_no_stop(tmp_path: Path) -> None:
    run = Run(tmp_path, stop_at=1, log_every=1, steps=5)
    result = run.go()
    assert (result.step, result.stopped) == (5, False)
    assert run.ledger.steps() == [4, 5]


def test_a_finished_run_has_nothing_left_to_do(undisturbed: Run) -> None:
    again = Run(undisturbed.root, number=2)
    assert again.go() == LoopResult(STEPS, False, 0.0)
    assert again.recorded == {}
    assert all(torch.equal(value, undisturbed.state()[name]) for name, value in again.state().items())


class Omitting(DdpEngine):
    """Does not update in step ``omitted`` at all: what a skipped step must equal."""

    omitted, calls, averages = -1, 0, 0

    def step(self, skip: Tensor | None = None) -> None:
        self.calls += 1
        if self.calls - 1 == self.omitted:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            super().step(skip)

    def average(self, momentum: float, skip: Tensor | None = None) -> None:
        self.averages += 1
        if self.averages - 1 != self.omitted:
            super().average(momentum, skip)


def assert_same(found: dict[tuple[str, str], Tensor], wanted: dict[tuple[str, str], Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def optimizer_steps(run: Run) -> set[float]:
    return {float(state["step"]) for state in run.engine.optimizer.state.values()}


def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(undisturbed: Run, tmp_path: Path) -> None:
    run, omitting = Run(tmp_path / "skipped", broken={6}), engine(Omitting)
    omitting.omitted = 6
    wanted = Run(tmp_path / "omitted", engine=omitting)
    assert run.go().step == wanted.go().step == STEPS
    assert_same(run.state(), wanted.state())
    assert not torch.equal(run.state()["param", CLS], undisturbed.state()["param", CLS])
    assert optimizer_steps(run) == {STEPS - 1}
    assert [run.ledger.commit(step).skipped for step in run.ledger.steps()] == [0, 1, 1]  # type: ignore[union-attr]


def test_a_skipped_step_is_told_and_does_not_enter_the_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, broken={6})
    run.go()
    assert {step: metrics["health/skipped_steps"] for step, metrics in run.recorded.items()} == {
        **dict.fromkeys((1, 2, 4, 6), 0),
        **dict.fromkeys((8, 10, 12), 1),
    }
    assert all(math.isfinite(value) for metrics in run.recorded.values() for value in metrics.values())
    assert "step 6 was skipped" in capsys.readouterr().err
    assert ["step 6 was skipped" in report.warning for report in run.reports] == [False] * 4 + [True] * 4
    assert all(report.eta_s for report in run.reports[1:-2]), "a skipped step takes its time like any other"


def test_an_interval_without_any_good_step_has_no_means(tmp_path: Path) -> None:
    run = Run(tmp_path, broken={6, 7})
    run.go()
    assert set(run.recorded[8]) == RATES | CLOCKS
    assert run.reports[4].loss == run.recorded[6]["loss"]


def test_a_run_that_goes_on_after_a_skipped_step_is_the_same(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", broken={2}, log_every=1)
    whole.go()
    Run(tmp_path / "parts", broken={2}, log_every=1, stop_at=4).go()
    again = Run(tmp_path / "parts", number=2, log_every=1)
    again.go()
    assert_same(again.state(), whole.state())
    assert again.recorded[STEPS]["health/skipped_steps"] == 1
    assert optimizer_steps(again) == {STEPS - 1}


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, broken={5, 6, 7})
    with pytest.raises(DivergedError) as caught:
        run.go()
    text = str(caught.value)
    assert text.startswith("3 steps in a row had a loss or gradients that are not finite, the first of them step 5")
    assert "the last checkpoint, of step 4, is finite" in text
    assert "policy.health.maxSkippedStreak (2)" in text
    assert run.ledger.steps() == [4]
    assert all(value.isfinite().all() for value in run.state().values())


def test_the_tolerated_streak_is_the_users(tmp_path: Path) -> None:
    run = Run(tmp_path, broken={4, 5, 6, 7}, tolerated=4)
    assert run.go().step == STEPS
    assert run.recorded[STEPS]["health/skipped_steps"] == 4
    with pytest.raises(DivergedError, match="1 steps in a row"):
        Run(tmp_path / "none", broken={3}, tolerated=0).go()


def test_streaks_across_looks() -> None:
    """first, longest, streak and total, looked at after every two steps; 1 is a step that is not finite."""
    guard, seen = StepGuard(torch.device("cpu"), skipped=5), []
    for step, bad in enumerate([0, 1, 1, 0, 0, 0, 1, 0, 1, 1]):
        loss = torch.tensor(math.nan if bad else 1.0)
        assert guard.check(loss, {"head": torch.ones(())}, step) == bad
        if step % 2:
            seen.append(guard.take())
    assert seen == [Skips(6, 1, 1, 1), Skips(7, 0, 2, 1), Skips(7, 0, 0, 1), Skips(8, 0, 1, 6), Skips(10, 2, 2, 8)]
    assert guard.check(torch.ones(()), {"head": torch.tensor(math.inf)}, 10) == 1


class Overflowing(DdpEngine):
    """The gradients of step 3 overflow; the loss, taken before, does not show it."""

    steps_done = 0

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        self.steps_done += 1
        if self.steps_done == 4:
            gradient = next(iter(self._masters.values())).grad
            assert gradient is not None
            gradient.fill_(math.inf)
        return super().clip(max_norm)


def test_gradients_that_are_not_finite_are_skipped_although_the_loss_is(tmp_path: Path) -> None:
    omitting = engine(Omitting)
    omitting.omitted = 3
    wanted, run = Run(tmp_path / "omitted", engine=omitting), Run(tmp_path / "overflow", engine=engine(Overflowing))
    wanted.go()
    run.go()
    assert_same(run.state(), wanted.state())


def test_a_center_takes_no_values_that_are_not_finite() -> None:
    center = SoftmaxCenter(3)
    center.update(torch.tensor([[1.0, 2.0, 3.0]]))
    kept = center.center.clone()
    center.update(torch.tensor([[1.0, math.inf, 3.0]]))
    center.update(torch.tensor([[1.0, math.nan, 3.0]]))
    assert torch.equal(center.center, kept)


def test_an_error_of_the_data_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(start: int, broken: Container[int]) -> Iterator[Batch]:
        yield from itertools.islice(endless(start, broken), 5)
        raise OSError("the shard is gone")

    endless, run = batches, Run(tmp_path)
    monkeypatch.setitem(globals(), "batches", failing)
    with pytest.raises(OSError, match="the shard is gone"):
        run.go()
    assert run.ledger.steps() == [4]
