"""Images a second and core of the input pipeline, by stage, beside torchvision's on the same JPEGs.

    make benchmark-pipeline
    python tests/benchmarks/pipeline.py --width 2000 --height 1500 --kilobytes 600

One process on one core, threads 1 everywhere. The contenders take turns, round by round; time is the thread's CPU time,
so that other work on the machine counts as little as it can. A stage is what its calls take inside the whole pipeline;
``whole`` is measured without these clocks: `Assembler.fill` (order, reading and checking, crops, masks, everything
written into shared memory) for dinoctl, decode and crops to uint8 tensors for torchvision (no reading, no masks).
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "platform")]

import numpy as np
import torch

from benchmarks.photographs import encoded
from benchmarks.torchvision_crops import TorchvisionCrops
from dinoctl.data.assemble import Assembler
from dinoctl.data.dataset import Dataset
from dinoctl.data.distort import Operations
from dinoctl.data.mask import masks
from dinoctl.data.order import SampleOrder
from dinoctl.data.pack import pack
from dinoctl.spec.crops import Augmentation, Crops, LocalCrops
from dinoctl.spec.recipe import Masks

PATCH, LOCAL = 14, 98
STAGES = ("read", "decode", "crop and resize", "flip, jitter, grey", "blur", "solarize", "write planes", "masks")
_KINDS = ("flip, jitter, grey",) * 6 + ("blur", "solarize")  # of Operations, in their order
Run = Callable[[int], None]


def main() -> None:
    """Prints a table, or with --json one line of JSON."""
    arguments = _arguments()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    jpegs = encoded(arguments.width, arguments.height, arguments.kilobytes * 1024)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _packed(Path(folder), jpegs)
        runs: dict[str, Run] = {name: _whole(dataset, name, arguments.batch) for name in ("fast", "exact")}
        for name in ("PIL", "tensor"):
            runs[f"torchvision {name}"] = TorchvisionCrops(name, jpegs, LOCAL).run
        result = {"images_per_cpu_second": _rates(runs, arguments.images, arguments.rounds)}
        result["stages"] = {name: _stages(dataset, name, arguments.images) for name in ("fast", "exact")}
    size = {"images": len(jpegs), "mean_kib": float(np.mean([len(j) for j in jpegs])) / 1024}
    settings = {**size, "width": arguments.width, "height": arguments.height}
    print(json.dumps({**result, **settings}) if arguments.json else _table(result, settings))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--kilobytes", type=int, default=75, help="of a JPEG, at most")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=48, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _packed(folder: Path, jpegs: list[bytes]) -> Dataset:
    (folder / "images").mkdir()
    for i, data in enumerate(jpegs):
        (folder / "images" / f"{i:03d}.jpg").write_bytes(data)
    pack(str(folder / "images"), str(folder / "set"))
    return Dataset.open(str(folder / "set"))


def _assembler(dataset: Dataset, backend: str, batch: int) -> Assembler:
    crops = Crops(local_crops=LocalCrops(size=LOCAL), augmentation=Augmentation(backend=backend))  # type: ignore[arg-type]
    order = SampleOrder(len(dataset), batch, 0)
    return Assembler([dataset], order, crops, Masks(), seed=0, rank=0, world=1, patch_size=PATCH)


def _whole(dataset: Dataset, backend: str, batch: int) -> Run:
    assembler = _assembler(dataset, backend, batch)
    arrays = assembler.layout(0).views(memoryview(mmap.mmap(-1, assembler.bytes)))  # shared memory

    steps = itertools.count()

    def run(images: int) -> None:
        for _ in range(images // batch):
            if assembler.fill(next(steps), arrays):
                raise RuntimeError("a sample was not readable")

    return run


def _rates(runs: dict[str, Run], images: int, rounds: int) -> dict[str, dict[str, float]]:
    rates: dict[str, list[float]] = {name: [] for name in runs}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        run(8 * images if name == "fast" else images)  # fast: until most box sizes have their filters
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            wall, began = time.perf_counter(), time.thread_time()
            runs[name](images)
            rates[name].append(images / (time.thread_time() - began))
            walls[name].append(images / (time.perf_counter() - wall))
    return {name: {"median": median(r), "best": max(r), "wall": median(walls[name])} for name, r in rates.items()}


class _Clock:
    """CPU seconds by stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[stage] += time.thread_time() - began

        return timed


def _stages(dataset: Dataset, backend: str, images: int) -> dict[str, float]:
    """CPU milliseconds an image."""
    clock = _Clock()
    assembler = _assembler(dataset, backend, images)
    arrays = assembler.layout(0).views(memoryview(mmap.mmap(-1, assembler.bytes)))
    assembler.fill(0, arrays)
    crop: Any = assembler._pairs[0].crop
    crop.operations = Operations(*(clock.around(*pair) for pair in zip(_KINDS, crop.operations, strict=True)))
    crop.resized, crop.write = clock.around("crop and resize", crop.resized), clock.around("write planes", crop.write)
    outputs = [np.empty((3, view.size, view.size), np.uint8) for view in crop.views]
    read, decode = clock.around("read", dataset.read), clock.around("decode", crop.open)
    for i in range(images):
        key = {"seed": 0, "epoch": i // len(dataset), "sample_id": i % len(dataset)}
        crop.into(decode(read(i % len(dataset)), **key), outputs, **key)
    clock.around("masks", masks)(2 * images, (224 // PATCH, 224 // PATCH), Masks(), seed=0, step=0)
    return {stage: 1000 * seconds / images for stage, seconds in clock.seconds.items()}


def _table(result: dict[str, Any], settings: dict[str, Any]) -> str:
    rates, stages = result["images_per_cpu_second"], result["stages"]
    lines = [str(settings), "", "| whole | images / CPU s, median (best) | images / s, wall |", "|---|---|---|"]
    lines += [f"| {name} | {r['median']:.1f} ({r['best']:.1f}) | {r['wall']:.1f} |" for name, r in rates.items()]
    lines += ["", "| stage | fast, ms (images/s) | exact, ms (images/s) |", "|---|---|---|"]
    for stage in STAGES:
        cells = [f"{ms[stage]:.3f} ({1000 / ms[stage]:,.0f})" if ms[stage] else "0" for ms in stages.values()]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
