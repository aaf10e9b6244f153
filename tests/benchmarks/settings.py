"""What the step benchmark runs, and how many floating-point operations that nominally is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

CLASS_TOKENS = 1
MASKED_SHARE = 0.5 * 0.3
"""Half of the global crops are masked, each at 10 to 50 %."""


@dataclass(frozen=True)
class Settings:
    """One benchmark: a backbone of 12 blocks, a shared head 2048-2048-256, two global and eight local crops."""

    dim: int
    heads: int
    global_size: int
    local_size: int
    prototypes: int
    depth: int = 12
    patch: int = 14
    batch: int = 8
    local_crops: int = 8
    hidden: int = 2048
    bottleneck: int = 256

    def flops(self) -> float:
        """Of one step without drop path: 2 a multiply-add, matrix products only, backward twice the forward.

        Nominal: every token of every block, and no recomputation, whatever a program leaves out.
        """
        whole, small = (self._crop(size) for size in (self.global_size, self.local_size))
        masked = MASKED_SHARE * 2 * (self.global_size // self.patch) ** 2
        student = 2 * whole + self.local_crops * small + (2 + self.local_crops + masked) * self._head()
        teacher = 2 * whole + (2 + masked) * self._head()
        return self.batch * (3 * student + teacher)

    def _crop(self, size: int) -> float:
        patches = (size // self.patch) ** 2
        tokens = patches + CLASS_TOKENS
        block = 2 * 12 * self.dim**2 * tokens + 4 * self.dim * tokens**2
        return self.depth * block + 2 * 3 * self.patch**2 * self.dim * patches

    def _head(self) -> float:
        widths = [self.dim, self.hidden, self.hidden, self.bottleneck, self.prototypes]
        return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))


CONFIGS = {
    "small": Settings(dim=384, heads=6, global_size=224, local_size=98, prototypes=8192),
    "tiny": Settings(dim=192, heads=3, global_size=112, local_size=56, prototypes=2048),
}
