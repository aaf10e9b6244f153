"""kill -9 in the middle of reading from a bucket through the disk cache: a rank, or one of its loader's children. What
is left in the cache is right or not there, nobody outlives the rank, and the next attempt has the very batches.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch

from dinoctl.data.children import ChildDied
from dinoctl.data.dataset import Dataset
from dinoctl.data.loader import TrainLoader
from dinoctl.data.order import SampleOrder
from dinoctl.data.pack import pack
from dinoctl.data.reader.cache import DiskCache
from dinoctl.spec.crops import Crops, GlobalCrops, LocalCrops
from dinoctl.spec.recipe import Masks
from dinoctl.spec.sources import DiskCache as CacheSpec
from dinoctl.spec.sources import Reading
from support.faults import Fault, Proxy
from support.s3server import S3Server
from support.waiting import within

BATCH, BYTES = 12, 10**9
DIED = 9


def loader_of(dataset: Dataset, cache: Path | None, start: int = 0, workers: int = 0) -> TrainLoader:
    crops = Crops(global_crops=GlobalCrops(size=16), local_crops=LocalCrops(count=1, size=8))
    reading = Reading(cache=CacheSpec(path=str(cache), bytes=BYTES)) if cache else None
    order = SampleOrder(len(dataset), BATCH, seed=5)
    settings = {"seed": 5, "patch_size": 4, "start_step": start, "workers": workers, "reading": reading}
    return TrainLoader(dataset, order, crops, Masks(), **settings)  # type: ignore[arg-type]


class Rank:
    """A process that reads from step ``start`` on, with two children. Made when it has its first batch."""

    def __init__(self, uri: str, cache: Path, start: int) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._read(uri, cache, start, writer))
        os.close(writer)
        self.steps = os.fdopen(reader)
        assert self.steps.readline() == f"{start}\n"
        self.family = [process := psutil.Process(self.pid), *process.children()]

    @staticmethod
    def _read(uri: str, cache: Path, start: int, writer: int) -> int:
        try:
            with loader_of(Dataset.open(uri), cache, start=start, workers=2) as loader:
                for batch in loader:
                    os.write(writer, f"{batch.step}\n".encode())
        except ChildDied:
            return DIED
        except BaseException:
            return 1
        return 0

    def end(self) -> int:
        """Its exit status, after nothing of it is left."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert psutil.wait_procs(self.family, timeout=120)[1] == [], "children end with their rank"
        return code


@pytest.fixture
def packed(tmp_path: Path) -> Dataset:
    pack("builtin://digits", tmp_path / "set", verify=False)
    return Dataset.open(str(tmp_path / "set"))


@pytest.fixture
def uri(packed: Dataset, s3: str, s3_server: S3Server, s3_faults: Proxy) -> str:
    """The digits, at a distance at which most of the time pieces are on their way or being written."""
    shutil.copytree(packed.uri, s3_server.root / s3.removeprefix("s3://") / "set")
    s3_faults.faults = [Fault("latency", value=0.03)]
    return f"{s3}/set"


def test_a_killed_rank_or_child_leaves_a_cache_that_is_right(
    packed: Dataset, uri: str, s3_faults: Proxy, tmp_path: Path
) -> None:
    cache, draw, start = tmp_path / "cache", random.Random(4), 0
    for victim in (0, 1, 2, 0):  # the rank, each of its children, the rank
        rank = Rank(uri, cache, start)
        assert len(rank.family) == 3
        assert within(120, lambda: any(path.is_file() for path in cache.rglob("*"))), "nothing was read"
        time.sleep(draw.uniform(0.0, 0.2))
        rank.family[victim].kill()
        assert rank.end() == (DIED if victim else -9)
        start = max([start, *map(int, rank.steps.read().split())]) + 1
    held = DiskCache(str(cache), BYTES, {0: packed})
    assert 0 < sum(sample is not None for sample in kept(held, packed)) < len(packed), "killed in the middle"
    s3_faults.faults = ()
    assert_right(packed, Dataset.open(uri), cache)


def kept(cache: DiskCache, dataset: Dataset) -> list[bytes | None]:
    """What the cache has of each sample."""
    found: list[bytes | None] = []
    while len(found) < len(dataset):
        found += cache.read(0, len(found), dataset.extent(len(found), 64, 2**30))
    return found


def assert_right(packed: Dataset, remote: Dataset, cache: Path) -> None:
    """An epoch: what the cache has, and what is written into it now, is what was packed."""
    with loader_of(remote, cache, workers=2) as cached, loader_of(packed, None) as plain:
        for _ in range(-(-len(packed) // BATCH)):
            found, wanted = next(cached), next(plain)
            assert torch.equal(found.sample_ids, wanted.sample_ids)
            assert torch.equal(found.global_crops, wanted.global_crops)
        stats = cached.stats()
    assert stats.quarantined == ()
    assert stats.read.cache_failures == 0
    assert stats.read.cache_hits > 0, "some were there from before"
    held = kept(DiskCache(str(cache), BYTES, {0: remote}), remote)
    assert held == [packed.read(i) for i in range(len(packed))]
    names = {path.name for path in cache.rglob("*") if path.is_file()} - {"used"}
    assert names == {shard.path.replace("/", "_") for shard in remote.info.shards}, "no temporary files"
