"""What the ZeRO stages have in common: DeepSpeed's settings, and what it would do by itself that is ours to do.

* It clips by a global norm of 1.0 unless told not to: clipping is off, ours is per sub-module.
* It takes the norm of all gradients on the host and leaves steps out by itself: which steps count is the loop's matter.
* It reduces and accumulates gradients in the parameters' dtype unless told not to.
* Its checkpoints hold one world size and drop frozen parameters: ours are slices of fp32 masters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinoctl.training.engines.base import skip_next
from dinoctl.training.engines.held import ShardEngine

# Elements. DeepSpeed's defaults, made for far larger networks, hold 2 GB of buckets and all of ViT-g gathered at once.
_BUCKET, _GATHERED = 40_000_000, 200_000_000


class ZeroEngine(ShardEngine):
    """A step by way of DeepSpeed's engine, whatever the stage."""

    _engine: Any
    _zero: Any

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See Engine."""
        loss, metrics = self._engine(*inputs)
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        self._engine.backward(loss)

    def step(self, skip: Tensor | None = None) -> None:
        """See Engine."""
        skip_next(self.optimizer, skip)
        self._engine.step()


def zero_config(stage: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's settings. Batch sizes are the loop's business; DeepSpeed only wants to see a number."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": device.type == "cuda",
        "round_robin_gradients": False,
        "reduce_bucket_size": _BUCKET,
    }
    if stage == 3:
        zero |= {"stage3_max_live_parameters": _GATHERED, "stage3_max_reuse_distance": _GATHERED}
    else:
        # With reduce_scatter it would divide gradients by the number of ranks in bf16, and send no less.
        zero |= {"compute_grad_norm": False, "allgather_bucket_size": _GATHERED, "reduce_scatter": False}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
    }


def start(learner: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a learner."""
    import deepspeed

    with _one_class_for_all_stages():
        engine, *_ = deepspeed.initialize(model=learner, optimizer=optimizer, config=config)
    return engine


@contextmanager
def _one_class_for_all_stages() -> Iterator[None]:
    """DeepSpeed would take another optimizer for stage 1 in bf16, which keeps whole fp32 gradients on every rank all
    the time and asks the host for their norm. The choice is private; without the switch the engine refuses to start.
    """
    from deepspeed.runtime import engine

    kind = engine.DeepSpeedEngine
    chosen = kind._do_optimizer_sanity_check
    kind._do_optimizer_sanity_check = lambda *_: engine.ZERO_OPTIMIZATION
    try:
        yield
    finally:
        kind._do_optimizer_sanity_check = chosen


def without_runtime_compiler() -> None:
    """On the CPU DeepSpeed would compile a shared-memory all-reduce at first use, which needs ninja and a C++ compiler
    and 45 s; gloo gives the same results. The switch is private, so its absence only brings the compiler back.
    """
    import deepspeed

    ops = getattr(getattr(deepspeed, "ops", None), "__compatible_ops__", None)
    if isinstance(ops, dict):
        ops["deepspeed_shm_comm"] = False
