"""What goes into a backbone and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor


class Features(TypedDict):
    """What the network makes of B images: N patches, R registers, width D.

    x_norm_clstoken (B, D), x_norm_regtokens (B, R, D) and x_norm_patchtokens (B, N, D) went through the final norm,
    x_prenorm (B, 1 + R + N, D) did not. `masks` is the argument handed through.
    """

    x_norm_clstoken: Tensor
    x_norm_regtokens: Tensor
    x_norm_patchtokens: Tensor
    x_prenorm: Tensor
    masks: Tensor | None


class Read(NamedTuple):
    """What is read of B images: class tokens (B, D) and chosen patch tokens (M, D), after the final norm."""

    classes: Tensor
    patches: Tensor


Images = Tensor | list[Tensor]
Masks = Tensor | None | Sequence[Tensor | None]


class Seeds(NamedTuple):
    """Of stochastic depth, and of the factor on rotary places; None draws from a global generator."""

    depth: int | None = None
    places: int | None = None
