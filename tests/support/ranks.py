"""The ranks of a test: processes that are forked from one where the slow imports are done, a group of gloo each.

Importing torch and DeepSpeed takes a processor five seconds; a process of the usual kind (spawned) pays for it alone.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

_IMPORTED = [
    *("boto3", "deepspeed.module_inject", "dinoctl.stages.train"),
    *("torch._dynamo", "torch._inductor.compile_fx"),  # as the first step of an engine, but for this, would
    *(f"dinoctl.training.engines.{name}" for name in ("ddp", "fsdp", "zero12", "zero3")),
]


def run_ranks(work: Callable[..., None], world: int, *args: Any, grouped: bool = True) -> None:
    """Calls ``work(rank, *args)`` in ``world`` processes with one thread each; raises what one of them raised.

    They see the environment as it is now. ``grouped`` False: ``work`` makes groups of its own.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks once, when it is imported
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store")) if grouped else None
        given = (work, world, store, dict(os.environ), args)
        start_processes(_rank, given, nprocs=world, start_method="forkserver")


def _rank(
    rank: int,
    work: Callable[..., None],
    world: int,
    store: str | None,
    environment: dict[str, str],
    args: tuple[Any, ...],
) -> None:
    os.environ |= environment  # a forked process has that of the one where imports were done
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    if store is None:
        work(rank, *args)
        return
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=world, rank=rank)
    work(rank, *args)
    dist.barrier()
    dist.destroy_process_group()
