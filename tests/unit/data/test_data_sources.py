import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeFolder

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.pack import pack
from dinoctl.data.sources import open_source
from dinoctl.data.storage import open_storage
from support.faults import Fault, Proxy


def test_class_folders(make_folder: MakeFolder) -> None:
    source = open_source(str(make_folder(6, classes=("cat", "dog"))))
    items = list(source)
    assert source.classes == ["cat", "dog"]
    assert len(source) == 6
    assert [(item.key, item.label) for item in items][:4] == [
        ("cat/0000", 0),
        ("cat/0002", 0),
        ("cat/0004", 0),
        ("dog/0001", 1),
    ]
    assert items[0].read() == (Path(source._storage.uri) / "cat" / "0000.jpg").read_bytes()  # type: ignore[attr-defined]


def test_one_image_at_the_top_means_no_classes(make_folder: MakeFolder) -> None:
    root = make_folder(4, classes=("a", "b"))
    (root / "a" / "0000.jpg").rename(root / "top.jpg")
    source = open_source(f"file://{root}")
    assert source.classes is None
    assert {item.label for item in source} == {None}


def test_names_that_tars_cannot_hold(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(4)
    (root / "0000.jpg").rename(root / "some.photo.v2.jpg")
    (root / "0002.jpg").rename(root / "0001.jpg")  # beside 0001.png
    (root / "0003.png").rename(root / ("long-" * 30 + "\u00e4\udcff.png"))
    (root / ".hidden.png").write_bytes(b"x")
    assert [item.key for item in open_source(str(root))] == [
        "0001_jpg",
        "0001_png",
        "long-" * 30 + "\u00e4\\xff",
        "some_photo_v2",
    ]
    assert pack(str(root), tmp_path / "out").samples == {"train": 4}
    assert len(Dataset.open(str(tmp_path / "out")).read(3)) > 100


def test_linked_directories_are_followed_once(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(4, classes=("a",))
    (root / "b").symlink_to(make_folder(2, name="elsewhere"))
    (root / "a" / "loop").symlink_to(root)
    assert sorted(item.key for item in open_source(str(root))) == [
        "a/0000",
        "a/0001",
        "a/0002",
        "a/0003",
        "b/0000",
        "b/0001",
    ]


def write_parquet(path: Path, images: list[bytes | None], hugging_face: bool, labels: list[int] | list[str]) -> None:
    if hugging_face:
        column = pa.array([{"bytes": image, "path": "x"} for image in images])
        about = {"info": {"features": {"label": {"names": ["zero", "one"]}}}}
        schema = {b"huggingface": json.dumps(about).encode()}
        table = pa.table({"image": column, "label": labels}).replace_schema_metadata(schema)
    else:
        table = pa.table({"bytes": pa.array(images, pa.binary()), "label": labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


@pytest.mark.parametrize("hugging_face", [True, False])
def test_parquet(make_folder: MakeFolder, tmp_path: Path, hugging_face: bool) -> None:
    images = [path.read_bytes() for path in sorted(make_folder(8).iterdir())]
    labels: list[int] | list[str] = [0, 1] * 4 if hugging_face else ["b", "a"] * 4
    root = tmp_path / "tables"
    write_parquet(root / "part-1.parquet", images, hugging_face, labels)
    write_parquet(root / "part-2.parquet", [None, *images[1:]], hugging_face, labels)
    for workers in (1, 2):
        report = pack(
            str(root),
            tmp_path / f"out{workers}",
            splits={"val": 3},
            shard_bytes=4000,
            max_bad_rate=0.1,
            workers=workers,
        )
        assert sum(report.samples.values()) == 15
        assert [bad.reason for bad in report.bad] == ["empty file"]
    train = Dataset.open(str(tmp_path / "out1"))
    assert train.hash == Dataset.open(str(tmp_path / "out2")).hash
    assert train.classes == (["zero", "one"] if hugging_face else ["a", "b"])
    assert train.keys() == sorted(train.keys()), "rows must keep their order"
    number = int(train.keys()[0].rpartition("-")[2])
    assert train.read(0) == images[number]
    assert train.labels()[0] == (number % 2 if hugging_face else 1 - number % 2)
    assert len(open_source(str(root / "part-1.parquet"))) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bucket_of_images_packs_to_the_same_bytes(
    make_folder: MakeFolder, tmp_path: Path, s3: str, workers: int
) -> None:
    """Class folders in a bucket, packed into a bucket, through children of their own."""
    root = make_folder(12, ("köln", "b c"))
    (root / "b c" / "torn.png").write_bytes(b"\x89PNG and no more")
    images = open_storage(f"{s3}/raw/images")
    for path in root.rglob("*.*"):
        images.write(path.relative_to(root).as_posix(), path.read_bytes())
    settings = {"splits": {"val": 3}, "shard_bytes": 4000, "max_bad_rate": 0.2, "workers": workers}
    here = pack(str(root), tmp_path / "out", **settings)  # type: ignore[arg-type]
    there = pack(images.uri, f"{s3}/packed", **settings)  # type: ignore[arg-type]
    assert there == here
    assert [bad.path for bad in there.bad] == ["b c/torn.png"]
    packed = open_storage(f"{s3}/packed")
    files = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert set(packed.list()) == set(files)
    assert all(packed.read(key) == path.read_bytes() for key, path in files.items() if key != "pack.json")
    train = Dataset.open(f"{s3}/packed")
    assert train.classes == ["b c", "köln"]
    assert [train.read(i) for i in range(len(train))] == [
        Dataset.open(str(tmp_path / "out")).read(i) for i in range(len(train))
    ]


def test_parquet_in_a_bucket(make_folder: MakeFolder, tmp_path: Path, s3: str, s3_faults: Proxy) -> None:
    images = [path.read_bytes() for path in sorted(make_folder(8).iterdir())]
    write_parquet(tmp_path / "tables" / "part-1.parquet", images, True, [0, 1] * 4)
    storage = open_storage(f"{s3}/tables")
    storage.write("part-1.parquet", (tmp_path / "tables" / "part-1.parquet").read_bytes())
    s3_faults.faults = [Fault("slowdown", rate=0.2), Fault("truncate", method="GET", rate=0.2)]
    for uri in (storage.uri, f"{storage.uri}/part-1.parquet"):
        assert [item.read() for item in open_source(uri)] == images
    report = pack(storage.uri, f"{s3}/packed", splits={"val": 3})
    s3_faults.faults = ()
    assert report.hash == pack(str(tmp_path / "tables"), tmp_path / "out", splits={"val": 3}).hash
    storage.write("torn.parquet", b"PAR1 and no more")
    with pytest.raises(DataError, match=r"torn.parquet: is not a Parquet file"):
        open_source(f"{storage.uri}/torn.parquet")
    with pytest.raises(DataError, match="no images in it"):
        open_source(f"{s3}/nothing")


def test_parquet_refusals(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"no column 'image' or 'bytes' \(it has x\)"):
        open_source(str(tmp_path / "other.parquet"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"torn.parquet: is not a Parquet file"):
        open_source(str(tmp_path / "torn.parquet"))
    with pytest.raises(DataError, match="no Parquet file there"):
        open_source(str(tmp_path / "nothing"), "parquet")


def test_unknown_formats() -> None:
    with pytest.raises(DataError, match="'zip' is not a source format"):
        open_source("x", "zip")
    with pytest.raises(DataError, match="builtin://digits"):
        open_source("builtin://mnist")
