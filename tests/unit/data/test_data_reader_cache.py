"""The disk cache: what is in it is right or not there, it fits its budget, and nothing depends on it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dinoctl.data.dataset import Dataset, Extent
from dinoctl.data.loader import TrainLoader
from dinoctl.data.order import SampleOrder
from dinoctl.data.reader.cache import DiskCache
from dinoctl.spec.crops import Crops
from dinoctl.spec.recipe import Masks
from dinoctl.spec.sources import DiskCache as CacheSpec
from dinoctl.spec.sources import Reading
from support.faults import Proxy
from support.s3server import S3Server

B = 12


def whole(dataset: Dataset) -> Extent:
    """All samples of the first shard."""
    return dataset.extent(0, int(dataset.starts()[1]), 2**30)


def fill(cache: DiskCache, dataset: Dataset) -> None:
    starts = dataset.starts().tolist()
    for first, end in itertools.pairwise(starts):
        extent = dataset.extent(first, end - first, 2**30)
        cache.write(0, first, extent, [dataset.read(i) for i in range(first, end)])


def held(cache: DiskCache, dataset: Dataset) -> list[int]:
    starts, found = dataset.starts().tolist(), []
    for first, end in itertools.pairwise(starts):
        samples = cache.read(0, first, dataset.extent(first, end - first, 2**30))
        for i, sample in enumerate(samples):
            if sample is not None:
                assert sample == dataset.read(first + i)
                found.append(first + i)
    return found


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.tar"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.5])
def test_the_first_samples_that_fit_the_budget_are_kept(digits: Dataset, tmp_path: Path, share: float) -> None:
    budget = int(sum(shard.bytes for shard in digits.info.shards) * share) + 1
    cache = DiskCache(str(tmp_path), budget, {0: digits})
    fill(cache, digits)
    found = held(cache, digits)
    assert found == list(range(len(found)))
    assert on_disk(tmp_path) <= budget
    assert abs(len(found) - min(share, 1.0) * len(digits)) <= 2
    again = DiskCache(str(tmp_path), budget, {0: digits})
    assert held(again, digits) == found, "it outlives the process"


def test_a_smaller_budget_trims(digits: Dataset, tmp_path: Path) -> None:
    fill(DiskCache(str(tmp_path), 2**30, {0: digits}), digits)
    budget = on_disk(tmp_path) // 3
    cache = DiskCache(str(tmp_path), budget, {0: digits})
    assert 0 < on_disk(tmp_path) <= budget
    assert 0 < len(held(cache, digits)) < len(digits) / 2


def test_other_datasets_give_way_oldest_first(digits: Dataset, digits_path: Path, tmp_path: Path) -> None:
    size = sum(shard.bytes for shard in digits.info.shards)
    old, young = tmp_path / "old-dataset", tmp_path / "young-dataset"
    for age, home in ((2, old), (1, young)):
        home.mkdir()
        (home / "shard.tar").write_bytes(os.urandom(size // 2))
        (home / "used").touch()
        os.utime(home / "used", (time.time() - age * 3600,) * 2)
    DiskCache(str(tmp_path), 2 * size + 10**5, {0: digits})
    assert old.exists(), "all fit"
    DiskCache(str(tmp_path), int(1.7 * size), {0: digits})
    assert not old.exists()
    assert young.exists()


def test_wrong_bytes_are_not_there(digits: Dataset, tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 2**30, {0: digits})
    fill(cache, digits)
    extent = whole(digits)
    (file,) = tmp_path.rglob("*000000.tar")
    data = bytearray(file.read_bytes())
    data[extent.offsets[3] + 5] ^= 1
    file.write_bytes(data[: extent.offsets[-1] + 7])
    samples = cache.read(0, 0, extent)
    assert [i for i, sample in enumerate(samples) if sample is None] == [3, len(extent.lengths) - 1]


@pytest.mark.parametrize("trouble", ["full", "no directory", "vanished"])
def test_a_disk_that_refuses_is_left_alone(
    digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    path = tmp_path / "cache"
    if trouble == "no directory":
        path.write_text("a file")
    cache = DiskCache(str(path), 2**30, {0: digits})
    if trouble == "full":

        def refuse(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", refuse)
    elif trouble == "vanished":
        shutil.rmtree(path)
    fill(cache, digits)
    assert held(cache, digits) == []
    warnings = capsys.readouterr().err.splitlines()
    if trouble != "vanished":
        assert cache.failures >= 1
        (line,) = warnings
        assert line.startswith(f"warning: the cache {path} can't be used (")
        assert line.endswith("reading goes on without it")


_CALLS = ("stat", "scandir", "listdir", "mkdir", "open", "utime", "unlink", "truncate")


def evicting(monkeypatch: pytest.MonkeyPatch, root: Path, moment: int) -> list[str]:
    """Before the ``moment``-th call for something below ``root``, another process removes all that is there."""
    seen: list[str] = []

    def wrapped(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def then(path: object, *args: object, **more: object) -> object:
            if isinstance(path, str | os.PathLike) and str(path).startswith(f"{root}{os.sep}"):
                seen.append(name)
                if len(seen) == moment:
                    subprocess.run(["rm", "-rf", *map(str, root.iterdir())], check=True)
            return call(path, *args, **more)

        return then

    for name in _CALLS:
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    return seen


def test_another_jobs_eviction_at_any_moment_of_the_start_is_no_failure(
    digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(shard.bytes for shard in digits.info.shards)
    for moment in itertools.count(1):
        root = tmp_path / str(moment)
        fill(DiskCache(str(root), 2**30, {0: digits}), digits)
        for other in ("some-dataset", "other-dataset"):
            (root / other / "train").mkdir(parents=True)
            (root / other / "train" / "shard.tar").write_bytes(bytes(size))
            (root / other / "used").touch()
        with monkeypatch.context() as patch:
            calls = evicting(patch, root, moment)
            cache = DiskCache(str(root), size // 2, {0: digits})
        assert cache.failures == 0, (moment, calls)
        assert not capsys.readouterr().err
        if len(calls) < moment:
            break
    assert {"stat", "scandir", "listdir", "mkdir", "truncate"} <= set(calls), calls
    fill(cache, digits)
    assert held(cache, digits), "the cache is of use"


def loader_of(dataset: Dataset, crops: Crops, cache: Path | None, **settings: object) -> TrainLoader:
    reading = Reading(cache=CacheSpec(path=str(cache), bytes=10**9)) if cache else Reading()
    order = SampleOrder(len(dataset), B, seed=5)
    return TrainLoader(dataset, order, crops, Masks(), seed=5, patch_size=4, reading=reading, **settings)  # type: ignore[arg-type]


@pytest.fixture
def remote(s3_server: S3Server, s3: str, digits_path: Path, s3_faults: Proxy) -> Dataset:
    shutil.copytree(digits_path, s3_server.root / s3.removeprefix("s3://") / "set")
    return Dataset.open(f"{s3}/set")


def test_a_second_epoch_asks_for_nothing(remote: Dataset, small_crops: Crops, tmp_path: Path) -> None:
    steps = -(-len(remote) // B) + 8  # so far ahead, with neighbours, that the next epoch begins with what is there
    plain, cached = (loader_of(remote, small_crops, cache) for cache in (None, tmp_path))
    with plain, cached:
        for _ in range(2 * steps):
            a, b = next(plain), next(cached)
            assert (a.sample_ids == b.sample_ids).all()
            assert (a.global_crops == b.global_crops).all()
        counts, without = cached.stats().read, plain.stats().read
    assert counts.cache_hits > 0.9 * len(remote)
    assert counts.requests < 0.6 * without.requests
    assert counts.cache_failures == 0
    with loader_of(remote, small_crops, tmp_path, workers=2) as loader:
        for _ in range(20):
            next(loader)
        assert loader.stats().read.requests == 0, "shared by processes"


FILLER = """
import sys
from dinoctl.data.dataset import Dataset
from dinoctl.data.order import SampleOrder, lanes_of
from dinoctl.data.reader.reader import Reader
from dinoctl.spec.sources import DiskCache, Reading
dataset = Dataset.open(sys.argv[1])
order = SampleOrder(len(dataset), 12, seed=int(sys.argv[3]))
reader = Reader([dataset], order, lanes_of(12, 0, 1), Reading(cache=DiskCache(path=sys.argv[2], bytes=10**9)))
print("begins", flush=True)
for step in range(10**6):
    reader.at(step)
    for sample in order.batch(step).tolist():
        reader.take(0, sample)
"""


def test_killed_writers_leave_nothing_wrong(remote: Dataset, digits: Dataset, tmp_path: Path) -> None:
    """Two at a time over the same files, killed while they write."""
    files = tmp_path / "cache"
    for pause in (0.05, 0.2):
        writers = [
            subprocess.Popen([sys.executable, "-c", FILLER, remote.uri, str(files), str(seed)], stdout=subprocess.PIPE)
            for seed in (1, 2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begins\n"
        time.sleep(pause)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()  # type: ignore[union-attr]
    some = held(DiskCache(str(files), 10**9, {0: remote}), digits)  # compares each with what was packed
    assert some, "something was written"
    names = {path.name for path in files.rglob("*") if path.is_file()} - {"used"}
    assert names <= {shard.path.replace("/", "_") for shard in digits.info.shards}, "no temporary files"
