"""Why a step was skipped: the very step once more, with an eye on every module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.data.batch import Batch
from dinoctl.objective import SinkhornKnopp, SoftmaxCenter
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.fill import all_modules
from dinoctl.training.learner import Learner
from dinoctl.training.loop import Inputs, step_seed
from dinoctl.training.schedules import RecipeSchedules

_SAMPLES = 8
"""Sample ids that a message names."""


class Trace:
    """Largest magnitudes of what a learner's modules put out, and of the gradients that come back to these outputs.

    For the time of a ``with`` block. Magnitudes are 0-dim fp32 tensors in order of execution, a module's own before
    those of the modules around it; a number that is not finite makes them not finite. Others are left out.
    """

    def __init__(self, learner: nn.Module) -> None:
        self.outputs: list[tuple[str, Tensor]] = []
        self.gradients: list[tuple[str, Tensor]] = []
        self._learner, self._handles, self._backward = learner, list[Any](), False

    def __enter__(self) -> Self:
        for name, module in all_modules(self._learner):
            if name:
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def backward_begins(self) -> None:
        """From now on forward calls are those of activation checkpointing, which have been seen."""
        self._backward = True

    def _hook(self, name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._backward:
                return
            for tensor in _tensors(output):
                self.outputs.append((name, magnitude(tensor)))
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._returned, name))  # type: ignore[no-untyped-call]

        return look

    def _returned(self, name: str, gradient: Tensor) -> None:
        self.gradients.append((name, magnitude(gradient)))


class Finding(NamedTuple):
    """The first thing on a rank that is not finite; ``order`` is its place in the order of execution."""

    order: int
    rank: int
    what: str
    samples: tuple[int, ...]


class Culprit:
    """Repeats a skipped step on all ranks and says what in it is not finite first. Nothing of the state changes.

    ``again`` makes this rank's batch of a step. ``group``: the engine's ranks (None: all).
    """

    def __init__(
        self,
        learner: nn.Module,
        engine: Engine,
        schedules: RecipeSchedules,
        *,
        inputs: Inputs,
        again: Callable[[int], Batch],
        clip_norm: float,
        seed: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._learner, self._engine, self._schedules = learner, engine, schedules
        self._inputs, self._again, self._clip_norm, self._seed = inputs, again, clip_norm, seed
        self._group = group

    def explain(self, step: int) -> str:
        """In a line, the same on all ranks; collective. ``step`` counts from 0. Waits for the device."""
        mine = self._repeat(step)
        found = [mine]
        if self._engine.world > 1:
            found = [None] * self._engine.world
            dist.all_gather_object(found, mine, group=self._group)
        first = min((finding for finding in found if finding is not None), default=None)
        if first is None:
            return f"all is finite when step {step} is done again with the present weights"
        where = f" on rank {first.rank}" if self._engine.world > 1 else ""
        samples = f"; samples {', '.join(map(str, first.samples[:_SAMPLES]))}" if first.samples else ""
        return f"the first that is not finite: {first.what}{where}{samples}"

    def _repeat(self, step: int) -> Finding | None:
        engine, values, learner = self._engine, self._schedules.at(step), self._learner
        batch = self._again(step)
        inputs, seen = self._inputs(batch), list[Tensor]()
        with rules_at_rest(learner), _observed(learner, seen), Trace(learner) as trace:
            seed = step_seed(self._seed, step, engine.rank)
            loss, metrics = engine.forward(*inputs, values.teacher_temperature, seed, values.gram_weight)
            trace.backward_begins()
            engine.backward(loss)
            norms = engine.clip(self._clip_norm)
            skip = torch.ones((), device=engine.device)
            engine.step(skip)  # clears the gradients
            engine.average(values.momentum, skip)  # gathers again what a sharding engine has let go
        order, what = next(not_finite(inputs, trace, metrics, norms), (-1, ""))
        return Finding(order, engine.rank, what, _samples(batch, seen)) if what else None


@contextmanager
def rules_at_rest(learner: nn.Module) -> Iterator[None]:
    """Targets are made as in training, but no center moves."""
    rules = [module for module in learner.modules() if isinstance(module, (SinkhornKnopp, SoftmaxCenter))]
    for module in rules:
        module.eval()
    try:
        yield
    finally:
        for module in rules:
            module.train()


@contextmanager
def _observed(learner: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Class tokens, the teacher's first, go to ``seen``."""
    if not isinstance(learner, Learner):
        yield
        return
    observer = learner.observer
    learner.observer = lambda study: seen.extend((study.teacher, study.student.detach()))
    try:
        yield
    finally:
        learner.observer = observer


def magnitude(tensor: Tensor) -> Tensor:
    """Largest absolute value, 0-dim fp32, not finite where an element is not; 0 of an empty tensor."""
    detached = tensor.detach()
    return detached.abs().amax().float() if detached.numel() else detached.new_zeros((), dtype=torch.float32)


def not_finite(
    inputs: tuple[Tensor | None, ...], trace: Trace, metrics: dict[str, Tensor], norms: dict[str, Tensor]
) -> Iterator[tuple[int, str]]:
    """What is not finite, each with its place in the order: outputs of modules, parts of the loss, gradients, norms."""
    given = any(one is not None and one.is_floating_point() and not one.isfinite().all() for one in inputs)
    parts = [(name, value) for name, value in metrics.items() if not name.startswith("health/")]
    texts = {
        "module {} (forward; the crops themselves are not finite)" if given else "module {} (forward)": trace.outputs,
        "part {} of the loss": parts,
        "gradient at the output of module {}": trace.gradients,
        "gradient of {}": list(norms.items()),
    }
    order = 0
    for text, values in texts.items():
        for name, value in values:
            if not bool(value.isfinite()):
                yield order, text.format(name)
            order += 1


def _samples(batch: Batch, seen: list[Tensor]) -> tuple[int, ...]:
    """Ids of the images with a class token that is not finite, of the first network that has some; else none."""
    for classes in seen:
        rows = (~classes.isfinite().all(-1)).nonzero().flatten().tolist()
        if rows:
            ids = batch.sample_ids.tolist()
            return tuple(dict.fromkeys(ids[row % len(ids)] for row in rows))
    return ()


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
