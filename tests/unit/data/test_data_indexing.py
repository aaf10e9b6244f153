"""Shards that exist already, indexed where they lie."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import picture

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.indexing import index
from dinoctl.data.inplace import Keys
from dinoctl.data.storage import open_storage
from dinoctl.data.verify import verify
from support.faults import Fault, Proxy
from support.s3server import S3Server

FOREIGN = Path(__file__).parent / "foreign"
Members = list[tuple[str, bytes]]


def image(number: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    picture(number, (20 + number, 16)).save(sink, kind)
    return sink.getvalue()


def members(first: int, count: int) -> Members:
    """Samples with labels, a caption and, sometimes, a mask that is no image of theirs."""
    found = []
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
    for number in range(first, first + count):
        suffix = list(kinds)[number % 4]
        about = {"caption": "x" * 50 * number, "species": ["newt", "ant"][number % 2], "year": 1990 + number}
        found += [
            (f"dir/{number:04d}.{suffix}", image(number, kinds[suffix])),
            (f"dir/{number:04d}.cls", b"%d\n" % (number % 3)),
            (f"dir/{number:04d}.json", json.dumps(about).encode()),
        ]
    return found


def write_tar(path: Path, content: Members, format: int = tarfile.PAX_FORMAT) -> Path:  # noqa: A002
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    root = tmp_path / "tars"
    for number in range(3):
        write_tar(root / f"part-{number}.tar", members(10 * number, 10))
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_where_they_lie(tmp_path: Path, format: int) -> None:  # noqa: A002
    content = members(0, 12)
    if format != tarfile.USTAR_FORMAT:
        content.append(("dir/" + "long-" * 60 + "\u00e4.jpg", image(77)))
    before = write_tar(tmp_path / "a.tar", content, format).read_bytes()
    report = index(str(tmp_path))
    assert report.samples == {"train": len(content) // 3 + (format != tarfile.USTAR_FORMAT)}
    dataset = Dataset.open(str(tmp_path))
    images = [data for name, data in content if name.endswith(("jpg", "jpeg", "png", "webp"))]
    assert [dataset.read(i) for i in range(len(dataset))] == images
    assert dataset.keys()[:2] == ["dir/0000", "dir/0001"]
    assert dataset.labels()[:4].tolist() == [0, 1, 2, 0]
    assert dataset.classes == ["0", "1", "2"]
    assert dataset.median_side() == 16
    assert (tmp_path / "a.tar").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "dataset.json", "_index", "bad.jsonl", "pack.json"}


def test_index_elsewhere_any_workers_same_bytes(tars: Path, tmp_path: Path) -> None:
    before = files_of(tars)
    for workers in (1, 3):
        index(str(tars), tmp_path / f"index{workers}", workers=workers)
    assert files_of(tmp_path / "index1") == files_of(tmp_path / "index3")
    assert files_of(tars) == before
    dataset = Dataset.open(str(tmp_path / "index3"))
    assert (len(dataset), dataset.image(13).size) == (30, (33, 16))
    assert verify(str(tmp_path / "index1"), shards=True).startswith("train 30 samples")
    again = index(str(tars), tmp_path / "index1")
    assert again.samples == {"train": 30}


@pytest.mark.parametrize(
    ("keys", "classes", "labels"),
    [
        (Keys(), ["0", "1", "2"], [0, 1, 2, 0]),
        (Keys(label="species"), ["ant", "newt"], [1, 0, 1, 0]),
        (Keys(label="nothing"), None, [-1, -1, -1, -1]),
        (Keys(labels=False), None, [-1, -1, -1, -1]),
    ],
)
def test_labels(tars: Path, tmp_path: Path, keys: Keys, classes: list[str] | None, labels: list[int]) -> None:
    index(str(tars), tmp_path / "out", keys=keys)
    dataset = Dataset.open(str(tmp_path / "out"))
    assert dataset.classes == classes
    assert dataset.labels()[:4].tolist() == labels


def test_numbers_as_labels_stay_what_they_are(tars: Path, tmp_path: Path) -> None:
    index(str(tars), tmp_path / "out", keys=Keys(label="year"))
    dataset = Dataset.open(str(tmp_path / "out"))
    assert dataset.labels().tolist() == [1990 + number for number in range(30)]
    assert len(dataset.classes or ()) == 2020


def test_splits_by_folder_and_by_pattern(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    for name, count in (("train", 4), ("val", 2)):
        write_tar(root / name / "0.tar", members(0, count))
    assert index(str(root), tmp_path / "a").samples == {"train": 4, "val": 2}
    assert index(str(root), tmp_path / "b", splits={"all": "*"}).samples == {"all": 6}
    assert index(str(root), tmp_path / "c", splits={"test": "val/*"}).samples == {"test": 2}
    with pytest.raises(DataError, match=r"split 'x': no shard below .* fits 'y\*'; one is train/0.tar"):
        index(str(root), tmp_path / "d", splits={"x": "y*"})
    with pytest.raises(DataError, match=r"train/0.tar fits several splits"):
        index(str(root), tmp_path / "d", splits={"x": "*", "y": "train/*"})
    (root / "val").rename(root / "shards-2")
    assert index(str(root), tmp_path / "e").samples == {"train": 6}


def test_samples_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    bad = {
        "cut": [("cut.png", image(1, "PNG")[:60])],
        "empty": [("empty.jpg", b"")],
        "none": [("none.txt", b"words"), ("none.json", b"{}")],
        "text": [("text.jpg", b"not an image")],
        "two": [("two.jpg", image(2)), ("two.png", image(2, "PNG"))],
    }
    content = members(0, 5) + [member for group in bad.values() for member in group] + [(".hidden", b""), ("x", b"")]
    write_tar(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match=r"5 of 10 samples are unreadable, above the allowed rate 0.0001: a.tar#cut"):
        index(str(tmp_path))
    report = index(str(tmp_path), max_bad_rate=0.5)
    assert report.samples == {"train": 5}
    assert [entry.path for entry in report.bad] == [f"a.tar#{name}" for name in bad]
    listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["reason"]) for entry in listed] == report.bad
    assert report.bad[2].reason == "0 images among its members (.txt, .json)"


def damaged(data: bytes, how: str) -> bytes:
    if how == "cut in an image":
        return data[:2000]
    if how == "cut between members":
        return data[: data.index(b"dir/0013.")]
    if how == "header":
        at = data.index(b"dir/0013.", 600)
        return data[:at] + b"\0\1\2" + data[at + 3 :]
    if how == "compressed":
        import gzip

        return gzip.compress(data)
    return {"empty": b"", "text": b"not a tar\n" * 200}[how]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut in an image", "is cut off in dir/|is not a whole tar"),
        ("cut between members", r"is cut off .no end mark. at byte \d+"),
        ("header", r"is damaged at byte \d+"),
        ("empty", "is not a whole tar file"),
        ("text", "is not a whole tar file"),
        ("compressed", "is compressed; unpack it"),
    ],
)
def test_a_damaged_tar_is_never_taken_for_a_short_one(tars: Path, how: str, reason: str) -> None:
    path = tars / "part-1.tar"
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(DataError, match=rf"part-1\.tar: ({reason})"):
        index(str(tars))
    assert not (tars / "dataset.json").exists()


def test_a_tar_that_changed_is_found_out(tars: Path, tmp_path: Path) -> None:
    index(str(tars), tmp_path / "out")
    dataset = Dataset.open(str(tmp_path / "out"))
    path = tars / "part-1.tar"
    good = path.read_bytes()
    path.write_bytes(good.replace(image(12), image(12)[:-1] + b"\0"))
    with pytest.raises(DataError, match=r"part-1\.tar: sample 12 .* is corrupt"):
        [dataset.read(i) for i in range(30)]
    with pytest.raises(DataError, match=r"holds another dataset .or its source has changed since"):
        index(str(tars), tmp_path / "out")
    with pytest.raises(DataError, match=r"part-1\.tar: sample 12 is damaged"):
        verify(str(tmp_path / "out"), shards=True)
    path.write_bytes(good + bytes(512))
    with pytest.raises(DataError, match=r"part-1\.tar: is not the file that it was"):
        verify(str(tmp_path / "out"))


def test_nothing_to_index(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write_tar(tmp_path / "bare" / "a.tar", [])
    for name, reason in [("empty", "no .tar there"), ("missing", "not a directory"), ("file", "not a directory")]:
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            index(str(tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="not one sample in the shards"):
        index(str(tmp_path / "bare"))


@pytest.mark.parametrize("name", ["mds", "litdata-arrow", "litdata-leaves"])
def test_sets_of_other_libraries(tmp_path: Path, name: str) -> None:
    report = index(str(FOREIGN / name), tmp_path / "out", workers=2)
    assert report.samples == {"train": 5}
    dataset = Dataset.open(str(tmp_path / "out"))
    assert [dataset.image(i).size for i in range(5)] == [(16, 12 + i) for i in range(5)]
    for i in range(5):
        assert abs(np.asarray(dataset.image(i)).mean() - 20 * i) < 4  # of coarse JPEGs
    assert dataset.labels().tolist() == [0, 1, 2, 0, 1]
    by_name = index(str(FOREIGN / name), tmp_path / "names", keys=Keys(image="image", label="caption"))
    assert by_name.samples == {"train": 5}
    assert Dataset.open(str(tmp_path / "names")).classes == [f"number {i}" for i in range(5)]
    with pytest.raises(DataError, match="image column 'caption' is not there or of another kind; there are caption"):
        index(str(FOREIGN / name), tmp_path / "wrong", keys=Keys(image="caption"))


@pytest.mark.parametrize("name", ["mds-zstd", "litdata-zstd"])
def test_compressed_shards_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}/index\.json: .*compress.* \(zstd\), so images are no ranges"):
        index(str(FOREIGN / name), tmp_path / "out")


@pytest.mark.parametrize("name", ["mds", "litdata-arrow", "litdata-leaves"])
@pytest.mark.parametrize("how", ["cut", "overwritten", "gone", "index"])
def test_damaged_sets_of_other_libraries(tmp_path: Path, name: str, how: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for path in (FOREIGN / name).iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    shard = max(path for path in root.iterdir() if path.name != "index.json")
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-300])
    elif how == "overwritten":
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    elif how == "gone":
        shard.unlink()
    else:
        (root / "index.json").write_text('{"shards": [{"format": "mds"}], "chunks": []}')
    with pytest.raises(DataError, match=r"(cut off|damaged|not there|unknown version|unreadable)"):
        index(str(root))
    assert not (root / "dataset.json").exists()


STRAYS = ['{"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": []}', "[]"]


@pytest.mark.parametrize("stray", STRAYS)
def test_an_index_of_another_tool_beside_tars(tars: Path, tmp_path: Path, stray: str) -> None:
    (tars / "index.json").write_text(stray)
    assert index(str(tars), tmp_path / "out").samples == {"train": 30}
    for kind in ("mds", "litdata"):
        with pytest.raises(DataError, match=rf"index\.json: is not the index of a {kind} set; use --format webdataset"):
            index(str(tars), tmp_path / kind, format=kind)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "index.json").write_text(stray)
    with pytest.raises(DataError, match=r"index\.json: is not the index of an MDS or LitData set; use --format"):
        index(str(alone))


def test_a_set_is_not_left_out_for_the_tars_beside_it(tars: Path, tmp_path: Path) -> None:
    (tars / "index.json").write_text(STRAYS[0])
    (tars / "set").mkdir()
    for path in (FOREIGN / "mds").iterdir():
        (tars / "set" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"tars/index\.json: is not the index .* or move it elsewhere"):
        index(str(tars), tmp_path / "out")
    assert index(str(tars), tmp_path / "out", format="webdataset").samples == {"train": 30}


@pytest.mark.parametrize("size", [0, 4, 16])
def test_labels_of_another_size_than_their_type_says(tmp_path: Path, size: int) -> None:
    data = image(3)
    sample = len(data).to_bytes(4, "little") + data + bytes(size)
    head = b"".join(number.to_bytes(4, "little") for number in (1, 12, 12 + len(sample)))
    (tmp_path / "shard.00000.mds").write_bytes(head + sample)
    columns = {"column_names": ["image", "kind"], "column_encodings": ["jpeg", "int"], "column_sizes": [None, size]}
    shard = {"format": "mds", "compression": None, "raw_data": {"basename": "shard.00000.mds"}, **columns}
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
    said = rf"shard\.00000\.mds: column 'kind' has a value of {size} bytes, and its type has 8; .*--no-labels"
    with pytest.raises(DataError, match=said):
        index(str(tmp_path), keys=Keys(label="kind"))
    assert index(str(tmp_path), keys=Keys(labels=False)).samples == {"train": 1}


def upload(server: S3Server, bucket: str, root: Path) -> None:
    for path in root.iterdir():
        server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=f"tars/{path.name}", Body=path.read_bytes())


def test_tars_on_a_bucket(tars: Path, tmp_path: Path, s3: str, s3_server: S3Server, s3_faults: Proxy) -> None:
    upload(s3_server, s3, tars)
    s3_faults.faults = [Fault("slowdown", rate=0.2), Fault("truncate", method="GET", rate=0.2)]
    index(f"{s3}/tars", workers=2)
    index(f"{s3}/tars", tmp_path / "here")
    index(str(tars), tmp_path / "local")
    there, here, local = (Dataset.open(uri) for uri in (f"{s3}/tars", str(tmp_path / "here"), str(tmp_path / "local")))
    assert there.read(17) == here.read(17) == local.read(17) == image(17, "JPEG")
    assert [shard.etag for shard in there.info.shards] == [shard.etag for shard in here.info.shards]
    assert all(shard.etag for shard in there.info.shards)
    s3_faults.faults = []
    assert verify(f"{s3}/tars", shards=True)
    s3_server.client().put_object(
        Bucket=s3.removeprefix("s3://"), Key="tars/part-2.tar", Body=(tars / "part-2.tar").read_bytes()[::-1]
    )
    with pytest.raises(DataError, match=r"part-2\.tar: is not the file that it was"):
        verify(f"{s3}/tars")
    with pytest.raises(DataError, match="its source has changed since"):
        index(f"{s3}/tars")


def test_an_upload_beside_the_index_is_left_alone(tars: Path, s3: str, s3_server: S3Server) -> None:
    """Somebody may be adding shards just now: what is not ours is not swept away."""
    upload(s3_server, s3, tars)
    client, bucket = s3_server.client(), s3.removeprefix("s3://")
    client.create_multipart_upload(Bucket=bucket, Key="tars/part-3.tar")
    index(f"{s3}/tars")
    assert [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["tars/part-3.tar"]
    assert not [key for key in open_storage(f"{s3}/tars").list() if key.startswith("_pack/")]
