"""One step of a job again, on one process: nothing is updated, everything is looked at.

The ranks of the job are done one after the other. What they share in a step are the targets: Sinkhorn-Knopp balances
them over the whole batch. So the teacher runs for all ranks first, its logits are balanced once, and then each rank's
student learns from its own rows. KoLeo and stochastic depth are each rank's own, as in the job.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dinoctl.data.batch import Batch
from dinoctl.objective import dino_pairs, soft_cross_entropy
from dinoctl.spec.recipe import Losses
from dinoctl.training.culprit import Trace, not_finite, rules_at_rest
from dinoctl.training.engines.base import Engine
from dinoctl.training.learner import Learner
from dinoctl.training.loop import Inputs, step_seed
from dinoctl.training.schedules import StepValues
from dinoctl.training.signals import Study

_RULES = ("dino_targets", "ibot_targets")


@dataclass
class Replayed:
    """What a step shows. ``metrics`` are means over ranks, as the job's own; ``norms`` those of the gradients before
    clipping; ``maxima`` the largest magnitude of each module's output, greatest first; ``images`` the weighted DINO and
    iBOT losses by image, greatest first (empty without prototypes). ``not_finite``: the first that is not, or empty.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    not_finite: str = ""
    maxima: dict[str, float] = field(default_factory=dict)
    images: list[dict[str, float]] = field(default_factory=list)


def replay(
    learner: nn.Module,
    engine: Engine,
    ranks: Sequence[Batch],
    *,
    inputs: Inputs,
    values: StepValues,
    step: int,
    seed: int,
) -> Replayed:
    """Forward and backward of ``ranks``, every rank's batch of step ``step``. The engine is that of a single process;
    its gradients are left behind, its state is not touched.
    """
    result, found = Replayed(), list[tuple[int, str]]()
    with rules_at_rest(learner), _shared_targets(learner, len(ranks)) as shared:
        if shared:
            with torch.no_grad():
                for rank, batch in enumerate(ranks):
                    engine.forward(*inputs(batch), *_arguments(values, step_seed(seed, step, rank)))
            for rule in shared:
                rule.balance(values.teacher_temperature)
        for rank, batch in enumerate(ranks):
            own = step_seed(seed, step, rank)
            found += _one(learner, engine, batch, inputs(batch), values, own, rank, len(ranks), result)
    result.norms = {name: float(norm) for name, norm in engine.clip(0.0).items()}
    broken = [f"gradient of {name}" for name, norm in result.norms.items() if not math.isfinite(norm)]
    result.not_finite = min(found)[1] if found else next(iter(broken), "")
    result.maxima = dict(sorted(result.maxima.items(), key=lambda item: _rank(item[1])))
    result.images.sort(key=lambda image: _rank(image["loss"]))
    return result


def _rank(value: float) -> float:
    """Sorts the greatest first, and what is no number before all."""
    return -value if value == value else -float("inf")


def _arguments(values: StepValues, seed: int) -> tuple[float, int, float | None]:
    return values.teacher_temperature, seed, values.gram_weight


def _one(
    learner: nn.Module,
    engine: Engine,
    batch: Batch,
    given: tuple[Tensor | None, ...],
    values: StepValues,
    seed: int,
    rank: int,
    world: int,
    result: Replayed,
) -> Iterator[tuple[int, str]]:
    """One rank's forward and backward; what is not finite comes back with its place in the order of execution."""
    studies: list[Study] = []
    if isinstance(learner, Learner):
        learner.observer = studies.append
    with Trace(learner) as trace:
        loss, metrics = engine.forward(*given, *_arguments(values, seed))
        trace.backward_begins()
        engine.backward(loss / world)
    for name, value in metrics.items():
        result.metrics[name] = result.metrics.get(name, 0.0) + float(value) / world
    for name, value in trace.outputs:
        result.maxima[name] = _larger(result.maxima.get(name, 0.0), float(value))
    if studies and isinstance(learner, Learner):
        learner.observer = None
        result.images += _by_image(studies[0], batch, learner.losses, rank)
    where = f" on rank {rank}" if world > 1 else ""
    return ((order, what + where) for order, what in not_finite(given, trace, metrics, {}))


def _larger(a: float, b: float) -> float:
    """Not a number is larger than all."""
    return a if a != a or a > b else b


@torch.no_grad()
def _by_image(study: Study, batch: Batch, losses: Losses, rank: int) -> list[dict[str, float]]:
    """The parts of the loss by image: their mean over the rank's images is the part itself."""
    temperature, targets = losses.student_temperature, study.targets
    of_global, of_local, patches = (logits.detach() for logits in study.logits)
    images = len(of_global) // 2
    weight = losses.dino / dino_pairs(len(of_local) // images)
    crossed = soft_cross_entropy(of_global, targets[0].roll(images, 0), temperature)
    local = soft_cross_entropy(of_local, targets[0][:images] + targets[0][images:], temperature)
    row = batch.mask_indices.to(patches.device) // batch.masks.shape[1]
    masked = soft_cross_entropy(patches, targets[1], temperature) * study.mask_weights.float()
    ibot = torch.zeros_like(crossed[:images]).index_add_(0, row % images, masked)
    parts = {
        "dino_global": crossed.view(2, images).sum(0) * weight,
        "dino_local": local.view(-1, images).sum(0) * weight,
        "ibot": ibot * (losses.ibot / 2),
    }
    table = {name: part.tolist() for name, part in parts.items()}
    ids = batch.sample_ids.tolist()
    rows = ({name: column[i] for name, column in table.items()} for i in range(images))
    return [{"sample": ids[i], "rank": rank, "loss": sum(one.values()), **one} for i, one in enumerate(rows)]


class SharedTargets(nn.Module):
    """Stands in for a targets module, and is called like one: notes the logits of one rank after the other, balances
    them together, and then deals each rank its rows.
    """

    def __init__(self, rule: nn.Module) -> None:
        super().__init__()
        self._rule = rule
        self._noted: list[Tensor] = []
        self._dealt: Iterator[Tensor] | None = None

    def forward(self, logits: Tensor, temperature: float, group: object = None) -> Tensor:  # noqa: ARG002 - see above
        """Targets (n, K) fp32; before `balance`, anything of that shape."""
        if self._dealt is not None:
            return next(self._dealt)
        self._noted.append(logits.detach())
        return logits.float().softmax(-1)

    @torch.no_grad()
    def balance(self, temperature: float) -> None:
        """The targets of all rows noted so far."""
        whole = self._rule(torch.cat(self._noted), temperature)
        self._dealt = iter(torch.split(whole, [len(rows) for rows in self._noted]))
        self._noted = []


@contextmanager
def _shared_targets(learner: nn.Module, ranks: int) -> Iterator[list[SharedTargets]]:
    rules = {name: getattr(learner, name) for name in _RULES if hasattr(learner, name)} if ranks > 1 else {}
    shared = {name: SharedTargets(rule) for name, rule in rules.items()}
    try:
        for name, module in shared.items():
            setattr(learner, name, module)
        yield list(shared.values())
    finally:
        for name, rule in rules.items():
            setattr(learner, name, rule)
