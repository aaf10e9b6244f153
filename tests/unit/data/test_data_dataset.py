import json
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import MakeFolder

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError, StorageError
from dinoctl.data.pack import pack


@pytest.fixture
def copy(digits_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_path, tmp_path / "copy"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_flipped_byte_in_a_shard_is_found(copy: Path) -> None:
    dataset = Dataset.open(str(copy))
    flip(copy / "train" / "shard-000000.tar", 512 + 60)
    with pytest.raises(DataError, match=r"train/shard-000000.tar: sample 0 \(bytes 512 to \d+\) is corrupt"):
        dataset.read(0)
    assert dataset.read(1)


def test_short_and_missing_shards(copy: Path) -> None:
    dataset = Dataset.open(str(copy))
    shard = copy / "train" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(DataError, match="is corrupt"):
        dataset.read(0)
    shard.unlink()
    with pytest.raises(StorageError, match=r"shard-000000\.tar: No such file"):
        dataset.read(0)


def test_changed_index_and_manifest_are_refused(copy: Path) -> None:
    flip(copy / "val" / "index.npy", 100)
    assert len(Dataset.open(str(copy), "train")) == 1297
    with pytest.raises(DataError, match=r"val/index.npy: differs from what was packed"):
        Dataset.open(str(copy), "val")
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["splits"]["train"]["samples"] = 7
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was changed after packing"):
        Dataset.open(str(copy))


def test_what_is_no_dataset(tmp_path: Path, digits_path: Path) -> None:
    with pytest.raises(DataError, match=r"no packed dataset there \(dataset.json is missing\)"):
        Dataset.open(str(tmp_path))
    (tmp_path / "dataset.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match=r"is not a dinoctl\.dataset/v1 manifest"):
        Dataset.open(str(tmp_path))
    with pytest.raises(DataError, match="has no split 'vall'; did you mean 'val'"):
        Dataset.open(str(digits_path), "vall")
    with pytest.raises(DataError, match="has no split 'x'; it has train, val"):
        Dataset.open(str(digits_path), "x")


def test_travels_to_other_processes(copy: Path) -> None:
    dataset = Dataset.open(str(copy))
    frozen = pickle.dumps(dataset)
    assert len(frozen) < 1000
    assert pickle.loads(frozen).read(5) == dataset.read(5)
    shutil.rmtree(copy)
    with pytest.raises(DataError, match="no packed dataset"):
        pickle.loads(frozen)


def test_file_uri(digits_path: Path, digits: Dataset) -> None:
    assert Dataset.open(f"file://{digits_path}").hash == digits.hash


def test_what_is_no_image_is_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(6)
    half = (source / "0001.png").read_bytes()[:200]  # an intact header, which is all that is looked at unverified
    (source / "0001.png").write_bytes(half)
    pack(str(source), tmp_path / "set", verify=False)
    dataset = Dataset.open(str(tmp_path / "set"))
    number = dataset.keys().index("0001")
    assert dataset.read(number) == half
    with pytest.raises(DataError, match=f"sample {number} of 'train': not a readable image"):
        dataset.image(number)
