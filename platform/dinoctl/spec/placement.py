"""A distillation's frozen teacher: whole on every worker, or sharded over all of them like the student.

A whole teacher spares gathering all its weights in every step, so it is the choice where there is room for it. Half of
a device is left for what depends on images rather than weights: activations, gathered blocks, buckets.
"""

from typing import Literal

from dinoctl.spec.compute import Engine

_STATE = 20
"""Bytes of a trained parameter in fp32: master, two moments, average and gradient."""
_SHARE = 0.5


def keeps_whole(engine: Engine) -> bool:
    """Whether an engine has all parameters on every worker anyway."""
    return engine.name == "ddp" or (engine.name == "deepspeed" and engine.zero_stage in (1, 2))


def fits_whole(*, teacher: int, student: int, ranks: int, precision: Literal["bf16", "fp32"], memory: int) -> bool:
    """Whether a whole teacher and a worker's shard of the student stay within half of ``memory`` (bytes of a device).

    ``teacher`` and ``student`` are numbers of parameters; the student's are sharded over ``ranks``.
    """
    working = 2 if precision == "bf16" else 4
    copy = working if precision == "bf16" else 0  # in fp32 the master is what runs
    return teacher * working + student * (_STATE + copy) / ranks <= _SHARE * memory
