"""Bytes of model state a rank for every engine, beside what the arithmetic of sharding says.

    python tests/benchmarks/memory.py            about 5 minutes of CPU time; --ranks 2 takes a third
    python tests/benchmarks/memory.py --json     one line a measurement

One set of processes a number of ranks builds one engine after the other, from shapes, and takes a step. "held" are the
storages of all live tensors after the backward pass, each counted once, when gradients are at their peak and
activations are gone; "peak" is VmHWM over what the process had before the engine was built, with activations, gathered
weights and what the libraries allocate. Both are those of the rank with the most.

The networks are some 300 times smaller than ViT-g. DeepSpeed's buckets, and how much it leaves gathered, are settings
of a fixed size; they are made smaller in the same proportion, or they would be all that is seen.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from dinoctl.model import ViTConfig
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.compute import Compute
from dinoctl.spec.recipe import Head, Heads, Losses, Optimizer
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines import zero
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import Learner, distillation_learner, pretraining_learner
from dinoctl.training.networks import blank_network
from dinoctl.training.weights import Tensors, learner_tensors

ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
KINDS = ("pretraining", "distillation, teacher whole", "distillation, teacher sharded")
RANKS, PRECISIONS = (1, 2, 3), ("fp32", "bf16")
IMAGES, SIZE, PATCH = 6, 32, 8
HEADS = Heads(dino=Head(prototypes=4096, hidden=512, bottleneck=128), ibot=None)
STUDENT = ViTConfig(embed_dim=256, depth=4, num_heads=4, patch_size=PATCH, img_size=SIZE)
TEACHER = ViTConfig(embed_dim=384, depth=6, num_heads=6, patch_size=PATCH, img_size=SIZE)
MIB = 2**20
SMALLER = 300
"""How many times smaller than ViT-g with its heads (1,237 M parameters) the student is."""


def measured(kind: str, engine: str) -> bool:
    """Whether there is such a case: only two engines shard parameters."""
    return "sharded" not in kind or engine in ("fsdp", "zero3")


def formula(kind: str, engine: str, precision: str, ranks: int, student: int, teacher: int) -> float:
    """Bytes a rank: 16 a parameter of the student (master, average, two moments), 4 its gradient, 2 its bf16 copy; 4
    or 2 a parameter of a frozen teacher. What an engine shards is divided by the ranks.
    """
    half = precision == "bf16"
    state, gradient, copy = 16 * student, 4 * student, 2 * student * half
    divided = {"ddp": 0, "zero1": state, "zero2": state + gradient}.get(engine, state + gradient + copy)
    frozen = 0 if kind == "pretraining" else teacher * (2 if half else 4)
    frozen_divided = frozen if "sharded" in kind else 0
    whole = state + gradient + copy - divided + frozen - frozen_divided
    return whole + (divided + frozen_divided) / ranks


def learner_of(kind: str) -> tuple[Learner, Tensors]:
    """As shapes, with a stream that fills it."""
    student = blank_network(STUDENT, HEADS)
    drawn = initial_tensors(student, torch.Generator().manual_seed(0))
    if kind == "pretraining":
        learner = pretraining_learner(student, Losses(koleo=0.0))
        return learner, learner_tensors(learner, drawn)
    frozen = blank_network(TEACHER, HEADS)
    learner = distillation_learner(student, frozen, Losses(koleo=0.0))
    return learner, learner_tensors(learner, drawn, initial_tensors(frozen, torch.Generator().manual_seed(1)))


def batch(rank: int, ranks: int) -> tuple[Tensor, ...]:
    """This rank's images of one batch."""
    images, generator = IMAGES // ranks, torch.Generator().manual_seed(rank)
    masks = torch.rand(2 * images, (SIZE // PATCH) ** 2, generator=generator) < 0.4
    masks[0, 0] = True
    counts = masks.sum(1)
    crops = torch.randn(2 * images, 3, SIZE, SIZE, generator=generator)
    local = torch.randn(2 * images, 3, SIZE // 2, SIZE // 2, generator=generator)
    weights = (1 / counts.clamp(min=1)).repeat_interleave(counts)
    return crops, local, masks, masks.flatten().nonzero().flatten(), weights


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address: views of one storage count once."""
    found = {}
    for tensor in tensors:
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor's own storage is its rows'
        if own.device.type != "meta" and own.layout == torch.strided:
            storage = own.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def live() -> dict[int, int]:
    """Storages of all tensors that Python knows, with their gradients."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
    return storages([*tensors, *(one.grad for one in tensors if one.is_leaf and one.grad is not None)])


def by_role(learner: nn.Module, engine: Engine) -> Iterator[tuple[str, dict[int, int]]]:
    """Storages of an engine's state; a later role may repeat those of an earlier one."""
    parameters = [*learner.parameters(), *(p for p in learner.teacher.parameters())]
    shards = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    yield "weights", storages([*parameters, *shards])
    kinds = {"masters": ("param",), "moments": ("adam_m", "adam_v"), "averages": ("teacher",)}
    for role, names in kinds.items():
        yield role, storages(piece.data for piece in engine.slices() if piece.kind in names)


def measure(kind: str, name: str, precision: str, ranks: int) -> dict[str, Any]:
    """One engine, from nothing to the end of its first step."""
    inputs, before = batch(dist.get_rank(), ranks), live()
    start = _reset_peak()
    learner, tensors = learner_of(kind)
    size = [sum(p.numel() for p in part.parameters()) for part in (learner.student, learner.teacher)]
    engine = {"name": "deepspeed", "zeroStage": int(name[-1])} if name.startswith("zero") else {"name": name}
    compute = Compute.model_validate({"engine": engine, "precision": precision})
    optimizer = Optimizer()
    groups = parameter_groups(learner.named_parameters(), depth=STUDENT.depth, optimizer=optimizer)
    context = ProcessContext(torch.device("cpu"))
    built = build_engine(compute, learner, groups, optimizer, context, None, tensors, "whole" in kind)
    del groups, tensors
    loss, _ = built.forward(*inputs, 0.05, 0)
    built.backward(loss)
    built.clip(3.0)
    del loss
    held = {address: size for address, size in live().items() if address not in before}
    roles, seen = {}, set[int]()
    for role, found in by_role(learner, built):
        roles[role] = sum(size for address, size in found.items() if address in held and address not in seen)
        seen |= found.keys()
    rest = {address: size for address, size in held.items() if address not in seen}
    built.step()
    built.average(0.99)
    peak = _status("VmHWM") - start
    wanted = formula(kind, name, precision, ranks, *size)
    about = {"kind": kind, "engine": name, "precision": precision, "ranks": ranks, "formula": wanted}
    return {**about, "held": sum(held.values()), **roles, "gradients and buffers": sum(rest.values()), "peak": peak}


def _reset_peak() -> int:
    """Bytes that the process has now, from which VmHWM starts anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def processes(rank: int, ranks: int, folder: str) -> None:
    """All cases of one number of ranks; the figures of the rank that holds most."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", world_size=ranks, rank=rank)
    zero._BUCKET, zero._GATHERED = zero._BUCKET // SMALLER, zero._GATHERED // SMALLER
    cases = [case for case in product(KINDS, ENGINES, PRECISIONS) if measured(*case[:2])]
    for warm in ("fsdp", "zero3"):  # what a library holds for good once it has run is no engine's
        measure("pretraining", warm, "fp32", ranks)
    found = []
    for case in cases:
        every: list[Any] = [None] * ranks
        dist.all_gather_object(every, measure(*case, ranks))
        keys = [key for key, value in every[0].items() if isinstance(value, int) and key != "ranks"]
        found.append({**every[0], **{key: max(one[key] for one in every) for key in keys}})
    if rank == 0:
        Path(folder, f"{ranks}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Prints the tables, or with --json the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON a measurement")
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in arguments.ranks:
            spawn(processes, args=(ranks, folder), nprocs=ranks)
            rows += json.loads(Path(folder, f"{ranks}.json").read_text(encoding="utf-8"))
    if arguments.json:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
        return
    for precision in PRECISIONS:
        _table([row for row in rows if row["precision"] == precision], precision, arguments.ranks)


def _table(rows: Sequence[dict[str, Any]], precision: str, ranks: Sequence[int]) -> None:
    heads = "".join(f" {n} rank{'s' * (n > 1)} |" for n in ranks)
    print(f"\n{precision}: MiB a rank, held / formula (peak)\n")
    print(f"| what | engine |{heads}\n|---|---|{'---|' * len(ranks)}")
    for kind, engine in product(KINDS, ENGINES):
        own = [row for row in rows if (row["kind"], row["engine"]) == (kind, engine)]
        cells = (f" {row['held'] / MIB:.0f} / {row['formula'] / MIB:.0f} ({row['peak'] / MIB:.0f}) |" for row in own)
        if own:
            print(f"| {kind} | {engine} |{''.join(cells)}")


if __name__ == "__main__":
    main()
