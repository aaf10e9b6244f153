"""The index: mapped, verified block by block, in the former format, and on a bucket."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinoctl.data import index as module
from dinoctl.data.building import Build
from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import ChangedError, DataError, StorageError
from dinoctl.data.index import BLOCK, DTYPE, Index, Row, header, open_index
from dinoctl.data.loader import TrainLoader
from dinoctl.data.manifest import FILE, Manifest, read_manifest
from dinoctl.data.node_cache import cached, drop
from dinoctl.data.order import SampleOrder
from dinoctl.data.storage import open_storage
from dinoctl.spec.crops import Crops
from dinoctl.spec.recipe import Masks
from support.s3server import S3Server

ROWS = 7000
"""Records of some four blocks."""
HEAD = len(header(ROWS))
END = HEAD + ROWS * 32
"""Where the sums begin."""


def row(number: int) -> Row:
    return Row(f"key-{number}", number // 100, number * 1000, 10 + number, number * 7, 40, 30 + number % 5, number % 9)


def written(uri: str, rows: int = ROWS) -> None:
    build = Build(open_storage(uri), "test", {"train": 0})
    with build.writer() as writer:
        for at in range(0, rows, 999):
            writer.add([row(number) for number in range(at, min(at + 999, rows))])
        made = build.write_index("train", writer)
    Manifest({"train": build.info("train", made, [], None)}).write(build.storage)


def opened(uri: str) -> Index:
    storage = open_storage(uri)
    return open_index(storage, read_manifest(storage).splits["train"])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("rows", [0, 1, 999, ROWS])
def test_rows_come_back(tmp_path: Path, rows: int) -> None:
    written(str(tmp_path), rows)
    index = opened(str(tmp_path))
    assert len(index) == rows
    expected = [row(number) for number in range(rows)]
    assert index.keys() == [one.key for one in expected]
    for position, name in enumerate(DTYPE.names or ()):
        assert index.column(name).tolist() == [one[1 + position] for one in expected]
    assert len(index.some("width")) == min(rows, 2**17)


@pytest.mark.parametrize(("rows", "shards"), [(0, 0), (0, 3), (1, 1), (950, 10), (950, 14), (ROWS, 70)])
def test_where_shards_begin(tmp_path: Path, rows: int, shards: int) -> None:
    written(str(tmp_path), rows)
    starts = opened(str(tmp_path)).starts(shards)
    assert starts.tolist() == [min(100 * number, rows) for number in range(shards + 1)]


def test_file_is_an_array_for_everybody(tmp_path: Path) -> None:
    written(str(tmp_path))
    array = np.load(tmp_path / "train" / "index.npy", mmap_mode="r")
    assert array.dtype == DTYPE
    assert array.dtype.itemsize == 32
    assert array["offset"].tolist() == [number * 1000 for number in range(ROWS)]


def test_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    written(str(tmp_path / "a"))
    build = Build(open_storage(tmp_path / "b"), "test", {"train": 0})
    with build.writer() as writer:
        writer.add([row(number) for number in range(ROWS)])
        build.write_index("train", writer)
    for name in ("index.npy", "keys.parquet"):
        assert (tmp_path / "a" / "train" / name).read_bytes() == (tmp_path / "b" / "train" / name).read_bytes()


@pytest.mark.parametrize("at", [3, HEAD, 2 * BLOCK + 5, END - 1, END, -1])
def test_a_small_index_is_verified_whole(tmp_path: Path, at: int) -> None:
    written(str(tmp_path))
    path = tmp_path / "train" / "index.npy"
    flip(path, at % path.stat().st_size)
    with pytest.raises(DataError, match=r"train/index\.npy: differs from what was packed"):
        opened(str(tmp_path))


def test_a_large_index_is_verified_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", BLOCK)
    written(str(tmp_path))
    flip(tmp_path / "train" / "index.npy", 2 * BLOCK + 5)
    index = opened(str(tmp_path))
    index.check(0)
    index.check(ROWS - 1)
    index.check(100, 1900)
    bad = (2 * BLOCK + 5 - HEAD) // 32
    with pytest.raises(DataError, match="differs from what was packed"):
        index.check(bad)
    with pytest.raises(DataError, match="differs from what was packed"):
        index.column("label")


@pytest.mark.parametrize("at", [5, END, -1])
def test_header_and_sums_of_a_large_index_are_always_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(module, "SMALL", BLOCK)
    written(str(tmp_path))
    path = tmp_path / "train" / "index.npy"
    flip(path, at % path.stat().st_size)
    with pytest.raises(DataError, match="differs from what was packed"):
        opened(str(tmp_path))


def test_a_dataset_reads_only_verified_rows(digits_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    dataset = Dataset.open(str(digits_path))
    assert dataset.read(1296)
    assert sum(dataset._index._blocks._seen) == 1  # type: ignore[union-attr]


def test_a_damaged_block_ends_a_job_and_is_no_bad_sample(
    digits_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_crops: Crops
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    path = Path(shutil.copytree(digits_path, tmp_path / "copy"))
    dataset = Dataset.open(str(path))
    dataset._index._blocks._seen[0] = 0  # type: ignore[union-attr]  # as any block but the first one of a large index
    flip(path / "train" / "index.npy", HEAD + 32 * 5)
    order = SampleOrder(len(dataset), 12, 5)
    loader = TrainLoader(dataset, order, small_crops, Masks(), seed=5, patch_size=4, workers=0, max_bad_rate=1.0)
    said = r"copy/train/index\.npy: differs from what was packed; restore the file or pack"
    with loader, pytest.raises(ChangedError, match=said):
        next(loader)


def test_short_and_missing_index(tmp_path: Path) -> None:
    written(str(tmp_path))
    path = tmp_path / "train" / "index.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="differs from what was packed"):
        opened(str(tmp_path))
    path.unlink()
    with pytest.raises(StorageError, match=r"index\.npy: No such file"):
        opened(str(tmp_path))


def former(digits_path: Path, root: Path) -> None:
    """The digits' training split as it was packed before: one Parquet file with all columns."""
    manifest = json.loads((digits_path / FILE).read_text())
    split = manifest["splits"]["train"]
    old = opened(str(digits_path))
    columns = {"key": pa.array(old.keys())} | {name: pa.array(old.column(name)) for name in DTYPE.names or ()}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    (root / "train").mkdir(parents=True)
    (root / "train" / "index.parquet").write_bytes(sink.getvalue())
    for shard in split["shards"]:
        (root / shard["path"]).write_bytes((digits_path / shard["path"]).read_bytes())
    kept = ("samples", "bytes", "mean_bytes", "shards", "classes")
    content = {name: split[name] for name in kept}
    content |= {"index": "train/index.parquet", "index_sha256": hashlib.sha256(sink.getvalue()).hexdigest()}
    whole = {"format": manifest["format"], "splits": {"train": content}}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    (root / FILE).write_text(json.dumps({**whole, "hash": hashlib.sha256(text).hexdigest()}))


