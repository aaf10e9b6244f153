"""Signals of every interval, and the word that a model collapses: told, never fatal (docs/health.md)."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from dinoctl.objective import effective_rank, spread_rows
from dinoctl.objective.reduce import Group
from dinoctl.training.learner import Learner
from dinoctl.training.signals import Study

_ROWS = 2048
"""Class tokens, over all ranks, that the effective rank is taken of."""
_POINTS = 3
"""So many points in a row have to be bad before anybody is told."""
_LEAST = {
    "health/prototype_usage": (0.1, "all class tokens come to one prototype"),
    "health/patch_prototype_usage": (0.1, "all patch tokens come to one prototype"),
    "health/feature_std": (0.05, "all images have the same class token"),
    "health/effective_rank_student": (2.0, "the student's class tokens lie on a line"),
    "health/effective_rank_teacher": (2.0, "the teacher's class tokens lie on a line"),
}


class Vitals:
    """Looks at a learner's class tokens whenever a multiple of ``every`` steps has passed.

    ``after``: the first step at which a warning may come, since an untrained network looks collapsed. ``images``: those
    of a step over all ranks of ``group`` (None: all there are).
    """

    def __init__(self, learner: Learner, *, every: int, after: int, images: int, group: Group = None) -> None:
        self._every, self._after = every, after
        self._group, self._world = group, dist.get_world_size(group) if dist.is_initialized() else 1
        self._rows = max(1, min(_ROWS, 2 * images) // self._world)
        self._tokens: dict[str, Tensor] = {}
        self._bad = dict.fromkeys(_LEAST, (0, 0.0))  # points in a row, and the last value
        learner.observer = self._see

    def _see(self, study: Study) -> None:
        for name, tokens in {"student": study.student, "teacher": study.teacher}.items():
            rows = spread_rows(tokens.detach(), self._rows)
            held = self._tokens.get(name)
            # A copy either way: a view would keep all tokens of the batch in memory. A skipped step does not count.
            self._tokens[name] = rows.clone() if held is None else torch.where(rows.isfinite().all(), rows, held)

    def measure(self, before: int, step: int) -> dict[str, float]:
        """The effective ranks in the last step, if one of the steps in (before, step] is a multiple of ``every``.

        Collective then, and the only place that waits for the device.
        """
        if before // self._every == step // self._every or not self._tokens:
            return {}
        return {f"health/effective_rank_{name}": effective_rank(self._all(rows)) for name, rows in self._tokens.items()}

    def _all(self, rows: Tensor) -> Tensor:
        """Equally many rows of every rank, (R, D) fp32."""
        own = rows[: self._rows].float().contiguous()
        if self._world == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self._world)]
        dist.all_gather(parts, own, group=self._group)
        return torch.cat(parts)

    def judge(self, metrics: Mapping[str, float], step: int) -> str:
        """What is wrong in the points up to that of ``step``, empty if all is well."""
        for name in _LEAST.keys() & metrics.keys() if step > self._after else ():
            value = metrics[name]
            # Without masked tokens no patch prototype is in use: exactly 0.
            bad = value < _LEAST[name][0] and not (name == "health/patch_prototype_usage" and value == 0)
            self._bad[name] = (self._bad[name][0] + 1 if bad else 0, value)
        found = [
            f"{meaning} ({name} is {self._bad[name][1]:.3g}, below {least:g})"
            for name, (least, meaning) in _LEAST.items()
            if self._bad[name][0] >= _POINTS
        ]
        return f"collapse: {'; '.join(found)}; see docs/health.md" if found else ""
