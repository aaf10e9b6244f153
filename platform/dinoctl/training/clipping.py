"""Gradient clipping by sub-module: backbone and each head have a norm of their own (DINOv2 code), not a common one.

Gradients may be whole tensors or this rank's slices of them; then `reduce` sums over ranks, once for all sub-modules.
Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dinoctl.training.groups import submodule

NamedGradients = Sequence[tuple[str, Tensor]]
Reduce = Callable[[Tensor], Tensor]


def module_norms(gradients: NamedGradients, reduce: Reduce | None = None) -> dict[str, Tensor]:
    """L2 norm (0-dim fp32) of each sub-module's gradients, in order of first appearance.

    A sub-module is the first two components of a name (`student.backbone`). `reduce` gets the squared sums
    (sub-modules,) fp32 and returns their sums over ranks; all ranks then have to bring the same names, a rank without a
    share of a tensor an empty slice. What pads a slice must not be part of it.
    """
    if not gradients:
        return {}
    norms: dict[str, list[Tensor]] = {}
    for (name, _), norm in zip(
        gradients, torch._foreach_norm([g for _, g in gradients], 2, torch.float32), strict=True
    ):
        norms.setdefault(submodule(name), []).append(norm)
    squares = torch.stack([torch.stack(own).square().sum() for own in norms.values()])
    total = (squares if reduce is None else reduce(squares)).sqrt()
    return dict(zip(norms, total.unbind(), strict=True))


def clip_(gradients: NamedGradients, max_norm: float, reduce: Reduce | None = None) -> dict[str, Tensor]:
    """Scales each sub-module's gradients in place to a norm of at most `max_norm`; returns the norms before that.

    The factor is min(1, max_norm / (norm + 1e-6)), that of torch.nn.utils.clip_grad_norm_; it is applied even where it
    is 1, because to ask would wait for the device. A `max_norm` of 0 leaves gradients as they are.
    """
    norms = module_norms(gradients, reduce)
    if max_norm > 0:
        for module, norm in norms.items():
            own = [gradient for name, gradient in gradients if submodule(name) == module]
            torch._foreach_mul_(own, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norms
