"""What a checkpoint costs: how long training stands still, how long until it is stored, how much memory it takes.

    python tests/benchmarks/checkpoint.py [--rounds 5] [--prototypes 8192]

One process (ZeRO-3, fp32, on the CPU) holds the state of a pretraining: eight blocks of ViT-S/14, student and teacher
with heads, AdamW's moments. The same state is saved, by turns, by this project's ledger, by torch's distributed
checkpoints (``save``, and ``async_save`` with the stager that keeps its copies' memory), and by DeepSpeed's
``save_checkpoint``. Before each save a plain copy of as many bytes between two touched buffers is timed: what the pause
should be. Peak memory is that of processes of their own. All write to a local directory; the ledger and torch call
fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "platform")]

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.engines.base import Engine
from dinoctl.training.ledger import LedgerWriter, WriterIdentity

Save = Callable[[Path], Callable[[], object]]
"""Saves to a directory; returns when training may go on, with what waits until all is stored."""
NAMES = ("dinoctl", "dcp", "dcp-async", "deepspeed")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=NAMES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory() as root:
        dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=0, world_size=1)
        engine = trained(options.prototypes)
        if options.memory_of:
            print(json.dumps(memory(engine, options.memory_of, Path(root))))
        else:
            table(engine, Path(root), options)
        dist.destroy_process_group()


def trained(prototypes: int) -> Engine:
    """An engine that has done one step, so that it has moments."""
    from dinoctl.model import ViTConfig
    from dinoctl.spec.compute import Compute
    from dinoctl.spec.recipe import Head, Heads, Losses, Optimizer
    from dinoctl.training.context import ProcessContext
    from dinoctl.training.engines.build import build_engine
    from dinoctl.training.groups import parameter_groups
    from dinoctl.training.learner import pretraining_learner
    from dinoctl.training.networks import build_network

    config = ViTConfig(embed_dim=384, depth=8, num_heads=6, patch_size=14, img_size=28)
    heads = Heads(dino=Head(prototypes=prototypes, hidden=2048, bottleneck=256), ibot=None)
    losses = Losses(centering="softmax")
    learner = pretraining_learner(build_network(config, heads, generator=torch.Generator().manual_seed(0)), losses)
    groups = parameter_groups(learner.named_parameters(), depth=8, optimizer=Optimizer())
    compute = Compute.model_validate({"engine": {"name": "deepspeed", "zeroStage": 3}, "precision": "fp32"})
    engine = build_engine(compute, learner, groups, Optimizer(), ProcessContext(torch.device("cpu")))
    masks = torch.zeros(4, 4, dtype=torch.bool)
    masks[0, 0] = True
    loss, _ = engine.forward(torch.randn(4, 3, 28, 28), torch.randn(4, 3, 14, 14), masks, *picked(masks), 0.04, 0)
    engine.backward(loss)
    engine.clip(3.0)
    engine.step()
    engine.average(0.99)
    return engine


def picked(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of masked patches and their weights."""
    counts = masks.sum(1)
    return masks.flatten().nonzero().flatten(), (1 / counts.clamp(min=1)).repeat_interleave(counts)


def savers(engine: Engine, root: Path, *names: str) -> dict[str, Save]:
    """How each of them saves; what it keeps between saves is made here."""
    made: dict[str, Save] = {}
    if "dinoctl" in names:
        own = LedgerWriter(Ledger(open_storage(root)), WriterIdentity(1, 0, 1, "spec", "run", 0, {}), keep=99)
        own.prepare(engine.slices())

        def ours(folder: Path) -> Callable[[], object]:
            own._ledger = Ledger(open_storage(folder))  # a job has one; here each save has a directory of its own
            own.save(1, engine.slices())
            return own.wait

        made["dinoctl"] = ours
    if "dcp" in names:
        made["dcp"] = lambda folder: ready(dcp.save(state(engine), checkpoint_id=folder))
    if "dcp-async" in names:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        stager = DefaultStager(StagingOptions(False, False, False, False))  # the others need CUDA, or another process
        made["dcp-async"] = lambda folder: asynchronous(engine, folder, stager)
    if "deepspeed" in names:
        inner: Any = engine._engine  # type: ignore[attr-defined]
        made["deepspeed"] = lambda folder: ready(inner.save_checkpoint(str(folder), tag="step"))
    return made


def asynchronous(engine: Engine, folder: Path, stager: Any) -> Callable[[], object]:
    future: Any = dcp.async_save(state(engine), checkpoint_id=folder, async_stager=stager)
    return future.result  # type: ignore[no-any-return]


def state(engine: Engine) -> dict[str, Tensor]:
    """The same tensors that go into the ledger."""
    return {f"{piece.kind}/{piece.name}": piece.data for piece in engine.slices()}


def ready(_: object) -> Callable[[], object]:
    return lambda: None


def memory(engine: Engine, name: str, root: Path) -> dict[str, float]:
    """MB above what training itself has, at the peak of three saves, buffers that are kept between them included."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    save = savers(engine, root, name)[name]
    for number in range(3):
        save(root / f"save-{number}")()
    return {"peak": status("VmHWM") - before, "before": before}


def status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def copy_s(size: int, buffers: list[Tensor]) -> float:
    """Seconds of one copy of so many bytes."""
    if not buffers:
        buffers += [torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)]
    began = time.monotonic()
    buffers[0].copy_(buffers[1])
    return time.monotonic() - began


def table(engine: Engine, root: Path, options: argparse.Namespace) -> None:
    size = sum(piece.data.numel() * piece.data.element_size() for piece in engine.slices())
    save, buffers = savers(engine, root, *NAMES), list[Tensor]()
    pauses: dict[str, list[float]] = {name: [] for name in ("memcpy", *NAMES)}
    totals: dict[str, list[float]] = {name: [] for name in NAMES}
    stored: dict[str, float] = {}
    for number in range(options.rounds + 1):  # the first round warms up
        for name in NAMES:
            copied = copy_s(size, buffers)
            folder = root / f"{name}-{number}"
            began = time.monotonic()
            done = save[name](folder)
            paused = time.monotonic() - began
            done()
            took = time.monotonic() - began
            stored[name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
            shutil.rmtree(folder)
            if number:
                pauses["memcpy"].append(copied)
                pauses[name].append(paused)
                totals[name].append(took)
    peaks = {name: memory_elsewhere(name, options) for name in NAMES}
    print(f"{size / 1e6:.0f} MB, {options.rounds} rounds, {options.threads} threads; median (least to most)\n")
    print("| | training stands still, s | in copies | until stored, s | stored, MB | peak memory above, MB |")
    print("|---|---|---|---|---|---|")
    print(f"| one copy of the bytes | {spread(pauses['memcpy'])} | 1 | | | |")
    for name in NAMES:
        ratio = statistics.median(pauses[name]) / statistics.median(pauses["memcpy"])
        row = f"| {name} | {spread(pauses[name])} | {ratio:.1f} | {spread(totals[name])} | {stored[name]:.0f} "
        print(f"{row}| {peaks[name]:.0f} |")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def memory_elsewhere(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--prototypes", str(options.prototypes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


if __name__ == "__main__":
    main()
