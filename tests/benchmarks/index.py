"""How large an index may be: opening time, resident memory and random access at 10^6, 10^7 and 10^8 samples.

    python tests/benchmarks/index.py [--directory DIR] [--rows 1000000 10000000 100000000]

Each index is made row by row by the writer that packing uses, with shards of 2,500 samples. Every number comes from
processes of its own: ``cold`` is the first after the file's pages were dropped from memory, as far as the system
obeys; two that stay open at once show what they share. The files are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))

from dinoctl.data.building import Build
from dinoctl.data.index import DTYPE
from dinoctl.data.manifest import Manifest, ShardInfo
from dinoctl.data.storage import open_storage

PER_SHARD, LENGTH = 2500, 100_000

OPEN = """
import json, sys, time
import numpy as np
from dinoctl.data.dataset import Dataset

def memory():
    kinds = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return {name: int(kinds[name].split()[0]) / 1024 for name in ("Rss", "Pss")}

def looked_up(ids):
    began = time.perf_counter()
    for i in ids:
        dataset._index.check(i)
        dataset._shard[i], dataset._offset[i], dataset._length[i], dataset._crc[i]
    return len(ids) / (time.perf_counter() - began)

before = memory()
began = time.perf_counter()
dataset = Dataset.open(sys.argv[1])
seconds = time.perf_counter() - began
opened = memory()
ids = np.random.default_rng(0).integers(0, len(dataset), 200_000).tolist()
first = looked_up(ids[:20_000])
again = looked_up(ids[:20_000])
print(json.dumps({"seconds": seconds, "before": before, "opened": opened, "touched": memory(), "first": first,
                  "again": again}), flush=True)
sys.stdin.read()
"""


def make(root: Path, rows: int) -> None:
    """A dataset without its shards: nothing here reads images."""
    build = Build(open_storage(root), "synthetic", {"train": 1})
    draw = np.random.default_rng(0)
    with build.writer() as writer:
        for at in range(0, rows, 2**20):
            number = np.arange(at, min(at + 2**20, rows))
            table = np.zeros(len(number), DTYPE)
            table["shard"], table["offset"] = number // PER_SHARD, number % PER_SHARD * LENGTH + 512
            table["length"] = draw.integers(20_000, LENGTH - 1024, len(number))
            table["crc32c"] = draw.integers(0, 2**32, len(number))
            table["width"], table["height"] = 500, 375
            table["label"] = draw.integers(0, 1000, len(number))
            writer.add_columns([f"{i:09d}" for i in number.tolist()], table)
        made = build.write_index("train", writer)
    shards = [ShardInfo(f"train/shard-{i:06d}.tar", PER_SHARD * LENGTH + 1024, i) for i in range(-(-rows // PER_SHARD))]
    split = build.info("train", made, shards, [str(i) for i in range(1000)])
    Manifest({"train": split}).write(build.storage)


def opened(root: Path, together: int = 1) -> list[dict[str, object]]:
    """What so many processes report that hold the dataset at the same time."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(together)
    ]
    results = [json.loads(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    return results


def drop(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(root: Path, rows: int) -> str:
    began = time.perf_counter()
    make(root, rows)
    written = time.perf_counter() - began
    drop(root)
    cold = opened(root)[0]
    warm = [opened(root)[0] for _ in range(5)]
    pair = opened(root, 2)
    size = (root / "train" / "index.npy").stat().st_size / 1e9
    return (
        f"| {rows:,} | {size:.2f} GB | {written:.0f} s | {cold['seconds']:.2f} s | "
        f"{statistics.median(one['seconds'] for one in warm):.2f} s | {warm[0]['before']['Rss']:.0f} | "
        f"{max(one['opened']['Rss'] for one in warm):.0f} | {max(one['touched']['Rss'] for one in warm):.0f} | "
        f"{max(one['touched']['Pss'] for one in pair):.0f} | {cold['first'] / 1e3:.0f} k/s | "
        f"{statistics.median(one['first'] for one in warm) / 1e3:.0f} k/s | "
        f"{statistics.median(one['again'] for one in warm) / 1e3:.0f} k/s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    arguments = parser.parse_args()
    print(
        "| samples | index | written in | open, cold | open, warm | MB before | opened | 20,000 read | PSS, two "
        "| first reads, cold | first reads, warm | again |"
    )
    print("|" + "---:|" * 12)
    for rows in arguments.rows:
        root = Path(tempfile.mkdtemp(dir=arguments.directory))
        try:
            print(measure(root, rows), flush=True)
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
