import io
import json
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
from conftest import MakeFolder, picture
from PIL import Image

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError, StorageError
from dinoctl.data.pack import pack


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run_python(code: str, **settings: object) -> subprocess.Popen[str]:
    text = textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, json.dumps(settings)],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_digits_have_a_fixed_identity(digits_path: Path) -> None:
    train, val = (Dataset.open(str(digits_path), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1297, 500)
    assert train.classes == [str(i) for i in range(10)]
    assert set(train.keys()).isdisjoint(val.keys())
    assert set(train.labels()) == set(range(10))
    manifest = json.loads((digits_path / "dataset.json").read_text())
    assert manifest["format"] == "dinoctl.dataset/v1"
    assert train.hash == f"{manifest['hash']}:train"
    image = Image.open(io.BytesIO(train.read(0)))
    assert image.size == (8, 8)
    assert image.mode == "L"


def test_shards_are_plain_webdataset_tars(digits_path: Path, digits: Dataset) -> None:
    with tarfile.open(digits_path / "train" / "shard-000000.tar") as shard:
        names = shard.getnames()
        first = shard.extractfile(names[0])
        label = shard.extractfile(names[1])
        assert first is not None
        assert label is not None
        assert first.read() == digits.read(0)
        assert int(label.read()) == digits.labels()[0]
    assert names[:2] == [f"{digits.keys()[0]}.png", f"{digits.keys()[0]}.cls"]


def test_bytes_do_not_depend_on_workers_or_file_order(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(30, classes=("cat", "dog"))
    for workers in (1, 3):
        pack(str(source), tmp_path / str(workers), splits={"val": 5}, shard_bytes=4000, workers=workers)
    one = files_of(tmp_path / "1")
    assert one == files_of(tmp_path / "3")
    assert len([name for name in one if name.endswith(".tar")]) > 3
    assert Dataset.open(str(tmp_path / "1"), "val").classes == ["cat", "dog"]


def test_held_out_samples_stay_when_others_come_and_go(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(40)
    pack(str(source), tmp_path / "a", splits={"val": 8})
    held_out = set(Dataset.open(str(tmp_path / "a"), "val").keys())
    gone = next(path for path in sorted(source.iterdir()) if path.stem not in held_out)
    gone.unlink()
    pack(str(source), tmp_path / "b", splits={"val": 8})
    assert set(Dataset.open(str(tmp_path / "b"), "val").keys()) == held_out


def spoil(source: Path) -> dict[str, str]:
    """One of each kind of bad file; path to a word of the reason."""
    (source / "notes.txt").write_text("not an image")
    (source / "empty.png").write_bytes(b"")
    (source / "text.jpg").write_text("not an image either")
    buffer = io.BytesIO()
    picture(1, (64, 64)).save(buffer, "PNG")
    (source / "half.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (source / "dangling.png").symlink_to("nowhere")
    return {
        "dangling.png": "not there",
        "empty.png": "empty file",
        "half.png": "truncated",
        "notes.txt": "unknown suffix",
        "text.jpg": "not a readable image",
    }


@pytest.mark.parametrize("splits", [{}, {"val": 20}])
def test_bad_files_are_listed_not_fatal(make_folder: MakeFolder, tmp_path: Path, splits: dict[str, int | None]) -> None:
    source = make_folder(20)
    wanted = spoil(source)
    report = pack(str(source), tmp_path / "out", splits=splits, max_bad_rate=0.5)
    assert report.samples == ({"val": 20, "train": 0} if splits else {"train": 20})
    assert [bad.path for bad in report.bad] == list(wanted)
    assert all(word in bad.reason for bad, word in zip(report.bad, wanted.values(), strict=True))
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["reason"]) for entry in listed] == report.bad


def test_too_many_bad_files_stop_and_can_be_allowed(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(20)
    spoil(source)
    with pytest.raises(DataError, match=r"5 of 25 files .* maxBadRate 0.0001: dangling.png .* and 2 more .*bad.jsonl"):
        pack(str(source), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert pack(str(source), tmp_path / "out", max_bad_rate=0.2).samples == {"train": 20}


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for name, reason in [
        ("empty", "no images"),
        ("missing", "no such directory"),
        ("file", "not a directory"),
        ("texts", "no images"),
    ]:
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            pack(str(tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_directory_below_the_source(make_folder: MakeFolder, tmp_path: Path) -> None:
    # Permission bits do not stop root. A directory whose path is too long to open stops everybody.
    source = make_folder(5)
    code = """
        import json, os, sys
        os.chdir(json.loads(sys.argv[1])["root"])
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    """
    assert run_python(code, root=str(source)).wait() == 0
    with pytest.raises(StorageError, match=r"cannot list .*File name too long"):
        pack(str(source), tmp_path / "out")


def test_source_is_not_its_own_destination(make_folder: MakeFolder) -> None:
    source = make_folder(3)
    with pytest.raises(DataError, match="are the same"):
        pack(str(source), source)


def test_more_held_out_than_there_is(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'val' asks for 9 samples, but there are 5"):
        pack(str(make_folder(5)), tmp_path / "out", splits={"val": 9})


def test_finished_dataset_is_kept_and_never_mixed(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(10)
    first = pack(str(source), tmp_path / "out", splits={"val": 2})
    before = files_of(tmp_path / "out")
    assert pack(str(source), tmp_path / "out", splits={"val": 2}) == first
    assert files_of(tmp_path / "out") == before
    with pytest.raises(DataError, match="holds another dataset"):
        pack(str(source), tmp_path / "out", splits={"val": 3})


PACK = """
    import json, sys
    from dinoctl.data.pack import pack
    s = json.loads(sys.argv[1])
    pack(s["source"], s["out"], splits={"val": 3}, shard_bytes=3000, workers=s["workers"],
         progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize(("workers", "reports"), [(1, 2), (1, 6), (2, 3)])
def test_kill_and_run_again_gives_the_same_bytes(
    make_folder: MakeFolder, tmp_path: Path, workers: int, reports: int
) -> None:
    source = make_folder(60)
    pack(str(source), tmp_path / "whole", splits={"val": 3}, shard_bytes=3000)
    process = run_python(PACK, source=str(source), out=str(tmp_path / "out"), workers=workers)
    assert process.stdout is not None
    for _ in range(reports):
        assert process.stdout.readline()
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / "dataset.json").exists()
    records = set((tmp_path / "out" / "_pack").glob("train-*.json"))
    assert records or reports == 2
    written = {path: path.with_name("x").parent.parent / "train" / f"shard-{path.stem[6:]}.tar" for path in records}
    times = {shard: shard.stat().st_mtime_ns for shard in written.values()}
    pack(str(source), tmp_path / "out", splits={"val": 3}, shard_bytes=3000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert times == {shard: shard.stat().st_mtime_ns for shard in written.values()}, (
        "finished shards were written again"
    )


def test_torn_shard_is_written_again(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(60)
    pack(str(source), tmp_path / "whole", splits={"val": 3}, shard_bytes=3000)
    process = run_python(PACK, source=str(source), out=str(tmp_path / "out"), workers=1)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.kill()
    process.communicate()
    shard = tmp_path / "out" / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    pack(str(source), tmp_path / "out", splits={"val": 3}, shard_bytes=3000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_other_settings_discard_what_was_begun(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(60)
    process = run_python(PACK, source=str(source), out=str(tmp_path / "out"), workers=1)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.kill()
    process.communicate()
    pack(str(source), tmp_path / "out", splits={"test": 4}, shard_bytes=10**6)
    pack(str(source), tmp_path / "fresh", splits={"test": 4}, shard_bytes=10**6)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk(make_folder: MakeFolder, tmp_path: Path, workers: int) -> None:
    # A limit on the size of files fails in the same place as a full disk does: in write().
    source = make_folder(60)
    code = """
        import json, resource, sys
        from dinoctl.data.errors import StorageError
        from dinoctl.data.pack import pack
        s = json.loads(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
        try:
            pack(s["source"], s["out"], shard_bytes=10_000, workers=s["workers"])
        except StorageError as error:
            print(error)
            sys.exit(3)
    """
    process = run_python(code, source=str(source), out=str(tmp_path / "out"), workers=workers)
    output, errors = process.communicate()
    assert process.returncode == 3, errors
    assert "shard-000000.tar" in output
    assert "make room" in output
    assert set(files_of(tmp_path / "out")) <= {"_pack/plan.json"}
    assert pack(str(source), tmp_path / "out", shard_bytes=10_000).samples == {"train": 60}


def test_aborted_packing_removes_half_written_shards(make_folder: MakeFolder, tmp_path: Path) -> None:
    source, half = make_folder(60), tmp_path / "out" / "train" / ".tmp-of-a-killed-worker"

    def abort(done: int, total: int) -> None:
        if done:
            half.write_bytes(b"half a shard")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(str(source), tmp_path / "out", shard_bytes=10_000, workers=2, progress=abort)
    assert not half.exists()


def test_dead_packing_worker_is_an_error(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder(60)
    code = """
        import json, os, signal, sys
        from dinoctl.data import children
        from dinoctl.data.pack import pack
        s = json.loads(sys.argv[1])
        born = children.Child.__init__
        def spy(self, *a, **k):
            born(self, *a, **k)
            os.kill(self.pid, signal.SIGKILL)
        children.Child.__init__ = spy
        pack(s["source"], s["out"], shard_bytes=3000, workers=2)
    """
    process = run_python(code, source=str(source), out=str(tmp_path / "out"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by SIGKILL" in errors