def test_datasets_of_the_former_format_still_open(digits_path: Path, tmp_path: Path) -> None:
    former(digits_path, tmp_path)
    old, new = Dataset.open(str(tmp_path)), Dataset.open(str(digits_path))
    assert [old.read(i) for i in (0, 700, 1296)] == [new.read(i) for i in (0, 700, 1296)]
    assert old.labels().tolist() == new.labels().tolist()
    assert (old.keys(), old.median_side()) == (new.keys(), new.median_side())
    flip(tmp_path / "train" / "index.parquet", 100)
    with pytest.raises(DataError, match=r"train/index\.parquet: differs from what was packed"):
        Dataset.open(str(tmp_path))


OPEN = """
import sys
from pathlib import Path
from dinoctl.data.index import open_index
from dinoctl.data.manifest import read_manifest
from dinoctl.data.storage import open_storage
storage = open_storage(sys.argv[1])
index = open_index(storage, read_manifest(storage).splits["train"])
print(int(index.column("offset").sum()))
"""


@pytest.fixture
def cache(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    return [path for path in (cache / "files").iterdir() if path.suffix != ".lock"]


def test_ranks_of_a_node_fetch_an_index_once(s3: str, cache: Path) -> None:
    written(s3)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", OPEN, s3], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert {rank.communicate()[0].strip() for rank in ranks} == {str(sum(1000 * number for number in range(ROWS)))}
    (file,) = kept(cache)
    assert file.name == read_manifest(open_storage(s3)).splits["train"].index_sha256
    first = file.stat().st_ino
    assert len(opened(s3)) == ROWS
    assert file.stat().st_ino == first


def test_what_a_killed_rank_left_and_a_damaged_copy_are_replaced(s3: str, cache: Path) -> None:
    written(s3)
    name = read_manifest(open_storage(s3)).splits["train"].index_sha256
    (cache / "files").mkdir(parents=True)
    (cache / "files" / f"{name}.part-of-a-killed-rank").write_bytes(b"half")
    assert len(opened(s3)) == ROWS
    (file,) = kept(cache)
    flip(file, 1000)
    assert opened(s3).column("label")[8] == 8
    file.write_bytes(b"short")
    assert opened(s3).column("label")[8] == 8


def test_a_large_copy_that_turns_out_damaged_is_fetched_again_by_the_next_attempt(
    s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", BLOCK)
    written(s3)
    index, other = opened(s3), opened(s3)
    (file,) = kept(cache)
    flip(file, 2 * BLOCK + 5)
    bad = (2 * BLOCK + 5 - HEAD) // 32
    with pytest.raises(ChangedError, match=rf"{file}: this machine's copy of {s3}/train/index\.npy .* was removed"):
        index.check(bad)
    assert kept(cache) == []
    assert opened(s3).column("label")[bad] == bad % 9
    with pytest.raises(ChangedError, match="was removed"):
        other.check(bad)
    assert kept(cache) == [file], "the new one stays"


def test_a_copy_that_cannot_be_removed_is_named(s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(s3)
    split = read_manifest(open_storage(s3)).splits["train"]
    path = cached(open_storage(s3), split.index, split.index_sha256, split.index_bytes or 0)
    path.with_suffix(".lock").unlink()
    path.with_suffix(".lock").mkdir()
    with path.open("rb") as file:
        assert not drop(path, file.fileno())
    flip(path, 1000)
    with pytest.raises(ChangedError, match=rf"{path}: .* is damaged; remove it, then the same command"):
        opened(s3)


def test_an_index_that_changed_on_the_bucket_is_refused(s3: str, s3_server: S3Server, cache: Path) -> None:
    written(s3)
    client, bucket = s3_server.client(), s3.removeprefix("s3://")
    data = bytearray(client.get_object(Bucket=bucket, Key="train/index.npy")["Body"].read())
    data[3000] ^= 1
    client.put_object(Bucket=bucket, Key="train/index.npy", Body=bytes(data))
    with pytest.raises(DataError, match=r"train/index\.npy: differs from what was packed"):
        opened(s3)
    assert kept(cache) == []
    client.put_object(Bucket=bucket, Key="train/index.npy", Body=bytes(data[:-4]))
    with pytest.raises(DataError, match=r"train/index\.npy: differs from what was packed"):
        opened(s3)


def test_without_a_home_the_temporary_directory_will_do(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(s3)
    (tmp_path / "file").write_text("no directory can be made in it")
    monkeypatch.delenv("DINOCTL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert len(opened(s3)) == ROWS
    assert len(kept(tmp_path / "tmp" / f"dinoctl-{os.getuid()}")) == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(s3: str, cache: Path) -> None:
    written(s3)
    cache.write_text("a file where the directory should be")
    with pytest.raises(StorageError, match=r"cannot keep s3://.*index\.npy .*set DINOCTL_CACHE_DIR"):
        opened(s3)
