import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dinoctl.data.errors import DataError, NotFoundError, StorageError
from dinoctl.data.local import LocalStorage, _explained, _write_synced
from dinoctl.data.storage import Entry, open_storage


def test_write_and_read_ranges(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "new" / "root")
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 2, 5) == b"234"
    assert storage.read("a/b.bin", 8) == b"89"
    assert storage.read("a/b.bin", 8, 99) == b"89"
    assert storage.read("a/b.bin", 20, 30) == b""
    assert storage.size("a/b.bin") == 10
    assert storage.local_path("a/b.bin") == tmp_path / "new/root/a/b.bin"


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/", "file://{}/"])
def test_uris_of_a_directory_are_equal(tmp_path: Path, form: str) -> None:
    assert open_storage(form.format(tmp_path)).uri == str(tmp_path)


def test_listing_is_sorted_and_by_prefix(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for key in ("b/2", "b/10", "a", "bc"):
        storage.write(key, b"x" * len(key))
    assert list(storage.list()) == ["a", "b/10", "b/2", "bc"]
    assert list(storage.list("b")) == ["b/10", "b/2", "bc"]
    assert list(storage.entries("b/")) == [Entry("b/10", 4), Entry("b/2", 3)]
    assert list(storage.child("b").list()) == ["10", "2"]
    assert list(storage.list("nothing/")) == []


def test_delete(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for key in ("a/1", "a/b/2", "ab"):
        storage.write(key, b"")
    storage.delete("never/was")
    storage.delete_prefix("a/")
    assert list(storage.list()) == ["ab"]
    storage.delete_prefix("a")
    assert list(storage.list()) == []
    assert not storage.exists("ab")


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.write_if_absent("lock", str(i).encode()), range(64)))
    assert sum(won) == 1
    assert storage.read("lock") == str(won.index(True)).encode()
    assert list(storage.list()) == ["lock"]


def test_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("key", b"old")

    def broken() -> object:
        yield b"new"
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        storage.write_chunks("key", broken())  # type: ignore[arg-type]
    assert storage.read("key") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_killed_writer_is_invisible_and_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom dinoctl.data.storage import open_storage\n"
        "def chunks():\n    yield b'x' * 100000\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"open_storage({str(tmp_path)!r}).write_chunks('key', chunks())\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == -9
    )
    storage = open_storage(tmp_path)
    assert list(tmp_path.iterdir())
    assert list(storage.list()) == []
    storage.sweep()
    assert not list(tmp_path.iterdir())


def test_errors_say_what_and_where(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with pytest.raises(NotFoundError, match=f"{tmp_path}/missing: No such file"):
        storage.read("missing")
    with pytest.raises(DataError, match="leads out of"):
        storage.read("../secret")
    with pytest.raises(DataError, match=r"s3://bucket/prefix, file:///path"):
        open_storage("ftp://host/x")
    storage.write("file", b"")
    with pytest.raises(StorageError, match=r"cannot write .*file/below"):
        storage.write("file/below", b"")


def test_full_device_says_what_to_do() -> None:
    with (
        pytest.raises(StorageError, match=r"No space left on device .*make room") as caught,
        _explained("write", Path("/x/y")),
    ):
        _write_synced(Path("/dev/full"), [b"x"])
    assert caught.value.__cause__.errno == errno.ENOSPC  # type: ignore[union-attr]


def test_s3_uris_parse_without_a_server() -> None:
    storage = open_storage("s3://bucket/some/prefix/")
    assert storage.uri == "s3://bucket/some/prefix"
    assert storage.child("more").uri == "s3://bucket/some/prefix/more"
    assert storage.local_path("x") is None
    assert isinstance(open_storage("relative"), LocalStorage)
