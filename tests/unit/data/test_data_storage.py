import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoctl.data.errors import DataError, NotFoundError, StorageError
from dinoctl.data.local import LocalStorage, _explained, _write_synced
from dinoctl.data.storage import open_storage


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/", "file://{}/"])
def test_uris_of_a_directory_are_equal(tmp_path: Path, form: str) -> None:
    assert open_storage(form.format(tmp_path)).uri == str(tmp_path)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        open_storage(tmp_path).write_chunks("key", broken())
    assert not list(tmp_path.iterdir())


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
