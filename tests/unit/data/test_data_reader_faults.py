"""Training data through a bucket that is slow, overloaded, lying or changed: the same batches, or a clear reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dinoctl.data.batch import Batch
from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import ChangedError, DataError, StorageError
from dinoctl.data.loader import TrainLoader
from dinoctl.data.order import SampleOrder
from dinoctl.data.storage import open_storage
from dinoctl.spec.crops import Crops
from dinoctl.spec.recipe import Masks
from dinoctl.spec.sources import Reading
from support.faults import Fault, Proxy
from support.s3server import S3Server

B, START, STEPS = 12, 103, 30
SHARDS = r"\.tar$"


class Bucket:
    """The digits on the server: files are objects there."""

    def __init__(self, server: S3Server, uri: str, source: Path) -> None:
        self.folder = server.root / uri.removeprefix("s3://") / "set"
        self.uri = f"{uri}/set"
        shutil.copytree(source, self.folder)

    def dataset(self, split: str = "train") -> Dataset:
        return Dataset.open(self.uri, split)

    def flip(self, dataset: Dataset, sample: int) -> None:
        """Turns a bit of a sample; the shard keeps its size."""
        file = self.folder / dataset._shards[dataset._shard[sample]]
        data = bytearray(file.read_bytes())
        data[int(dataset._offset[sample]) + 70] ^= 1
        file.write_bytes(data)


@pytest.fixture
def bucket(s3_server: S3Server, s3: str, digits_path: Path, s3_faults: Proxy) -> Bucket:
    return Bucket(s3_server, s3, digits_path)


def loader_of(dataset: Dataset, crops: Crops, **settings: object) -> TrainLoader:
    order = SampleOrder(len(dataset), B, seed=5)
    return TrainLoader(dataset, order, crops, Masks(), seed=5, patch_size=4, start_step=START, **settings)  # type: ignore[arg-type]


def take(dataset: Dataset, crops: Crops, count: int = STEPS, **settings: object) -> list[Batch]:
    with loader_of(dataset, crops, **settings) as loader:
        return [next(loader) for _ in range(count)]


def exhaust(loader: TrainLoader) -> None:
    for _ in range(200):
        next(loader)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other, (a.step, name)


@pytest.fixture
def expected(digits: Dataset, small_crops: Crops) -> list[Batch]:
    return take(digits, small_crops)


ALL = [
    Fault("slowdown", key=SHARDS, rate=0.1),
    Fault("error", key=SHARDS, rate=0.05),
    Fault("reset", key=SHARDS, rate=0.05),
    Fault("truncate", key=SHARDS, rate=0.05),
    Fault("flip", key=SHARDS, rate=0.03),
    Fault("latency", key=SHARDS, value=0.2, rate=0.05),
]
PASSING = {
    "latency": [Fault("latency", value=0.02)],
    "bandwidth": [Fault("bandwidth", key=SHARDS, value=200_000)],
    **{fault.kind: [fault] for fault in (Fault(kind, key=SHARDS, rate=0.2) for kind in ("slowdown", "error", "reset"))},
    "truncate": [Fault("truncate", key=SHARDS, rate=0.2)],
    "flip": [Fault("flip", key=SHARDS, rate=0.2)],
    "renewed": [Fault("expired", key=SHARDS, first=1)],
    "all": ALL,
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_faults_that_pass_change_no_batch(
    bucket: Bucket, expected: list[Batch], small_crops: Crops, s3_faults: Proxy, faults: list[Fault]
) -> None:
    s3_faults.faults = faults
    with loader_of(bucket.dataset(), small_crops) as loader:
        assert_equal([next(loader) for _ in range(STEPS)], expected)
        stats = loader.stats()
    assert stats.quarantined == ()
    struck = sum(s3_faults.injected.values())
    # A refused request may be get_object's at once, in the same try; most bytes between small images are nobody's.
    if faults[0].kind not in ("expired", "flip"):
        assert stats.read.retries + stats.read.hedges >= (1 if struck else 0)
    assert struck or faults[0].kind in ("latency", "bandwidth")
    assert 0 < stats.read.requests < B * STEPS, "runs are read with one request"


@pytest.mark.parametrize(("workers", "reading"), [(0, None), (1, Reading()), (3, Reading(memory=2000))])
def test_neither_reader_nor_workers_change_a_batch(
    bucket: Bucket,
    expected: list[Batch],
    small_crops: Crops,
    s3_faults: Proxy,
    workers: int,
    reading: Reading | None,
) -> None:
    s3_faults.faults = ALL
    dataset = bucket.dataset()
    with loader_of(dataset, small_crops, workers=workers, reading=reading) as loader:
        assert_equal([next(loader) for _ in range(STEPS)], expected)
        assert (loader.stats().read.requests > 0) == (reading is not None)
    assert sum(s3_faults.injected.values()) > 5


def test_more_workers_than_lanes_of_a_rank(bucket: Bucket, expected: list[Batch], small_crops: Crops) -> None:
    for whole, batch in zip(expected, take(bucket.dataset(), small_crops, 3, rank=4, world=5, workers=3), strict=False):
        lanes = torch.arange(4, B, 5)
        assert torch.equal(batch.sample_ids, whole.sample_ids[lanes])
        assert torch.equal(batch.global_crops, whole.global_crops[torch.cat([lanes, lanes + B])])
        assert torch.equal(batch.masks, whole.masks[torch.cat([lanes, lanes + B])])


def test_broken_samples_are_replaced_as_without_the_reader(
    bucket: Bucket, digits_path: Path, tmp_path: Path, small_crops: Crops
) -> None:
    ids = [int(i) for i in SampleOrder(1297, B, 5).batch(START + 4)[[2, 9]]]
    local = Dataset.open(str(shutil.copytree(digits_path, tmp_path / "set")))
    for sample in ids:
        bucket.flip(local, sample)
    for shard in {local._shards[local._shard[sample]] for sample in ids}:
        shutil.copy(bucket.folder / shard, tmp_path / "set" / shard)
    wanted = take(local, small_crops, max_bad_rate=0.01)
    for settings in ({"workers": 0}, {"workers": 2}):
        with loader_of(bucket.dataset(), small_crops, max_bad_rate=0.01, **settings) as loader:
            assert_equal([next(loader) for _ in range(STEPS)], wanted)
            assert sorted(loader.stats().quarantined) == sorted(ids)
            assert loader.stats().read.retries >= 4, "each was read again twice"
    with loader_of(bucket.dataset(), small_crops) as loader, pytest.raises(DataError, match=r"above maxBadRate.*wrong"):
        exhaust(loader)


STOPPING = {
    "missing": "there is no such object",
    "expired": "the credentials have expired; renew them",
    "skew": "this machine's clock is wrong",
    "denied": "access denied",
    "redirect": "the bucket is in another region",
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", STOPPING)
def test_faults_that_stay_stop_with_the_reason(
    bucket: Bucket, small_crops: Crops, s3_faults: Proxy, kind: str, workers: int
) -> None:
    if workers and kind not in ("missing", "expired"):
        pytest.skip("the same way through a child")
    dataset = bucket.dataset()
    with loader_of(dataset, small_crops, workers=workers, max_bad_rate=1.0) as loader:
        next(loader)
        s3_faults.faults = [Fault(kind, key=SHARDS)]  # type: ignore[arg-type]
        with pytest.raises(StorageError) as caught:
            exhaust(loader)
    assert str(caught.value).startswith(f"cannot read {bucket.uri}/train/shard-")
    assert STOPPING[kind] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_ends_no_epoch_early(bucket: Bucket, small_crops: Crops) -> None:
    (bucket.folder / "train" / "shard-000001.tar").unlink()
    with (
        loader_of(bucket.dataset(), small_crops, max_bad_rate=1.0) as loader,
        pytest.raises(StorageError, match=r"shard-000001\.tar: there is no such object"),
    ):
        exhaust(loader)


@pytest.mark.parametrize("size", ["same", "longer", "shorter"])
def test_a_shard_that_changes_under_a_job_is_refused(bucket: Bucket, small_crops: Crops, size: str) -> None:
    storage = open_storage(f"{bucket.uri}/train")
    shards = {key: storage.read(key) for key in storage.list() if key.endswith(".tar")}
    for key, data in shards.items():
        storage.write(key, data)  # through the server, which then knows an ETag
    with loader_of(bucket.dataset(), small_crops, max_bad_rate=1.0) as loader:
        next(loader)
        for key, data in shards.items():
            changed = {"same": data[:-9] + b"different", "longer": data + bytes(512), "shorter": data[:-512]}[size]
            storage.write(key, changed)
        with pytest.raises(ChangedError, match=r"shard-\d+\.tar: was changed while it was in use"):
            exhaust(loader)


@pytest.mark.parametrize("reading", [None, Reading()])
def test_a_dataset_that_was_packed_again_is_refused(
    bucket: Bucket, small_crops: Crops, reading: Reading | None, digits_path: Path
) -> None:
    """Before a shard was first read, so that no ETag is known: wrong bytes make the reader look at the manifest."""
    dataset = bucket.dataset()
    for sample in range(len(dataset)):
        if dataset._shard[sample] == 2:
            bucket.flip(dataset, sample)
    manifest = (bucket.folder / "dataset.json").read_text()
    other = Dataset.open(str(digits_path), "val")
    assert other.hash != dataset.hash
    (bucket.folder / "dataset.json").write_text(manifest.replace('"samples": 1297', '"samples": 1296'))
    with (
        loader_of(dataset, small_crops, max_bad_rate=1.0, reading=reading) as loader,
        pytest.raises(ChangedError, match="was packed again or removed while it was in use"),
    ):
        exhaust(loader)
