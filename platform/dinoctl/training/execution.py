"""How a learner's networks run, where that changes speed and memory but no result beyond rounding.

On a CPU also what the C library does with freed memory. A step allocates and frees its activations, a gigabyte or more.
glibc gives large pieces back to the system at once, and gets them anew, page by page and zeroed, at the next step:
about 300,000 page faults and 6 % of the CPU time of a ViT-S step (docs/benchmarks.md). Told to keep them, it takes as
much memory at the peak as before.
"""

from __future__ import annotations

import ctypes
import platform

import torch
from torch import nn

from dinoctl.model import VisionTransformer
from dinoctl.spec.compute import Compute

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE, _OLD_LARGE = 2**31 - 1, 32 * 2**20


def set_execution(learner: nn.Module, compute: Compute, device: torch.device) -> None:
    """Activation checkpointing and compilation of all blocks as the compute section says."""
    if device.type == "cpu":
        keep_freed_memory()
    for module in learner.modules():
        if isinstance(module, VisionTransformer):
            _set_blocks(module, compute)


def _set_blocks(backbone: VisionTransformer, compute: Compute) -> None:
    backbone.activation_checkpointing = compute.activation_checkpointing == "full"
    if compute.activation_checkpointing == "selective":
        backbone.fuse(recompute=True)
    if compute.compile:
        for block in backbone.blocks:
            block.compile()


def keep_freed_memory() -> bool:
    """Has this process keep what it frees; False where the C library is not glibc or refuses, and nothing changes."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Before 2.35 the mmap threshold ends at 32 MiB; setting only the other one would make things worse.
    if not any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in (_LARGE, _OLD_LARGE)):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _LARGE) == 1)
