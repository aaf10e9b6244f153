"""One contestant, one epoch, one process: prints what it took as a line of JSON. Started by streaming.py.

Each yields batches of 32 as lists of bytes, or of decoded arrays where asked, by the same function. ``settings`` are
the knobs of each; streaming.py holds those that are used.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import io
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # not on the path: streaming.py here is not the package of that name
sys.path[:] = [str(HERE.parent), str(HERE.parents[1] / "platform"), *(p for p in sys.path if Path(p).resolve() != HERE)]

import numpy as np
import psutil
from PIL import Image

BATCH = 32
BLOCK = 64  # steps whose order is computed together
MARK = 64  # bytes that tell an image from all others: the comment that it begins with
Item = Any


def keep(data: bytes) -> Item:
    return data


def decode(data: bytes) -> Item:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def streaming_library() -> Any:
    """MosaicML Streaming. Its package imports the vision and text collections, which need torchvision (no build for
    this torch) and transformers' extras; none of them is used here.
    """
    for name in ("text", "vision", "multimodal"):
        module = types.ModuleType(f"streaming.{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(f"streaming.{name}", None)
        sys.modules.setdefault(f"streaming.{name}", module)
    import streaming

    return streaming


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def dinoctl(use: Callable[[bytes], Item], scratch: Path, start: float, settings: dict[str, Any]) -> Iterator[Any]:
    """The loader's reader, in this process."""
    from dinoctl.data.dataset import Dataset
    from dinoctl.data.order import SampleOrder, lanes_of
    from dinoctl.data.reader.reader import Reader
    from dinoctl.spec.sources import Reading

    dataset = Dataset.open("s3://bench/dinoctl")
    order = SampleOrder(len(dataset), BATCH, seed=1)
    reader = Reader([dataset], order, lanes_of(BATCH, 0, 1), Reading(**settings))
    first = int(start * order.steps_per_epoch)
    lanes = lanes_of(BATCH, 0, 1)
    for block in range(first, order.steps_per_epoch, BLOCK):
        count = min(BLOCK, order.steps_per_epoch - block)
        for step, row in enumerate(order.block(block, count, lanes).sample.tolist(), block):
            reader.at(step)
            yield [use(reader.take(0, sample) or dataset.read(sample)) for sample in row]
    sys.stderr.write(f"{reader.counts()} window {reader._window.size / 1e6:.1f} MB late {reader._lateness.limit}\n")
    reader.close()


def mosaic(use: Callable[[bytes], Item], scratch: Path, start: float, settings: dict[str, Any]) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    library = streaming_library()
    workers = settings.pop("workers")
    dataset = library.StreamingDataset(
        remote="s3://bench/mds", local=str(scratch / "mds"), shuffle=True, batch_size=BATCH, **settings
    )
    if start:
        dataset.load_state_dict({
            "epoch": 0, "sample_in_epoch": int(start * dataset.num_samples) // BATCH * BATCH,
            "num_canonical_nodes": dataset.num_canonical_nodes or 64, "shuffle_seed": dataset.shuffle_seed,
            "initial_physical_nodes": 1,
        })  # fmt: skip
    loader = DataLoader(dataset, BATCH, num_workers=workers, collate_fn=lambda rows: [use(row["jpg"]) for row in rows])
    yield from loader


def litdata(use: Callable[[bytes], Item], scratch: Path, start: float, settings: dict[str, Any]) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # Its fast client refuses servers without TLS unless told.
    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
    workers = settings.pop("workers")
    dataset = StreamingDataset(
        "s3://bench/litdata", cache_dir=str(scratch / "litdata"), shuffle=True,
        storage_options={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}, **settings,
    )  # fmt: skip
    rows = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=lambda rows: [use(bytes(row)) for row in rows]
    )
    yield from rows


def webdataset(use: Callable[[bytes], Item], scratch: Path, start: float, settings: dict[str, Any]) -> Iterator[Any]:
    import webdataset as wds
    from torch.utils.data import DataLoader

    shards = json.loads(os.environ["BENCH_SHARDS"])
    urls = [f"pipe:curl -s -f {os.environ['AWS_ENDPOINT_URL']}/bench/dinoctl/{shard}" for shard in shards]
    workers, buffer = settings["workers"], settings["buffer"]
    chain = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(buffer)
    loader = DataLoader(
        chain.map(lambda sample: use(sample["jpg"])).batched(BATCH, collation_fn=list), batch_size=None,
        num_workers=workers,
    )  # fmt: skip
    yield from loader


CONTESTANTS = {"dinoctl": dinoctl, "mosaic": mosaic, "litdata": litdata, "webdataset": webdataset}


def cpu_seconds() -> float:
    """Of this process and its descendants, also those that still run."""
    me = psutil.Process()
    running = sum(sum(child.cpu_times()[:2]) for child in me.children(recursive=True))
    return running + sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    name, mode, scratch, start, settings = sys.argv[1:6]
    use = {"bytes": keep, "decode": decode}[mode]
    # What all share is imported before the clock starts; a library's own import is not its speed.
    import boto3  # noqa: F401
    import torch  # noqa: F401

    if name == "mosaic":
        streaming_library()
    else:
        importlib.import_module({"dinoctl": "dinoctl.data.reader.reader"}.get(name, name))
    idle = cpu_seconds()
    print(json.dumps({"ready": True}), flush=True)
    began = time.perf_counter()
    first, count, total = 0.0, 0, 0
    seen: set[bytes] = set()
    batches = CONTESTANTS[name](use, Path(scratch), float(start), json.loads(settings))
    for batch in batches:
        if not first:
            first = time.perf_counter() - began
            early = len(batch)
            if float(start):
                break
        count += len(batch)
        if mode == "bytes":
            total += sum(map(len, batch))
            seen.update(image[:MARK] for image in batch)
    ended = time.perf_counter() - began
    cpu = cpu_seconds() - idle
    print(json.dumps({
        "first_s": first, "total_s": ended, "samples": count, "distinct": len(seen), "fetched": total, "cpu_s": cpu,
        "settings": settings, "steady": (count - early) / max(ended - first, 1e-9),
    }))  # fmt: skip
    sys.stdout.flush()
    os._exit(0)  # whoever left a thread behind is not waited for


if __name__ == "__main__":
    main()
