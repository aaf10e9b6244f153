"""Several students behind one teacher: how many ranks each one gets.

All groups of ranks take a step of the same global batch together, and the teacher's pass is divided evenly over all
ranks, so the slowest group decides. A group's time is its student's work over its number of ranks.
"""

import itertools
from collections.abc import Mapping

from dinoctl.spec.crops import Crops
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.recipe import Head, Heads, Masks


def divide(costs: Mapping[str, float], workers: int, batch: int, given: Mapping[str, int]) -> dict[str, int] | None:
    """Ranks of each student: ``workers`` in all, each number a divisor of ``batch``; ``given`` ones stay. Exactly the
    division with the least largest ``costs / ranks`` (then the least sum of them). None where there is none.
    """
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for name, cost in costs.items():
        sizes = [given[name]] if name in given else range(1, workers + 1)
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for used, (slowest, total, chosen) in best.items():
            for size in (size for size in sizes if batch % size == 0 and used + size <= workers):
                time = cost / size
                option = (max(slowest, time), total + time, (*chosen, size))
                found[used + size] = min(found.get(used + size, option), option)
        best = found
    return dict(zip(costs, best[workers][2], strict=True)) if workers in best else None


def step_flops(model: ModelSpec, heads: Heads, crops: Crops, masks: Masks, teacher_width: int) -> float:
    """Operations of an image in a student's step: forward and backward of the student, and the teacher's heads."""
    patches = (crops.global_crops.size // model.patch_size) ** 2
    front = 1 + model.registers
    backbone = 2 * _forward(model, front + patches)
    local = crops.local_crops
    if local.count and local.size:
        backbone += local.count * _forward(model, front + (local.size // model.patch_size) ** 2)
    masked = 2 * patches * masks.probability * sum(masks.ratio) / 2
    width, patch_head = model.embed_dim or 0, heads.ibot or heads.dino
    student = (2 + local.count) * _head(heads.dino, width) + masked * _head(patch_head, width)
    teacher = 2 * _head(heads.dino, teacher_width) + masked * _head(patch_head, teacher_width)
    return 3 * (backbone + student) + teacher


def _forward(model: ModelSpec, tokens: int) -> float:
    """A multiply and an add count as two: 12 D^2 weights a block (SwiGLU has as many), and attention."""
    width, depth = model.embed_dim or 0, model.depth or 0
    return float(depth * (24 * tokens * width**2 + 4 * tokens**2 * width))


def _head(head: Head, width: int) -> float:
    widths = [width, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))
